"""The best trial of a dataset in the state of a running sweep, by the measure that its rows are ranked by."""

from __future__ import annotations

import msgspec

from raylm.config.trial import TrialConfig
from raylm.results.measures import ADJ_VAL_LOSS, Measure


class BestTrial(msgspec.Struct, frozen=True, omit_defaults=True, rename={"run_name": "run"}):
    """The trial with the lowest loss on a dataset, by the measure of the dataset."""

    run_name: str
    adj_val_loss: float
    """In nats per word."""
    measure: str = ADJ_VAL_LOSS
    """Name of the measure."""
    loss: float | None = None
    """Loss by the measure, in nats; None if it is the adj val loss."""

    @classmethod
    def of(cls, trial: TrialConfig, val_loss: float, adj_val_loss: float, measure: Measure) -> BestTrial:
        """Return a trial with its losses."""
        if measure.name == ADJ_VAL_LOSS:
            return cls(trial.run_name, adj_val_loss)
        return cls(trial.run_name, adj_val_loss, measure.name, measure.convert(trial, val_loss, adj_val_loss))

    @property
    def ranked_loss(self) -> float:
        """Loss by the measure, in nats."""
        return self.adj_val_loss if self.loss is None else self.loss

    def __str__(self) -> str:
        """Return the measure and the loss."""
        return f"{self.measure} {Measure(self.measure).format(self.ranked_loss)}"
