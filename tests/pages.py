"""Results folders without training, and a reader of the pages that show them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from raylm import load_results
from raylm.config.trial import TrialConfig
from raylm.results import manifest, sweep_record
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import SweepRows

VOID_TAGS = {"meta", "img", "br", "hr", "link", "input"}


class PageReader(HTMLParser):
    """Collect tags, URLs and text of a page; assert that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open_tags += [] if tag in VOID_TAGS else [tag]
        self.urls += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def save_checkpoint(folder: Path, config: TrialConfig, val_loss: float, total_steps: int = 40) -> None:
    """Write a checkpoint at step 40."""
    checkpoint = folder / "launch-001" / config.run_name / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    progress = Progress(total_steps, 4, step=40, tokens_seen=5000, training_seconds=2.5)
    progress.curve = [(step, val_loss + 4 / step) for step in range(4, 41, 4)]
    progress.evaluations = [EvalMetrics(1, 40, 5000, val_loss, val_loss, val_loss * 1.2)]
    manifest.write(checkpoint, config, progress)


def write_record(folder: Path, trials: list[TrialConfig], *launches: dict[str, Any]) -> SweepRows:
    """Write sweep.json into a results folder and return its rows."""
    content = {"version": sweep_record.FORMAT_VERSION, "name": "my-sweep", "launches": launches}
    content["trials"] = [{"config": config.as_dict()} for config in trials]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sweep_record.RECORD_FILE).write_text(json.dumps(content))
    return load_results(folder)
