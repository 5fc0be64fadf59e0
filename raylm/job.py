"""What all trials of a launch share, and what one of them gets of it. Sent to every trial, so plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raylm import models
from raylm.catalog import Shape
from raylm.config import TrialConfig
from raylm.hardware import Card, share
from raylm.storage import Storage


@dataclass(frozen=True)
class Job:
    """What all trials of a launch share."""

    folder: Storage
    """The sweep's results folder."""
    launch: str
    """The name of this launch's folder in it."""
    corpora: Mapping[tuple[str, str], Any]
    """Ray reference to the corpus of (dataset, model): each node holds one copy, which its trials share."""
    sources: Mapping[tuple[str, bool], models.ModelSource]
    """The model of (name, pretrained)."""
    shapes: Mapping[tuple[str, bool], Shape | None]
    """What its costs follow from, read where its files are: other nodes may not have them."""
    home: str
    """The node that the sources were found on."""
    carried: Mapping[tuple[str, bool], Any]
    """Ray reference to the files of those in a local folder, for the other nodes."""
    precision: str
    device: str
    """`cpu` or `cuda`."""
    ranks: int
    """Processes that train a trial."""
    gpus: float
    """Per process: one, a fraction of one, or none."""
    cards: Sequence[tuple[Card, int]]
    """GPUs that trials share where it pays, each with the number of trials that may; none where they do not."""
    threads: int
    """Per process."""
    part: float
    """A process's part of its machine's memory."""
    max_failures: int
    """Errors of a trial after which it is given up."""
    alone: bool
    """Whether trials run one at a time, because they have run out of memory before."""
    board: Any
    """Actor between the trials and the driver."""

    def share(self, trial: TrialConfig) -> float:
        """A trial's share of a GPU that it may share."""
        return share(self.cards, self.shapes[trial.model, trial.pretrained], trial, self.precision)

    def of(self, trial: TrialConfig) -> Job:
        """As it holds for one trial."""
        own = self.share(trial)
        return replace(self, gpus=self.gpus * own, part=self.part * own)
