"""Constraints for pip with the oldest versions that pyproject.toml allows, for `RAYLM_VERSIONS=lowest scripts/install`.

Dependencies of the package and its extras are held at the version after their `>=`, tools at that of constraints.txt.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIED_TOOLS = ("triton",)
"""Tools of which each version of torch needs its own."""


def lowest_versions() -> dict[str, str]:
    """Return the oldest version that pyproject.toml allows for each dependency, by its normalized name."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, tools = content["project"], content["dependency-groups"]["test"]
    requirements = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    requirements += [line for line in tools if line.startswith(TIED_TOOLS)]
    versions: dict[str, str] = {}
    for requirement in requirements:
        match = re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement)
        if match is None:
            raise ValueError(f"pyproject.toml: {requirement!r}: expected NAME>=VERSION")
        versions.setdefault(match[1].lower(), match[2])
    return versions


def constraints() -> list[str]:
    """Return the lines of a constraints file."""
    lowest = lowest_versions()
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tools = [line for line in pinned if line.split("==")[0].lower().replace("_", "-") not in lowest]
    return [*(f"{name}=={version}" for name, version in lowest.items()), *tools]


if __name__ == "__main__":
    print("\n".join(constraints()))
