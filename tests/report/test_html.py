"""report.html: well-formed, self-contained, escaped and deterministic, for rows of any status."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import PageReader, save_checkpoint, write_record
from ray import tune

from raylm import Sweep, load_results
from raylm.config import sweep_file
from raylm.config.sweep_file import load_sweep
from raylm.config.trial import TrialConfig
from raylm.report.formats import to_plain_text
from raylm.report.html import DEFINITION_COLUMNS, render_html, write_html
from raylm.report.reference import load_reference
from raylm.results.folder import write_final_status
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, Row, SavedCheckpoint, SweepRows
from raylm.results.storage import Folder

MODEL = '<b>&"x"'
LAUNCH: dict[str, Any] = {
    "number": 1,
    "started": "2026-01-02T03:04:05+00:00",
    "versions": {"raylm": "0.1.0", "torch": "2.10.0"},
    "python": "3.11.7",
    "git_commit": None,
    "hardware": {"machine": "x86_64", "system": "Linux", "cpus": 2, "trials_on": "T4"},
    "precision": "bfloat16",
    "resources_per_trial": {"cpu": 1, "gpu": 0.5},
    "data": [{"dataset": "imdb", "model": MODEL, "fingerprint": "5e1f", "train_tokens": 1234567, "train_words": None}],
}


@pytest.fixture
def results(tmp_path: Path) -> SweepRows:
    """Return rows of every status, of a model with markup in its name."""
    trials = [TrialConfig.from_record({"model": MODEL, "context_length": 64 * 2**n}) for n in range(6)]
    save_checkpoint(tmp_path, trials[0], 3.0)
    save_checkpoint(tmp_path, trials[1], 2.5)
    save_checkpoint(tmp_path, trials[2], 9.0, total_steps=80)
    save_checkpoint(tmp_path, trials[3], 4.0, total_steps=80)
    write_final_status(Folder(tmp_path), "launch-001", trials[2], DIVERGED, "the loss of step 41 is not finite")
    write_final_status(Folder(tmp_path), "launch-001", trials[4], FAILED, "RuntimeError: <script>alert(1)</script>")
    second = {**LAUNCH, "number": 2, "started": "2026-02-03T04:05:06+00:00"}
    return write_record(tmp_path, trials, LAUNCH, second)


def test_page_is_well_formed_and_self_contained(results: SweepRows) -> None:
    assert [row.status for row in results.rows] == [DONE, DONE, DIVERGED, INTERRUPTED, FAILED, PENDING]
    html = render_html(results)
    reader = PageReader(html)
    assert not {"link", "iframe", "object", "img"} & set(reader.tags)
    assert reader.tags.count("script") == 1 and "src=" not in html
    assert reader.tags.count("svg") == 5
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    references = {*re.findall(r"url\(#([^)]*)\)", html), *re.findall(r'xlink:href="#([^"]*)"', html)}
    assert references and references <= set(ids)
    assert "url(h" not in html and "@import" not in html
    assert set(re.findall(r"https?://[^\" ]*", html)) <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert all(not url.startswith(("http", "//")) for url in reader.urls)


def test_names_are_escaped(results: SweepRows) -> None:
    reader = PageReader(render_html(results))
    assert "b" not in reader.tags and reader.tags.count("script") == 1
    assert MODEL in reader.text and "RuntimeError: <script>alert(1)</script>" in reader.text


def test_page_shows_statuses_and_environment(results: SweepRows) -> None:
    text = " ".join(PageReader(render_html(results)).text.split())
    names = [row.config.run_name for row in results.rows]
    assert "6 rows: 2 done, 1 diverged, 1 failed, 2 remaining" in text
    assert f"{names[2]} diverged: the loss of step 41 is not finite" in text
    assert f"{names[3]} interrupted: the next run resumes it from its last checkpoint" in text
    assert f"{names[5]} pending: the next run starts it" in text
    assert "launch 1, 2 started 2026-01-02T03:04:05+00:00, 2026-02-03T04:05:06+00:00" in text
    assert (
        "versions raylm 0.1.0, torch 2.10.0 python 3.11.7 git commit – hardware machine x86_64, system Linux, cpus 2, "
        "trials on T4" in text
    )
    assert "resources per trial cpu 1, gpu 0.5" in text
    assert "1,234,567 – – – 5e1f" in text and text.count("5e1f") == 1


def test_best_row_is_highlighted(results: SweepRows) -> None:
    html = render_html(results)
    assert html.count('class="best"') == 1
    assert results.rows[1].config.run_name in html[html.index('class="best"') :].split("</tr>")[0]


def test_line_of_seeds_sorts_by_the_mean_that_it_shows(tmp_path: Path) -> None:
    """Only done seeds are averaged, also where another one has losses."""
    trials = [TrialConfig(seed=seed) for seed in range(3)]
    for trial, loss, total_steps in zip(trials, (3.0, 3.5, 9.0), (40, 40, 80), strict=True):
        save_checkpoint(tmp_path, trial, loss, total_steps)
    html = render_html(write_record(tmp_path, trials))
    assert re.findall(r'data-value="([^"]*)">3.25 ', html)[0] == "3.25"


def test_definitions_match_the_columns_of_the_table(tmp_path: Path) -> None:
    def defined_terms(name: str, *trials: TrialConfig) -> set[str]:
        html = render_html(write_record(tmp_path / name, list(trials)), load_reference())
        return {term for term in DEFINITION_COLUMNS if f"<dt>{term}</dt>" in html}

    assert defined_terms("plain", TrialConfig()) == set()
    assert defined_terms("seeds", TrialConfig(), TrialConfig(seed=1)) == {"n, ±"}
    assert defined_terms("known", TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=8)) == {
        "ref, diff"
    }


def test_page_is_deterministic_and_written_once(results: SweepRows) -> None:
    path = Path(results.storage.uri) / "report.html"
    assert write_html(results) == str(path)
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    assert write_html(load_results(results.storage.uri)) == str(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    path.write_text("old")
    write_html(results)
    assert path.read_bytes() == before[0]


@pytest.mark.parametrize("status", [DONE, DIVERGED, FAILED, INTERRUPTED, PENDING])
def test_page_of_one_row_of_any_status(tmp_path: Path, status: str) -> None:
    trial = TrialConfig()
    if status in (DONE, INTERRUPTED, DIVERGED):
        save_checkpoint(tmp_path, trial, 3.0, total_steps=40 if status == DONE else 80)
    if status in (DIVERGED, FAILED):
        write_final_status(Folder(tmp_path), "launch-001", trial, status, "why")
    results = write_record(tmp_path, [trial])
    assert results.rows[0].status == status
    reader = PageReader(render_html(results))
    assert reader.tags.count("svg") == (3 if status in (DONE, INTERRUPTED, DIVERGED) else 0)
    assert "No launch is recorded." in reader.text


def test_sweep_file_on_the_page_reproduces_the_trials(tmp_path: Path) -> None:
    trials = [
        TrialConfig(model="gpt2", context_length=64, epochs=3, dropout=0.1),
        TrialConfig(dataset="imdb", model="gpt2-xl", learning_rate=3e-4, pretrained=False, max_train_tokens=1000),
        TrialConfig(),
    ]
    results = write_record(tmp_path, trials, LAUNCH)
    text = sweep_file.format_sweep_file("my-sweep", [row.config for row in results.rows], "bfloat16")
    assert text in PageReader(render_html(results)).text
    (tmp_path / "my_sweep.py").write_text(text)
    sweep = load_sweep(tmp_path / "my_sweep.py")
    assert (sweep.name, sweep.trials(), sweep.precision) == ("my-sweep", trials, "bfloat16")


def test_page_of_2000_trials_is_below_3_mb(tmp_path: Path) -> None:
    space = {
        "learning_rate": tune.grid_search([number * 1e-6 for number in range(1, 101)]),
        "warmup_ratio": tune.grid_search([0.0, 0.1, 0.2, 0.3, 0.4]),
        "weight_decay": tune.grid_search([0.0, 0.01, 0.02, 0.05]),
    }
    trials = Sweep(name="many", space=space).trials()
    progress = Progress(100, 8, 100, training_seconds=1.5, tokens_seen=5000)
    progress.curve = [(step, 4.0 + 1 / step) for step in range(1, 101)]
    rows = []
    for number, trial in enumerate(trials):
        losses = [EvalMetrics(1, 100, 5000, 4.1 + number / 3e4, 4.2 + number / 3e4, 6.2 + number / 3e4, "bfloat16")]
        saved = SavedCheckpoint(
            f"launch-001/{trial.run_name}/checkpoint_000000", replace(progress, evaluations=losses), trial.id
        )
        rows.append(Row(trial, DONE, "", saved, saved))
    html = render_html(SweepRows(Folder(tmp_path), rows))
    assert html.count("<tr role=") == 2001 and len(html.encode()) < 3_000_000
    text = sweep_file.format_sweep_file("many", trials)
    assert "        {**common, 'learning_rate': 1e-06, 'warmup_ratio': 0.0},\n" in text
    (tmp_path / "many.py").write_text(text)
    assert load_sweep(tmp_path / "many.py").trials() == trials


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), ([], "–"), ({"gpu": 1.0, "cpu": 2}, "gpu 1, cpu 2"), ([{"a": 1}, {"a": None}], "a 1; a –")],
)
def test_recorded_data_as_plain_text(value: Any, text: str) -> None:
    assert to_plain_text(value) == text
