"""What a finished sweep suggests: edges, noise, length, instability; and nothing where nothing is to be said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.report.advice import build_advice
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DIVERGED, DONE, INTERRUPTED, Results, Row, SavedCheckpoint
from raylm.results.storage import Folder


def row(loss: float, *, status: str = DONE, best_epoch: int = 1, **fields: Any) -> Row:
    config = TrialConfig(**fields)
    evaluation = EvalMetrics(best_epoch, 10, 1000, loss, loss, loss)
    saved = SavedCheckpoint(config.run_name, Progress(10, 8, 10, 1000, evaluations=[evaluation]))
    return Row(config, status, "", saved, saved)


def said(*rows: Row) -> list[str]:
    return build_advice(Results(Folder(Path("runs")), list(rows)))


def rates(losses: dict[float, float], **fields: Any) -> list[Row]:
    return [row(loss, learning_rate=rate, **fields) for rate, loss in losses.items()]


def test_the_best_value_at_an_edge_is_told_with_the_next_one_to_try() -> None:
    (edge,) = said(*rates({1e-4: 5.0, 3e-4: 4.0, 1e-3: 3.0}))
    assert edge.startswith("the best learning_rate, 0.001, is the largest of 3 tried (0.0001 to 0.001)")
    assert edge.endswith("try 0.0033")
    (edge,) = said(*rates({1e-4: 3.0, 1e-3: 4.0, 1e-2: 5.0}))
    assert "smallest" in edge and edge.endswith("try 1e-05")
    (edge,) = said(*(row(5.0 - size / 8, batch_size=size) for size in (4, 8, 16)))
    assert edge.endswith("try 32")
    (edge,) = said(*(row(5.0 - p, dropout=p) for p in (0.0, 0.1, 0.3)))
    assert edge.endswith("try 0.5")


def test_a_best_value_within_what_was_tried_is_no_edge() -> None:
    assert said(*rates({1e-4: 5.0, 3e-4: 3.0, 1e-3: 4.0})) == []
    assert said(*rates({1e-4: 5.0, 3e-4: 3.0})) == [], "of two values each is an edge"
    assert said(*(row(3.0 + p, dropout=p) for p in (0.0, 0.1, 0.3))) == [], "nothing is below 0"
    beyond = row(99.0, status=DIVERGED, learning_rate=1e-2)
    assert not any("largest" in text for text in said(*rates({1e-4: 5.0, 3e-4: 4.0, 1e-3: 3.0}), beyond))


def test_an_edge_is_of_rows_that_are_equal_in_all_else_or_of_many() -> None:
    mixed = [row(5.0 - n / 10, learning_rate=(n + 1) * 1e-4, warmup_ratio=(n * 3 % 7) / 10) for n in range(8)]
    assert said(*mixed[:7]) == []
    assert any("largest of 8 tried" in text for text in said(*mixed))


def test_rows_within_what_seeds_make_are_as_good() -> None:
    def seeds(mean: float, **fields: Any) -> list[Row]:
        return [row(mean + noise, seed=seed, **fields) for seed, noise in enumerate((-0.05, 0.0, 0.05))]

    (noise,) = said(*seeds(3.0, batch_size=8), *seeds(3.06, batch_size=16), *seeds(4.0, batch_size=32))[-1:]
    assert noise.startswith("1 row as good as the best") and "is 0.050" in noise
    assert "x16" in noise and "x32" not in noise
    apart = said(*seeds(3.0, batch_size=8), *seeds(3.5, batch_size=16))
    assert apart == []


def test_close_rows_of_one_seed_each_may_be_noise() -> None:
    (close,) = said(row(3.0, batch_size=8), row(3.02, batch_size=16))
    assert "0.020 apart" in close and "seeds=(0, 1, 2)" in close
    assert said(row(3.0, batch_size=8), row(3.1, batch_size=16)) == []


def test_epochs_too_many_or_too_few() -> None:
    (more,) = said(row(3.0, epochs=3, best_epoch=3), row(4.0, epochs=3, best_epoch=3, batch_size=64))
    assert "still falls in the last of its 3 epochs" in more
    (fewer,) = said(row(3.0, epochs=3, best_epoch=1), row(4.0, epochs=3, batch_size=64))
    assert "lowest in epoch 1 of 3" in fewer


def test_rows_that_diverged_have_a_likely_reason() -> None:
    done = rates({1e-4: 4.0, 1e-3: 3.0})
    (rate,) = said(*done, row(9.0, status=DIVERGED, learning_rate=1e-2), row(9.0, status=DIVERGED, learning_rate=0.1))
    assert rate == (
        "2 rows diverged, all at a learning_rate from 0.01 up, and none up to 0.001: the rate is the likely reason; "
        "stay below 0.01"
    )
    (clipping,) = said(*done, row(9.0, status=DIVERGED, learning_rate=1e-3, max_grad_norm=0))
    assert "without clipping" in clipping
    (warm_up,) = said(*done, row(9.0, status=DIVERGED, learning_rate=1e-3, warmup_ratio=0))
    assert "without a warm-up" in warm_up
    (alone,) = said(row(9.0, status=DIVERGED))
    assert "a lower learning_rate than 5e-05" in alone


def test_each_dataset_is_looked_at_by_itself_and_only_when_all_is_done() -> None:
    rows = [*rates({1e-4: 5.0, 3e-4: 4.0, 1e-3: 3.0}, dataset="imdb"), row(3.0), row(3.01, batch_size=16)]
    told = said(*rows)
    assert [text.split(":")[0] for text in told] == ["imdb", "pydocs"]
    assert said(*rows[:-1], replace(rows[-1], status=INTERRUPTED)) == []
    assert said() == []
