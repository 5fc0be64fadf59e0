"""Storage backends by path or URI."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from raylm.config import validation
from raylm.config.sweep import Sweep
from raylm.errors import SweepError
from raylm.results.storage import Folder, Storage

BUCKET_SCHEMES = ("s3://", "gs://")
DEFAULT_STORAGE = "./runs"
"""Storage if neither the command, nor the sweep, nor `$RAYLM_STORAGE` names one."""


def open_storage(uri: str | os.PathLike[str]) -> Storage:
    """Return the storage at a path or at the URI of a bucket.

    Raises:
        UserError: if a bucket cannot be reached. A folder need not exist.
    """
    if not str(uri).startswith(BUCKET_SCHEMES):
        return Folder(Path(uri).expanduser().absolute())
    from raylm.results.bucket import Bucket  # imports pyarrow

    bucket = Bucket(str(uri).rstrip("/"))
    bucket.check_access()
    return bucket


def open_first_given(*candidates: tuple[str, str | os.PathLike[str] | None]) -> Storage | None:
    """Return the storage of the first candidate that has a value, or None.

    Args:
        candidates: name of an option and its value.

    Raises:
        UserError: if the value is not a path or URI for results, or its bucket cannot be reached.
    """
    for option, uri in candidates:
        if uri:
            if problem := validation.check_storage(uri):
                raise SweepError([replace(problem, location=option)], "this command")
            return open_storage(uri)
    return None


def resolve_storage(sweep: Sweep, uri: str | None) -> Storage:
    """Return the storage of a sweep's results folder: under the given URI, else as documented at `raylm.run`.

    Raises:
        UserError: if the URI names no usable storage.
    """
    given = os.environ.get("RAYLM_STORAGE")
    parent = open_first_given(("--storage", uri), ("storage", sweep.storage), ("RAYLM_STORAGE", given))
    return (parent or open_storage(DEFAULT_STORAGE)).subfolder(sweep.name)
