"""Write a heartbeat and die without removing it: `heartbeat_and_die.py FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from raylm.results.heartbeat import Heartbeat
from raylm.results.storage import Folder

with Heartbeat(Folder(Path(sys.argv[1]))):
    os._exit(9)
