"""Tools that `sweep_vs_peers.py` compares: each runs the same grid of learning rates and returns its losses."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT, BATCH = 128, 8
SWEEP = """
from ray import tune
from raylm.config.dataset import DatasetSpec
from raylm import Resources, Sweep
sweep = Sweep(name="bench", precision="{precision}", space={{
    "dataset": "pydocs", "model": "gpt2-nano", "context_length": {context}, "max_train_tokens": {tokens},
    "learning_rate": tune.grid_search({rates}),
}}, resources=Resources(cpus=1))
"""

Losses = dict[float, float]
"""Val loss by learning rate."""


@dataclass(frozen=True)
class Search:
    """Search that a tool runs."""

    rates: list[float]
    tokens: int
    precision: str
    """Precision of raylm's sweep: `auto` or `float32`."""
    bf16: bool
    """Precision of the others: Trainer's option of this name, True if `precision` means bfloat16 here."""
    folder: Path
    """Directory for all files of the tool."""
    task: Path
    """File of `write_task`."""


def run_raylm(search: Search) -> Losses:
    """Run `raylm run`, as a user does."""
    file = search.folder / "bench.py"
    file.write_text(SWEEP.format(context=CONTEXT, tokens=search.tokens, rates=search.rates, precision=search.precision))
    command = [sys.executable, "-m", "raylm.sweep", str(file), "--storage", str(search.folder), "--address", "local"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (search.folder / "bench" / "results.csv").open() as rows:
        return {float(row["learning_rate"]): float(row["val_loss"]) for row in csv.DictReader(rows)}


# ---- transformers' Trainer ----------------------------------------------------------------------------------------


def build_model_config(vocab_size: int) -> dict[str, Any]:
    """Return `gpt2-nano` as arguments of GPT2Config."""
    from raylm.config.catalog import MODELS

    shape = MODELS["gpt2-nano"].shape
    sizes = {"n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return {"vocab_size": vocab_size, "n_positions": shape.max_positions, **sizes, **special, **dropout}


def build_trainer(search: Search, folder: Path, threads: int) -> Any:
    """Return a Trainer for the trials; its learning rate is set later."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from vs_trainer import OrderedTrainer, WindowDataset, build_training_arguments, build_training_set

    from raylm import TrialConfig
    from raylm.config.dataset import DatasetSpec
    from raylm.data.corpus import Windows
    from raylm.data.preparation import prepare

    config = TrialConfig(dataset="pydocs", context_length=CONTEXT, batch_size=BATCH, max_train_tokens=search.tokens)
    corpus = prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    validation = Windows(corpus.validation.tokens, CONTEXT, corpus.start_token_id)
    model_config = build_model_config(corpus.vocab_size)

    def model_init() -> GPT2LMHeadModel:
        torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        return GPT2LMHeadModel(GPT2Config(**model_config))

    evaluation = {"eval_strategy": "epoch", "save_strategy": "epoch", "prediction_loss_only": True}
    on_cpu = {"use_cpu": True, "bf16": search.bf16}
    arguments = build_training_arguments(config, str(folder), per_device_eval_batch_size=64, **evaluation, **on_cpu)
    return OrderedTrainer(
        config,
        model_init=model_init,
        args=arguments,
        train_dataset=build_training_set(config, corpus),
        eval_dataset=WindowDataset(validation, range(len(validation))),
    )


def run_trainer_loop(search: Search) -> Losses:
    """Run one Trainer after another on all processors."""
    losses = {}
    for rate in search.rates:
        trial = build_trainer(search, search.folder / f"{rate}", threads=os.cpu_count() or 1)
        trial.args.learning_rate = rate
        trial.train()
        losses[rate] = [entry["eval_loss"] for entry in trial.state.log_history if "eval_loss" in entry][-1]
    return losses


def run_trainer_ray(search: Search) -> Losses:
    """Run the search of transformers by Ray Tune."""
    import ray
    from ray import tune

    ray.init("local", logging_level="ERROR", log_to_driver=False)
    found = build_trainer(search, search.folder / "out", threads=1).hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": tune.grid_search(search.rates)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=1,
        backend="ray",
        resources_per_trial={"cpu": 1},
        storage_path=str(search.folder / "tune"),
        verbose=0,
    )
    results = found.run_summary.results.values()
    return {float(result["config"]["learning_rate"]): float(result["objective"]) for result in results}


def run_trainer_optuna(search: Search) -> Losses:
    """Run the search of transformers by Optuna, in one process."""
    import optuna

    losses = {}
    trainer = build_trainer(search, search.folder / "out", threads=os.cpu_count() or 1)

    def objective(metrics: dict[str, float]) -> float:
        losses[float(trainer.args.learning_rate)] = metrics["eval_loss"]
        return metrics["eval_loss"]

    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", search.rates)},
        compute_objective=objective,
        n_trials=len(search.rates),
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": search.rates}, seed=0),
    )
    return losses


# ---- loops written by hand ----------------------------------------------------------------------------------------


def write_task(file: Path, tokens: int, *, bf16: bool) -> None:
    """Write tokens, model, batch size and schedule of a trial for `stock_loop.train`.

    The windows are tensors in the order in which they are trained on: `[inputs, labels]`, both (N, T).
    """
    import torch
    from vs_trainer import WindowDataset, build_training_set

    from raylm import TrialConfig
    from raylm.config.dataset import DatasetSpec
    from raylm.data.corpus import Windows
    from raylm.data.preparation import prepare
    from raylm.training.optim.schedule import learning_rate_at

    config = TrialConfig(dataset="pydocs", context_length=CONTEXT, batch_size=BATCH, max_train_tokens=tokens)
    corpus = prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    validation = Windows(corpus.validation.tokens, CONTEXT, corpus.start_token_id)

    def stack(dataset: WindowDataset) -> list[torch.Tensor]:
        return [torch.stack([window[name] for window in dataset]) for name in ("input_ids", "labels")]

    training = build_training_set(config, corpus)
    steps = -(-len(training) // BATCH)
    task = {
        "model": build_model_config(corpus.vocab_size),
        "train": stack(training),
        "validation": stack(WindowDataset(validation, range(len(validation)))),
        "factors": [learning_rate_at(config, step, steps) / config.learning_rate for step in range(steps)],
        "batch_size": BATCH,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "bf16": bf16,
    }
    torch.save(task, file)


def run_ray_tune(search: Search) -> Losses:
    """Run a function trainable by Ray Tune, a trial per processor, as in Ray's guide for PyTorch."""
    import ray
    from ray import tune

    def trainable(config: dict[str, float]) -> None:
        import tempfile

        from stock_loop import train

        with tempfile.TemporaryDirectory() as folder:
            val_loss = train(search.task, config["learning_rate"], Path(folder))
            tune.report({"val_loss": val_loss}, checkpoint=tune.Checkpoint.from_directory(folder))

    ray.init("local", logging_level="ERROR", log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),  # for which Ray gives torch one thread
        param_space={"learning_rate": tune.grid_search(search.rates)},
        tune_config=tune.TuneConfig(metric="val_loss", mode="min"),
        run_config=tune.RunConfig(storage_path=str(search.folder / "tune"), verbose=0),
    )
    results = tuner.fit()
    return {result.config["learning_rate"]: result.metrics["val_loss"] for result in results}


def run_optuna_joblib(search: Search) -> Losses:
    """Run a study of Optuna in joblib's processes, one per processor, with a journal as storage, as in its tutorial."""
    import optuna
    from joblib import Parallel, delayed

    name, journal, task, root = "bench", str(search.folder / "journal.log"), search.task, search.folder

    def open_storage() -> optuna.storages.JournalStorage:
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))

    def objective(trial: optuna.Trial) -> float:
        from stock_loop import train

        folder = root / f"trial-{trial.number}"
        folder.mkdir()
        return train(task, trial.suggest_float("learning_rate", 1e-5, 1.0, log=True), folder)

    def run_trial() -> None:
        optuna.load_study(study_name=name, storage=open_storage()).optimize(objective, n_trials=1)

    study = optuna.create_study(study_name=name, storage=open_storage())
    for rate in search.rates:
        study.enqueue_trial({"learning_rate": rate})
    Parallel(n_jobs=os.cpu_count())(delayed(run_trial)() for _ in search.rates)  # gives torch one thread each
    return {trial.params["learning_rate"]: trial.value for trial in study.trials}


TOOLS: dict[str, Callable[[Search], Losses]] = {
    "raylm": run_raylm,
    "trainer-ray": run_trainer_ray,
    "trainer-loop": run_trainer_loop,
    "trainer-optuna": run_trainer_optuna,
    "ray-tune": run_ray_tune,
    "optuna-joblib": run_optuna_joblib,
}
