"""Files that stand in the way of a package, such as `datasets.py`. Imports nothing that one of them could replace."""

from __future__ import annotations

import os
import sys

UNUSED_MODULES = frozenset(
    """
    this antigravity test turtle turtledemo idlelib lib2to3 tkinter ensurepip venv cgi cgitb chunk crypt imghdr
    mailcap msilib nis nntplib ossaudiodev pipes sndhdr spwd sunau telnetlib uu xdrlib audioop aifc distutils
    pydoc_data cProfile profile pstats trace tabnanny pyclbr sched symtable nturl2path rlcompleter wave
    """.split()  # noqa: SIM905 (a list of one name per line would be as long as the module)
)
"""Standard modules that neither raylm nor Ray nor a tracker imports: a file of this name stands in nobody's way."""
PACKAGES = frozenset(
    """
    aiohttp aiosignal attr charset_normalizer click cloudpickle datasets dill filelock fsspec google grpc hf_xet
    httpcore httpx huggingface_hub idna jinja2 jsonschema markupsafe matplotlib mlflow mpmath msgpack msgspec
    multiprocess networkx numpy opencensus opentelemetry optuna packaging pandas PIL platformdirs
    prometheus_client psutil pyarrow pydantic pydantic_core pyparsing pytz raylm ray regex requests rich
    safetensors scipy sentencepiece sentry_sdk setproctitle shellingham six smart_open sqlalchemy sympy
    tensorboard tensorboardX tokenizers torch tqdm trackio transformers triton typer typing_extensions urllib3
    virtualenv wandb xxhash yaml
    """.split()  # noqa: SIM905 (a list of one name per line would be as long as the module)
)
"""Packages that raylm, Ray and the trackers import."""


def find_shadowing_file(folder: str) -> tuple[str, str] | None:
    """Return a Python file or package of a folder that would be imported instead of another, and the other's name.

    A folder without `__init__.py`, as the `wandb` that W&B makes, stands in no package's way.
    """
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return None
    for entry in entries:
        name = entry.removesuffix(".py")
        is_module = entry.endswith(".py") or os.path.isfile(os.path.join(folder, entry, "__init__.py"))
        standard = name in sys.stdlib_module_names and name not in UNUSED_MODULES
        if is_module and (standard or name in PACKAGES) and not _is_library(folder, name):
            return entry, name
    return None


def _is_library(folder: str, name: str) -> bool:
    """Return whether a folder is where a package belongs: that of an installation, or a checkout of it."""
    library = os.path.join("lib", f"python{sys.version_info.major}.{sys.version_info.minor}")
    is_checkout = os.path.isfile(os.path.join(folder, "pyproject.toml")) or os.path.isfile(
        os.path.join(folder, "setup.py")
    )
    return library in os.path.abspath(folder) or (is_checkout and os.path.isdir(os.path.join(folder, name)))


def describe_shadowing(folder: str) -> str | None:
    """Return the message about a file of a folder that stands in the way of a package, or None."""
    found = find_shadowing_file(folder)
    if found is None:
        return None
    entry, name = found
    kind = "standard module" if name in sys.stdlib_module_names else "package"
    return f"{os.path.join(folder, entry)} stands in the way of the {kind} {name}; rename it"


def exit_if_shadowed() -> None:
    """End `python -m raylm...` with exit code 2 if a file of the working folder is in the way.

    Python looks there first; under the command `raylm`, and with `python -P`, it does not.
    """
    if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and (message := describe_shadowing(sys.path[0] or ".")):
        sys.stderr.write(f"raylm: {message}\n")
        raise SystemExit(2)
