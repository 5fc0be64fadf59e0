"""From what a user calls a place for results, a path or the URI of a bucket, to the storage there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from raylm.config import validation
from raylm.errors import SweepError
from raylm.results.storage import Folder, Storage

SCHEMES = ("s3://", "gs://")


def storage_at(place: str | os.PathLike[str]) -> Storage:
    """The storage at a path or a URI.

    Raises:
        UserError: if it is a bucket, and cannot be reached. A folder need not be there.
    """
    if not str(place).startswith(SCHEMES):
        return Folder(Path(place).expanduser().absolute())
    from raylm.results.bucket import Bucket  # pyarrow takes a moment to load

    bucket = Bucket(str(place).rstrip("/"))
    bucket.reach()
    return bucket


def first_named(*named: tuple[str, str | os.PathLike[str] | None]) -> Storage | None:
    """The storage at the first place that is given, if one is.

    Args:
        named: where a place may be given, and what is given there.

    Raises:
        UserError: if that is no place for results.
    """
    for source, place in named:
        if place:
            if problem := validation.storage(place):
                raise SweepError([replace(problem, where=source)], "this command")
            return storage_at(place)
    return None
