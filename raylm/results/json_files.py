"""JSON files of a results folder, converted into typed objects by msgspec.

Text is written and parsed by Python's `json`: files keep their layout, and all that it has written can be read. NaN and
infinities are not written; files of earlier versions may have them.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from raylm.results.storage import Storage

T = TypeVar("T")


class DamagedFileError(Exception):
    """Error for a file that cannot be read, or whose content is not JSON of the expected types."""


def decode(text: str, kind: type[T]) -> T:
    """Return JSON text as an object of a type; keys that the type does not have are ignored.

    Raises:
        DamagedFileError: if the text is not JSON, or a value is missing or of another type.
    """
    try:
        return msgspec.convert(json.loads(text), type=kind, str_keys=True)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise DamagedFileError(str(error)) from error


def encode(value: Any) -> str:
    """Return an object as JSON text for people: indented, floats in full precision.

    Raises:
        ValueError: if a number in it is not finite.
    """
    return json.dumps(msgspec.to_builtins(value), indent=2, allow_nan=False)


def read_text(storage: Storage, name: str) -> str | None:
    """Return the text of a file in a results folder, or None if there is no such file.

    Raises:
        DamagedFileError: if it cannot be read, or is not UTF-8.
    """
    try:
        return storage.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DamagedFileError(str(error)) from error


def load_or_none(storage: Storage, name: str, kind: type[T]) -> T | None:
    """Return a file of a results folder as an object of a type, or None if it is missing or damaged."""
    try:
        text = read_text(storage, name)
        return None if text is None else decode(text, kind)
    except DamagedFileError:
        return None
