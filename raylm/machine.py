"""Machine that a command runs on: its cores and memory, and what keeps Ray from starting. Without Ray and torch."""

from __future__ import annotations

import math
import os
import resource
import secrets
import socket
import sys
import tempfile
from pathlib import Path

import psutil

from raylm.errors import NO_HOME, UserError, is_home_unknown
from raylm.files import write_private_file
from raylm.units import GIB

CGROUP_ROOT = Path("/sys/fs/cgroup")
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""Longest path of a Unix socket on Linux, and on macOS."""
RAY_SOCKET_SUFFIX = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Path of Ray's longest socket below its temporary folder."""
APPLE_GPU = "Apple silicon"
"""Name of the GPU of a Mac, where torch does not tell it."""
LOOPBACK = "127.0.0.1"
GPU_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of the drivers of NVIDIA, of Windows' subsystem for Linux, and of AMD."""
MIN_ADDRESS_SPACE_BYTES = 15 * GIB
"""Virtual memory that Ray starts with (measured: 16 GB suffice, with 8 GB its processes wait for each other)."""
OBJECT_STORE_FRACTION, MAX_OBJECT_STORE_BYTES = 0.3, 200 * 10**9
"""Size of the file that Ray creates for its object store: a fraction of the available memory, at most so many bytes."""
FOLDER_VARIABLES = (
    *("HF_DATASETS_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_XET_CACHE", "HOME", "RAYLM_CACHE"),
    *("RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"),
)
"""Variables with a path that Ray or a trial reads."""
RAY_NEEDS = {
    "RLIMIT_AS": ("v", 64 * 2**30),
    "RLIMIT_FSIZE": ("f", MAX_OBJECT_STORE_BYTES),
    **({"RLIMIT_NPROC": ("u", 4096)} if sys.platform == "linux" else {}),  # counts threads there only
    "RLIMIT_NOFILE": ("n", 1024),
}
"""Limits of a process, with the option of `ulimit`, and values that Ray is known to start with."""


def allowed_cpus() -> int:
    """Return the number of cores that this process may use: by its affinity, its control group, and SLURM.

    `os.cpu_count` returns those that exist.
    """
    limits = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    limits += [quota for quota in (_cgroup_quota(),) if quota is not None]
    if "SLURM_JOB_ID" in os.environ:
        names = ["SLURM_CPUS_ON_NODE"]
        names += ["SLURM_CPUS_PER_TASK"] if "SLURM_STEP_ID" in os.environ else []  # of `srun`, not of a batch script
        limits += [int(value) for name in names if (value := os.environ.get(name, "")).isdecimal()]
    return max(1, math.floor(min(limits)))


def _cgroup_quota() -> float | None:
    """Return the cores of this process's control group, version 2 or 1, or None if it is not limited."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    groups = [CGROUP_ROOT / path.lstrip("/") for _, controllers, path in lines if not controllers]
    for folder in (*groups, CGROUP_ROOT):
        quota = _parse_quota(folder / "cpu.max")
        if quota is not None:
            return quota
    for folder in (CGROUP_ROOT / "cpu", CGROUP_ROOT / "cpu,cpuacct"):
        try:
            microseconds = int((folder / "cpu.cfs_quota_us").read_text())
            period = int((folder / "cpu.cfs_period_us").read_text())
        except (OSError, ValueError):
            continue
        if microseconds > 0 and period > 0:
            return microseconds / period
    return None


def _parse_quota(file: Path) -> float | None:
    """Return the cores in a `cpu.max`, or None if it is missing or says `max`."""
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def machine_memory() -> tuple[int, int]:
    """Return used and total bytes of the machine, or of the control group (container) that limits this process."""
    machine = psutil.virtual_memory()
    for folder, limit_file, usage_file in _list_control_groups():
        try:
            limit = int((folder / limit_file).read_text())
            if limit < machine.total:
                return int((folder / usage_file).read_text()) - _reclaimable_bytes(folder), limit
        except (OSError, ValueError):  # missing, or `max`
            continue
    return machine.total - machine.available, machine.total


def _list_control_groups() -> list[tuple[Path, str, str]]:
    """Return the folders of this process's control groups with their limit and usage files: version 2, then 1."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    v2_files, v1_files = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    v2_paths = [path for _, controllers, path in lines if not controllers]
    v1_paths = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    # inside a container the path is often that of the host; the container's own group is then the root
    return [
        *((CGROUP_ROOT / path.lstrip("/"), *v2_files) for path in v2_paths),
        *((CGROUP_ROOT / "memory" / path.lstrip("/"), *v1_files) for path in v1_paths),
        (CGROUP_ROOT, *v2_files),
        (CGROUP_ROOT / "memory", *v1_files),
    ]


def _reclaimable_bytes(folder: Path) -> int:
    """Return the bytes of cached files that the kernel frees on demand."""
    lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    stats = {name: int(value) for name, value in lines}
    return stats.get("total_inactive_file", stats.get("inactive_file", 0))


def has_gpu_driver() -> bool:
    """Return whether the system may have a driver of a GPU: on Linux, by the files of those of NVIDIA and AMD."""
    return sys.platform != "linux" or any(map(os.path.exists, GPU_DRIVER_FILES))


def prepare_ray_start(cpus: int = 1) -> None:
    """Check that nothing is known to keep Ray from starting on this machine, and create its token.

    Args:
        cpus: cores that each trial requests.

    Raises:
        UserError: if something is, or there are fewer cores.
    """
    if cpus > (allowed := allowed_cpus()):
        cores = f"{allowed} core{'s' if allowed > 1 else ''}"
        raise UserError(
            f"a trial requests {cpus} CPUs and this command may use {cores} (by its affinity, container or SLURM); "
            "request fewer with resources=Resources(cpus=...)"
        )
    if obstacle := find_ray_obstacle():
        raise UserError(f"Ray cannot start: {obstacle}")
    create_ray_token()


def find_ray_obstacle() -> str | None:
    """Return what keeps Ray from starting on this machine, with what to change, or None if nothing is known to."""
    return _check_temporary_folder() or _check_loopback() or _check_address_space() or _check_file_size()


def describe_limits() -> str:
    """Return the limits of this process that are lower than Ray may need, in one line; an empty string if none is."""
    found = []
    for name, (flag, needed) in RAY_NEEDS.items():
        soft, hard = resource.getrlimit(getattr(resource, name))
        limit = hard if name == "RLIMIT_NOFILE" else soft  # Ray raises that one, which is 256 on a Mac
        if limit not in (-1, resource.RLIM_INFINITY) and limit < needed:
            found.append(f"`ulimit -{flag}` is {limit // 1024 if flag in 'vf' else limit:,}")
    return f"{' and '.join(found)}, which may be too low" if found else ""


def ray_temporary_folder() -> str:
    """Return the folder that Ray puts its sockets and logs under; on a Mac, whose TMPDIR is long, that is /tmp."""
    on_linux = os.environ.get("TMPDIR") if sys.platform == "linux" else None
    return os.environ.get("RAY_TMPDIR") or on_linux or "/tmp"


def _check_temporary_folder() -> str | None:
    folder = ray_temporary_folder()
    length = len(os.fsencode(os.path.realpath(folder) + RAY_SOCKET_SUFFIX))
    if length > MAX_SOCKET_PATH_BYTES:
        return (
            f"its socket's path in {folder} would have {length} bytes, {MAX_SOCKET_PATH_BYTES} are the most; "
            "set RAY_TMPDIR to a shorter folder, such as /tmp"
        )
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        own = Path(folder) / "ray"  # another user's Ray may have created it
        folder = str(own) if own.exists() else folder
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"its folder {folder} cannot be written: {error.strerror}; set RAY_TMPDIR to another folder"


def _check_address_space() -> str | None:
    """Return a message if the limit of virtual memory is so low that Ray's processes die or hang without a word."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or soft >= MIN_ADDRESS_SPACE_BYTES:
        return None
    needed = f"Ray needs {MIN_ADDRESS_SPACE_BYTES / GIB:.0f} GiB"
    return f"the limit of virtual memory is {soft / GIB:.1f} GiB and {needed}; raise it with `ulimit -v unlimited`"


def _check_file_size() -> str | None:
    """Return a message if the limit on the size of files is lower than Ray's object store: Ray would hang."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    used, total = machine_memory()
    needed = min(OBJECT_STORE_FRACTION * (total - used), MAX_OBJECT_STORE_BYTES)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    store = f"Ray's object store is a file of {needed / GIB:.1f} GiB"
    return f"the limit on the size of a file is {soft / GIB:.1f} GiB and {store}; raise it with `ulimit -f unlimited`"


def _check_loopback() -> str | None:
    """Return a message if this machine cannot connect to itself, as in a namespace without any network."""
    try:
        with socket.create_server((LOOPBACK, 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
            return None
    except OSError as error:
        what = f"this machine cannot connect to itself at {LOOPBACK}: {error.strerror or error}"
        return f"{what}; bring up the loopback interface, as by `ip link set lo up`"


def advise_on_ray_start() -> str:
    """Return what to look at if Ray does not start, with this process's limits that are low."""
    limits = describe_limits()
    logs = f"see the logs in {ray_temporary_folder()}/ray/session_latest/logs"
    return f"{limits}; {logs}" if limits else logs


def make_folders_absolute() -> None:
    """Make relative paths absolute in variables that name folders: trials inherit these, with other working folders."""
    for name in FOLDER_VARIABLES:
        value = os.environ.get(name, "")
        if value and not value.startswith(("/", "~")):
            os.environ[name] = str(Path(value).absolute())


def find_ray_token() -> str | None:
    """Return where Ray finds a token on this machine, `RAY_AUTH_TOKEN` or a file, or None if there is none.

    Raises:
        UserError: if the file cannot be read, or is empty although a variable names it.
    """
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        try:
            if Path(path).read_bytes().strip():
                return path
            reason = "it is empty"
        except OSError as error:
            reason = error.strerror or str(error)
        raise UserError(f"RAY_AUTH_TOKEN_PATH is {path}: {reason}; expected a file with the token of the cluster")
    try:
        file = default_ray_token_file()
        return str(file) if file.read_bytes().strip() else None
    except PermissionError as error:
        raise UserError(
            f"the token {error.filename} cannot be read: {error.strerror}; set HOME to your own home"
        ) from error
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None


def default_ray_token_file() -> Path:
    """Return the file of Ray's token if no variable names another one; raise RuntimeError if the user has no home."""
    return Path.home() / ".ray" / "auth_token"


def create_ray_token() -> None:
    """Create the token of a local Ray as Ray itself would, but readable by its owner only.

    Raises:
        UserError: if its folder cannot be written.
    """
    if os.environ.get("RAY_AUTH_TOKEN", "").strip() or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        find_ray_token()
        return
    try:
        file = default_ray_token_file()
        if file.exists() and file.read_bytes().strip():
            file.chmod(0o600)
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private_file(file, secrets.token_hex(32))
    except (OSError, RuntimeError) as error:
        if is_home_unknown(error):
            raise UserError(f"Ray cannot start: {NO_HOME}, or RAY_AUTH_TOKEN to any secret text") from error
        home = os.environ.get("HOME", "not set")
        reason = getattr(error, "strerror", None) or error
        advice = "set HOME to a folder that can be written, or RAY_AUTH_TOKEN to any secret text"
        raise UserError(f"Ray cannot start: ~/.ray cannot be written (HOME is {home}): {reason}; {advice}") from error
