"""Tables as Markdown, LaTeX and CSV, and the summary line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from sample_folder import DONE, INTERRUPTED, write_sample_folder
from sample_rows import FOLDER, sample_row

from raylm import Resources, load_results
from raylm.config.catalog import MODELS
from raylm.config.trial import TrialConfig
from raylm.planning import throughput
from raylm.planning.memory import MemoryModel
from raylm.report import formats
from raylm.report.reference import load_reference
from raylm.results import sweep_record
from raylm.results.folder import load_rows, write_final_status
from raylm.results.progress import MicroBatching
from raylm.results.rows import STOPPED, SweepRows
from raylm.results.storage import Folder


@pytest.fixture
def results(tmp_path: Path) -> SweepRows:
    return write_sample_folder(tmp_path / "sample")


KEYS = "dataset | context len | model | batch size"
LOSSES = "train loss | val loss | adj val loss | best epoch | run"
DIVERGED_RUN, FAILED_RUN = "imdb-gpt2-256x64-lr0.5-c0ad266f5f", "name-part-model-2048x8-e6c6e88a08"
PAUSED_RUN, PENDING_RUN = INTERRUPTED.run_name, "pydocs-gpt2-nano-1024x8-e2-6f31e70ea9"
GOLDEN = f"""\
| {KEYS} | epochs | learning rate | dropout | seed | {LOSSES} |
| {" | ".join(["---"] * 13)} |
| wikitext2 | 512 | gpt2-xl | 8 | 1 | 5e-05 | 0.1 | 3 | 2.69 | 2.52 | 2.87 | 1 | {DONE.run_name} |
| imdb | 256 | gpt2 | 64 | 1 | 0.5 | default | 0 | 9.00 | 8.12 | 10.01 | 1 | {DIVERGED_RUN} (diverged) |
| owner/name:part | 2048 | owner/model | 8 | 1 | 5e-05 | default | 0 | – | – | – | – | {FAILED_RUN} (failed) |
| pydocs | 1024 | gpt2-nano | 8 | 3 | 5e-05 | default | 0 | 9.00 | 7.00 | 8.00 | 1 | {PAUSED_RUN} (interrupted) |
| pydocs | 1024 | gpt2-nano | 8 | 2 | 5e-05 | default | 0 | – | – | – | – | {PENDING_RUN} (pending) |

- imdb-gpt2-256x64-lr0.5-c0ad266f5f diverged: the loss of step 17 is not finite
- name-part-model-2048x8-e6c6e88a08 failed: RuntimeError: "out of memory", twice
"""


def test_markdown_table(results: SweepRows) -> None:
    assert formats.format_markdown(results) == GOLDEN


def test_markdown_without_notes_ends_with_the_table(results: SweepRows) -> None:
    heading, _, row = formats.format_markdown(SweepRows(results.storage, results.rows[:1])).splitlines()
    assert heading == f"| {KEYS} | {LOSSES} |"
    assert row == f"| wikitext2 | 512 | gpt2-xl | 8 | 2.69 | 2.52 | 2.87 | 1 | {DONE.run_name} |"


def test_markdown_escapes_bars(results: SweepRows) -> None:
    config = TrialConfig.from_record({"dataset": "a|b.txt", "model": "c|d"})
    lines = formats.format_markdown(load_rows(results.storage, [config])).splitlines()
    assert lines[2].startswith(r"| a\|b.txt | 1024 | c\|d | 8 |")


COLUMNS = """
    dataset context_length model batch_size epochs learning_rate dropout seed
    train_loss val_loss adj_val_loss best_epoch run status reason trial_id
    optimizer lr_schedule warmup_ratio weight_decay max_grad_norm pretrained
    max_train_tokens evals_per_epoch steps tokens_seen first_loss training_seconds estimated_seconds
    micro_batch_size recompute checkpoint going_up reference_train_loss reference_val_loss reference_adj_val_loss
    nats_per_byte precision lossless best perplexity word_perplexity bits_per_byte zero_shot_loss
    zero_shot_loss_precision
"""


def test_csv_has_every_column_in_order_and_numbers_in_full(results: SweepRows) -> None:
    rows = list(csv.reader(formats.format_csv(results).splitlines()))
    assert rows[0] == COLUMNS.split() and len(rows) == 6
    done = dict(zip(rows[0], rows[1], strict=True))
    start = ["wikitext2", "512", "gpt2-xl", "8", "1", "5e-05", "0.1", "3", "2.6912", "2.5151", "2.8749", "1"]
    assert rows[1][: len(start) + 4] == [*start, DONE.run_name, "done", "", DONE.id]
    best = rows[0].index("best")
    assert [row[best] for row in rows[1:3]] == ["True", "False"]
    fields = ("learning_rate", "dropout", "pretrained", "max_train_tokens")
    assert [done[name] for name in fields] == ["5e-05", "0.1", "True", ""]
    assert (done["steps"], done["tokens_seen"], done["micro_batch_size"]) == ("20", "10000", "4")
    assert (done["first_loss"], done["training_seconds"]) == ("4.75", "12.5")
    assert done["checkpoint"] == f"launch-001/{DONE.run_name}/checkpoint_000000"


def test_csv_quotes_line_ends_of_all_kinds() -> None:
    name = 'a\rb\nc\r\nd,"e"'
    text = formats.format_csv(SweepRows(Folder(FOLDER), [sample_row(dataset=name)]))
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row["dataset"] == name


def test_csv_of_unfinished_rows(results: SweepRows) -> None:
    _, diverged, failed, interrupted, pending = csv.DictReader(formats.format_csv(results).splitlines())
    assert [row["status"] for row in (diverged, failed, interrupted, pending)] == (
        ["diverged", "failed", "interrupted", "pending"]
    )
    assert diverged["val_loss"] == "8.125" and diverged["reason"] == "the loss of step 17 is not finite"
    assert failed["reason"] == 'RuntimeError: "out of memory", twice' and failed["dataset"] == "owner/name:part"
    assert interrupted["steps"] == "10" and interrupted["val_loss"] == "7.0"
    measures = ("train_loss", "val_loss", "adj_val_loss", "best_epoch", "steps", "first_loss", "checkpoint")
    assert {row[name] for row in (failed, pending) for name in measures} == {""}


def test_tables_are_written_into_the_results_folder(results: SweepRows) -> None:
    folder, reference = Path(results.storage.uri), load_reference()
    for _ in range(2):
        formats.write_tables(results)
        assert (folder / "results.md").read_text(encoding="utf-8") == formats.format_markdown(results, reference)
        assert (folder / "results.csv").read_text(encoding="utf-8") == formats.format_csv(results, reference)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["launch-001", "results.csv", "results.md", "sweep.json"]


def test_summary_counts_the_rows(results: SweepRows) -> None:
    assert formats.format_summary(results) == "5 rows: 1 done, 1 diverged, 1 failed, 2 remaining"
    assert formats.format_summary(SweepRows(results.storage, results.rows[:2])) == "2 rows: 1 done, 1 diverged"


def test_estimate_is_given_for_trials_on_known_devices(results: SweepRows) -> None:
    placement = throughput.find_placement(Resources(), "auto", "a100")
    assert placement is not None
    file = Path(results.storage.uri_of(sweep_record.RECORD_FILE))
    launch = {"number": 1, "slot": dataclasses.asdict(throughput.placement_to_record(placement))}
    file.write_text(json.dumps({**json.loads(file.read_text()), "launches": [launch]}))
    results = load_results(results.storage.uri)
    done, *_, pending = csv.DictReader(formats.format_csv(results).splitlines())
    model = MemoryModel(MODELS[DONE.model].shape, DONE, "cuda", placement.precision)
    assert float(done["estimated_seconds"]) == placement.estimate_training_seconds(model, MicroBatching(4), 10_000, 20)
    assert pending["estimated_seconds"] == ""
    assert re.search(r"; training took \d+ s \(estimated: ~[\d.]+ s\)$", formats.format_summary(results))


def test_summary_counts_stopped_rows(results: SweepRows) -> None:
    write_final_status(results.storage, "launch-001", INTERRUPTED, STOPPED, "it is not among the best third")
    again = load_results(results.storage.uri)
    assert formats.format_summary(again) == "5 rows: 1 done, 1 stopped, 1 diverged, 1 failed, 1 remaining"
    assert f"- {INTERRUPTED.run_name} stopped: it is not among the best third" in formats.format_markdown(again)
