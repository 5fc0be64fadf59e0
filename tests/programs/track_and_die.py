"""Track two trials in TensorBoard, print the process ids of the trackers and die: `track_and_die.py FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tracked_trials import NO_WANDB, NUM_STEPS, TrackedTrials, tracker_processes

folder = Path(sys.argv[1])
with TrackedTrials(folder, NO_WANDB) as tracked:
    tracked.train(1, NUM_STEPS)
    while not (folder / "tensorboard").exists():  # the process has read its first events; the others are in its pipe
        time.sleep(0.01)
    print(*(process.pid for process in tracker_processes("tensorboard")), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
