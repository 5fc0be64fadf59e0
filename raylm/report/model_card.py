"""Model card of an exported row: its losses, settings and license, and how to reproduce it."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from raylm.config.catalog import DATASETS, MODELS, NANO_MODEL
from raylm.config.sweep_file import format_sweep_file
from raylm.config.trial import TrialConfig
from raylm.report import formats
from raylm.report.reference import load_reference
from raylm.report.tables.table import build_table
from raylm.results.data_record import describe_lossy_tokenizer, describe_words
from raylm.results.folder import parse_launch_number
from raylm.results.rows import DONE, Row, SweepRows
from raylm.results.sweep_record import LaunchRecord

SWEEP_FILE = "sweep.py"
HUB_URL = "https://huggingface.co"
UNKNOWN_LICENSE = "unknown"
"""Hub id of an unknown license."""


@dataclass(frozen=True)
class Origin:
    """Source of a model or a dataset."""

    name: str
    """Name in the card; of a local path the last component, which reveals nothing about the machine."""
    hub_id: str | None
    """Repository on the Hub, if it has one."""
    revision: str | None
    """Commit on the Hub, or a hash of local files; None if no launch has recorded it."""
    config_name: str | None = None
    """Configuration of a dataset's repository."""

    @property
    def is_local(self) -> bool:
        """True if it is neither on the Hub nor built into raylm."""
        return self.hub_id is None and self.name not in {**MODELS, **DATASETS}


@dataclass(frozen=True)
class Provenance:
    """Model, dataset and environment of a row."""

    model: Origin
    dataset: Origin
    launch: LaunchRecord | None
    """Launch that trained the best epoch; None if its record is lost."""

    @property
    def precision(self) -> str:
        """Precision of the launch's trials; `auto` if it is not recorded, or each trial resolved it."""
        return self.launch.precision if self.launch else "auto"

    def portable_config(self, config: TrialConfig) -> TrialConfig:
        """Return a config with the names of the card instead of local paths."""
        return TrialConfig.from_record({**config.as_dict(), "model": self.model.name, "dataset": self.dataset.name})


def load_provenance(results: SweepRows, row: Row) -> Provenance:
    """Return the provenance of a row from the record of the launch that trained its best epoch."""
    number = parse_launch_number(row.best_checkpoint.folder.split("/")[0]) if row.best_checkpoint else None
    launch = next((launch for launch in results.launches if launch.number == number), None)
    return Provenance(_model_origin(row.config, launch), _dataset_origin(row.config, launch), launch)


def _model_origin(config: TrialConfig, launch: LaunchRecord | None) -> Origin:
    models = launch.models if launch else []
    key = (config.model, config.pretrained)
    revision = next((record.revision for record in models if (record.model, record.pretrained) == key), None)
    if config.model in MODELS:
        return Origin(config.model, MODELS[config.model].hub_id, revision)
    if _is_commit(revision):
        return Origin(config.model, config.model, revision)
    return Origin(_basename(config.model), None, revision)


def _dataset_origin(config: TrialConfig, launch: LaunchRecord | None) -> Origin:
    datasets = launch.data if launch else []
    revision = next((record.revision for record in datasets if record.corpus_key == config.corpus_key), None)
    if config.dataset in DATASETS:
        return Origin(config.dataset, DATASETS[config.dataset].hub_id, revision, DATASETS[config.dataset].config_name)
    if _is_commit(revision):
        hub_id, _, config_name = config.dataset.partition("@")[0].partition(":")
        return Origin(config.dataset, hub_id, revision, config_name or None)
    return Origin(_basename(config.dataset), None, revision)


def _is_commit(revision: str | None) -> bool:
    """Return True for a commit on the Hub; hashes of local files are longer."""
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


def _basename(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1] or path


def render_sweep_file(row: Row, provenance: Provenance, name: str) -> str:
    """Return a sweep file that reproduces the row; local paths are relative to the file."""
    return format_sweep_file(name, [provenance.portable_config(row.config)], provenance.precision) + "\n"


def render_card(results: SweepRows, row: Row, provenance: Provenance, license_id: str | None) -> str:
    """Return the model card of a row with an evaluated epoch.

    Args:
        results: rows of the sweep.
        row: row to describe.
        provenance: its model, dataset and environment.
        license_id: license of the weights, as the Hub names it; None if unknown.
    """
    assert row.metrics is not None
    paragraphs = [
        f"---\n{_front_matter(results, row, provenance, license_id)}\n---",
        f"# {row.config.run_name}",
        _introduction(row, provenance),
        _render_table(results, row, provenance),
        _describe_losses(results, row),
        "## Settings",
        _markdown_table("field", provenance.portable_config(row.config).as_record()),
        "## Reproduce",
        f"With raylm installed, run `{SWEEP_FILE}` from this folder:",
        f"```sh\nraylm run {SWEEP_FILE}\n```",
        f"```python\n{render_sweep_file(row, provenance, results.storage.name)}```",
        _local_paths_note(provenance),
        "Environment of the original run:",
        _markdown_table("component", _environment_fields(provenance)),
        "## License",
        _license_paragraph(row, provenance, license_id),
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _describe_losses(results: SweepRows, row: Row) -> str:
    """Return the units of the losses, the perplexity, and what the losses do not compare with."""
    assert row.metrics is not None
    text = (
        "Losses are in nats: train and val loss per token, adj val loss per word of the original text. "
        f"Perplexity per token: {_perplexity(row.metrics.val_loss):.2f}."
    )
    per_byte, precision = results.nats_per_byte(row), results.find_precision(row)
    text += "" if per_byte is None else f" Nats per byte of the original text: {per_byte:.4f}."
    text += "" if precision is None else f" Evaluated in {precision}."
    record = results.data.get(row.config.corpus_key)
    remarks = (describe_lossy_tokenizer(record), describe_words(record)) if record else ()
    return " ".join([text, *(f"{remark[0].upper()}{remark[1:]}." for remark in remarks if remark)])


def _introduction(row: Row, provenance: Provenance) -> str:
    assert row.metrics is not None
    config, model = row.config, _format_link(provenance.model)
    training = "fine-tuned" if config.pretrained and config.model != NANO_MODEL else "trained from random weights"
    dataset = _format_link(provenance.dataset, "datasets/")
    epoch = f"epoch {row.metrics.epoch} of {config.epochs}, the one with the lowest val loss"
    return f"{model} {training} on {dataset}: {epoch}{'' if row.status == DONE else f' ({row.status})'}."


def _perplexity(nll: float) -> float:
    """Return the perplexity; infinity if it overflows a float."""
    return math.exp(nll) if nll < math.log(sys.float_info.max) else math.inf


def _front_matter(results: SweepRows, row: Row, provenance: Provenance, license_id: str | None) -> str:
    """Return the metadata that the Hub reads, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    assert row.metrics is not None
    dataset, losses = provenance.dataset, row.metrics
    metrics = [
        ("loss", "val loss (nats per token)", losses.val_loss),
        ("loss", "adj val loss (nats per word)", losses.adj_val_loss),
        ("perplexity", "perplexity per token", _perplexity(losses.val_loss)),
    ]
    per_byte = results.nats_per_byte(row)
    metrics += [] if per_byte is None else [("loss", "nats per byte of the original text", per_byte)]
    eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset.hub_id or dataset.name,
            dataset_name=dataset.name,
            dataset_config=dataset.config_name,
            dataset_split="validation",
            dataset_revision=dataset.revision if dataset.hub_id else None,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in metrics
        if math.isfinite(value)
    ]
    metadata = ModelCardData(
        base_model=provenance.model.hub_id if row.config.pretrained else None,
        datasets=[dataset.hub_id] if dataset.hub_id else None,
        eval_results=eval_results,
        library_name="transformers",
        license=license_id or UNKNOWN_LICENSE,
        model_name=row.config.run_name,
        pipeline_tag="text-generation",
        tags=["raylm"],
    )
    return str(metadata.to_yaml())


def _render_table(results: SweepRows, row: Row, provenance: Provenance) -> str:
    """Return the table of this row alone, compared with the packaged reference."""
    table = build_table(SweepRows(results.storage, [row]), load_reference())
    names = {row.config.dataset: provenance.dataset.name, row.config.model: provenance.model.name}
    cells = [names.get(cell, cell) for cell in table.rows[0]]
    return formats.format_markdown_rows([table.column_names, ["---"] * len(cells), cells])


def _local_paths_note(provenance: Provenance) -> str:
    """Return a note on local files that the sweep file needs; empty if it needs none."""
    names = [f"`{origin.name}`" for origin in (provenance.model, provenance.dataset) if origin.is_local]
    if not names:
        return ""
    verb, pronoun = ("is", "it") if len(names) == 1 else ("are", "them")
    return f"{' and '.join(names)} {verb} local and not included: put {pronoun} next to `{SWEEP_FILE}`."


def _environment_fields(provenance: Provenance) -> dict[str, str]:
    launch = provenance.launch
    fields = {
        "versions": (launch.versions or None) if launch else None,
        "git commit": launch.git_commit if launch else None,
        "precision": launch.precision if launch else None,
        "hardware": launch.hardware.trials_on if launch else None,
        "revision of the model": provenance.model.revision,
        "revision of the data": provenance.dataset.revision,
    }
    return {name: formats.to_plain_text(value) for name, value in fields.items() if value is not None}


def _license_paragraph(row: Row, provenance: Provenance, license_id: str | None) -> str:
    weights = f"License of these weights: {license_id or 'unknown. Set one with `raylm export --license`'}."
    if row.config.pretrained and provenance.model.hub_id:
        weights += f" They were fine-tuned from {_format_link(provenance.model)}."
    return f"{weights} The dataset has a license of its own: {_format_link(provenance.dataset, 'datasets/')}."


def _format_link(origin: Origin, prefix: str = "") -> str:
    return f"[{origin.hub_id}]({HUB_URL}/{prefix}{origin.hub_id})" if origin.hub_id else origin.name


def _markdown_table(heading: str, cells: Mapping[str, object]) -> str:
    rows = [(name, str(value)) for name, value in cells.items()]
    return formats.format_markdown_rows([(heading, "value"), ("---", "---"), *rows])
