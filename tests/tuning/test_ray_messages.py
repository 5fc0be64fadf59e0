"""What Ray's own thread prints does not come between the lines; what all others print does."""

from __future__ import annotations

import inspect
import threading

import pytest
from ray._private import worker

from raylm.tuning import ray_private


def test_rays_thread_is_not_heard_and_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    with ray_private.suppress_raylet_messages():
        for name in (ray_private.RAYLET_MESSAGE_THREAD, "another"):
            thread = threading.Thread(target=print, args=(f"said by {name}",), kwargs={"flush": True}, name=name)
            thread.start()
            thread.join()
        print("said here")
    assert capsys.readouterr().out == "said by another\nsaid here\n"


def test_the_thread_has_this_name_in_the_ray_that_is_installed() -> None:
    assert f'name="{ray_private.RAYLET_MESSAGE_THREAD}"' in inspect.getsource(worker.connect)
