"""Print from Python, C and a child into a trial's log, twice: `print_in_trial.py FOLDER return|kill`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from raylm.results.storage import Folder
from raylm.tuning.trial_process import capture_output, print_timestamped

folder, end = Path(sys.argv[1]), sys.argv[2]
print("before", flush=True)
for attempt in range(2):
    with capture_output(Folder(folder), "launch-001/run/log.txt"):
        print("from Python", attempt, flush=True)
        print("a warning", file=sys.stderr)
        os.write(2, b"from C\n")
        subprocess.run(["echo", "from a child"], check=True)
        print_timestamped("two\nlines")
        if attempt == 1:
            sys.stderr.write("incomplete line")
            sys.stderr.flush()
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
print("after", flush=True)
