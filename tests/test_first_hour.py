"""The measurements of the first hour on a GPU, at tiny sizes on a CPU: all run, are recorded, and are not repeated."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
SLOW_PARTS = ("sharing", "ray")
"""Parts that start processes of their own, or Ray."""

Measurements = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        patch.setenv("OMP_NUM_THREADS", "1")  # of tiny products
        yield


def load(module: str) -> Any:
    return importlib.import_module(module)


def run(file: Path, *parts: str, options: tuple[str, ...] = ()) -> int:
    main = load("first_hour").main
    return int(main(["--device", "cpu", "--tiny", "--out", str(file), *options, "--part", *parts]))


def read(file: Path) -> Measurements:
    content = json.loads(file.read_text())
    return {(m["part"], m["case"]): m for m in content["measurements"]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a run of all parts but the slow ones."""
    file = tmp_path_factory.mktemp("first_hour") / "measured.json"
    parts = [part.name for part in load("first_hour_parts.plan").PARTS if part.name not in SLOW_PARTS]
    assert run(file, *parts) == 0
    return file


def test_plan_fits_into_an_hour_and_each_part_into_eight_minutes() -> None:
    plan = load("first_hour_parts.plan")
    assert all(part.seconds <= plan.MAX_PART_SECONDS for part in plan.PARTS)
    assert sum(part.seconds for part in plan.PARTS) <= plan.MAX_TOTAL_SECONDS
    names = [(part.name, case.name) for part in plan.PARTS for case in part.cases]
    assert len(names) == len(set(names))


def test_every_case_runs_or_says_what_it_needs(measured: Path) -> None:
    results = read(measured)
    expected = [
        (part.name, case.name)
        for part in load("first_hour_parts.plan").PARTS
        for case in part.cases
        if part.name not in SLOW_PARTS
    ]
    assert list(results) == expected
    assert {key for key, m in results.items() if m["status"] == "skipped"} == {
        key for key in expected if key[0] == "compile" or key == ("card", "memory of the context")
    }
    assert {m["status"] for m in results.values()} == {"done", "skipped"}


def test_losses_of_all_implementations_agree_and_a_resumed_trial_has_the_same(measured: Path) -> None:
    results = read(measured)
    steps = [results["losses", name]["values"]["losses"] for name in ("raylm, float32", "transformers, float32, eager")]
    assert steps[0] == pytest.approx(steps[1], abs=1e-5)
    losses = [own["loss"] for own in results["head", "8,192 x 768"]["values"].values()]
    assert len(losses) >= 2
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-5)
    assert results["checkpoint", "gpt2 8x256"]["values"]["difference of the resumed train loss"] == 0


def test_tables_have_a_row_for_every_case_and_name_the_versions(measured: Path) -> None:
    text = measured.with_suffix(".md").read_text()
    for _, case in read(measured):
        assert f"| {case}" in text
    assert "torch 2." in text and "transformers 5." in text


def test_second_run_measures_only_what_is_missing_or_has_failed(measured: Path, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    content = json.loads(measured.read_text())
    skipped, missing, failed, *_ = ((m["part"], m["case"]) for m in content["measurements"])
    content["measurements"].pop(1)
    content["measurements"][1] |= {"status": "failed", "message": "out of memory"}
    for measurement in content["measurements"]:
        measurement["time"] = 0
    file.write_text(json.dumps(content))
    assert run(file, "card", "numbers") == 1, "a failure stays one until it is measured again"
    assert {key for key, m in read(file).items() if m["time"]} == {skipped, missing}
    assert run(file, "card", options=("--retry",)) == 0
    after = read(file)
    assert {key for key, m in after.items() if m["time"]} == {skipped, missing, failed}
    assert len(after) == len(content["measurements"]) + 1


def test_failed_and_killed_measurements_are_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_hour, plan = load("first_hour"), load("first_hour_parts.plan")
    records = load("first_hour_parts.records").Records(tmp_path / "measured.json")
    part = plan.find_part("card")
    unknown = plan.Case("no such case", 10, "card.no_such_function")
    never = plan.Case("too slow", 10_000, "card.copy_bandwidth")
    options = {"device": "cpu", "tiny": True}
    todo = [(part, unknown), (part, never), (part, part.cases[1])]
    assert not first_hour.run_cases(todo, records, options, retry=False, minutes=60)
    results = read(records.file)
    assert list(results) == [("card", "no such case"), ("card", part.cases[1].name)]
    assert "exit code" in results["card", "no such case"]["message"]
    assert results["card", part.cases[1].name]["status"] == "done"


def test_machine_without_a_gpu_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as exited:
        load("first_hour").main(["--device", "cuda", "--out", str(tmp_path / "measured.json")])
    assert exited.value.code == 2
    assert "--device cuda: torch" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
@pytest.mark.ray
def test_two_processes_and_two_trials_share_a_device(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    assert run(file, *SLOW_PARTS) == 0
    *processes, sweep = read(file).values()
    assert all(m["values"]["tokens/s, two together"] > 0 for m in processes)
    assert sweep["values"]["at the same time"] == "yes"
