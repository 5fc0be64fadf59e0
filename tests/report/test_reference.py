"""Reference table: the packaged rows, and a CSV file of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm import TrialConfig, UserError
from raylm.config.sweep_file import load_sweep
from raylm.report.reference import load_reference

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


def test_packaged_reference_matches_the_reference_sweep() -> None:
    reference = load_reference()
    trials = load_sweep(SWEEPS / "reference_table.py").trials()
    assert [reference.find_row(trial) for trial in trials] == list(reference.rows)
    assert len(reference.rows) == 21
    assert [row.note for row in reference.rows if row.note] == ["loss going up"] * 2


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
