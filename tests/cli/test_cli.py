"""The command line: messages, exit codes, help and plans, all without torch and Ray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from light_command import HEAVY, Finished, run_raylm, without_heavy_modules

from raylm import __version__

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
RAYLM = [str(Path(sysconfig.get_path("scripts"), "raylm"))]
MODULE = [sys.executable, "-m", "raylm.sweep"]
GOOD = 'from raylm import Sweep\nsweep = Sweep(name="tried", space={"seed": {"grid_search": [1, 2]}})\n'


@pytest.fixture(scope="module", autouse=True)
def _light() -> Iterator[None]:
    with without_heavy_modules():
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one good sweep file in it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("good.py").write_text(GOOD)
    return tmp_path / "work"


def assert_refused(done: Finished, words: Sequence[str]) -> None:
    """Expect exit code 2, and one message on standard error with these words."""
    assert done.exit_code == 2, done
    assert done.stdout == "" and done.stderr.count("raylm: ") == 1 and done.stderr.startswith("raylm: ")
    assert all(word in done.stderr for word in words), done.stderr


# ---- in a process of its own --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "exit_code", "words"),
    [
        ([*RAYLM, "--version"], 0, f"raylm {__version__}\n"),
        ([*RAYLM, "plan", "good.py"], 0, "2 trials, 2 remaining"),
        ([*RAYLM, "report", "."], 2, "raylm: "),
        ([*RAYLM, "run"], 2, "Usage"),
        ([*MODULE, "bad.py"], 2, "raylm: bad.py"),
        ([*MODULE, "--help"], 0, "Usage: python -m raylm.sweep "),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else None,
)
def test_command_ends_with_its_exit_code_and_imports_nothing_heavy(
    tmp_path: Path, command: list[str], exit_code: int, words: str
) -> None:
    for name in HEAVY:
        (tmp_path / "heavy" / name).mkdir(parents=True)
        (tmp_path / "heavy" / name / "__init__.py").write_text(f"import os\nos.write(2, b'{name}!\\n')\nos._exit(97)\n")
    Path("bad.py").write_text("")
    paths = os.pathsep.join(filter(None, [str(tmp_path / "heavy"), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "120", "RAYLM_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == exit_code, done.stderr
    assert words in (done.stderr if exit_code else done.stdout) and "Traceback" not in done.stderr


# ---- mistakes -----------------------------------------------------------------------------------------------------

BAD_FILES = {
    "empty": ("", ["bad.py", "has no `sweep`"]),
    "syntax": ("sweep = Sweep(", ["bad.py:1", "is not valid Python"]),
    "null bytes": ("seed = 1\0", ["bad.py", "null bytes"]),
    "exits": ("import sys\nsys.exit()", ["bad.py:2", "SystemExit"]),
    "raises": ("1 / 0", ["bad.py:1", "ZeroDivisionError"]),
    "no sweep": ("sweep = 3", ["bad.py", "expected a Sweep"]),
    "unknown field": (GOOD.replace("seed", "sed"), ["bad.py", "space.sed", "did you mean 'seed'"]),
    "four mistakes": (
        GOOD.replace("[1, 2]", "[-1, float('nan')]").replace("tried", "../x").replace("space", "retries=1, space"),
        ["4 mistakes", "'../x'", "got nan", "got -1", "retries"],
    ),
    "too long": (GOOD.replace('"seed"', '"model": "gpt2", "context_length": 1025, "seed"'), ["at most 1024"]),
    "too many": (GOOD.replace("[1, 2]", "list(range(10001))"), ["10,001 trials"]),
    "long name": (GOOD.replace('"seed"', '"dataset": "x" * 300, "seed"'), ["space.dataset", "expected one of"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_sweep_file_is_refused(folder: Path, name: str) -> None:
    content, words = BAD_FILES[name]
    Path("bad.py").write_text(content)
    assert_refused(run_raylm(["run", "bad.py"]), words)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["bad.py", "good.py"]


@pytest.mark.parametrize("verb", [["run", "--dry-run"], ["plan"]], ids=" ".join)
def test_bad_sweep_file_is_refused_by_every_verb(verb: list[str]) -> None:
    content, words = BAD_FILES["four mistakes"]
    Path("bad.py").write_text(content)
    assert_refused(run_raylm([*verb, "bad.py"]), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "god.py"], ["no sweep file god.py", "did you mean 'good.py'"]),
        (["run", "."], ["is not a file"]),
        (["run", "x" * 300], ["x" * 300]),
        (["run", "good.py", "--set", "epochs"], ["epochs", "field=value"]),
        (["run", "good.py", "--set", "epochs=0", "--set", "sed=1"], ["2 mistakes", "epochs", "did you mean 'seed'"]),
        (["run", "good.py", "--set", "context_length=4096"], ["good.py", "at most 1024"]),
        (["run", "good.py", "--dry-run", "--set", "epochs=x"], ["epochs"]),
        (["run", "good.py", "--storage", "good.py"], ["good.py", "--storage"]),
        (["run", "good.py", "--storage", "x" * 300], ["--storage"]),
        (["run", "good.py", "--storage", "~no-such-user/runs"], ["no-such-user"]),
        (["run", "good.py", "--storage", "ftp://bucket/runs"], ["ftp://bucket/runs", "s3://bucket/path"]),
        (["plan", "good.py", "--storage", "~no-such-user/runs"], ["no-such-user"]),
        (["plan", "good.py", "--gpu", "h10"], ["--gpu", "'h10'", "a100-80gb", "did you mean 'h100'"]),
        (["plan", "good.py", "--price-per-hour=-1"], ["--price-per-hour", "got -1", "at least 0"]),
        (["plan", "good.py", "--price-per-hour", "nan"], ["--price-per-hour", "got nan"]),
        (["report", "no/such/folder"], ["no/such/folder", "not a results folder"]),
        (["report", "."], ["not a results folder", "sweep.json"]),
        (["report", "good.py"], ["not a results folder"]),
        (["report", "x" * 300], ["x" * 300]),
        (["evaluate", ".", "--context-lengths", "64"], ["not a results folder"]),
        (["evaluate", ".", "--context-lengths", "64,x"], ["--context-lengths", "'64,x'", "256,512"]),
        (["report", ".", "--reference", "no.csv"], ["--reference no.csv cannot be read"]),
        (["generate", ".", "--prompt", "a"], ["not a results folder"]),
        (["export", ".", "model"], ["not a results folder"]),
        (["export", ".", "model", "--run", "a", "--dataset", "b"], ["--run", "--dataset"]),
        (["export", ".", "model", "--public"], ["--public requires --push", "add --push REPO"]),
        (["export", ".", "model", "--license", "MIT License"], ["--license", "'MIT License'", "apache-2.0"]),
        (
            ["report", ".", "--json", "--format", "csv"],
            ["--json and --format csv exclude each other", "expected one of them"],
        ),
        (["report", ".", "--format", "pdf"], ["--format", "'pdf'", "table, markdown, latex, csv, html"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_command_is_refused(arguments: list[str], words: list[str]) -> None:
    assert_refused(run_raylm(arguments), words)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 99}', '{"version": 1}', "\0"])
def test_damaged_results_folder_is_refused(content: str) -> None:
    Path("sweep.json").write_text(content)
    assert_refused(run_raylm(["report", "."]), ["sweep.json"])


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "good.py", "--no-such-flag"], ["run", "good.py", "--max-concurrent", "0"], ["no-such-verb"]],
    ids=" ".join,
)
def test_wrong_use_of_flags_shows_the_usage(arguments: list[str]) -> None:
    done = run_raylm(arguments)
    assert done.exit_code == 2 and "Usage" in done.stderr


# ---- what is shown ------------------------------------------------------------------------------------------------


RUN_FLAGS = (
    "--storage --set --dry-run --max-concurrent --retry-failed --address --wait-for-workers --wandb --mlflow --trackio "
    "--quiet -q --verbose -v --help"
)


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ([], "--version --install-completion --show-completion --help"),
        (["run"], RUN_FLAGS),
        (["plan"], "--storage --set --gpu --price-per-hour --json --help"),
        (["report"], "--format --reference --columns --where --sort --top --pivot --json --help"),
        (["figures"], "--format --help"),
        (["evaluate"], "--context-lengths --split --help"),
        (["generate"], "--prompt --run --max-new-tokens --temperature --seed --help"),
        (["export"], "--run --dataset --license --push --public --help"),
    ],
    ids=["raylm", "run", "plan", "report", "figures", "evaluate", "generate", "export"],
)
def test_help_names_every_flag_and_no_other(verb: list[str], flags: str) -> None:
    done = run_raylm([*verb, "--help"])
    lines = [line for line in done.stdout.splitlines() if re.match(r"\W*--", line)]
    named = [flag for line in lines for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)]
    assert done.exit_code == 0 and sorted(named) == sorted(flags.split())


def test_help_names_the_verbs() -> None:
    shown = run_raylm(["--help"]).stdout
    assert all(re.search(rf"^\W*{verb}  ", shown, re.MULTILINE) for verb in ("run", "plan", "report"))


# ---- a plan -------------------------------------------------------------------------------------------------------

NUM_TRIALS = {
    "imdb_grid.py": 8,
    "wikitext2_grid.py": 13,
    "wikitext103_grid.py": 12,
    "reference_table.py": 21,
    "quickstart.py": 6,
}
"""Trials of each sweep of the repository, but for a search."""


def test_plan_of_every_sweep_needs_no_network_and_leaves_no_trace(folder: Path) -> None:
    files = [str(SWEEPS / name) for name in NUM_TRIALS]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": ".", "HF_HUB_OFFLINE": "0", "COLUMNS": "120"}
    environment["RAYLM_CACHE"] = str(folder / "cache")
    command = [sys.executable, str(PROGRAMS / "guarded_plans.py"), *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    plans = done.stdout.split("== ")[1:]
    for text, trials in zip(plans, NUM_TRIALS.values(), strict=True):
        assert f"{trials} trials, {trials} remaining" in text
        rows = re.findall(r"^ *(?:\S.* )?[\d.]+[MG] .* ~[\d.,]+ (?:s|min|h|d) +[\w.-]+ *$", text, re.MULTILINE)
        assert len(rows) == trials
    assert [path.name for path in folder.rglob("*")] == ["good.py"]


def test_dry_run_is_a_plan() -> None:
    dry, planned = (run_raylm([*verb, "good.py"]) for verb in (["run", "--dry-run"], ["plan"]))
    assert dry.exit_code == 0 and "2 trials, 2 remaining" in dry.stdout
    words, same = (re.sub(r"[\d., ]+|\b(s|min|h|d)\b", "", done.stdout) for done in (dry, planned))
    assert words == same  # the speed of this machine is measured anew each time


def test_plan_on_a_gpu_with_its_price() -> None:
    done = run_raylm(["plan", "good.py", "--gpu", "2xa100-80gb", "--price-per-hour", "1000"])
    assert done.exit_code == 0 and "on A100 80GB: 312 TFLOP/s in bfloat16, 2,039 GB/s, 79.2 GiB" in done.stdout
    assert re.search(r"^~[\d.]+ s of training, 2 at a time; ~[\d.]+ GPU-hours, ~[\d.]+ at 1,000.00", done.stdout, re.M)


def test_plan_for_a_script() -> None:
    options = ["--gpu", "2xa100-80gb", "--price-per-hour", "1000", "--json"]
    plan = json.loads(run_raylm(["plan", "good.py", *options]).stdout)
    assert [(row["status"], row["seed"], row["steps"]) for row in plan["rows"]] == [
        ("pending", 1, 13),
        ("pending", 2, 13),
    ]
    assert plan["remaining"]["trials"] == 2 and plan["remaining"]["steps"] == 26
    seconds = sum(row["estimated_seconds"] for row in plan["rows"])
    assert plan["remaining"]["estimated_seconds"] == pytest.approx(seconds)
    assert plan["remaining"]["price"] == pytest.approx(seconds / 3600 * 1000)
    assert plan["device"] == {"name": "A100 80GB", "precision": "bfloat16", "per_trial": 1.0, "trials_at_a_time": 2}
    assert plan["search"] is None
    unknown = GOOD.replace('"seed"', '"dataset": "owner/unknown", "seed"')
    Path("unknown.py").write_text(unknown)
    plan = json.loads(run_raylm(["plan", "unknown.py", "--json"]).stdout)
    assert plan["remaining"] == dict.fromkeys(plan["remaining"]) | {"trials": 2}


def test_plan_of_a_search_for_a_script() -> None:
    """In a process of its own: the search space is checked by Optuna."""
    command = [*RAYLM, "plan", str(SWEEPS / "imdb_optuna.py"), "--gpu", "2xa100-80gb", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    plan = json.loads(done.stdout)
    assert plan["rows"] == [] and plan["search"]["num_samples"] > 0
    assert 0 < plan["search"]["shortest_seconds"] < plan["search"]["longest_seconds"]


def test_plan_with_overrides() -> None:
    done = run_raylm(["plan", "good.py", "--set", "seed=7", "--set", "max_train_tokens=1000"])
    assert done.exit_code == 0 and re.search(r"^1 trials?, 1 remaining: about 1,000 tokens", done.stdout, re.MULTILINE)


def test_every_sweep_is_planned_here() -> None:
    assert {path.name for path in SWEEPS.glob("*.py")} == {*NUM_TRIALS, "imdb_optuna.py"}
