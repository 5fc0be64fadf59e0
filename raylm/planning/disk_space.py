"""Check of the disk space that the checkpoints of a sweep need."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.planning import plan
from raylm.results.storage import Folder, Storage
from raylm.units import GIB, pluralize


def check_disk_space(trials: Sequence[TrialConfig], num_remaining: int, storage: Storage) -> None:
    """Check that the checkpoints fit: those kept of all trials, and one that is being written.

    Args:
        trials: trials that will run, or that represent them.

    Raises:
        UserError: if the storage or the temporary folder is too small.
    """
    sizes = [plan.estimate_checkpoint_bytes(trial) or 0 for trial in trials]
    largest = max(sizes)
    kept = sum(sizes) if num_remaining <= len(sizes) else largest * num_remaining
    temporary = Folder(Path(tempfile.gettempdir()))
    for target, needed, setting in ((storage, kept + largest, "--storage"), (temporary, largest, "TMPDIR")):
        free = target.free_bytes()
        if free is not None and needed > free:
            raise UserError(
                f"the checkpoints of {pluralize(num_remaining, 'trial')} need {needed / GIB:.1f} GiB in {target.uri}, "
                f"which has {free / GIB:.1f} GiB free; free some space, use another {setting}, or run fewer trials"
            )
