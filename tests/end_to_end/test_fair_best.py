"""A sweep over tokenizers, one of which loses text: the best row, the table and the advice are those of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference_run import train_without_ray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raylm import Sweep, load_results
from raylm.data import preparation
from raylm.data.text import spaceless_percent
from raylm.report.advice import build_advice
from raylm.results.data_record import describe_data
from raylm.tuning.prepare import PreparedInputs

TAO = "道可道非常道。名可名非常名。無名天地之始；有名萬物之母。故常無欲以觀其妙；常有欲以觀其徼。\n"
"""First lines of the Tao Te Ching, a text without spaces."""


@pytest.fixture
def lossy_model(small_text: Path, tmp_path: Path) -> Path:
    """Tiny model whose tokenizer has 60 words, the others unknown, and no capital letters."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([(small_text / "train.txt").read_text()], trainer)
    folder = tmp_path / "lossy"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=64, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_lossy_tokenizer_is_not_best_and_the_table_says_why(
    small_text: Path, lossy_model: Path, tmp_path: Path
) -> None:
    from ray import tune

    space = {
        "dataset": str(small_text),
        "model": tune.grid_search(["gpt2-nano", str(lossy_model)]),
        "context_length": 32,
        "learning_rate": 1e-3,
    }
    results = load_results(train_without_ray(Sweep(name="s", space=space, precision="float32"), tmp_path))
    nano, lossy = results.rows
    assert nano.metrics and lossy.metrics and lossy.metrics.adj_val_loss < nano.metrics.adj_val_loss
    assert results.best() is nano
    text = Path(results.storage.uri, "results.md").read_text(encoding="utf-8")
    assert f"{lossy.config.run_name} (lossy tokenizer) |" in text
    assert f"- {lossy.config.run_name}: " in text and "% of its tokens are unknown; decoded, its tokens are" in text
    assert not any(lossy.config.run_name in advice for advice in build_advice(results))


def test_adj_val_loss_of_chinese_text_is_said_to_be_per_line(tmp_path: Path) -> None:
    text = tmp_path / "tao.txt"
    text.write_text(TAO * 40, encoding="utf-8")
    (trial,) = Sweep(name="s", space={"dataset": str(text), "context_length": 32}).trials()
    corpus = preparation.prepare(trial.dataset_spec, None, trial.model)
    assert corpus.validation.num_words == 4 and corpus.validation.num_bytes == 4 * len(TAO.encode())
    (note,) = describe_data(PreparedInputs({trial.corpus_key: corpus}, {}, {}).data_records())
    assert "its validation split has 4 words of 136 bytes each" in note
    assert corpus.spaceless_percent == 100


def test_scripts_without_spaces_are_recognized() -> None:
    texts = {
        "ภาษาไทยไม่มีช่องว่าง": 100,
        "日本語のテキスト": 100,
        "한국어는 띄어쓰기가 있다": 0,
        "Привет, мир": 0,
        "": 0,
        "12 + 3": 0,
    }
    assert {text: spaceless_percent(text) for text in texts} == texts
    assert 0 < spaceless_percent("the word 道 in English") < 10
