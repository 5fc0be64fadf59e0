"""Ray's private interfaces that raylm depends on: another version of Ray may change these.

Those of its autoscaler are in `resources/ray_autoscaler.py`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if os.environ.get("RAY_USAGE_STATS_ENABLED") != "1":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is started, which fails with "false"
os.environ.pop("TUNE_RESULT_DIR", None)  # Tune refuses to run with this or the next, neither of which it reads
os.environ.pop("RAY_AIR_LOCAL_CACHE_DIR", None)
if "error" in os.environ.get("PYTHONWARNINGS", ""):
    del os.environ["PYTHONWARNINGS"]  # Ray's processes would end at the deprecations of their own packages

import psutil
from ray._private import ray_constants, worker
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.services import find_bootstrap_address
from ray._private.state import state
from ray._private.utils import check_version_info, get_ray_address_file

if TYPE_CHECKING:
    from ray import tune

AWS_CREDENTIAL_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""Variables that Tune copies from the driver's environment into that of trials (ray/tune/execution/class_cache.py)."""
PRELOAD_VARIABLE = "RAY_preload_python_modules"
"""Variable of a raylet's setting (ray/_private/workers/default_worker.py imports the modules)."""
SHUTDOWN_SECONDS = 10.0
"""Time for killed processes to end."""
RAYLET_MESSAGE_THREAD = "ray_listen_error_messages"
"""Name of the driver's thread that prints messages of raylets (ray/_private/worker.py)."""


def last_cluster() -> tuple[str, int]:
    """Return the address of the cluster that `ray start` made this machine a node of, and the id of the user who did.

    The cluster may have died: Ray keeps its address.

    Raises:
        OSError: if there is none, or the file of its address may not be read.
    """
    owner = Path(get_ray_address_file(None)).stat().st_uid
    return str(find_bootstrap_address(None) or ""), owner


@dataclass(frozen=True)
class HeadAnswer:
    """Answer of the head of a cluster to the request for its versions and nodes."""

    status: str
    """Name of a gRPC status: OK, UNAUTHENTICATED, UNAVAILABLE, DEADLINE_EXCEEDED, ..."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of `ray_version` and `python_version`; empty while the head starts."""
    nodes: Sequence[tuple[str, Path]] = ()
    """Address of each node that is alive, and the socket on its disk by which programs there join the cluster."""


def ask_head(address: str, headers: Mapping[str, str], timeout: float) -> HeadAnswer:
    """Ask the head of a cluster for its versions and nodes, without `ray.init`.

    That would repeat a failed call for 20 s, and ends the process on a machine that is no node of the cluster.

    Args:
        address: HOST:PORT.
        headers: as `token_headers` returns them; empty: no token is sent.
        timeout: seconds.
    """
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    metadata = gcs_service_pb2.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
    options = list(ray_constants.GLOBAL_GRPC_OPTIONS)
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        from ray._common.tls_utils import load_certs_from_env

        certificate, key, authority = load_certs_from_env()
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate), options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        call: dict[str, Any] = {"timeout": timeout, "metadata": tuple(headers.items())}
        try:
            found = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet(metadata, **call)
            nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            listed = nodes.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), **call).node_info_list
        except grpc.RpcError as error:
            return HeadAnswer(error.code().name)
    alive = [
        (node.node_manager_address, Path(node.raylet_socket_name.removeprefix("unix://")))
        for node in listed
        if node.state == node.ALIVE
    ]
    return HeadAnswer("OK", json.loads(found.value) if found.value else {}, alive)


def are_versions_compatible(versions: Mapping[str, str]) -> bool:
    """Return whether Ray lets this process join a cluster of these versions, as `HeadAnswer` has them."""
    try:
        check_version_info(dict(versions), "this machine")
    except RuntimeError:
        return False
    return True


def enable_token() -> bool:
    """Let this process and its children send the token of this machine; return False if there is none."""
    raylet: Any = import_module("ray._raylet")
    loader = raylet.AuthenticationTokenLoader.instance()
    loader.reset_cache()
    if not loader.has_token(ignore_auth_mode=True):
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    raylet.Config.initialize("")  # which reads the variable again
    return True


def token_headers() -> dict[str, str]:
    """Return the headers of a request that send the token of this machine, after `enable_token`."""
    raylet: Any = import_module("ray._raylet")
    return dict(raylet.AuthenticationTokenLoader.instance().get_token_for_http_header())


def count_gpus() -> int:
    """Return the number of GPUs that Ray counts when it starts on this machine, of any vendor."""
    manager = get_accelerator_manager_for_resource("GPU")
    if manager is None:
        return 0
    number, visible = manager.get_current_node_num_accelerators(), manager.get_current_process_visible_accelerator_ids()
    return int(number if visible is None else min(number, len(visible)))


def draining_node_ids() -> set[str]:
    """Return the ids of nodes that are about to leave the cluster."""
    return set(state.get_draining_nodes())


def disable_tune_usage_stats() -> None:
    """Keep Tune from importing wandb and MLflow to tag its usage statistics, which are off."""
    if usage := sys.modules.get("ray.air._internal.usage"):  # missing in other versions of Ray
        vars(usage)["tag_callbacks"] = lambda callbacks: False


def keep_trials_in_plain_processes() -> None:
    """Let Tune run trials in the processes that Ray has started already.

    Tune sets a variable in their environment that only Lightning reads; Ray then starts other processes for them.
    """
    from ray.tune.execution import class_cache

    getattr(class_cache, "DEFAULT_ENV_VARS", {}).clear()  # missing in other versions of Ray


def silent_progress_reporter() -> tune.CLIReporter | None:
    """Return a reporter that leaves the output of a notebook cell alone, or None outside of a notebook."""
    from ray import tune
    from ray.tune.progress_reporter import IS_NOTEBOOK

    return tune.CLIReporter() if IS_NOTEBOOK else None


@contextlib.contextmanager
def hide_credentials() -> Iterator[None]:
    """Remove AWS credentials from the environment while Tune runs.

    Tune would copy them into the runtime environment of trials, which Ray writes into a readable log. Trials on this
    machine inherit them from Ray's own processes.
    """
    hidden = {name: os.environ.pop(name) for name in AWS_CREDENTIAL_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def suppress_raylet_messages() -> contextlib.AbstractContextManager[object]:
    """Return a context that drops messages of raylets from standard output."""
    return contextlib.redirect_stdout(_RayletMessageFilter(sys.stdout))


class _RayletMessageFilter(io.TextIOBase):
    """Standard output without the text that Ray's message thread prints after the death of a process.

    raylm reports such a death in one line; Ray's logs have the rest.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text of any other thread."""
        return len(text) if threading.current_thread().name == RAYLET_MESSAGE_THREAD else self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the stream's file descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return self._stream.encoding


@contextlib.contextmanager
def shield_processes() -> Iterator[None]:
    """Start processes that neither a closed terminal nor SIGTERM ends: trials need them to save their checkpoints.

    `timeout`, systemd and batch systems send SIGTERM to all processes of a command. A blocked signal stays blocked in
    all that a process starts; Ray blocks SIGINT so, and ends with SIGKILL what has not ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGHUP, before)


def kill_processes_at_shutdown() -> None:
    """Let `ray.shutdown` kill the Ray that this process has started at once: its processes do not react to SIGTERM.

    Ray itself would wait a second for each, and leave the agents of its raylet behind.
    """
    node = worker._global_node
    if node is None or not node.all_processes:  # of another command
        return

    def kill_all_processes(**options: object) -> None:
        roots = [
            psutil.Process(info.process.pid)
            for infos in node.all_processes.values()
            for info in infos
            if info.process.poll() is None
        ]
        found = [process for root in roots for process in [root, *root.children(recursive=True)]]
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=SHUTDOWN_SECONDS)

    node.kill_all_processes = kill_all_processes


@contextlib.contextmanager
def end_hanging_start(seconds: float) -> Iterator[Callable[[], bool]]:
    """End the processes that Ray starts if it has not started after a time, so that `ray.init` raises.

    If it does not even then, this command ends with exit code 2: no trial runs yet.

    Yields:
        Function that returns whether the time was used up.
    """
    has_started, has_hung = threading.Event(), threading.Event()

    def watch() -> None:
        if has_started.wait(seconds):
            return
        has_hung.set()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not has_started.wait(seconds / 4):
            sys.stderr.write(f"raylm: Ray has not started within {seconds:.0f} s, and does not react\n")
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield has_hung.is_set
    finally:
        has_started.set()
