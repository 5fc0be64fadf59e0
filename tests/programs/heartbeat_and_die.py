"""Write a heartbeat and die without removing it: `heartbeat_and_die.py FOLDER`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from raylm.monitor.heartbeat import HEARTBEAT_FILE, Heartbeat
from raylm.monitor.state import SweepMonitor
from raylm.results.rows import Results
from raylm.results.storage import Folder

folder = Path(sys.argv[1])
with Heartbeat(Folder(folder), SweepMonitor("s", Results(Folder(folder), []), 2, lambda trial: 1.0)):
    while not (folder / HEARTBEAT_FILE).exists():
        time.sleep(0.01)
    os._exit(9)
