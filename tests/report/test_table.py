"""Table of a sweep: order, comparison with the reference, averages over seeds, rising losses."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from raylm import TrialConfig
from raylm.config.sweep_file import load_sweep
from raylm.report.reference import load_reference
from raylm.report.tables.columns import KEY_COLUMNS, REFERENCE_COLUMNS
from raylm.report.tables.groups import MISSING, sort_rows, student_t_quantile
from raylm.report.tables.table import Table, build_table
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DONE, FAILED, PENDING, Row, SavedCheckpoint, SweepRows
from raylm.results.storage import Folder

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


def sample_row(config: TrialConfig, val_loss: float = 3.0, train_loss: float = 3.5, status: str = DONE) -> Row:
    metrics = EvalMetrics(1, 10, 1000, train_loss, val_loss, 1.25 * val_loss)
    saved = SavedCheckpoint("", Progress(10, 8, 10, evaluations=[metrics]))
    return Row(config, status, "", saved, saved)


def build(*rows: Row, is_custom: bool = True) -> Table:
    return build_table(SweepRows(Folder(Path()), list(rows)), replace(load_reference(), is_custom=is_custom))


def test_each_loss_has_reference_value_and_difference() -> None:
    table = build(sample_row(TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=64), 3.60, 3.70))
    assert table.column_names == (
        *("dataset", "context len", "model", "batch size", "train loss", "ref", "diff", "val loss", "ref", "diff"),
        *("adj val loss", "ref", "diff", "best epoch", "run"),
    )
    assert table.rows[0][4:14] == ["3.70", "3.73", "-0.03", "3.60", "3.58", "+0.02", "4.50", "4.61", "-0.11", "1"]


def test_table_without_comparison_has_the_columns_of_the_reference() -> None:
    assert build(sample_row(TrialConfig())).columns == REFERENCE_COLUMNS


def test_fields_that_vary_are_columns_before_the_losses_and_tell_rows_apart() -> None:
    rates = (1e-4, 1.0001e-4, 3e-4)
    trials = [TrialConfig(learning_rate=rate, dropout=dropout) for rate in rates for dropout in (None, 0.1)]
    table = build(*[sample_row(trial, 3 - number / 10) for number, trial in enumerate(trials)])
    keys, losses = list(KEY_COLUMNS), ["train_loss", "val_loss", "adj_val_loss", "best_epoch", "run"]
    assert list(table.columns[:4]) == keys and [column.key for column in table.columns[6:]] == losses
    assert table.column_names[4:6] == ("learning rate", "dropout")
    assert [cells[4:6] for cells in table.rows] == [
        [rate, dropout] for rate in ("0.0001", "0.00010001", "0.0003") for dropout in ("default", "0.1")
    ]
    assert table.is_best == [False] * 5 + [True] and table.rows[-1][-1].endswith(" (best)")


def test_seed_is_a_column_only_where_each_row_has_another() -> None:
    searched = [TrialConfig(seed=seed, learning_rate=rate) for seed, rate in ((1, 1e-4), (2, 3e-4))]
    assert build(*map(sample_row, searched)).column_names[4:6] == ("learning rate", "seed")
    assert "seed" not in build(*map(sample_row, [*searched, replace(searched[0], seed=3)])).column_names


def test_packaged_rows_match_only_trials_with_default_fields() -> None:
    like = TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=64, seed=5)
    other = replace(like, learning_rate=1e-3)
    table = build(sample_row(like), sample_row(other), is_custom=False)
    column = [column.key for column in table.columns].index("reference_train_loss")
    assert [cells[column] for cells in table.rows] == ["3.73", MISSING]
    assert build(sample_row(other), is_custom=True).rows[0][5] == "3.73"


def test_duplicate_row_of_the_reference_is_noted() -> None:
    config = TrialConfig(dataset="wikitext2", model="gpt2-xl", context_length=1024)
    (note,) = build(sample_row(config)).notes
    assert re.search(r"gpt2-xl 1024x8: same three losses as wikitext2 gpt2-large 1024x8.*copying error", note)
    assert not build(sample_row(replace(config, context_length=512))).notes


def test_rows_are_in_the_order_of_the_reference() -> None:
    trials = load_sweep(SWEEPS / "reference_table.py").trials()
    shuffled = trials[:1] + random.Random(0).sample(trials[1:], 20)  # the first determines the first dataset
    ordered = sort_rows(SweepRows(Folder(Path()), [sample_row(config) for config in shuffled]))
    assert [row.config for row in ordered] == trials


def test_seeds_are_one_line_with_mean_and_interval() -> None:
    seeds = [sample_row(TrialConfig(seed=seed), loss) for seed, loss in ((0, 3.0), (1, 3.1), (2, 3.2))]
    table = build(*seeds, sample_row(TrialConfig(batch_size=4)))
    assert table.column_names[-2:] == ("n", "run")
    single, seeds_together = table.rows
    assert single[5] == "3.00"
    assert single[-2:] == ["1", TrialConfig(batch_size=4).run_name]
    assert seeds_together[5] == "3.10 ± 0.25"  # 4.303 x 0.1 / sqrt(3)
    assert seeds_together[-2:] == ["3", "pydocs-gpt2-nano-1024x8 (seeds 0 1 2) (best)"]


def test_mean_is_over_done_rows() -> None:
    failed = replace(sample_row(TrialConfig(seed=2), 99.0, status=FAILED), reason="why")
    pending = Row(TrialConfig(seed=3), PENDING, "", None, None)
    table = build(sample_row(TrialConfig(seed=0), 3.0), sample_row(TrialConfig(seed=1), 3.0), failed, pending)
    (line,) = table.rows
    assert (line[5], line[-2]) == ("3.00 ± 0.00", "2")
    assert line[-1].endswith("(1 failed, 1 pending)")
    assert table.notes == [f"{failed.config.run_name} failed: why"]


def test_student_t_quantiles() -> None:
    known = {1: 12.706, 2: 4.303, 10: 2.228, 11: 2.201, 20: 2.086, 30: 2.042, 1000: 1.962}
    assert all(student_t_quantile(degrees) == pytest.approx(value, abs=3e-3) for degrees, value in known.items())


def test_rising_loss_is_marked_in_the_table() -> None:
    row = sample_row(TrialConfig(), train_loss=4.1)
    assert row.latest_checkpoint is not None
    curve = [(step, 4.0 + max(0, step - 50) / 50) for step in range(1, 101)]
    progress = replace(row.latest_checkpoint.progress, curve=curve)
    rising = replace(row, latest_checkpoint=replace(row.latest_checkpoint, progress=progress))
    assert build(rising).rows[0][4] == "4.10 (loss going up)"
