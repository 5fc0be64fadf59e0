"""Stages of a command are written while they are asked for, with the seconds since its start."""

from __future__ import annotations

import re

from raylm.stages import mark_stage, process_started_at, show_stages


def test_stages_are_shown_with_wall_and_processor_seconds() -> None:
    lines: list[str] = []
    mark_stage("before")
    with show_stages(lines.append):
        mark_stage("Ray stands")
        mark_stage("a trial begins", process_started_at() + 7.25)
    mark_stage("after")
    assert re.fullmatch(r"stage +\d+\.\d\d s, \d+\.\d\d s of processor: Ray stands", lines[0])
    assert lines[1:] == ["stage   7.25 s: a trial begins"]
