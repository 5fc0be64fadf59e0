"""The commands as a person gives them: one message and the right exit code, at once, and nothing started for a plan."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from raylm import __version__

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
RAYLM = [str(Path(sysconfig.get_path("scripts"), "raylm"))]
MODULE = [sys.executable, "-m", "raylm.sweep"]
GOOD = 'from raylm import Sweep\nsweep = Sweep(name="tried", space={"seed": {"grid_search": [1, 2]}})\n'
HEAVY = ("torch", "ray", "transformers", "datasets", "huggingface_hub", "httpx")
SECONDS_TO_SAY_NO = 5.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one good sweep file in it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("good.py").write_text(GOOD)
    return tmp_path / "work"


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """An environment in which whatever imports torch, Ray or a client of the hub ends at once with exit code 97."""
    for name in HEAVY:
        (tmp_path / "heavy" / name).mkdir(parents=True)
        (tmp_path / "heavy" / name / "__init__.py").write_text(f"import os\nos.write(2, b'{name}!\\n')\nos._exit(97)\n")
    return {"PYTHONPATH": str(tmp_path / "heavy")}


def command(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, seconds: float = 60.0
) -> subprocess.CompletedProcess[str]:
    settings = {"RAYLM_CACHE": str(Path.cwd() / "cache"), "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "PYTHONPATH")}
    return subprocess.run(
        arguments,
        env={**inherited, **settings, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], words: Sequence[str]) -> None:
    """Exit code 2, and one message on standard error with these words."""
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert done.stdout == "" and done.stderr.count("raylm: ") == 1 and done.stderr.startswith("raylm: ")
    assert all(word in done.stderr for word in words), done.stderr


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


@pytest.mark.parametrize(
    ("name", "start"),
    [(name, MODULE) for name in BAD_FILES]
    + [("four mistakes", [*RAYLM, *verb]) for verb in (["run"], ["run", "--dry-run"], ["plan"])],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[1:]),
)
def test_a_bad_sweep_file(folder: Path, light: dict[str, str], name: str, start: list[str]) -> None:
    content, words = BAD_FILES[name]
    Path("bad.py").write_text(content)
    assert_refused(command([*start, "bad.py"], light, SECONDS_TO_SAY_NO), words)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["bad.py", "good.py"]


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
        (["plan", "good.py", "--price-per-hour=-1"], ["--price-per-hour", "got -1", "from 0 up"]),
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
        (["export", ".", "model", "--run", "a", "--best"], ["--run", "without --best"]),
        (["export", ".", "model", "--public"], ["--public is for --push"]),
        (["export", ".", "model", "--license", "MIT License"], ["--license", "'MIT License'", "apache-2.0"]),
        (["report", ".", "--json", "--format", "csv"], ["--json and --format csv: expected one of them"]),
        (["report", ".", "--format", "pdf"], ["--format", "'pdf'", "table, markdown, latex, csv, html"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_a_bad_command(folder: Path, light: dict[str, str], arguments: list[str], words: list[str]) -> None:
    assert_refused(command([*RAYLM, *arguments], light, SECONDS_TO_SAY_NO), words)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 99}', '{"version": 1}', "\0"])
def test_a_damaged_results_folder(folder: Path, light: dict[str, str], content: str) -> None:
    Path("sweep.json").write_text(content)
    assert_refused(command([*RAYLM, "report", "."], light, SECONDS_TO_SAY_NO), ["sweep.json"])


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "good.py", "--no-such-flag"], ["run", "good.py", "--max-concurrent", "0"], ["no-such-verb"]],
    ids=" ".join,
)
def test_a_wrong_use_of_flags(folder: Path, light: dict[str, str], arguments: list[str]) -> None:
    done = command([*RAYLM, *arguments], light, SECONDS_TO_SAY_NO)
    assert done.returncode == 2 and "Usage" in done.stderr and "Traceback" not in done.stderr


# ---- what is shown ------------------------------------------------------------------------------------------------


def test_version(folder: Path, light: dict[str, str]) -> None:
    done = command([*RAYLM, "--version"], light)
    assert (done.returncode, done.stdout) == (0, f"raylm {__version__}\n")


RUN_FLAGS = (
    "--storage --set --dry-run --max-concurrent --retry-failed --address --wandb --mlflow --trackio "
    "--quiet -q --verbose -v --help"
)


@pytest.mark.parametrize(
    ("start", "flags"),
    [
        (RAYLM, "--version --install-completion --show-completion --help"),
        ([*RAYLM, "run"], RUN_FLAGS),
        (MODULE, RUN_FLAGS),
        ([*RAYLM, "plan"], "--storage --set --gpu --price-per-hour --json --help"),
        ([*RAYLM, "report"], "--format --reference --json --help"),
        ([*RAYLM, "evaluate"], "--context-lengths --help"),
        ([*RAYLM, "generate"], "--prompt --run --max-new-tokens --temperature --seed --help"),
        ([*RAYLM, "export"], "--run --best --dataset --license --push --public --help"),
    ],
    ids=["raylm", "run", "module", "plan", "report", "evaluate", "generate", "export"],
)
def test_help_names_every_flag_and_no_other(folder: Path, light: dict[str, str], start: list[str], flags: str) -> None:
    done = command([*start, "--help"], light)
    lines = [line for line in done.stdout.splitlines() if re.match(r"\W*--", line)]
    named = [flag for line in lines for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)]
    assert done.returncode == 0 and sorted(named) == sorted(flags.split())


def test_help_names_the_verbs(folder: Path, light: dict[str, str]) -> None:
    shown = command([*RAYLM, "--help"], light).stdout
    assert all(re.search(rf"^\W*{verb}  ", shown, re.MULTILINE) for verb in ("run", "plan", "report"))


# ---- a plan -------------------------------------------------------------------------------------------------------

GUARDED = """
import os, sys
FORBIDDEN = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.fork", "os.posix_spawn"}
def guard(event, arguments):
    if event in FORBIDDEN or (event == "import" and arguments[0] in ("torch", "transformers", "datasets")):
        os.write(2, f"{event} {arguments!r:.200}\\n".encode())
        os._exit(97)
sys.addaudithook(guard)
from raylm.cli import app
app(sys.argv[1:], prog_name="raylm")
"""
"""The command, ended with exit code 97 as soon as it asks the network, starts a process, or imports torch."""


@pytest.mark.parametrize(
    ("file", "trials"),
    [
        ("imdb_grid.py", 8),
        ("wikitext2_grid.py", 13),
        ("wikitext103_grid.py", 12),
        ("reference_table.py", 21),
        ("quickstart.py", 6),
    ],
)
def test_plan_of_every_sweep_without_network_or_any_trace(folder: Path, file: str, trials: int) -> None:
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "HOME": ".", "HF_HUB_OFFLINE": "0"}
    done = command([sys.executable, "-c", GUARDED, "plan", str(SWEEPS / file)], environment)
    assert done.returncode == 0, done.stderr
    assert f"{trials} trials, {trials} to be done" in done.stdout
    rows = re.findall(r"^ *[\d.]+[MG] .* ~[\d.,]+ (?:s|min|h|d) +[\w.-]+ *$", done.stdout, re.MULTILINE)
    assert len(rows) == trials
    assert [path.name for path in folder.rglob("*")] == ["good.py"]


def test_a_dry_run_is_a_plan(folder: Path, light: dict[str, str]) -> None:
    dry, planned = (command([*RAYLM, *verb, "good.py"], light) for verb in (["run", "--dry-run"], ["plan"]))
    assert dry.returncode == 0 and "2 trials, 2 to be done" in dry.stdout
    words, same = (re.sub(r"[\d., ]+|\b(s|min|h|d)\b", "", done.stdout) for done in (dry, planned))
    assert words == same  # the speed of this machine is measured anew each time


def test_a_plan_on_a_gpu_with_its_price(folder: Path, light: dict[str, str]) -> None:
    done = command([*RAYLM, "plan", "good.py", "--gpu", "2xa100-80gb", "--price-per-hour", "1000"], light)
    assert done.returncode == 0 and "on A100 80GB: 312 TFLOP/s in bfloat16, 2,039 GB/s, 79.2 GiB" in done.stdout
    assert re.search(r"^~[\d.]+ s of training, 2 at a time; ~[\d.]+ GPU-hours, ~[\d.]+ at 1,000.00", done.stdout, re.M)


def test_a_plan_for_a_script(folder: Path, light: dict[str, str]) -> None:
    options = ["--gpu", "2xa100-80gb", "--price-per-hour", "1000", "--json"]
    told = json.loads(command([*RAYLM, "plan", "good.py", *options], light).stdout)
    assert [(row["status"], row["seed"], row["steps"]) for row in told["rows"]] == [
        ("pending", 1, 13),
        ("pending", 2, 13),
    ]
    assert told["remaining"]["trials"] == 2 and told["remaining"]["steps"] == 26
    seconds = sum(row["estimated_seconds"] for row in told["rows"])
    assert told["remaining"]["estimated_seconds"] == pytest.approx(seconds)
    assert told["remaining"]["price"] == pytest.approx(seconds / 3600 * 1000)
    assert told["device"] == {"name": "A100 80GB", "precision": "bfloat16", "per_trial": 1.0, "trials_at_a_time": 2}
    assert told["search"] is None
    searched = json.loads(command([*RAYLM, "plan", str(SWEEPS / "imdb_optuna.py"), *options]).stdout)
    assert searched["rows"] == [] and searched["search"]["num_samples"] > 0
    assert 0 < searched["search"]["shortest_seconds"] < searched["search"]["longest_seconds"]
    unknown = GOOD.replace('"seed"', '"dataset": "owner/unknown", "seed"')
    Path("unknown.py").write_text(unknown)
    told = json.loads(command([*RAYLM, "plan", "unknown.py", "--json"], light).stdout)
    assert told["remaining"] == dict.fromkeys(told["remaining"]) | {"trials": 2}


def test_a_plan_with_overrides(folder: Path, light: dict[str, str]) -> None:
    done = command([*RAYLM, "plan", "good.py", "--set", "seed=7", "--set", "max_train_tokens=1000"], light)
    assert done.returncode == 0 and re.search(
        r"^1 trials?, 1 to be done: about 1,000 tokens", done.stdout, re.MULTILINE
    )


def test_every_sweep_is_planned_here() -> None:
    assert len(list(SWEEPS.glob("*.py"))) == 6
