"""Start of a Python process on a machine that stands in for a Mac."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from fake_mps import stand_in

stand_in.install()
