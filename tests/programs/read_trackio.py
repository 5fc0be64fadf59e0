"""Print the logs of a trackio project by run, as JSON: `read_trackio.py PROJECT`."""

from __future__ import annotations

import json
import sys

from trackio.sqlite_storage import SQLiteStorage

project = sys.argv[1]
print(json.dumps({run: SQLiteStorage.get_logs(project, run) for run in SQLiteStorage.get_runs(project)}))
