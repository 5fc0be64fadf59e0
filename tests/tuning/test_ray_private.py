"""Private interfaces of Ray: the installed version has what raylm uses of them."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray
from ray._private import worker
from ray._private.node import Node
from ray._private.state import state

from raylm.tuning import ray_private


def test_only_the_message_thread_of_ray_is_suppressed(capsys: pytest.CaptureFixture[str]) -> None:
    with ray_private.suppress_raylet_messages():
        for name in (ray_private.RAYLET_MESSAGE_THREAD, "another"):
            thread = threading.Thread(target=print, args=(f"printed by {name}",), kwargs={"flush": True}, name=name)
            thread.start()
            thread.join()
        print("printed here")
    assert capsys.readouterr().out == "printed by another\nprinted here\n"


def test_message_thread_has_this_name() -> None:
    assert f'name="{ray_private.RAYLET_MESSAGE_THREAD}"' in inspect.getsource(worker.connect)


def test_last_cluster_is_missing_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(FileNotFoundError):
        ray_private.last_cluster()


def test_draining_nodes_can_be_queried() -> None:
    assert list(inspect.signature(state.get_draining_nodes).parameters) == []


def test_hidden_credentials_are_those_that_tune_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(ray.__path__[0], "tune", "execution", "class_cache.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in source for name in ray_private.AWS_CREDENTIAL_VARIABLES)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with ray_private.hide_credentials():
        assert "AWS_SECRET_ACCESS_KEY" not in os.environ
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "secret"


def test_progress_reporter_is_silent_in_notebooks_only() -> None:
    assert ray_private.silent_progress_reporter() is None


def test_processes_are_started_so_that_signals_of_a_shell_or_a_batch_system_do_not_end_them() -> None:
    code = (
        "import signal, subprocess, sys\n"
        "from raylm.tuning.ray_private import shield_processes\n"
        "started = [sys.executable, '-c', 'print(1, flush=True); input(); print(2)']\n"
        "with shield_processes():\n"
        "    child = subprocess.Popen(started, stdin=-1, stdout=-1, text=True)\n"
        "child.stdout.readline()\n"
        "for number in (signal.SIGTERM, signal.SIGHUP): child.send_signal(number)\n"
        "print(child.communicate('\\n')[0].strip(), child.returncode, signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 0 set()\n"


def test_shutdown_ends_the_processes_of_a_node_through_this_method() -> None:
    assert "_global_node.kill_all_processes(" in inspect.getsource(worker.shutdown)
    assert {"check_alive", "allow_graceful"} <= set(inspect.signature(Node.kill_all_processes).parameters)
    assert "self.all_processes" in inspect.getsource(Node.kill_all_processes)


def test_usage_statistics_import_no_trackers() -> None:
    code = (
        "import sys\n"
        "from ray import tune\n"
        "from ray.tune.tune import air_usage\n"
        "from raylm.tuning.ray_private import disable_tune_usage_stats\n"
        "disable_tune_usage_stats()\n"
        "air_usage.tag_callbacks([tune.Callback()])\n"
        "print(*{'wandb', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_variables_that_keep_ray_or_tune_from_running_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    left = {"TUNE_RESULT_DIR": "/x", "RAY_AIR_LOCAL_CACHE_DIR": "/x", "PYTHONWARNINGS": "error"}
    monkeypatch.setattr(os, "environ", {**os.environ, **left, "RAY_USAGE_STATS_ENABLED": "false"})
    importlib.reload(ray_private)
    assert not set(left) & set(os.environ)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
