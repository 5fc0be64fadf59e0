"""`raylm doctor CLUSTER.YAML`: checks of a cluster file, and of what starting it needs. No network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylm import machine
from raylm.cli import cloud
from raylm.cli.check_result import CheckResult
from raylm.cli.cluster_file import ClusterFile, Setting, list_settings
from raylm.errors import UserError, format_suggestion
from raylm.tuning.connection.cluster_schema import find_config_errors

PROGRAMS = ("ssh", "rsync")
"""Programs that `ray up` calls."""
TOKEN_MOUNT = ".ray/auth_token"
ASSIGNMENT = re.compile(r"(?:- |export |#SBATCH )?([\w.-]+)(?:: |=)(.*)")
"""Setting in YAML, shell, or a batch script's options."""
STORAGE = re.compile(r"RAYLM_STORAGE=(\S+)")


def check_file(file: ClusterFile) -> Iterator[CheckResult]:
    """Yield the results of checking a cluster file; those with advice have to be changed before the cluster starts."""
    for setting in list_settings(file):
        yield _describe_setting(file, setting)
    if file.kind != "ray":
        return
    yield from _check_schema(file)
    provider = file.config.get("provider")
    name = provider.get("type") if isinstance(provider, dict) else None
    yield from cloud.check_account(str(name), provider if isinstance(provider, dict) else {})
    yield from _check_launcher(file)
    yield from _check_mounts(file)
    yield from _check_storage(file)


def list_quotas(file: ClusterFile) -> list[str]:
    """Return the quotas that all workers of a file take together, one line each; none of a file that Ray refuses."""
    return [] if file.kind != "ray" or find_config_errors(file.config) else cloud.describe_quotas(file.config)


def _place(file: ClusterFile, line: int) -> str:
    return f"{file.path}:{line}"


def _describe_setting(file: ClusterFile, setting: Setting) -> CheckResult:
    """Return the state of a marked setting: a problem if it still has its placeholder."""
    assignment = ASSIGNMENT.fullmatch(setting.text)
    name, value = assignment.groups() if assignment else ("line", setting.text)
    advice = ""
    if setting.placeholder:
        advice = f"{setting.placeholder} is a placeholder"
        advice += f": {setting.explanation}" if setting.explanation else "; replace it"
    return CheckResult(_place(file, setting.line), name, value, advice)


def _check_schema(file: ClusterFile) -> Iterator[CheckResult]:
    """Yield the keys and values that Ray refuses, and keys that are there twice."""
    for line, name in file.find_repeated_keys():
        yield CheckResult(_place(file, line), name, "given twice", "remove one: only the last counts")
    errors = find_config_errors(file.config)
    for error in errors:
        hint = format_suggestion(str(error.path[-1]), error.names) if error.path else ""
        name = ".".join(map(str, error.path)) or "cluster"
        yield CheckResult(_place(file, file.find_line(error.path)), name, "refused by Ray", f"{error.message}{hint}")
    if not errors:
        yield CheckResult(str(file.path), "Ray's schema", "valid")


def _check_launcher(file: ClusterFile) -> Iterator[CheckResult]:
    """Yield what `ray up` needs on this machine beside the cloud's account."""
    for program in PROGRAMS:
        found = shutil.which(program)
        yield CheckResult("here", program, found or "not found", "" if found else f"install {program}")
    auth = file.config.get("auth")
    key = auth.get("ssh_private_key") if isinstance(auth, dict) else None
    if key and not _exists(key):
        place = _place(file, file.find_line(["auth", "ssh_private_key"]))
        advice = f"create it with `ssh-keygen -t ed25519 -f {key}` and `ssh-copy-id` it to each machine"
        yield CheckResult(place, "ssh_private_key", f"{key} does not exist", advice)


def _check_mounts(file: ClusterFile) -> Iterator[CheckResult]:
    """Yield the state of the files that are copied to the nodes, one line if all are there."""
    mounts = file.config.get("file_mounts")
    missing = 0
    for remote, local in mounts.items() if isinstance(mounts, dict) else ():
        if _exists(local):
            continue
        missing += 1
        advice = f"run this in the top folder of the repository: there is none in {Path.cwd()}"
        if str(remote).endswith(TOKEN_MOUNT):
            advice = (
                "create the token of the cluster: `ray get-auth-token --generate`, then `chmod 600 ~/.ray/auth_token`"
            )
        yield CheckResult(
            _place(file, file.find_line(["file_mounts", str(remote)])), "file_mounts", f"{local} does not exist", advice
        )
    if mounts and not missing:
        yield CheckResult(str(file.path), "file_mounts", "all exist")
    try:
        token = machine.find_ray_token()
    except UserError as error:
        yield CheckResult("here", "Ray's token", "cannot be read", str(error))
        return
    if token and token.startswith("/") and Path(token).stat().st_mode & 0o077:
        yield CheckResult("here", "Ray's token", f"others can read {token}", f"chmod 600 {token}")


def _exists(path: object) -> bool:
    """Return whether there is something at a path, which may begin with `~`."""
    try:
        return Path(str(path)).expanduser().exists()
    except (OSError, RuntimeError):  # of another user, or in the home of a user who has none
        return False


def _check_storage(file: ClusterFile) -> Iterator[CheckResult]:
    """Yield whether the nodes are told a place for results that outlives them."""
    found = STORAGE.search(" ".join(_list_texts(file.config)))
    if found is None:
        advice = "set RAYLM_STORAGE in setup_commands, as cluster.yaml does: results on the head are lost with it"
        yield CheckResult(str(file.path), "RAYLM_STORAGE", "not set", advice)


def _list_texts(value: Any) -> Iterator[str]:
    """Yield all texts within a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _list_texts(item)
