"""Start of a Python process on a machine that stands in for a Mac."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from fake_mps import stand_in  # noqa: E402  (after its folder)

stand_in.install()
