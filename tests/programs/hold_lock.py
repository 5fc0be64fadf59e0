"""Hold the lock of a results folder until killed: `hold_lock.py URI`."""

from __future__ import annotations

import sys
import time

from raylm.results.lock import lock
from raylm.results.open_storage import open_storage

with lock(open_storage(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
