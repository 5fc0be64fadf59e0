"""The model card of an exported row: what it is, its losses with their dataset, its licence, how to make it again."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from raylm.config.catalog import DATASETS, MODELS, NANO_MODEL
from raylm.config.sweep_file import format_sweep_file as write_sweep_file
from raylm.config.trial import TrialConfig
from raylm.report import formats
from raylm.report.formats import to_plain_text
from raylm.report.reference import load_reference
from raylm.report.table import build_table
from raylm.results.folder import parse_launch_number
from raylm.results.rows import DONE, Results, Row
from raylm.results.sweep_record import LaunchRecord

SWEEP_FILE = "sweep.py"
HUB_URL = "https://huggingface.co"
UNKNOWN_LICENSE = "unknown"
"""The hub's word for a licence that nobody has named."""


@dataclass(frozen=True)
class Origin:
    """Where a model or a dataset is from."""

    name: str
    """As the card names it: of a local path its last part, which tells nothing of the machine."""
    hub_id: str | None
    """Its repository on the hub; None: it has none."""
    revision: str | None
    """Its commit, or a hash of what is local; None where no launch has recorded it."""
    config_name: str | None = None
    """Of a dataset's repository, the configuration."""


@dataclass(frozen=True)
class Provenance:
    """What a row was made of and with."""

    model: Origin
    dataset: Origin
    launch: LaunchRecord | None
    """The launch that its best epoch is of; None if its record is lost."""


def load_provenance(results: Results, row: Row) -> Provenance:
    """What a row was made of and with, by the record of the launch that its best epoch is of."""
    number = parse_launch_number(row.best_checkpoint.folder.split("/")[0]) if row.best_checkpoint else None
    launch = next((launch for launch in results.launches if launch.number == number), None)
    return Provenance(_model_origin(row.config, launch), _dataset_origin(row.config, launch), launch)


def _model_origin(config: TrialConfig, launch: LaunchRecord | None) -> Origin:
    models = launch.models if launch else []
    wanted = (config.model, config.pretrained)
    revision = next((one.revision for one in models if (one.model, one.pretrained) == wanted), None)
    if config.model in MODELS:
        return Origin(config.model, MODELS[config.model].hub_id, revision)
    if _is_commit(revision):
        return Origin(config.model, config.model, revision)
    return Origin(_basename(config.model), None, revision)


def _dataset_origin(config: TrialConfig, launch: LaunchRecord | None) -> Origin:
    data = launch.data if launch else []
    wanted = (config.dataset, config.model)
    revision = next((one.revision for one in data if (one.dataset, one.model) == wanted), None)
    if config.dataset in DATASETS:
        return Origin(config.dataset, DATASETS[config.dataset].hub_id, revision, DATASETS[config.dataset].config_name)
    if _is_commit(revision):
        hub_id, _, part = config.dataset.partition(":")
        return Origin(config.dataset, hub_id, revision, part or None)
    return Origin(_basename(config.dataset), None, revision)


def _is_commit(revision: str | None) -> bool:
    """Whether it is a commit on the hub; what is local has a longer hash."""
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


def _basename(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1] or path


def render_sweep_file(row: Row, provenance: Provenance, name: str) -> str:
    """Python that makes the row again; what is local is named by its last part, as if it lay beside."""
    config = TrialConfig.from_record(
        {**row.config.as_dict(), "model": provenance.model.name, "dataset": provenance.dataset.name}
    )
    return write_sweep_file(name, [config], provenance.launch.precision if provenance.launch else "auto") + "\n"


def render_card(results: Results, row: Row, provenance: Provenance, license_id: str | None) -> str:
    """The card of a row that has a best epoch.

    Args:
        licence: of the weights, in the hub's words; None: it is not known.
    """
    assert row.metrics is not None
    config, measured = row.config, row.metrics
    name, model, dataset = (
        config.run_name,
        _format_link(provenance.model),
        _format_link(provenance.dataset, "datasets/"),
    )
    status = "" if row.status == DONE else f", {row.status}"
    begun = (
        f"{model} fine-tuned" if config.pretrained and config.model != NANO_MODEL else f"{model}, from random weights,"
    )
    local = [f"`{one.name}`" for one in (provenance.model, provenance.dataset) if _is_local(one)]
    beside = f"{' and '.join(local)} stands for what is local and not here: put it beside the file." if local else ""
    paragraphs = [
        f"---\n{_front_matter(row, provenance, license_id)}\n---",
        f"# {name}",
        f"{begun} on {dataset}: epoch {measured.epoch} of {config.epochs}, that with the lowest val loss{status}.",
        _render_table(results, row, provenance),
        "Losses are in nats: train and val loss per token, adj val loss per word of the original text. "
        f"Perplexity per token: {_perplexity(measured.val_loss):.2f}.",
        "## Settings",
        _markdown_table({**config.as_dict(), "model": provenance.model.name, "dataset": provenance.dataset.name}),
        "## Making it again",
        f"```sh\nraylm run {SWEEP_FILE}\n```",
        f"with raylm and `{SWEEP_FILE}`:",
        f"```python\n{render_sweep_file(row, provenance, results.storage.name)}```",
        beside,
        "What it was made with:",
        _markdown_table(_environment_fields(provenance)),
        "## Licence",
        f"{_license_paragraph(row, provenance, license_id)} The data has a licence of its own: {dataset}.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _perplexity(nll: float) -> float:
    """Infinite where a float does not hold it."""
    return math.exp(nll) if nll < math.log(sys.float_info.max) else math.inf


def _front_matter(row: Row, provenance: Provenance, license_id: str | None) -> str:
    """What the hub reads of the card."""
    from huggingface_hub import EvalResult, ModelCardData

    assert row.metrics is not None
    losses = row.metrics
    values = [
        ("loss", "val loss (nats per token)", losses.val_loss),
        ("loss", "adj val loss (nats per word)", losses.adj_val_loss),
        ("perplexity", "perplexity per token", _perplexity(losses.val_loss)),
    ]
    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type=provenance.dataset.hub_id or provenance.dataset.name,
            dataset_name=provenance.dataset.name,
            dataset_config=provenance.dataset.config_name,
            dataset_split="validation",
            dataset_revision=provenance.dataset.revision if provenance.dataset.hub_id else None,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in values
        if math.isfinite(value)
    ]
    told = ModelCardData(
        base_model=provenance.model.hub_id if row.config.pretrained else None,
        datasets=[provenance.dataset.hub_id] if provenance.dataset.hub_id else None,
        eval_results=found,
        library_name="transformers",
        license=license_id or UNKNOWN_LICENSE,
        model_name=row.config.run_name,
        pipeline_tag="text-generation",
        tags=["raylm"],
    )
    return str(told.to_yaml())


def _render_table(results: Results, row: Row, provenance: Provenance) -> str:
    """The row of the table, beside the reference where that has it."""
    built = build_table(Results(results.storage, [row]), load_reference())
    names = {row.config.dataset: provenance.dataset.name, row.config.model: provenance.model.name}
    line = [names.get(cell, cell) for cell in built.rows[0]]
    return formats.format_markdown_rows([built.column_names, ["---"] * len(line), line])


def _environment_fields(provenance: Provenance) -> dict[str, str]:
    launch = provenance.launch
    told = {
        "versions": (launch.versions or None) if launch else None,
        "git commit": launch.git_commit if launch else None,
        "precision": launch.precision if launch else None,
        "hardware": launch.hardware.trials_on if launch else None,
        "revision of the model": provenance.model.revision,
        "revision of the data": provenance.dataset.revision,
    }
    return {name: to_plain_text(value) for name, value in told.items() if value is not None}


def _license_paragraph(row: Row, provenance: Provenance, license_id: str | None) -> str:
    weights = f"Of these weights: {license_id or 'not known; whoever passes them on has to say it'}."
    return weights + (
        f" They were fine-tuned from {_format_link(provenance.model)}."
        if row.config.pretrained and provenance.model.hub_id
        else ""
    )


def _format_link(origin: Origin, prefix: str = "") -> str:
    return f"[{origin.hub_id}]({HUB_URL}/{prefix}{origin.hub_id})" if origin.hub_id else origin.name


def _is_local(origin: Origin) -> bool:
    return origin.hub_id is None and origin.name not in {**MODELS, **DATASETS}


def _markdown_table(cells: Mapping[str, object]) -> str:
    return formats.format_markdown_rows([("what", "value"), ("---", "---"), *((k, str(v)) for k, v in cells.items())])
