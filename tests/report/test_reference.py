"""Table and reference: matching rows, differences, averages over seeds, rising losses."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from raylm import Sweep, SweepError, TrialConfig, UserError
from raylm.config.sweep_file import load_sweep
from raylm.report.reference import load_reference
from raylm.report.table import MISSING, REFERENCE_COLUMNS, Table, build_table, sort_rows, student_t_quantile
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


def test_packaged_reference_matches_the_reference_sweep() -> None:
    reference = load_reference()
    trials = load_sweep(SWEEPS / "reference_table.py").trials()
    assert [reference.find_row(trial) for trial in trials] == list(reference.rows)
    assert len(reference.rows) == 21
    assert [row.note for row in reference.rows if row.note] == ["loss going up"] * 2


def test_each_loss_has_reference_value_and_difference() -> None:
    table = build(sample_row(TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=64), 3.60, 3.70))
    assert table.column_names == (
        *("dataset", "context len", "model", "batch size", "train loss", "ref", "diff", "val loss", "ref", "diff"),
        *("adj val loss", "ref", "diff", "best epoch", "run"),
    )
    assert table.rows[0][4:14] == ["3.70", "3.73", "-0.03", "3.60", "3.58", "+0.02", "4.50", "4.61", "-0.11", "1"]


def test_table_without_comparison_has_the_columns_of_the_reference() -> None:
    assert build(sample_row(TrialConfig())).columns == REFERENCE_COLUMNS


def test_packaged_rows_match_only_trials_with_default_fields() -> None:
    like = TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=64, seed=5)
    other = replace(like, learning_rate=1e-3)
    assert build(sample_row(like), sample_row(other), is_custom=False).rows[1][5] == MISSING
    assert build(sample_row(like), sample_row(other), is_custom=False).rows[0][5] == "3.73"
    assert build(sample_row(other), is_custom=True).rows[0][5] == "3.73"


def test_duplicate_row_of_the_reference_is_noted() -> None:
    config = TrialConfig(dataset="wikitext2", model="gpt2-xl", context_length=1024)
    (note,) = build(sample_row(config)).notes
    assert re.search(r"gpt2-xl 1024x8: same three losses as wikitext2 gpt2-large 1024x8.*copying error", note)
    assert not build(sample_row(replace(config, context_length=512))).notes


def test_custom_reference(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    head = "dataset,context_length,model,batch_size,train_loss,val_loss,adj_val_loss,run\n"
    file.write_text(head + "pydocs,1024,gpt2-nano,8,1.5,2.5,3.5,mine\n")
    assert load_reference(file).find_row(TrialConfig(epochs=4)) is not None
    file.write_text(head + "pydocs,1024,gpt2-nano,8,1.5,nan,3.5,mine\n")
    with pytest.raises(UserError, match=r"line 2 .* not finite"):
        load_reference(file)
    file.write_text("dataset,model\n")
    with pytest.raises(UserError, match="no column context_length, batch_size, train_loss"):
        load_reference(file)
    with pytest.raises(UserError, match=r"--reference .*nowhere\.csv cannot be read"):
        load_reference(tmp_path / "nowhere.csv")


# ---- order and seeds ----------------------------------------------------------------------------------------------


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
    assert seeds_together[-2:] == ["3", "pydocs-gpt2-nano-1024x8 (seeds 0 1 2)"]


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


def test_sweep_with_seeds_runs_each_row_with_every_seed() -> None:
    sweep = Sweep(name="s", space=[{"batch_size": 4}, {"batch_size": 8}], seeds=(0, 3))
    assert [(trial.batch_size, trial.seed) for trial in sweep.trials()] == [(4, 0), (4, 3), (8, 0), (8, 3)]
    assert sweep.grid_size == 4
    assert [trial.seed for trial in sweep.override({"seed": 7}).trials()] == [7, 7]


@pytest.mark.parametrize("seeds", [(), [1, 1], [-1], ["0"], 3, [1.5], [True]])
def test_invalid_seeds_are_rejected(seeds: object) -> None:
    with pytest.raises(SweepError, match=r"\bseeds: "):
        Sweep(name="s", space={"epochs": 1}, seeds=seeds)  # type: ignore[arg-type]


def test_seeds_conflict_with_a_seed_in_the_space() -> None:
    with pytest.raises(SweepError, match="seeds: cannot be combined with a seed"):
        Sweep(name="s", space={"seed": 1}, seeds=(1, 2))


# ---- rising loss --------------------------------------------------------------------------------------------------


def progress(slope: float, noise: float, points: int = 100) -> Progress:
    """Return a curve that falls quickly and then changes by `slope` over its second half."""
    rng = random.Random(3)
    curve = []
    for step in range(points):
        late = max(0.0, step / points - 0.5) * 2 * slope
        curve.append((step + 1, 4 + 2 * math.exp(-8 * step / points) + late + rng.gauss(0, noise)))
    return Progress(points, 8, points, curve=curve)


@pytest.mark.parametrize(
    ("slope", "noise", "is_rising"),
    [
        (0.5, 0.02, True),
        (0.2, 0.02, True),
        (0.0, 0.02, False),
        (0.0, 0.5, False),
        (-0.3, 0.1, False),
        (0.2, 0.5, False),
    ],
)
def test_rising_loss_exceeds_noise(slope: float, noise: float, is_rising: bool) -> None:
    assert progress(slope, noise).is_loss_rising is is_rising


def test_short_curve_is_not_rising() -> None:
    assert not progress(5.0, 0.0, points=20).is_loss_rising
    assert not Progress(10, 8).is_loss_rising


def test_rising_loss_is_marked_in_the_table() -> None:
    row = sample_row(TrialConfig(), train_loss=4.1)
    assert row.latest_checkpoint is not None
    rising = replace(
        row,
        latest_checkpoint=replace(
            row.latest_checkpoint, progress=replace(row.latest_checkpoint.progress, curve=progress(0.5, 0.02).curve)
        ),
    )
    assert build(rising).rows[0][4] == "4.10 (loss going up)"
