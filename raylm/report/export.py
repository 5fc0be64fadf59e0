"""The best epoch of a row as a folder to give away, with its tokenizer and a model card; and onto the hub. No torch."""

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
from raylm.results.rows import Results, Row

EXCLUDED_FILES = ("README.md", manifest.MANIFEST_FILE, manifest.OPTIMIZER_FILE)
"""Files of a checkpoint that are its own."""


@dataclass(frozen=True)
class ExportResult:
    """What there is to say of a row that was exported."""

    license_id: str | None
    """That the card names, in the hub's words; None: none is known."""
    url: str | None
    """Where it is on the hub, if it was uploaded."""


def export(
    results: Results,
    row: Row,
    folder: Path,
    *,
    license_id: str | None = None,
    repo_id: str | None = None,
    public: bool = False,
) -> ExportResult:
    """Writes the best epoch of a row into a folder that transformers opens, whole or not at all.

    Args:
        folder: one that is not there yet, or empty.
        licence: of the weights, in the hub's words; None: that of the model that was fine-tuned, where it is known.
        repository: on the hub, to upload it to as well, before the folder is there.
        public: whether a repository that is made for it is seen by all.

    Raises:
        UserError: if the folder is taken, the row has no best epoch, that is damaged, or the hub refuses it.
    """
    if row.metrics is None:
        raise UserError(f"{row.config.run_name} ({row.status}) has no evaluated epoch yet")
    target = folder.expanduser().absolute()
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise UserError(f"{folder} cannot be looked at: {error.strerror}") from None
    if taken:
        raise UserError(f"{folder} is there and not empty; choose another folder, or move it away")
    made = model_card.load_provenance(results, row)
    license_id = license_id or find_license(row, made)
    with open_best_checkpoint(results, row) as checkpoint, _staging_folder(target) as building:
        if repo_id is not None:
            repo_id = hub.create_repository(repo_id, public=public)  # refused, if it is, before anything is copied
        for file in checkpoint.iterdir():
            if file.is_file() and file.name not in EXCLUDED_FILES:
                shutil.copyfile(file, building / file.name)
        (building / "README.md").write_text(model_card.render_card(results, row, made, license_id), encoding="utf-8")
        text = model_card.render_sweep_file(row, made, results.storage.name)
        (building / model_card.SWEEP_FILE).write_text(text, encoding="utf-8")
        address = None
        if repo_id is not None:
            address = hub.upload_folder(building, repo_id, f"{row.config.run_name}, exported by raylm")
        building.chmod(0o755)  # a temporary folder is its owner's alone
        building.rename(target)
    return ExportResult(license_id, address)


def find_license(row: Row, provenance: Provenance) -> str | None:
    """The licence of the weights that were fine-tuned: as raylm knows it, else as their card on the hub names it."""
    if not row.config.pretrained or provenance.model.hub_id is None:
        return None
    known = MODELS.get(row.config.model)
    return known.license_id if known else hub.get_license(provenance.model.hub_id)


@contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside one that is to be, so that it can be renamed to it; removed in the end, if it is left."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}; choose another folder") from None
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)
