"""Commands and LaTeX of docs/paper.md: each runs on a sweep as the page has it, and the document compiles."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_folder import save_checkpoint
from typer.testing import CliRunner

from raylm import Sweep
from raylm.cli.app import app
from raylm.results import sweep_record
from raylm.results.progress import EvalMetrics

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")


@pytest.fixture
def page_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with results of the page's sweep."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    namespace: dict[str, object] = {}
    exec(code, namespace)
    sweep = namespace["sweep"]
    assert isinstance(sweep, Sweep)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / sweep.name
    for number, trial in enumerate(sweep.trials()):
        loss = 3.6 - 0.2 * (trial.model == "gpt2-medium") - trial.context_length / 4096 + 0.01 * (number % 3)
        save_checkpoint(folder, trial, 0, 10, EvalMetrics(1, 10, 1000, loss, loss, loss))
    trials = [{"config": trial.as_dict()} for trial in sweep.trials()]
    content = {"version": sweep_record.FORMAT_VERSION, "name": sweep.name, "trials": trials}
    (folder / sweep_record.RECORD_FILE).write_text(json.dumps(content))
    return tmp_path


def test_commands_and_document_of_the_page_work(page_sweep: Path) -> None:
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        line, _, target = command.partition(" > ")
        program, *arguments = shlex.split(line)
        done = CliRunner().invoke(app, arguments)
        assert (program, done.exit_code) == ("raylm", 0), done.output
        if target:
            Path(target).write_text(done.stdout)
    pivot = Path("pivot.tex").read_text()
    assert re.search(
        r"^gpt2-medium & [\d.]+ \$\\pm\$ 0.02 & [\d. $\\pm]+ & \\textbf\{3.16 \$\\pm\$ 0.02\}", pivot, re.M
    )
    assert r"model & context len & val loss & n \\" in Path("best.tex").read_text()
    (document,) = re.findall(r"```latex\n(.*?)```", PAGE, re.DOTALL)
    assert all(Path(name).is_file() for name in re.findall(r"\{(figures/.*?)\}", document))
    if compiler := shutil.which("pdflatex"):
        Path("paper.tex").write_text(document)
        options = ["-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
        built = subprocess.run([compiler, *options], capture_output=True, text=True, timeout=120)
        assert built.returncode == 0 and Path("paper.pdf").is_file(), built.stdout[-2000:]
