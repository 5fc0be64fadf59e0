"""Files of models: resolved on the Hub or in a folder, before any is loaded. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylm.config.catalog import MODELS, NANO_MODEL, ModelShape, find_shape, read_model_config
from raylm.data import hub
from raylm.errors import UserError
from raylm.files import compute_sha256


@dataclass(frozen=True)
class ModelSource:
    """Resolved model: everything needed to load the same files on any node."""

    name: str
    """Name in the sweep."""
    folder: str | None
    """Folder of its files on the machine that resolved it; None for `gpt2-nano`, which has no files."""
    pretrained: bool
    """True to load its weights, False for random ones."""
    hub_id: str | None = None
    """Repository on the Hub; None for a local folder."""
    revision: str | None = None
    """Commit on the Hub, or the sha256 over the files of a local folder."""

    def fetch_files(self) -> Path | None:
        """Return the folder of the model's files on this machine, downloaded if missing; None if it has no files."""
        if self.folder is None or Path(self.folder).is_dir() or self.hub_id is None or self.revision is None:
            return None if self.folder is None else Path(self.folder)
        return hub.download_snapshot(self.hub_id, self.revision, include_weights=self.pretrained)


def resolve_model(name: str, *, pretrained: bool) -> ModelSource:
    """Resolve a model by its name in a sweep, and download its files.

    Raises:
        UserError: if it is not available, or has no safetensors weights although `pretrained` is set.
    """
    if name == NANO_MODEL:
        return ModelSource(name, None, pretrained=False)
    hub_id = None
    if name not in MODELS and Path(name, "config.json").is_file():
        folder = Path(name).resolve()
        revision = _hash_files(hub.list_model_files(folder, include_weights=pretrained))
    else:
        hub_id = MODELS[name].hub_id or name if name in MODELS else name
        revision = hub.resolve_commit(hub_id, "model")
        folder = hub.download_snapshot(hub_id, revision, include_weights=pretrained)
    if not (folder / "config.json").is_file():
        raise UserError(f"model {name}: has no config.json; expected a transformers model")
    if pretrained and not _has_safetensors(folder):
        raise UserError(
            f"model {name}: has no weights in safetensors, the only format that raylm loads; "
            "pretrained=False trains its architecture from random weights"
        )
    return ModelSource(name, str(folder), pretrained, hub_id, revision)


def _hash_files(paths: Sequence[Path]) -> str:
    """Return the sha256 over the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {compute_sha256(path)} ".encode())
    return digest.hexdigest()


def _has_safetensors(folder: Path) -> bool:
    """Return whether a folder has weights in safetensors, and an index, if any, of safetensors files in it only."""
    index = folder / "model.safetensors.index.json"
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else []
        has_other_files = any("/" in name or "\\" in name or not name.endswith(".safetensors") for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return not has_other_files and any(folder.glob("*.safetensors"))


def load_shape(source: ModelSource) -> ModelShape | None:
    """Return the shape of a model, or None if its config.json is incomplete."""
    return find_shape(source.fetch_files() or source.name)


def is_known_gpt2(source: ModelSource, vocab_size: int) -> bool:
    """Return whether a model's config.json is that of a GPT-2 of the catalog, and takes a tokenizer's `vocab_size`.

    Nothing else in it can keep such a model from being built, whatever the dropout.
    """
    if source.folder is None:
        return True  # the catalog's, built for the tokenizer
    if source.name not in MODELS:
        return False
    config, shape = read_model_config(Path(source.folder)) or {}, MODELS[source.name].shape
    is_same = config.get("model_type") == "gpt2" and ModelShape.from_config(config) == shape
    return is_same and shape.vocab_size >= vocab_size
