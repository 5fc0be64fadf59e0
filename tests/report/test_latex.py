"""LaTeX: tables that compile whatever the names in them, with the best losses in bold and no hashes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sample_rows import FOLDER, sample_row

from raylm.report.latex import escape, format_latex
from raylm.report.reference import load_reference
from raylm.report.select.output import ReportOptions, format_report
from raylm.results.rows import DIVERGED, FAILED, SweepRows
from raylm.results.storage import Folder

HOSTILE_NAMES = (
    "50%_of_a&b.txt",
    r"c\d{}$x^2~#",
    "[1] *--a---b <|>\"'`",
    "Ærø-ñandú-ß-Łódź",
    "日本語 😀 \x07",
    "* star",
)


def sweep(*fields: dict[str, Any]) -> SweepRows:
    rows = [sample_row(3.0 + number / 8, **own) for number, own in enumerate(fields)]
    return SweepRows(Folder(FOLDER), rows)


def hostile_sweep() -> SweepRows:
    results = sweep(*({"dataset": n, "model": m} for n in HOSTILE_NAMES for m in ("gpt2", n)))
    failed = sample_row(None, status=FAILED, dataset=HOSTILE_NAMES[0], model="gpt2-xl")
    return SweepRows(results.storage, [*results.rows, failed])


def test_table_has_no_hashes_and_best_losses_in_bold() -> None:
    rows = [
        *(sample_row(3.0 + seed / 10, model="gpt2", learning_rate=1e-3, seed=seed, dataset="imdb") for seed in (0, 1)),
        sample_row(2.5, model="gpt2-xl", learning_rate=1e-3, dataset="imdb"),
        sample_row(9.0, status=DIVERGED, model="gpt2", learning_rate=0.1, dataset="imdb"),
        sample_row(4.0, model="gpt2", learning_rate=1e-3, dataset="wikitext2"),
    ]
    text = format_latex(SweepRows(Folder(FOLDER), rows))
    assert text.splitlines() == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lrlrrrrrrrl}",
        r"\toprule",
        r"dataset & context len & model & batch size & learning rate & train loss & val loss & adj val loss"
        r" & best epoch & n & status \\",
        r"\midrule",
        r"imdb & 1024 & gpt2 & 8 & 0.001 & 3.05 $\pm$ 0.64 & 3.05 $\pm$ 0.64 & 3.05 $\pm$ 0.64 & 1 & 2 &  \\",
        r"imdb & 1024 & gpt2 & 8 & 0.1 & 9.00 & 9.00 & 9.00 & 1 & 1 & diverged \\",
        r"imdb & 1024 & gpt2-xl & 8 & 0.001 & 2.50 & 2.50 & \textbf{2.50} & 1 & 1 &  \\",
        r"\midrule",
        r"wikitext2 & 1024 & gpt2 & 8 & 0.001 & 4.00 & 4.00 & 4.00 & 1 & 1 &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert not any(row.config.id in text for row in rows)


def test_rows_of_a_search_are_told_apart_without_run_names() -> None:
    fields = ({"learning_rate": 1e-3 + n * 1e-9, "dropout": None if n % 2 else 0.1} for n in range(8))
    searched = sweep(*fields, {"optimizer": "adamw"}, {"context_length": 64})
    lines = [line for line in format_latex(searched).splitlines() if line.startswith("pydocs")]
    fields_only = {tuple(line.split(" & ")[:7]) for line in lines}
    assert len(fields_only) == len(lines) == 10


def test_differences_to_the_reference_are_set_in_math() -> None:
    text = format_latex(
        sweep({"dataset": "imdb", "model": "gpt2-medium", "context_length": 256, "batch_size": 64}), load_reference()
    )
    assert re.search(r"& \$[+-]\d\.\d\d\$ &", text)


def test_text_is_escaped_and_unknown_characters_have_their_code_point() -> None:
    assert [escape(name) for name in HOSTILE_NAMES] == [
        r"50\%\_of\_a\&b.txt",
        r"c\textbackslash{}d\{\}\$x\textasciicircum{}2\textasciitilde{}\#",
        r"[1] *-{}-a-{}-{}-b \textless{}\textbar{}\textgreater{}'''`",
        r"\AE{}r\o{}-\~{n}and\'{u}-\ss{}-\L{}\'{o}d\'{z}",
        r"\texttt{U+65E5}\texttt{U+672C}\texttt{U+8A9E} \texttt{U+1F600} \texttt{U+0007}",
        "* star",
    ]


def test_tables_compile(tmp_path: Path) -> None:
    compiler = next((found for name in ("pdflatex", "tectonic", "lualatex") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no LaTeX is installed")
    results = hostile_sweep()
    tables = [
        format_latex(results),
        format_report(results, "latex", ReportOptions(pivot="dataset,model")),
        format_report(results, "latex", ReportOptions(columns=("model", "status", "learning_rate"))),
    ]
    body = "\n\n".join(rf"\noindent\resizebox{{\textwidth}}{{!}}{{%{chr(10)}{table}}}" for table in tables)
    document = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    options = [] if compiler.endswith("tectonic") else ["-halt-on-error", "-interaction=nonstopmode"]
    done = subprocess.run([compiler, *options, "paper.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert "Missing character" not in done.stdout
