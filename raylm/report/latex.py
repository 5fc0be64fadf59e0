r"""LaTeX: tables with booktabs that compile in pdfLaTeX, XeLaTeX and LuaLaTeX, whatever the names in them. No torch.

A document needs `\usepackage{booktabs}` and nothing else, so that only commands and characters of the default font
encoding (OT1) are used.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from raylm.report.reference import ReferenceTable
from raylm.report.select.paper import build_paper_sheet
from raylm.report.tables.cells import RISING_LOSS
from raylm.report.tables.sheet import Sheet
from raylm.report.tables.table import build_table
from raylm.results.rows import SweepRows

ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "µ": r"$\mu$",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
}
ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
"""Commands of combining characters."""
RISING_MARK = r"$^{\uparrow}$"
"""Mark at a training loss that rises, explained in a comment."""
SIGNED_NUMBER = re.compile(r"[+-]\d+(\.\d+)?")


def format_latex(results: SweepRows, reference: ReferenceTable | None = None) -> str:
    """Return the table with booktabs rules between datasets, best losses in bold, and its notes as comments."""
    return format_sheet(build_paper_sheet(build_table(results, reference), results))


def format_sheet(sheet: Sheet) -> str:
    """Return a sheet as a `tabular` environment; its notes follow as comments."""
    alignment = "".join("r" if column.is_numeric else "l" for column in sheet.columns)
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", *_format_span(sheet)]
    lines.append(_format_row(escape(name) for name in sheet.column_names))
    lines.append(r"\midrule")
    for number, cells in enumerate(sheet.rows):
        if number in sheet.breaks:
            lines.append(r"\midrule")
        columns = zip(cells, sheet.columns, strict=True)
        texts = [_format_cell(cell) if column.is_numeric else escape(cell) for cell, column in columns]
        bold = [rf"\textbf{{{t}}}" if (number, position) in sheet.bold else t for position, t in enumerate(texts)]
        lines.append(_format_row(bold))
    lines += [r"\bottomrule", r"\end{tabular}"]
    has_mark = any(RISING_LOSS in cell for cells in sheet.rows for cell in cells)
    meaning = [f"bold: {sheet.bold_meaning}"] if sheet.bold and sheet.bold_meaning != "best" else []
    notes = [*sheet.notes, *meaning, *([f"arrow: {RISING_LOSS} at the end"] if has_mark else [])]
    return "\n".join([*lines, *(f"% {' '.join(note.split())}" for note in notes), ""])


def _format_span(sheet: Sheet) -> list[str]:
    """Return the heading that several columns share, with the rule below it."""
    if sheet.span is None:
        return []
    first, heading = sheet.span
    empty = ["" for _ in range(first)]
    cell = rf"\multicolumn{{{len(sheet.columns) - first}}}{{c}}{{{escape(heading)}}}"
    return [_format_row([*empty, cell]), rf"\cmidrule(lr){{{first + 1}-{len(sheet.columns)}}}"]


def _format_row(cells: Iterable[str]) -> str:
    text = " & ".join(cells)
    begins_option = text.lstrip().startswith(("[", "*"))  # which \\ and \midrule would read as theirs
    return ("{}" if begins_option else "") + text + r" \\"


def _format_cell(text: str) -> str:
    """Return a number; a sign in math, where a minus is longer than a hyphen."""
    if SIGNED_NUMBER.fullmatch(text):
        return f"${text}$"
    number, mark, rest = text.partition(f" ({RISING_LOSS})")
    return escape(number) + (RISING_MARK if mark else "") + escape(rest)


def escape(text: str) -> str:
    """Return text that LaTeX prints as it is; a character without a command is given by its code point, as `U+5B57`."""
    escaped = "".join(map(_escape_character, unicodedata.normalize("NFC", " ".join(text.split()))))
    return re.sub(r"-(?=-)", "-{}", escaped) if "--" in text else escaped


def _escape_character(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    if character.isascii():
        return character if character.isprintable() else rf"\texttt{{U+{ord(character):04X}}}"
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in ACCENTS:
        return rf"\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return rf"\texttt{{U+{ord(character):04X}}}"
