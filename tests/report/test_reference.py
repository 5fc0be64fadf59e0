"""The table beside the reference: which rows match, what differs, seeds together, a loss that goes up."""

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
from raylm.report.table import COLUMN_NAMES, MISSING, Table, build_table, student_t_quantile
from raylm.report.table import sort_rows as table_ordered
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DONE, FAILED, PENDING, Results, Row, SavedCheckpoint
from raylm.results.storage import Folder

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


def done(config: TrialConfig, val_loss: float = 3.0, train_loss: float = 3.5, status: str = DONE) -> Row:
    measured = EvalMetrics(1, 10, 1000, train_loss, val_loss, 1.25 * val_loss)
    saved = SavedCheckpoint("", Progress(10, 8, 10, evaluations=[measured]))
    return Row(config, status, "", saved, saved)


def shown(*rows: Row, given: bool = True) -> Table:
    return build_table(Results(Folder(Path()), list(rows)), replace(load_reference(), is_custom=given))


def test_the_packaged_reference_is_the_rows_of_the_reference_sweep() -> None:
    reference = load_reference()
    trials = load_sweep(SWEEPS / "reference_table.py").trials()
    assert [reference.find_row(trial) for trial in trials] == list(reference.rows)
    assert len(reference.rows) == 21
    assert [row.note for row in reference.rows if row.note] == ["loss going up"] * 2


def test_value_and_difference_stand_beside_each_loss() -> None:
    made = shown(done(TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=64), 3.60, 3.70))
    assert made.column_names == (
        *("dataset", "context len", "model", "batch size", "train loss", "ref", "diff", "val loss", "ref", "diff"),
        *("adj val loss", "ref", "diff", "best epoch", "run"),
    )
    assert made.rows[0][4:14] == ["3.70", "3.73", "-0.03", "3.60", "3.58", "+0.02", "4.50", "4.61", "-0.11", "1"]


def test_without_a_row_to_compare_the_table_has_the_references_columns() -> None:
    assert shown(done(TrialConfig())).column_names == COLUMN_NAMES


def test_the_packaged_rows_are_compared_only_with_trials_like_them() -> None:
    like = TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=64, seed=5)
    other = replace(like, learning_rate=1e-3)
    assert shown(done(like), done(other), given=False).rows[1][5] == MISSING
    assert shown(done(like), done(other), given=False).rows[0][5] == "3.73"
    assert shown(done(other), given=True).rows[0][5] == "3.73"


def test_a_row_of_the_reference_that_repeats_another_is_pointed_out() -> None:
    config = TrialConfig(dataset="wikitext2", model="gpt2-xl", context_length=1024)
    (note,) = shown(done(config)).notes
    assert re.search(r"gpt2-xl 1024x8: the same three losses as wikitext2 gpt2-large 1024x8.*copying error", note)
    assert not shown(done(replace(config, context_length=512))).notes


def test_a_reference_of_ones_own(tmp_path: Path) -> None:
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


def test_rows_stand_in_the_references_order() -> None:
    trials = load_sweep(SWEEPS / "reference_table.py").trials()
    mixed = trials[:1] + random.Random(0).sample(trials[1:], 20)  # the first names the first dataset
    ordered = table_ordered(Results(Folder(Path()), [done(config) for config in mixed]))
    assert [row.config for row in ordered] == trials


def test_seeds_of_a_row_are_one_line_with_mean_and_interval() -> None:
    seeds = [done(TrialConfig(seed=seed), loss) for seed, loss in ((0, 3.0), (1, 3.1), (2, 3.2))]
    made = shown(*seeds, done(TrialConfig(batch_size=4)))
    assert made.column_names[-2:] == ("n", "run")
    alone, together = made.rows
    assert alone[5] == "3.00"
    assert alone[-2:] == ["1", TrialConfig(batch_size=4).run_name]
    assert together[5] == "3.10 ± 0.25"  # 4.303 x 0.1 / sqrt(3)
    assert together[-2:] == ["3", "pydocs-gpt2-nano-1024x8 (seeds 0 1 2)"]


def test_what_is_not_done_does_not_count_in_a_mean() -> None:
    failed = replace(done(TrialConfig(seed=2), 99.0, status=FAILED), reason="why")
    missing = Row(TrialConfig(seed=3), PENDING, "", None, None)
    made = shown(done(TrialConfig(seed=0), 3.0), done(TrialConfig(seed=1), 3.0), failed, missing)
    (line,) = made.rows
    assert (line[5], line[-2]) == ("3.00 ± 0.00", "2")
    assert line[-1].endswith("(1 failed, 1 missing)")
    assert made.notes == [f"{failed.config.run_name} failed: why"]


def test_students_t() -> None:
    known = {1: 12.706, 2: 4.303, 10: 2.228, 11: 2.201, 20: 2.086, 30: 2.042, 1000: 1.962}
    assert all(student_t_quantile(degrees) == pytest.approx(value, abs=3e-3) for degrees, value in known.items())


def test_a_sweep_with_seeds_runs_each_row_with_each() -> None:
    sweep = Sweep(name="s", space=[{"batch_size": 4}, {"batch_size": 8}], seeds=(0, 3))
    assert [(trial.batch_size, trial.seed) for trial in sweep.trials()] == [(4, 0), (4, 3), (8, 0), (8, 3)]
    assert sweep.grid_size == 4
    assert [trial.seed for trial in sweep.override({"seed": 7}).trials()] == [7, 7]


@pytest.mark.parametrize("seeds", [(), [1, 1], [-1], ["0"], 3, [1.5], [True]])
def test_seeds_that_are_none(seeds: object) -> None:
    with pytest.raises(SweepError, match=r"\bseeds: "):
        Sweep(name="s", space={"epochs": 1}, seeds=seeds)  # type: ignore[arg-type]


def test_seeds_and_a_seed_do_not_go_together() -> None:
    with pytest.raises(SweepError, match="seeds: and a seed in the space"):
        Sweep(name="s", space={"seed": 1}, seeds=(1, 2))


# ---- a loss that goes up ------------------------------------------------------------------------------------------


def progress(slope: float, noise: float, points: int = 100) -> Progress:
    """A curve that falls quickly and then changes by `slope` over its second half."""
    chance = random.Random(3)
    curve = []
    for step in range(points):
        late = max(0.0, step / points - 0.5) * 2 * slope
        curve.append((step + 1, 4 + 2 * math.exp(-8 * step / points) + late + chance.gauss(0, noise)))
    return Progress(points, 8, points, curve=curve)


@pytest.mark.parametrize(
    ("slope", "noise", "up"),
    [
        (0.5, 0.02, True),
        (0.2, 0.02, True),
        (0.0, 0.02, False),
        (0.0, 0.5, False),
        (-0.3, 0.1, False),
        (0.2, 0.5, False),
    ],
)
def test_going_up_is_more_than_noise(slope: float, noise: float, up: bool) -> None:
    assert progress(slope, noise).is_loss_rising is up


def test_a_short_curve_tells_nothing() -> None:
    assert not progress(5.0, 0.0, points=20).is_loss_rising
    assert not Progress(10, 8).is_loss_rising


def test_going_up_is_said_in_the_table() -> None:
    row = done(TrialConfig(), train_loss=4.1)
    assert row.latest_checkpoint is not None
    rising = replace(
        row,
        latest_checkpoint=replace(
            row.latest_checkpoint, progress=replace(row.latest_checkpoint.progress, curve=progress(0.5, 0.02).curve)
        ),
    )
    assert shown(rising).rows[0][4] == "4.10 (loss going up)"
