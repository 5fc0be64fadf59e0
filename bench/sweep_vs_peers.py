"""Benchmark the same grid by raylm and by other tools, each as a whole process from start to end.

    python bench/sweep_vs_peers.py [--trials 12] [--tokens 50000] [--only raylm trainer-ray trainer-loop trainer-optuna]

`gpt2-nano` from the same random weights on the text of Python's documentation, the same windows in the same order, the
same schedule and optimizer, an evaluation and a checkpoint per trial, over learning rates:

- `raylm`: `raylm run`, two trials at a time with a processor each;
- `trainer-ray`: transformers' `Trainer.hyperparameter_search(backend="ray")`, also two at a time;
- `trainer-loop`: a loop over `Trainer`, one trial after another on both processors;
- `trainer-optuna`: `Trainer.hyperparameter_search(backend="optuna")`, also one after another.

The corpus is prepared before. Prints seconds, ratios to raylm and each trial's val loss. Needs `accelerate`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SWEEP = """
from ray import tune
from raylm.config.dataset import DatasetSpec
from raylm import Resources, Sweep
sweep = Sweep(name="bench", space={{
    "dataset": "pydocs", "model": "gpt2-nano", "context_length": {context}, "max_train_tokens": {tokens},
    "learning_rate": tune.grid_search({rates}),
}}, resources=Resources(cpus=1))
"""
CONTEXT, BATCH = 128, 8

Losses = dict[float, float]
"""Val loss by learning rate."""


def learning_rates(trials: int) -> list[float]:
    """Return the grid."""
    return [number * 1e-4 for number in range(1, trials + 1)]


def run_raylm(rates: list[float], tokens: int, folder: Path) -> Losses:
    """Run `raylm run`, as a user does."""
    file = folder / "bench.py"
    file.write_text(SWEEP.format(context=CONTEXT, tokens=tokens, rates=rates))
    command = [sys.executable, "-m", "raylm.sweep", str(file), "--storage", str(folder), "--address", "local"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (folder / "bench" / "results.csv").open() as rows:
        return {float(row["learning_rate"]): float(row["val_loss"]) for row in csv.DictReader(rows)}


# ---- transformers -------------------------------------------------------------------------------------------------


def build_trainer(tokens: int, folder: Path, threads: int) -> Any:
    """Return a Trainer for the trials; its learning rate is set later."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from vs_trainer import OrderedTrainer, WindowDataset, build_training_arguments, build_training_set

    from raylm import TrialConfig
    from raylm.config.catalog import MODELS
    from raylm.config.dataset import DatasetSpec
    from raylm.data.corpus import Windows
    from raylm.data.preparation import prepare

    config = TrialConfig(dataset="pydocs", context_length=CONTEXT, batch_size=BATCH, max_train_tokens=tokens)
    corpus, shape = prepare(DatasetSpec("pydocs"), None, "gpt2-nano"), MODELS["gpt2-nano"].shape
    validation = Windows(corpus.validation.tokens, CONTEXT, corpus.start_token_id)

    def model_init() -> GPT2LMHeadModel:
        torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        sizes = {
            "n_positions": shape.max_positions,
            "n_embd": shape.hidden_size,
            "n_layer": shape.num_layers,
            "n_head": shape.num_heads,
        }
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=corpus.vocab_size, bos_token_id=0, eos_token_id=0, **sizes, **dropout)
        )

    evaluation = {"eval_strategy": "epoch", "save_strategy": "epoch", "prediction_loss_only": True}
    arguments = build_training_arguments(config, str(folder), per_device_eval_batch_size=64, **evaluation)
    return OrderedTrainer(
        config,
        model_init=model_init,
        args=arguments,
        train_dataset=build_training_set(config, corpus),
        eval_dataset=WindowDataset(validation, range(len(validation))),
    )


def run_trainer_loop(rates: list[float], tokens: int, folder: Path) -> Losses:
    """Run one Trainer after another on all processors."""
    losses = {}
    for rate in rates:
        trial = build_trainer(tokens, folder / f"{rate}", threads=os.cpu_count() or 1)
        trial.args.learning_rate = rate
        trial.train()
        losses[rate] = [entry["eval_loss"] for entry in trial.state.log_history if "eval_loss" in entry][-1]
    return losses


def run_trainer_ray(rates: list[float], tokens: int, folder: Path) -> Losses:
    """Run the search of transformers by Ray Tune."""
    import ray
    from ray import tune

    ray.init("local", logging_level="ERROR", log_to_driver=False)
    search = build_trainer(tokens, folder / "out", threads=1).hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": tune.grid_search(rates)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=1,
        backend="ray",
        resources_per_trial={"cpu": 1},
        storage_path=str(folder / "tune"),
        verbose=0,
    )
    results = search.run_summary.results.values()
    return {float(result["config"]["learning_rate"]): float(result["objective"]) for result in results}


def run_trainer_optuna(rates: list[float], tokens: int, folder: Path) -> Losses:
    """Run the search of transformers by Optuna, in one process."""
    import optuna

    losses = {}
    trainer = build_trainer(tokens, folder / "out", threads=os.cpu_count() or 1)

    def objective(metrics: dict[str, float]) -> float:
        losses[float(trainer.args.learning_rate)] = metrics["eval_loss"]
        return metrics["eval_loss"]

    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=objective,
        n_trials=len(rates),
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
    )
    return losses


TOOLS: dict[str, Callable[[list[float], int, Path], Losses]] = {
    "raylm": run_raylm,
    "trainer-ray": run_trainer_ray,
    "trainer-loop": run_trainer_loop,
    "trainer-optuna": run_trainer_optuna,
}


def time_tool(tool: str, trials: int, tokens: int) -> tuple[float, Losses]:
    """Return the seconds of a tool's whole process, and its losses."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--tool", tool, "--folder", folder]
        command += ["--trials", str(trials), "--tokens", str(tokens)]
        started = time.perf_counter()
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - started
    return seconds, {float(rate): loss for rate, loss in json.loads(process.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Run each tool and print a table; with `--tool`, run one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--only", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    rates = learning_rates(args.trials)
    if args.tool:
        print(json.dumps(TOOLS[args.tool](rates, args.tokens, args.folder)))
        return
    from raylm.config.dataset import DatasetSpec
    from raylm.data.preparation import prepare

    prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    measured = {tool: time_tool(tool, args.trials, args.tokens) for tool in args.only}
    base = measured[args.only[0]][0]
    for tool, (seconds, losses) in measured.items():
        print(f"{tool:16}{seconds:8.1f} s {seconds / base:6.2f}   " + " ".join(f"{losses[r]:.4f}" for r in rates))


if __name__ == "__main__":
    main()
