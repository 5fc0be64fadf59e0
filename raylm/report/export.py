"""Export of a row's best epoch as a folder with weights, tokenizer and model card, and to the Hub. No torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raylm.config.catalog import MODELS
from raylm.data import hub
from raylm.errors import UserError
from raylm.report import model_card
from raylm.report.model_card import Provenance
from raylm.results import manifest
from raylm.results.folder import open_best_checkpoint
from raylm.results.rows import Row, SweepRows

EXCLUDED_FILES = ("README.md", manifest.MANIFEST_FILE, manifest.OPTIMIZER_FILE)
"""Files of a checkpoint that are not part of the model. README.md is the card of checkpoints of older versions."""


@dataclass(frozen=True)
class ExportResult:
    """Result of an export."""

    license_id: str | None
    """License in the card, as the Hub names it; None if unknown."""
    url: str | None
    """Repository on the Hub, if it was uploaded."""


def export(
    results: SweepRows,
    row: Row,
    folder: Path,
    *,
    license_id: str | None = None,
    repo_id: str | None = None,
    public: bool = False,
) -> ExportResult:
    """Write the best epoch of a row into a folder that transformers can load; on an error, nothing is written.

    Args:
        results: rows of the sweep.
        row: row to export.
        folder: new or empty folder.
        license_id: license of the weights, as the Hub names it; None: that of the fine-tuned model, if it is known.
        repo_id: repository on the Hub to upload to as well, before the folder appears.
        public: visibility of a repository that is created; existing ones keep theirs.

    Raises:
        UserError: if the folder is not empty, the row has no evaluated epoch, its checkpoint is damaged, or the Hub
            refuses the upload.
    """
    if row.metrics is None:
        raise UserError(f"{row.config.run_name} ({row.status}) has no evaluated epoch yet")
    target = folder.expanduser().absolute()
    _check_target(folder, target)
    provenance = model_card.load_provenance(results, row)
    license_id = license_id or find_license(row, provenance)
    with open_best_checkpoint(results, row) as checkpoint, _staging_folder(target) as staging:
        if repo_id is not None:
            repo_id = hub.create_repository(repo_id, public=public)  # fails early, before files are copied
        for file in checkpoint.iterdir():
            if file.is_file() and file.name not in EXCLUDED_FILES:
                shutil.copyfile(file, staging / file.name)
        card = model_card.render_card(results, row, provenance, license_id)
        (staging / "README.md").write_text(card, encoding="utf-8")
        sweep_file = model_card.render_sweep_file(row, provenance, results.storage.name)
        (staging / model_card.SWEEP_FILE).write_text(sweep_file, encoding="utf-8")
        url = None
        if repo_id is not None:
            url = hub.upload_folder(staging, repo_id, f"{row.config.run_name}, exported by raylm")
        staging.chmod(0o755)  # temporary folders are private
        staging.rename(target)
    return ExportResult(license_id, url)


def _check_target(folder: Path, target: Path) -> None:
    """Raise UserError if the target exists and is not an empty folder."""
    try:
        is_taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; choose another folder") from None
    if is_taken:
        raise UserError(f"{folder} exists and is not empty; choose another folder, or move it away")


def find_license(row: Row, provenance: Provenance) -> str | None:
    """Return the license of the fine-tuned model, from the catalog or its card on the Hub; None if unknown."""
    if not row.config.pretrained or provenance.model.hub_id is None:
        return None
    known = MODELS.get(row.config.model)
    return known.license_id if known else hub.get_license(provenance.model.hub_id)


@contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to the target, to be renamed to it; remove it on exit if it still exists."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}; choose another folder") from None
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
