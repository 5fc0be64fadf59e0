"""Names of other tools for fields and options: transformers' Trainer and run_clm, nanoGPT, axolotl, TRL, W&B sweeps."""

from __future__ import annotations

from collections.abc import Iterable

from raylm.errors import Problem, unknown_name_problem

FIELD_NAMES = {
    "dataset": "dataset_name dataset_path datasets data data_path data_file data_files train_file train_data corpus",
    "model": "model_name model_name_or_path model_path model_id base_model init_from pretrained_model architecture",
    "context_length": "block_size max_seq_length max_seq_len max_length seq_len seq_length sequence_len "
    "sequence_length context_len context_size context n_ctx n_positions ctx_len",
    "batch_size": "per_device_train_batch_size per_device_batch_size per_gpu_train_batch_size train_batch_size "
    "micro_batch_size global_batch_size total_batch_size batch bs",
    "epochs": "num_train_epochs num_epochs n_epochs max_epochs nb_epochs epoch",
    "optimizer": "optim optimizer_name optimizer_type opt",
    "learning_rate": "lr max_lr peak_lr base_lr learning_rates",
    "lr_schedule": "lr_scheduler_type lr_scheduler lr_decay scheduler schedule scheduler_type decay_lr",
    "warmup_ratio": "warmup warmup_fraction warmup_proportion",
    "weight_decay": "wd adam_weight_decay",
    "max_grad_norm": "grad_clip clip_grad clip_grad_norm gradient_clip_val gradient_clipping max_norm",
    "dropout": "dropout_rate dropout_p attn_pdrop resid_pdrop embd_pdrop hidden_dropout attention_dropout",
    "seed": "random_seed data_seed random_state manual_seed",
    "max_train_tokens": "max_tokens train_tokens num_tokens",
    "max_documents": "max_train_samples max_samples num_samples_train",
    "text_column": "text_column_name dataset_text_field text_field text_key field",
    "train_split": "split dataset_split train_on_split",
    "validation_split": "eval_split val_split dev_split valid_split",
}
"""Names of other tools with the meaning of a field, by the field."""
FIELD_ADVICE = {
    "accumulate_grad_batches gradient_accumulation_steps grad_accumulation_steps grad_accum": (
        "is not needed: batch_size is the whole batch of an optimizer step, split into micro-batches that fit"
    ),
    "max_steps max_iters num_steps total_steps train_steps": (
        "has no field; expected epochs, or max_train_tokens for a part of an epoch"
    ),
    "warmup_steps warmup_iters num_warmup_steps": "has no field; expected warmup_ratio, the fraction of all steps",
    "eval_steps eval_interval eval_strategy evaluation_strategy save_steps save_strategy logging_steps": (
        "has no field; expected evals_per_epoch, the number of evaluations per epoch, each with a checkpoint"
    ),
    "from_scratch random_init train_from_scratch": "has no field; expected pretrained=False",
    "validation_split_percentage val_size test_size val_set_size validation_file eval_file": (
        "has no field; the validation split of the dataset is used, else its last tenth; see validation_split"
    ),
    "dataset_config_name dataset_config": "has no field; expected it after a colon, dataset='owner/name:config'",
    "n_layer n_layers num_layers num_hidden_layers n_head num_heads n_embd hidden_size d_model": (
        "has no field: the shape is the model's; expected another model, or a folder with a config.json of that shape "
        "and pretrained=False"
    ),
    "fp16 bf16 dtype torch_dtype mixed_precision tf32": (
        "is no field of a trial; expected Sweep(precision='bfloat16', 'float16' or 'float32')"
    ),
    "gpus num_gpus n_gpu n_gpus gpu devices num_processes nproc_per_node world_size": (
        "is no field of a trial; expected Sweep(resources=Resources(gpus=...))"
    ),
    "cpus num_cpus num_workers": "is no field of a trial; expected Sweep(resources=Resources(cpus=...))",
    "output_dir out_dir results_dir save_dir": "is no field of a trial; expected Sweep(storage=...)",
    "report_to wandb wandb_project wandb_log": (
        "is no field of a trial; expected `raylm run --wandb online`, or --mlflow"
    ),
    "gradient_checkpointing activation_checkpointing": (
        "is not needed: activations are recomputed where memory is short"
    ),
    "lora_r lora_alpha lora_dropout peft_config adapter load_in_4bit load_in_8bit": (
        "is not supported: raylm trains all weights of a model"
    ),
}
"""Advice for names of other tools that no field has the meaning of, by these names."""
SWEEP_NAMES = {
    "space": "param_space parameters config params hyperparameters search_space",
    "search": "method search_alg algorithm sampler",
    "num_samples": "n_trials num_trials max_trials count run_cap samples",
    "scheduler": "early_terminate early_stopping pruner",
    "time_budget_hours": "time_budget time_budget_s time_limit timeout",
    "name": "sweep_name project experiment_name",
    "storage": "storage_path output_dir out_dir local_dir",
    "precision": "dtype fp16 bf16 mixed_precision",
    "resources": "resources_per_trial gpus num_gpus cpus num_cpus gpu cpu",
    "seeds": "num_seeds random_seeds",
    "max_failures": "retries max_retries",
}
"""Names of other tools with the meaning of an option of a sweep, by the option."""
SWEEP_ADVICE = {
    "metric mode objective goal direction": (
        "is not needed: rows are ranked by val loss, or by nats per byte where tokenizers differ"
    ),
    "max_concurrent max_concurrent_trials": "is no option of a sweep; expected `raylm run --max-concurrent N`",
    "wandb report_to project_name": "is no option of a sweep; expected `raylm run --wandb online`, or --mlflow",
}
"""Advice for names of other tools that no option has the meaning of, by these names."""
RESOURCE_NAMES = {"gpus": "gpu num_gpus n_gpus GPU", "cpus": "cpu num_cpus n_cpus CPU threads cores"}
"""Names of other tools with the meaning of an option of `Resources`, by the option."""


def find_field(name: str) -> str | None:
    """Return the field of a trial that a name of another tool means, or None."""
    return next((field for field, names in FIELD_NAMES.items() if name in names.split()), None)


def unknown_field(name: object, fields: Iterable[str], sweep_options: Iterable[str] = ()) -> Problem:
    """Return the problem of a field of a trial that does not exist, with the one that is meant if it is known."""
    if problem := _find(name, FIELD_NAMES, FIELD_ADVICE):
        return problem
    if isinstance(name, str) and name in sweep_options:
        return Problem(name, f"is an option of the sweep, not a field of its trials; expected Sweep({name}=...)")
    return unknown_name_problem(str(name), fields)


def unknown_sweep_option(name: str, options: Iterable[str], fields: Iterable[str]) -> Problem:
    """Return the problem of an option of a sweep that does not exist, with the one that is meant if it is known."""
    if problem := _find(name, SWEEP_NAMES, SWEEP_ADVICE):
        return problem
    field = name if name in fields else find_field(name)
    if field is not None:
        return Problem(name, f'is a field of a trial, not an option of the sweep; expected space={{"{field}": ...}}')
    return unknown_name_problem(name, options)


def unknown_resource(name: str, options: Iterable[str]) -> Problem:
    """Return the problem of an option of `Resources` that does not exist."""
    return _find(name, RESOURCE_NAMES, {}) or unknown_name_problem(name, options)


def _find(name: object, meanings: dict[str, str], advice: dict[str, str]) -> Problem | None:
    """Return the problem of a known name of another tool; None for any other name."""
    if not isinstance(name, str):
        return None
    plain = name.lower().replace("-", "_")
    for meant, names in meanings.items():
        if plain in names.lower().split() or plain == meant:
            return Problem(name, f"is not known; did you mean {meant!r}?")
    return next((Problem(name, text) for names, text in advice.items() if plain in names.split()), None)
