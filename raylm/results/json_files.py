"""JSON files of a results folder, converted into typed objects by msgspec.

Text is written and parsed by Python's `json`: files keep their layout, and all that it has written can be read. NaN and
infinities are not written; files of earlier versions may have them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from raylm.errors import UserError
from raylm.results.storage import NO_PERMISSION, Storage

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

    Fields of dataclasses with the metadata `omit_none` are left out if they are None: files of versions before have no
    such field, and stay as they are.

    Raises:
        ValueError: if a number in it is not finite.
    """
    return json.dumps(_to_builtins(value), indent=2, allow_nan=False)


def _to_builtins(value: Any) -> Any:
    """Return an object as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value):
        items = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {
            field.name: _to_builtins(item)
            for field, item in items
            if item is not None or not field.metadata.get("omit_none")
        }
    if isinstance(value, Mapping):
        return {key: _to_builtins(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_builtins(item) for item in value]
    return msgspec.to_builtins(value)


def read_text(storage: Storage, name: str) -> str | None:
    """Return the text of a file in a results folder, or None if there is no such file.

    Raises:
        DamagedFileError: if it cannot be read, or is not UTF-8.
        UserError: if this user may not read it. Without it, finished rows would look unfinished.
    """
    try:
        return storage.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise UserError(f"{storage.uri_of(name)} cannot be read: {NO_PERMISSION}") from None
    except (OSError, ValueError) as error:
        raise DamagedFileError(str(error)) from error


def load_or_none(storage: Storage, name: str, kind: type[T]) -> T | None:
    """Return a file of a results folder as an object of a type, or None if it is missing or damaged."""
    try:
        text = read_text(storage, name)
        return None if text is None else decode(text, kind)
    except DamagedFileError:
        return None
