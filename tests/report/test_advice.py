"""Advice on a finished sweep: edges, noise, number of epochs, divergence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.report.advice import build_advice
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DIVERGED, DONE, INTERRUPTED, Row, SavedCheckpoint, SweepRows
from raylm.results.storage import Folder


def sample_row(loss: float, *, status: str = DONE, best_epoch: int = 1, **fields: Any) -> Row:
    config = TrialConfig(**fields)
    evaluation = EvalMetrics(best_epoch, 10, 1000, loss, loss, loss)
    saved = SavedCheckpoint(config.run_name, Progress(10, 8, 10, 1000, evaluations=[evaluation]))
    return Row(config, status, "", saved, saved)


def advise(*rows: Row) -> list[str]:
    return build_advice(SweepRows(Folder(Path("runs")), list(rows)))


def rows_by_rate(losses: dict[float, float], **fields: Any) -> list[Row]:
    return [sample_row(loss, learning_rate=rate, **fields) for rate, loss in losses.items()]


def test_best_value_at_an_edge_suggests_the_next_value() -> None:
    (edge,) = advise(*rows_by_rate({1e-4: 5.0, 3e-4: 4.0, 1e-3: 3.0}))
    assert edge.startswith("the best learning_rate, 0.001, is the largest of 3 tried (0.0001 to 0.001)")
    assert edge.endswith("try 0.0033")
    (edge,) = advise(*rows_by_rate({1e-4: 3.0, 1e-3: 4.0, 1e-2: 5.0}))
    assert "smallest" in edge and edge.endswith("try 1e-05")
    (edge,) = advise(*(sample_row(5.0 - size / 8, batch_size=size) for size in (4, 8, 16)))
    assert edge.endswith("try 32")
    (edge,) = advise(*(sample_row(5.0 - p, dropout=p) for p in (0.0, 0.1, 0.3)))
    assert edge.endswith("try 0.5")


def test_best_value_inside_the_range_gives_no_advice() -> None:
    assert advise(*rows_by_rate({1e-4: 5.0, 3e-4: 3.0, 1e-3: 4.0})) == []
    assert advise(*rows_by_rate({1e-4: 5.0, 3e-4: 3.0})) == [], "two values are too few"
    assert advise(*(sample_row(3.0 + p, dropout=p) for p in (0.0, 0.1, 0.3))) == [], "dropout cannot be below 0"
    beyond = sample_row(99.0, status=DIVERGED, learning_rate=1e-2)
    assert not any("largest" in text for text in advise(*rows_by_rate({1e-4: 5.0, 3e-4: 4.0, 1e-3: 3.0}), beyond))


def test_edge_needs_rows_equal_in_other_fields_or_many_values() -> None:
    mixed = [sample_row(5.0 - n / 10, learning_rate=(n + 1) * 1e-4, warmup_ratio=(n * 3 % 7) / 10) for n in range(8)]
    assert advise(*mixed[:7]) == []
    assert any("largest of 8 tried" in text for text in advise(*mixed))


def test_rows_within_seed_noise_are_equivalent() -> None:
    def seeds(mean: float, **fields: Any) -> list[Row]:
        return [sample_row(mean + noise, seed=seed, **fields) for seed, noise in enumerate((-0.05, 0.0, 0.05))]

    (noise,) = advise(*seeds(3.0, batch_size=8), *seeds(3.06, batch_size=16), *seeds(4.0, batch_size=32))[-1:]
    assert noise.startswith("not significantly worse than the best: 1 row (") and "loss: 0.050)" in noise
    assert "x16" in noise and "x32" not in noise
    apart = advise(*seeds(3.0, batch_size=8), *seeds(3.5, batch_size=16))
    assert apart == []


def test_close_rows_of_one_seed_each_suggest_more_seeds() -> None:
    (close,) = advise(sample_row(3.0, batch_size=8), sample_row(3.02, batch_size=16))
    assert "differ by 0.020" in close and "seeds=(0, 1, 2)" in close
    assert advise(sample_row(3.0, batch_size=8), sample_row(3.1, batch_size=16)) == []


def test_best_epoch_suggests_more_or_fewer_epochs() -> None:
    (more,) = advise(sample_row(3.0, epochs=3, best_epoch=3), sample_row(4.0, epochs=3, best_epoch=3, batch_size=64))
    assert "still falls in the last of its 3 epochs" in more
    (fewer,) = advise(sample_row(3.0, epochs=3, best_epoch=1), sample_row(4.0, epochs=3, batch_size=64))
    assert "overfits after epoch 1 of 3" in fewer


def test_divergence_has_a_likely_cause() -> None:
    done = rows_by_rate({1e-4: 4.0, 1e-3: 3.0})
    diverged = [sample_row(9.0, status=DIVERGED, learning_rate=rate) for rate in (0.01, 0.1)]
    (text,) = advise(*done, *diverged)
    assert text == (
        "2 rows diverged, all with a learning_rate of 0.01 or more, and none with 0.001 or less: "
        "the learning rate is the likely cause; stay below 0.01"
    )
    (clipping,) = advise(*done, sample_row(9.0, status=DIVERGED, learning_rate=1e-3, max_grad_norm=0))
    assert "without gradient clipping" in clipping
    (warm_up,) = advise(*done, sample_row(9.0, status=DIVERGED, learning_rate=1e-3, warmup_ratio=0))
    assert "without warm-up" in warm_up
    (alone,) = advise(sample_row(9.0, status=DIVERGED))
    assert "a learning_rate lower than 5e-05" in alone


def test_advice_is_per_dataset_and_only_for_finished_sweeps() -> None:
    rows = rows_by_rate({1e-4: 5.0, 3e-4: 4.0, 1e-3: 3.0}, dataset="imdb")
    rows += [sample_row(3.0), sample_row(3.01, batch_size=16)]
    advice = advise(*rows)
    assert [text.split(":")[0] for text in advice] == ["imdb", "pydocs"]
    assert advise(*rows[:-1], replace(rows[-1], status=INTERRUPTED)) == []
    assert advise() == []
