"""report.html: well-formed, alone, escaped, the same bytes each time, whatever the rows are."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raylm import load_results
from raylm.config import sweep_file
from raylm.config.sweep_file import load_sweep
from raylm.config.trial import TrialConfig
from raylm.report.formats import to_plain_text
from raylm.report.html import DEFINITION_COLUMNS, write_html
from raylm.report.html import render_html as page_html
from raylm.report.reference import load_reference
from raylm.results import manifest, sweep_record
from raylm.results.folder import write_final_status
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, Results
from raylm.results.storage import Folder

VOID = {"meta", "img", "br", "hr", "link", "input"}
ODD = '<b>&"x"'
LAUNCH: dict[str, Any] = {
    "number": 1,
    "started": "2026-01-02T03:04:05+00:00",
    "versions": {"raylm": "0.1.0", "torch": "2.10.0"},
    "python": "3.11.7",
    "git_commit": None,
    "hardware": {"machine": "x86_64", "system": "Linux", "cpus": 2, "trials_on": "T4"},
    "precision": "bfloat16",
    "resources_per_trial": {"cpu": 1, "gpu": 0.5},
    "data": [{"dataset": "imdb", "model": ODD, "fingerprint": "5e1f", "train_tokens": 1234567, "train_words": None}],
}


class Reader(HTMLParser):
    """Holds that every tag is closed, in order, and keeps what is said and what is asked for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def save(folder: Path, config: TrialConfig, val_loss: float, of: int = 40) -> None:
    """Writes a checkpoint at step 40."""
    checkpoint = folder / "launch-001" / config.run_name / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    progress = Progress(of, 4, step=40, tokens_seen=5000, training_seconds=2.5)
    progress.curve = [(step, val_loss + 4 / step) for step in range(4, 41, 4)]
    progress.evaluations = [EvalMetrics(1, 40, 5000, val_loss, val_loss, val_loss * 1.2)]
    manifest.write(checkpoint, {"trial_id": config.id, "config": config.as_dict(), "progress": progress.as_dict()})


def made(folder: Path, trials: list[TrialConfig], *launches: dict[str, Any]) -> Results:
    """The results of a folder with a record."""
    content = {"version": manifest.FORMAT_VERSION, "name": "my-sweep", "launches": launches}
    content["trials"] = [{"config": config.as_dict()} for config in trials]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sweep_record.RECORD_FILE).write_text(json.dumps(content))
    return load_results(folder)


@pytest.fixture
def found(tmp_path: Path) -> Results:
    """Rows of every status, of a model with an odd name."""
    trials = [TrialConfig.from_record({"model": ODD, "context_length": 64 * 2**n}) for n in range(6)]
    save(tmp_path, trials[0], 3.0)
    save(tmp_path, trials[1], 2.5)
    save(tmp_path, trials[2], 9.0, of=80)
    save(tmp_path, trials[3], 4.0, of=80)
    write_final_status(Folder(tmp_path), "launch-001", trials[2], DIVERGED, "the loss of step 41 is not finite")
    write_final_status(Folder(tmp_path), "launch-001", trials[4], FAILED, "RuntimeError: <script>alert(1)</script>")
    again = {**LAUNCH, "number": 2, "started": "2026-02-03T04:05:06+00:00"}
    return made(tmp_path, trials, LAUNCH, again)


def test_the_page_is_well_formed_and_needs_nothing_else(found: Results) -> None:
    assert [row.status for row in found.rows] == [DONE, DONE, DIVERGED, INTERRUPTED, FAILED, PENDING]
    html = page_html(found)
    reader = Reader(html)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert reader.tags.count("img") == len(reader.addresses) == 5
    assert all(address.startswith("data:image/svg+xml;base64,") for address in reader.addresses)
    assert "url(" not in html and "@import" not in html and "http" not in html


def test_names_are_words_and_not_markup(found: Results) -> None:
    reader = Reader(page_html(found))
    assert "b" not in reader.tags and "script" not in reader.tags
    assert ODD in reader.words and "RuntimeError: <script>alert(1)</script>" in reader.words


def test_the_page_says_how_rows_have_ended_and_what_ran_where(found: Results) -> None:
    words = " ".join(Reader(page_html(found)).words.split())
    names = [row.config.run_name for row in found.rows]
    assert "6 rows: 2 done, 1 diverged, 1 failed, 2 to be done" in words
    assert f"{names[2]} diverged: the loss of step 41 is not finite" in words
    assert f"{names[3]} interrupted: the next run goes on from its last checkpoint" in words
    assert f"{names[5]} missing: the next run begins it" in words
    assert "launch 1, 2 started 2026-01-02T03:04:05+00:00, 2026-02-03T04:05:06+00:00" in words
    assert (
        "versions raylm 0.1.0, torch 2.10.0 python 3.11.7 git commit – hardware machine x86_64, system Linux, cpus 2"
        in words
    )
    assert "resources per trial cpu 1, gpu 0.5" in words
    assert "1,234,567 – – – 5e1f" in words and words.count("5e1f") == 1


def test_the_best_row_stands_out(found: Results) -> None:
    html = page_html(found)
    assert html.count('class="best"') == 1
    assert found.rows[1].config.run_name in html[html.index('class="best"') :].split("</tr>")[0]


def test_only_what_the_table_has_is_defined(tmp_path: Path) -> None:
    def defined(name: str, *trials: TrialConfig) -> set[str]:
        html = page_html(made(tmp_path / name, list(trials)), load_reference())
        return {word for word in DEFINITION_COLUMNS if f"<dt>{word}</dt>" in html}

    assert defined("plain", TrialConfig()) == set()
    assert defined("seeds", TrialConfig(), TrialConfig(seed=1)) == {"n, ±"}
    assert defined("known", TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=8)) == {
        "ref, diff"
    }


def test_the_same_folder_makes_the_same_bytes_and_is_written_once(found: Results) -> None:
    path = Path(found.storage.uri) / "report.html"
    assert write_html(found) == str(path)
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    assert write_html(load_results(found.storage.uri)) == str(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    path.write_text("old")
    write_html(found)
    assert path.read_bytes() == before[0]


@pytest.mark.parametrize("status", [DONE, DIVERGED, FAILED, INTERRUPTED, PENDING])
def test_one_row_of_any_status_makes_a_page(tmp_path: Path, status: str) -> None:
    trial = TrialConfig()
    if status in (DONE, INTERRUPTED, DIVERGED):
        save(tmp_path, trial, 3.0, of=40 if status == DONE else 80)
    if status in (DIVERGED, FAILED):
        write_final_status(Folder(tmp_path), "launch-001", trial, status, "why")
    found = made(tmp_path, [trial])
    assert found.rows[0].status == status
    reader = Reader(page_html(found))
    assert reader.tags.count("img") == (3 if status in (DONE, INTERRUPTED, DIVERGED) else 0)
    assert "No launch is recorded." in reader.words


def test_the_sweep_on_the_page_makes_the_same_trials(tmp_path: Path) -> None:
    trials = [
        TrialConfig(model="gpt2", context_length=64, epochs=3, dropout=0.1),
        TrialConfig(dataset="imdb", model="gpt2-xl", learning_rate=3e-4, pretrained=False, max_train_tokens=1000),
        TrialConfig(),
    ]
    found = made(tmp_path, trials, LAUNCH)
    text = sweep_file.format_sweep_file("my-sweep", [row.config for row in found.rows], "bfloat16")
    assert text in Reader(page_html(found)).words
    (tmp_path / "my_sweep.py").write_text(text)
    sweep = load_sweep(tmp_path / "my_sweep.py")
    assert (sweep.name, sweep.trials(), sweep.precision) == ("my-sweep", trials, "bfloat16")


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), ([], "–"), ({"gpu": 1.0, "cpu": 2}, "gpu 1, cpu 2"), ([{"a": 1}, {"a": None}], "a 1; a –")],
)
def test_recorded_data_as_words(value: Any, words: str) -> None:
    assert to_plain_text(value) == words
