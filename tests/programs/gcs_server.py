"""Serve a Google Cloud Storage with one bucket: `gcs_server.py PORT BUCKET`."""

from __future__ import annotations

import sys
import threading

from gcp_storage_emulator.server import create_server

create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).start()
threading.Event().wait()
