#!/usr/bin/env python3
"""Measure the structure and the docstrings of a Python package: `python scripts/architecture.py [FOLDER]`.

Prints modules, folders, the longest chain of imports, circles, and the share of docstrings that begin with a question
word. Imports inside functions and for type checking count. Standard library only, so that it runs on any checkout.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import statistics
import sys
from collections.abc import Container, Iterable
from pathlib import Path

QUESTION_WORDS = {"What", "Whether", "How", "Where", "Who", "Whose", "Whom", "Why", "Which", "When", "Told", "See"}
# fmt: off
OPENING_WORDS = {
    "A", "An", "The", "It", "Its", "This", "That", "These", "Those", "All", "Each", "One", "For",
    "From", "In", "Into", "Of", "On", "At", "By", "With", "Without", "To", "As",
}
# fmt: on
"""Articles, pronouns and prepositions."""


class Package:
    """The modules of a package and the imports between them."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.paths = {
            ".".join((folder.name, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
            for path in sorted(folder.rglob("*.py"))
        }
        self.trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in self.paths.items()}
        self.imports = {module: self._imports(module) - {module} for module in self.paths}

    def _imports(self, module: str) -> set[str]:
        """Return the modules of the package that a module imports."""
        names = set()
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        own = {name for name in names if name.split(".")[0] == self.name}
        return {name if name in self.paths else name.rpartition(".")[0] for name in own} & self.paths.keys()

    def circles(self) -> list[list[str]]:
        """Return the groups of modules that import each other."""
        reached = {module: self._reachable(module) for module in self.paths}
        groups = {
            frozenset(other for other in reached[module] if module in reached[other])
            for module in self.paths
            if module in reached[module]
        }
        return sorted(sorted(group) for group in groups)

    def _reachable(self, module: str) -> set[str]:
        found: set[str] = set()
        left = [module]
        while left:
            new = self.imports[left.pop()] - found
            found |= new
            left += new
        return found

    def longest_chain(self) -> list[str]:
        """Return the longest chain of imports; the package must have no circle."""

        @functools.cache
        def chain(module: str) -> list[str]:
            below: list[list[str]] = [chain(other) for other in self.imports[module]]
            return [module, *max(below, key=len, default=[])]

        chains = [chain(module) for module in self.paths]
        return max(chains, key=len)

    def docstrings(self) -> list[str]:
        """Return the docstrings of modules, classes and functions."""
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        nodes = [node for tree in self.trees.values() for node in ast.walk(tree) if isinstance(node, documented)]
        return [text for node in nodes if (text := ast.get_docstring(node))]

    def all_docstrings(self) -> list[str]:
        """Return these and the strings below attributes and constants."""
        bodies = [node.body for tree in self.trees.values() for node in ast.walk(tree) if hasattr(node, "body")]
        statements = [one for body in bodies if isinstance(body, list) for one in body if isinstance(one, ast.Expr)]
        values = [one.value.value for one in statements if isinstance(one.value, ast.Constant)]
        return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def share(words: Iterable[str], listed: Container[str]) -> str:
    """Return how many words are listed, as a number and in percent."""
    words = list(words)
    found = sum(word in listed for word in words)
    return f"{found} of {len(words)} ({100 * found / len(words):.1f} %)"


def first_words(texts: Iterable[str]) -> list[str]:
    """Return the first word of each text."""
    return [text.split()[0].strip(",.:;") for text in texts]


def measure(folder: Path) -> dict[str, object]:
    """Return all figures of a package."""
    package = Package(folder)
    sizes: dict[Path, int] = {}
    for path in package.paths.values():
        sizes[path.parent] = sizes.get(path.parent, 0) + (path.stem != "__init__")
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in package.paths.values()]
    circles = package.circles()
    chain = [] if circles else package.longest_chain()
    return {
        "modules": len([path for path in package.paths.values() if path.stem != "__init__"]),
        "folders": len(sizes),
        "modules of the largest folder": max(sizes.values()),
        "lines, median and largest file": [round(statistics.median(lines)), max(lines)],
        "circles": len(circles),
        "longest import chain": len(chain),
        "chain": " -> ".join(module.removeprefix(f"{package.name}.") for module in chain),
        "docstrings that begin with a question word": share(first_words(package.docstrings()), QUESTION_WORDS),
        "the same with the strings below attributes": share(first_words(package.all_docstrings()), QUESTION_WORDS),
        "docstrings that begin with an article, pronoun or preposition": share(
            first_words(package.docstrings()), OPENING_WORDS
        ),
    }


def main() -> None:
    """Print the figures, a line each or as JSON."""
    parser = argparse.ArgumentParser(description="Measure the structure and the docstrings of a Python package.")
    default = Path(__file__).resolve().parents[1] / "raylm"
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="folder of the package; default: raylm")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        sys.exit(f"{arguments.folder} is not a folder; expected the folder of a Python package")
    figures = measure(arguments.folder.resolve())
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
