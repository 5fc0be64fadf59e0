"""Random trials and losses: what is written gives the same trials and numbers again."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from fuzz_trials import fuzz, temporary_folder
from hypothesis import given
from hypothesis import strategies as st
from sample_rows import FOLDER, sample_row

from raylm.config.sweep_file import load_sweep
from raylm.config.trial import TrialConfig
from raylm.report.formats import format_csv
from raylm.report.json_output import format_report_json
from raylm.results.rows import SweepRows
from raylm.results.storage import Folder

FINITE: dict[str, Any] = {"allow_nan": False, "allow_infinity": False}
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "dataset": st.sampled_from(["wikitext2", "imdb", "owner/name", "a/b:c@main"]),
    "model": st.sampled_from(["gpt2", "gpt2-xl", "owner/model"]),
    "context_length": st.integers(2, 1024),
    "batch_size": st.integers(1, 10**6),
    "epochs": st.integers(1, 10_000),
    "optimizer": st.just("adamw"),
    "learning_rate": st.floats(0, exclude_min=True, **FINITE),
    "lr_schedule": st.sampled_from(["cosine", "constant"]),
    "warmup_ratio": st.floats(0, 1),
    "weight_decay": st.floats(0, **FINITE),
    "max_grad_norm": st.floats(0, **FINITE),
    "dropout": st.none() | st.floats(0, 1, exclude_max=True),
    "seed": st.integers(0, 2**32 - 1),
    "max_train_tokens": st.none() | st.integers(1, 10**18),
    "evals_per_epoch": st.integers(1, 1000),
    "text_column": st.none() | st.sampled_from(["body", "a b", "1", "True", "None ", "的", "x=y", "a,b", "'q'", '"']),
    "documents": st.none() | st.sampled_from(["line", "blank-line", "file"]),
    "max_documents": st.none() | st.integers(2, 10**18),
}
OPTIONS = ("text_column", "documents", "max_documents")
FIXED = ("wikitext2", "imdb")


def _fit_dataset(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields with a dataset that takes their options: the text of known ones is fixed."""
    has_options = any(fields.get(name) is not None for name in OPTIONS)
    is_fixed = fields.get("dataset", FIXED[0]) in FIXED
    return {**fields, "dataset": "owner/name"} if has_options and is_fixed else fields


SOME_FIELDS = st.fixed_dictionaries({}, optional=FIELDS).map(_fit_dataset)


@fuzz(150)
@given(fields=SOME_FIELDS)
def test_trial_has_the_same_id_after_it_is_saved_as_json(fields: dict[str, Any]) -> None:
    trial = TrialConfig(**fields)
    saved = TrialConfig.from_record(json.loads(json.dumps(trial.as_record())))
    assert (saved, saved.id, saved.run_name) == (trial, trial.id, trial.run_name)
    assert TrialConfig(**dict(reversed(trial.as_dict().items()))).id == trial.id


@fuzz(60)
@given(fields=SOME_FIELDS)
def test_settings_on_the_command_line_give_the_trial_that_a_file_gives(fields: dict[str, Any]) -> None:
    with temporary_folder() as folder:
        file = folder / "sweep.py"
        file.write_text("from raylm import Sweep\n\nsweep = Sweep(name='s', space={'seed': 0})\n")
        overrides = [f"{name}={value}" for name, value in fields.items()]
        (trial,) = load_sweep(file, overrides).trials()
        assert trial == TrialConfig(**fields)


@fuzz(60)
@given(
    rows=st.lists(
        st.tuples(
            st.fixed_dictionaries(
                {"seed": st.integers(0, 5)},
                optional={
                    "dataset": st.text(max_size=20),
                    "learning_rate": FIELDS["learning_rate"],
                    "weight_decay": FIELDS["weight_decay"],
                },
            ),
            st.floats(0, 1e6) | st.floats(0, 1e-9),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: TrialConfig.from_record(row[0]).run_name,
    )
)
def test_tables_for_programs_hold_the_numbers_that_were_measured(rows: list[tuple[dict[str, Any], float]]) -> None:
    samples = [sample_row(loss, **fields) for fields, loss in rows]
    results = SweepRows(Folder(Path(FOLDER)), samples)
    expected = {
        sample.config.run_name: (fields, sample.metrics) for sample, (fields, _) in zip(samples, rows, strict=True)
    }
    from_csv = list(csv.DictReader(io.StringIO(format_csv(results), newline="")))
    from_json = json.loads(format_report_json(results))["rows"]
    for records in (from_csv, from_json):
        assert len(records) == len(rows)
        for record in records:
            fields, metrics = expected[record["run"]]
            assert metrics is not None
            assert float(record["val_loss"]) == metrics.val_loss
            for name, value in fields.items():
                if isinstance(value, str):
                    assert record[name] == value
                else:
                    assert float(record[name]) == value
