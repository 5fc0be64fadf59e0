"""What a sweep will take: steps and tokens as the loop counts them, memory that grows where it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm import TrialConfig, data, memory, models
from raylm.catalog import MODELS, Shape
from raylm.plan import plan, plan_trial
from raylm.train import finetune


def test_a_plan_counts_as_the_loop_does(small_text: Path) -> None:
    corpus = data.prepare(str(small_text), None, "gpt2-nano")
    config = TrialConfig(context_length=32, batch_size=8, epochs=2, max_train_tokens=777)
    planned = plan_trial(config, len(corpus.train.tokens))
    last = list(finetune(config, corpus, models.locate("gpt2-nano", pretrained=True)))[-1]
    assert (planned.tokens, planned.steps) == (last.measured.tokens_seen, last.measured.step)


def test_sizes_are_exact_once_the_corpus_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path))
    config = TrialConfig(context_length=64)
    (before,) = plan([config])
    corpus = data.prepare("pydocs", None, "gpt2-nano")
    (after,) = plan([config])
    assert before is not None and after is not None
    assert not before.exact
    assert (after.exact, after.tokens) == (True, len(corpus.train.tokens))
    assert before.tokens == pytest.approx(after.tokens, rel=0.05)


def test_what_only_the_hub_knows_is_left_open() -> None:
    (unknown,) = plan([TrialConfig(dataset="someone/some-text")])
    assert unknown is None
    (known,) = plan([TrialConfig(dataset="wikitext2", model="someone/some-model")])
    assert known is not None
    assert (known.flops, known.checkpoint_bytes, known.device_bytes(8, "float32")) == (None, None, None)


def test_flops_follow_the_formula() -> None:
    flops = MODELS["gpt2"].shape.training_flops_per_token(1024)
    assert flops / 1e9 == pytest.approx(0.798, abs=0.001)  # 6 (12 L D^2 + V D) + 6 L D T
    assert MODELS["gpt2-xl"].shape.training_flops_per_token(256) / 1e9 == pytest.approx(9.448, abs=0.001)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("gib", [1, 8, 24, 80])
@pytest.mark.parametrize("name", ["gpt2-nano", "gpt2", "gpt2-xl"])
def test_the_micro_batch_is_the_largest_that_fits(name: str, gib: int, precision: str) -> None:
    shape, available = MODELS[name].shape, gib * 2**30
    size = memory.micro_batch_size(shape, 1024, 64, precision, "adafactor", available)
    parts = -(-64 // size)
    needed = memory.training_bytes(shape, 1024, size, precision, "adafactor")
    assert 1 <= size <= 64
    assert size == 1 or needed <= available * memory.RESERVE
    if size < 64:  # one part less would not have fitted
        larger = -(-64 // (parts - 1))
        assert memory.training_bytes(shape, 1024, larger, precision, "adafactor") > available * memory.RESERVE


def test_a_shape_is_read_from_any_familys_config() -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    assert Shape.of({**sizes, "max_position_embeddings": 77}) == Shape(2, 64, 4, 99, 77)
    assert Shape.of(sizes) is None
