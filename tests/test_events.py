"""Trial events: every listener gets every event, in order."""

from __future__ import annotations

from typing import Any

import pytest

from raylm.config.trial import TrialConfig
from raylm.events import Listeners, TrialListener

EVENTS: list[tuple[str, tuple[Any, ...]]] = [
    ("on_trial_start", (TrialConfig(),)),
    ("on_step", (TrialConfig(), None)),
    ("on_evaluate", (TrialConfig(), {"val_loss": 1.0})),
    ("on_retry", (TrialConfig(), "its process died")),
    ("on_trial_end", (TrialConfig(), "done", "")),
    ("on_pause", ("interrupted",)),
]


@pytest.mark.parametrize(("method", "arguments"), EVENTS, ids=[method for method, _ in EVENTS])
def test_every_event_is_forwarded_in_order(method: str, arguments: tuple[Any, ...]) -> None:
    calls: list[tuple[int, tuple[Any, ...]]] = []
    listeners = [TrialListener(), TrialListener(), TrialListener()]
    for number, listener in enumerate(listeners[:2]):
        setattr(listener, method, lambda *received, number=number: calls.append((number, received)))
    getattr(Listeners(listeners), method)(*arguments)
    assert calls == [(0, arguments), (1, arguments)]


def test_all_events_are_tested() -> None:
    assert {name for name in vars(TrialListener) if name.startswith("on_")} == {method for method, _ in EVENTS}
