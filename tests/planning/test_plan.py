"""Plans of trials and sweeps, compared with what the training loop counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from raylm import Resources, Sweep, TrialConfig
from raylm.config.catalog import MODELS, ModelShape
from raylm.config.dataset import DatasetSpec
from raylm.data.preparation import prepare
from raylm.planning import throughput
from raylm.planning.devices import Device
from raylm.planning.plan import plan_trial, plan_trials
from raylm.planning.throughput import Placement
from raylm.planning.totals import describe_launch, describe_trials, summary_lines
from raylm.results.progress import MicroBatching
from raylm.training import models
from raylm.training.train import finetune
from raylm.units import GIB, format_duration


def test_plan_counts_tokens_and_steps_like_the_training_loop(small_text: Path) -> None:
    corpus = prepare(DatasetSpec(str(small_text)), None, "gpt2-nano")
    config = TrialConfig(context_length=32, batch_size=8, epochs=2, max_train_tokens=777)
    planned = plan_trial(config, len(corpus.train.tokens))
    last = list(finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True)))[-1]
    assert (planned.tokens, planned.steps) == (last.eval_metrics.tokens_seen, last.eval_metrics.step)


def test_sizes_are_exact_once_the_corpus_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path))
    config = TrialConfig(context_length=64)
    (before,) = plan_trials([config])
    corpus = prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    (after,) = plan_trials([config])
    assert before is not None and after is not None
    assert not before.is_exact
    assert (after.is_exact, after.tokens) == (True, len(corpus.train.tokens))
    assert before.tokens == pytest.approx(after.tokens, rel=0.05)


def test_plan_leaves_open_what_only_the_hub_knows() -> None:
    (unknown,) = plan_trials([TrialConfig(dataset="someone/some-text")])
    assert unknown is None
    (known,) = plan_trials([TrialConfig(dataset="wikitext2", model="someone/some-model")])
    assert known is not None
    assert (known.flops, known.checkpoint_bytes, known.micro_batching, known.seconds) == (None, None, None, None)


def test_flops_follow_the_formula() -> None:
    flops = MODELS["gpt2"].shape.training_flops_per_token(1024)
    assert flops / 1e9 == pytest.approx(0.798, abs=0.001)  # 6 (12 L D^2 + V D) + 6 L D T
    assert MODELS["gpt2-xl"].shape.training_flops_per_token(256) / 1e9 == pytest.approx(9.448, abs=0.001)


def test_shape_is_read_from_the_config_of_any_family() -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    assert ModelShape.from_config({**sizes, "max_position_embeddings": 77}) == ModelShape(2, 64, 4, 99, 77)
    assert ModelShape.from_config(sizes) is None


def test_plan_leaves_open_the_size_of_layers_that_are_not_those_of_gpt2(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    for family, is_known in (("llama", False), ("qwen2", False), ("gpt2", True)):
        config = {**sizes, "max_position_embeddings": 77, "model_type": family}
        (tmp_path / "config.json").write_text(json.dumps(config))
        plan = plan_trial(TrialConfig(model=str(tmp_path), context_length=32), 1000, placement=place_on("h100"))
        numbers = (plan.shape, plan.flops, plan.peak_bytes, plan.checkpoint_bytes, plan.micro_batching, plan.seconds)
        assert [number is not None for number in numbers] == [is_known] * 6, family


def place_on(gpu: str) -> Placement:
    """Return the placement of trials with default resources on a GPU."""
    placement = throughput.find_placement(Resources(), "auto", gpu)
    assert placement is not None
    return placement


def test_plan_on_a_gpu_has_micro_batch_memory_and_time() -> None:
    large, small = (
        plan_trial(TrialConfig(model="gpt2-xl"), 2_340_000, placement=place_on(gpu)) for gpu in ("h100", "a10g")
    )
    assert (large.micro_batching, small.micro_batching) == (MicroBatching(8), MicroBatching(1))
    assert small.peak_bytes is not None and small.peak_bytes < 22 * GIB
    assert large.seconds is not None and small.seconds is not None and small.seconds > 10 * large.seconds


def test_plan_says_which_trials_exceed_the_memory_of_the_gpu() -> None:
    sweep = Sweep(name="s", space={"model": tune.grid_search(["gpt2", "gpt2-xl"]), "optimizer": "adamw"})
    plans = [plan_trial(trial, 1_000_000, placement=place_on("l4")) for trial in sweep.trials()]
    lines = [line for line in summary_lines(sweep, plans, plans, place_on("l4"), None) if "GiB of GPU memory" in line]
    assert len(lines) == 1 and lines[0].startswith("gpt2-xl at context length 1,024 with adamw needs 2")
    assert "and has 22.0 GiB; use a larger GPU" in lines[0]


def test_plan_of_a_sweep_sums_its_trials() -> None:
    sweep = Sweep(name="s", space={"model": "gpt2", "batch_size": tune.grid_search([8, 16, 64])})
    plans = [plan_trial(trial, 1_000_000, placement=place_on("4xa100")) for trial in sweep.trials()]
    seconds = [plan.seconds or 0 for plan in plans]
    lines = summary_lines(sweep, plans, plans[1:], place_on("4xa100"), 3.6)
    assert lines[0].startswith("3 trials, 2 remaining: 2,000,000 tokens in 78 steps, 1.6 PFLOPs, 0.9 GiB on disk")
    assert lines[1].startswith(f"~{format_duration(max(seconds[1:]))} of training, 4 at a time; ~0.00 GPU-hours, ~")
    assert lines[1].endswith(f"~{sum(seconds[1:]) / 1000:.2f} at 3.60 per hour")


def test_plan_of_a_search_spans_its_shortest_to_its_longest_trial() -> None:
    space = {"dataset": "wikitext2", "evals_per_epoch": 9, "model": tune.choice(["gpt2", "gpt2-xl"])}
    sweep = Sweep(name="s", space=space, search="random", num_samples=10, scheduler="asha")
    short, long = (
        plan_trial(TrialConfig(model=name), 2_340_000, placement=place_on("h100")).seconds
        for name in ("gpt2", "gpt2-xl")
    )
    assert short is not None and long is not None
    first, second, *_ = summary_lines(sweep, [], [], place_on("h100"), None)
    assert first == "search of 10 trials, 0 finished; each is suggested from earlier results"
    assert second.startswith(f"training takes ~{format_duration(short)} to ~{format_duration(long)} per trial, ~")
    assert " for 10 trials of mean length; " in second
    assert second.endswith("less if trials are stopped early")


def test_launch_begins_with_time_memory_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    placement = place_on("4xa100")
    monkeypatch.setattr(throughput, "find_placement", lambda *arguments: placement)
    sweep = Sweep(name="s", space={"dataset": "wikitext2", "model": "gpt2", "batch_size": tune.grid_search([8, 16])})
    work, time = describe_launch(sweep, sweep.trials(), 2, is_here=True)
    assert re.fullmatch(r"plan: about [\d,]+ tokens in .* GiB on disk, up to \d+\.\d GiB of memory per trial", work)
    assert re.fullmatch(r"plan: ~[\d.]+ (s|min) of training, 4 at a time; ~[\d.]+ GPU-hours; on A100", time)
    assert describe_launch(sweep, sweep.trials(), 2, is_here=False) == [work.split(", up to")[0]]
    assert describe_trials(sweep, 2, 1) == "sweep s: 2 trials, 1 remaining"


@pytest.mark.parametrize("search", [None, "random"])
def test_launch_of_more_than_a_day_says_what_makes_it_shorter(
    search: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = Placement(Device("a CPU", None, 0.5, 20, 64, "cpu"), 1.0, 1, "float32")
    find = throughput.find_placement
    monkeypatch.setattr(throughput, "find_placement", lambda *given: find(*given) if len(given) == 3 else cpu)
    values = ["gpt2", "gpt2-xl"]
    models = tune.choice(values) if search else tune.grid_search(values)
    options: dict[str, Any] = {"search": search, "num_samples": 20} if search else {}
    sweep = Sweep(name="s", space={"dataset": "imdb", "model": models}, **options)
    line = describe_launch(sweep, [] if search else sweep.trials(), 20 if search else 2, is_here=True)[-1]
    limit, gpu, model = line.removeprefix("plan: more than a day; shorter with ").split(", or ")
    assert re.fullmatch(r"--set max_train_tokens=\d+000 for a first look \(~[\d.]+ (min|h)\)", limit)
    assert re.fullmatch(r"one rtx-4090 \(~[\d.]+ (min|h|d); `raylm plan FILE --gpu rtx-4090`\)", gpu)
    assert re.fullmatch(r"a smaller model than gpt2-xl, which takes \d\d % of the time", model)
