"""The sweep files that come with raylm: what there is, and copies to begin one's own with. Standard library only."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from raylm.errors import UserError, nearest, show

FOLDERS = (Path(__file__).with_name("sweeps"), Path(__file__).parents[1] / "sweeps")
"""In an installed package, and in a checkout."""


@dataclass(frozen=True)
class Shipped:
    """A sweep file."""

    name: str
    """Its file's, without `.py`."""
    file: Path

    @property
    def text(self) -> str:
        """Its content."""
        return self.file.read_text(encoding="utf-8")

    @property
    def about(self) -> str:
        """The first line of what it says of itself."""
        return (ast.get_docstring(ast.parse(self.text)) or "").partition("\n")[0]


def sweeps() -> list[Shipped]:
    """All of them, by name."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    return [Shipped(file.stem, file) for file in sorted(folder.glob("*.py"))]


def copy(name: str, to: Path) -> Path:
    """Writes one to a file that is not there yet, or under its own name into a folder; says where it is.

    Raises:
        UserError: if there is no sweep of this name, the file is there, or its folder is not.
    """
    known = {one.name: one for one in sweeps()}
    name = name.removesuffix(".py").replace("-", "_")
    if name not in known:
        raise UserError(f"{show(name)} is no sweep that comes with raylm: {', '.join(known)}{nearest(name, known)}")
    to = to / f"{name}.py" if to.is_dir() else to
    if not to.parent.is_dir():
        raise UserError(f"{to}: there is no folder {to.parent}")
    try:
        with to.open("x", encoding="utf-8") as opened:
            opened.write(known[name].text)
    except FileExistsError as error:
        raise UserError(f"{to} is there already; choose another name, or remove it") from error
    return to
