"""Text of a cluster file: its kind, the settings marked CHANGE, placeholders that are left, and lines of its keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raylm.errors import UserError, describe_os_error

PLACEHOLDER = re.compile(r"\b(?:(?:ami|sg|subnet)-0{16}\d|BUCKET|PROJECT|REGISTRY|ACCOUNT|192\.0\.2\.\d+)\b")
"""Values that no real cluster has: identifiers of zeros, words in capitals, addresses reserved for documentation."""
MARK = re.compile(r"(?P<before>.*?)#\s*CHANGE: (?P<text>.*)")
VARIABLE = re.compile(r"\b[A-Z]+_[A-Z_]+\b")
"""Name of an environment variable in an explanation."""
AS_ABOVE = "as above"
NEXT_COMMANDS = {
    "ray": "ray up -y {file}",
    "kubernetes": "kubectl apply -f {file}",
    "skypilot": "sky jobs launch {file}",
    "slurm": "sbatch {file} SWEEP",
}
"""Command that takes a file, by its kind."""


@dataclass(frozen=True)
class Setting:
    """Setting of a cluster file that its reader is asked to change, or that has a placeholder."""

    line: int
    """Number of its line, from 1."""
    text: str
    """The line without comment and indentation."""
    explanation: str
    """Comment that follows CHANGE; empty if the line is not marked."""
    placeholder: str
    """First placeholder in the line; empty if there is none."""


@dataclass(frozen=True)
class ClusterFile:
    """A file that describes a cluster."""

    path: Path
    kind: str
    """Key of `NEXT_COMMANDS`."""
    lines: Sequence[str]
    config: Mapping[str, Any]
    """Content of a file for `ray up`; empty for other kinds."""
    root: yaml.Node | None
    """Nodes of that content, with their lines."""

    def find_line(self, path: Sequence[str | int]) -> int:
        """Return the line of the innermost key of a path that is in the file, from 1."""
        node, line = self.root, 1
        for step in path:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(step)]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = [(node.value[step], node.value[step])]
            else:
                found = []
            if not found:
                break
            key, node = found[-1]
            line = key.start_mark.line + 1
        return line

    def find_repeated_keys(self) -> Iterator[tuple[int, str]]:
        """Yield line and name of each key that its mapping has already; YAML drops all but the last."""
        seen, nodes = set(), [self.root]
        while nodes:
            node = nodes.pop()
            if id(node) in seen:  # of an alias
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                names: set[str] = set()
                for key, value in node.value:
                    if key.value in names and key.value != "<<":
                        yield key.start_mark.line + 1, str(key.value)
                    names.add(str(key.value))
                    nodes.append(value)
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value


def read_cluster_file(path: Path) -> ClusterFile:
    """Read a file for `ray up`, KubeRay, SkyPilot or SLURM.

    Raises:
        UserError: if it cannot be read, is not YAML, or none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    if "#SBATCH" in text:
        return ClusterFile(path, "slurm", text.splitlines(), {}, None)
    try:
        documents, (root, *_) = list(yaml.safe_load_all(text)), [*yaml.compose_all(text, yaml.SafeLoader), None]
        json.dumps(documents, default=str, skipkeys=True)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:  # as a date that does not exist, an alias within its own value
        raise UserError(f"{path}: not valid YAML: {error}") from error
    kind = _find_kind(documents)
    if not kind:
        expected = "a file for `ray up` (cluster_name, provider), KubeRay, SkyPilot or SLURM, such as cluster.yaml"
        raise UserError(f"{path} does not describe a cluster; expected {expected}")
    if kind != "ray":
        return ClusterFile(path, kind, text.splitlines(), {}, None)
    return ClusterFile(path, kind, text.splitlines(), documents[0] if isinstance(documents[0], dict) else {}, root)


def _find_kind(documents: Sequence[Any]) -> str:
    """Return the kind of a YAML file, or an empty string if it is of none."""
    found = [document for document in documents if isinstance(document, dict)]
    if any("kind" in document and "apiVersion" in document for document in found):
        return "kubernetes"
    if any(name in document for document in found for name in ("provider", "cluster_name", "available_node_types")):
        return "ray"
    return "skypilot" if any("run" in document and "resources" in document for document in found) else ""


# ---- settings marked CHANGE ---------------------------------------------------------------------------------------


def list_settings(file: ClusterFile) -> list[Setting]:
    """Return the settings marked CHANGE and all other lines with a placeholder, in the order of the file."""
    found: dict[int, Setting] = {}
    explanation = ""
    for number, line in enumerate(file.lines):
        if mark := MARK.fullmatch(line):
            own = _read_comment(file, number, mark["text"])
            explanation = explanation if own.rstrip(".") == AS_ABOVE else own
            for place in _find_block(file, number, explanation):
                found[place] = _build_setting(file, place, explanation)
    for number in range(len(file.lines)):
        if number not in found and (setting := _build_setting(file, number, "")).placeholder:
            found[number] = setting
    return [found[number] for number in sorted(found)]


def _build_setting(file: ClusterFile, number: int, explanation: str) -> Setting:
    line = file.lines[number]
    is_comment = line.lstrip().startswith("#") and not line.startswith("#SBATCH")
    code = "" if is_comment and not explanation else re.split(r"\s#\s", line, maxsplit=1)[0].strip()
    placeholder = PLACEHOLDER.search(code)
    return Setting(number + 1, code, explanation, placeholder[0] if placeholder else "")


def _read_comment(file: ClusterFile, number: int, text: str) -> str:
    """Return the explanation that begins in a line, with the comment lines that continue it in YAML."""
    parts = [text]
    if file.kind != "slurm" and file.lines[number].lstrip().startswith("#"):
        for line in file.lines[number + 1 :]:
            if not line.lstrip().startswith("#") or MARK.fullmatch(line):
                break
            parts.append(line.lstrip()[1:].strip())
    return " ".join(parts)


def _find_block(file: ClusterFile, number: int, explanation: str) -> list[int]:
    """Return the lines of a marked setting that matter: those with a placeholder, else the one that is explained."""
    lines = file.lines
    if not lines[number].lstrip().startswith("#"):  # the comment follows its value
        return [number]
    start = number + 1
    while file.kind != "slurm" and start < len(lines) - 1 and lines[start].lstrip().startswith("#"):
        start += 1
    end = start + 1
    while end < len(lines) and _continues(lines[start], lines[end]):
        end += 1
    block = range(start, min(end, len(lines)))
    if left := [place for place in block if _build_setting(file, place, explanation).placeholder]:
        return left
    if file.kind == "slurm":
        return list(block)
    names = VARIABLE.findall(explanation)
    return [next((place for place in block if any(name in lines[place] for name in names)), start)] if block else []


def _continues(first: str, line: str) -> bool:
    """Return whether a line belongs to the same setting as the first: an inner one in YAML, a further batch option."""
    if first.startswith("#SBATCH"):
        return line.startswith("#SBATCH")
    return bool(line.strip()) and _indentation(line) > _indentation(first)


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())
