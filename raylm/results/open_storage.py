"""From what a user calls a place for results, a path or the URI of a bucket, to the storage there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from raylm.config import validation
from raylm.errors import SweepError
from raylm.results.storage import Folder, Storage

BUCKET_SCHEMES = ("s3://", "gs://")


def open_storage(uri: str | os.PathLike[str]) -> Storage:
    """The storage at a path or a URI.

    Raises:
        UserError: if it is a bucket, and cannot be reached. A folder need not be there.
    """
    if not str(uri).startswith(BUCKET_SCHEMES):
        return Folder(Path(uri).expanduser().absolute())
    from raylm.results.bucket import Bucket  # pyarrow takes a moment to load

    bucket = Bucket(str(uri).rstrip("/"))
    bucket.check_access()
    return bucket


def open_first_given(*candidates: tuple[str, str | os.PathLike[str] | None]) -> Storage | None:
    """The storage at the first place that is given, if one is.

    Args:
        named: where a place may be given, and what is given there.

    Raises:
        UserError: if that is no place for results.
    """
    for source, place in candidates:
        if place:
            if problem := validation.check_storage(place):
                raise SweepError([replace(problem, location=source)], "this command")
            return open_storage(place)
    return None
