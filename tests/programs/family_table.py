"""Print a table of model families with the val loss by raylm and by transformers alone, as Markdown."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "training")]

import torch  # noqa: E402
import transformers  # noqa: E402
from reference_loss import mean_loss  # noqa: E402
from tiny_families import FAMILIES, build_model  # noqa: E402
from tiny_tokenizers import byte_level  # noqa: E402

from raylm import TrialConfig  # noqa: E402
from raylm.data.corpus import Windows  # noqa: E402
from raylm.data.preparation import prepare  # noqa: E402
from raylm.training import models  # noqa: E402
from raylm.training.train import finetune  # noqa: E402

LENGTH = 24


def compare(family: str, folder: Path) -> tuple[float, float]:
    """Return the val loss of a family's model after an epoch of 24 windows, by raylm and by transformers."""
    build_model(family).save_pretrained(folder / "model")
    byte_level().save_pretrained(folder / "model")
    text = folder / "text.txt"
    text.write_text((topics["while"] + topics["for"] + topics["break"])[:4_000] + "\n")
    config = TrialConfig(
        dataset=str(text),
        model=str(folder / "model"),
        context_length=LENGTH,
        batch_size=4,
        learning_rate=1e-3,
        max_train_tokens=24 * (LENGTH - 1),
    )
    source = models.resolve_model(config.model, pretrained=True)
    corpus = prepare(config.dataset_spec, source.fetch_files(), config.model)
    (evaluation,) = finetune(config, corpus, source)
    (folder / "saved").mkdir()
    evaluation.save(folder / "saved")
    reopened = transformers.AutoModelForCausalLM.from_pretrained(folder / "saved", dtype=torch.float32).eval()
    expected = mean_loss(reopened, Windows(corpus.validation.tokens, LENGTH, corpus.start_token_id))
    return evaluation.eval_metrics.val_loss, expected


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print("| family | val loss | transformers alone | difference |\n| --- | --- | --- | --- |")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            own, expected = compare(family, Path(folder))
        print(f"| {family} | {own:.6f} | {expected:.6f} | {abs(own - expected):.0e} |", flush=True)
