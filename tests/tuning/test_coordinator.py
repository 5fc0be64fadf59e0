"""Deaths of a trial's processes, as the coordinator counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import RunHere
from oracle import read_stable_table
from trial_hooks import ATTEMPTS_FILE, train_and_die

from raylm import Resources, Sweep
from raylm.results.progress import StepMetrics
from raylm.tuning import coordinator, ray_private, tuner
from raylm.tuning.coordinator import MAX_DEATHS, Coordinator


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Ids of the nodes that are alive."""
    nodes = {"node", "other"}
    monkeypatch.setattr(coordinator, "alive_node_ids", lambda: nodes)
    return nodes


def test_deaths_are_counted_since_the_latest_checkpoint(alive: set[str]) -> None:
    state = Coordinator()
    assert [state.start_attempt("run", "node") for _ in range(3)] == [0, 1, 2]
    state.record_checkpoint("run")
    assert [state.start_attempt("run", "node") for _ in range(MAX_DEATHS)] == [1, 2, 3]
    assert state.start_attempt("another", "node") == 0


def test_ends_errors_and_lost_nodes_are_no_deaths(alive: set[str]) -> None:
    state = Coordinator()
    for end in (lambda: state.end_attempt("run"), lambda: state.record_error("run", "a bug"), alive.clear):
        assert state.start_attempt("run", "node") == 0
        end()
    assert state.start_attempt("run", "other") == 0


def test_steps_of_ended_attempts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver asks for the steps of all runs twice a second."""
    monkeypatch.setattr(ray_private, "draining_node_ids", set[str])
    state, step = Coordinator(), StepMetrics(1, 2, 3.0, 4, 5.0)
    for run in ("first", "second"):
        state.report_step(run, "node", step)
    state.end_attempt("first")
    assert state.get_steps() == {"second": step}


@pytest.mark.ray
@pytest.mark.nightly
def test_a_trial_whose_process_dies_again_and_again_has_failed(
    small_text: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in its first step, in each attempt; the one beside it dies after each of its checkpoints but the last."""
    monkeypatch.setattr(tuner, "train_gpt2", train_and_die)
    space = {
        "dataset": str(small_text),
        "context_length": 32,
        "batch_size": 2,
        "max_train_tokens": 500,
        "evals_per_epoch": 4,
    }
    space |= {"seed": {"grid_search": [0, 1]}}
    done = run_here(Sweep(name="deaths", space=space, resources=Resources(cpus=1, gpus=0)), max_concurrent=2)
    assert done.exit_code == 1
    rows = list(read_stable_table(done.folder).values())
    assert [row["status"] for row in rows] == ["failed", "done"], done.output
    assert "its process died 3 times without a new checkpoint between them" in done.output
    attempts = (done.folder / ATTEMPTS_FILE).read_text().split()
    assert (attempts.count("0"), attempts.count("1")) == (MAX_DEATHS + 1, 4)
