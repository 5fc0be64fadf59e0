"""Check the public names of `raylm` after importing the modules given as arguments."""

import importlib
import sys

import raylm

assert "torch" not in sys.modules and {"run", "load_results"} <= set(dir(raylm))
for name in sys.argv[1:]:
    importlib.import_module(name)

from raylm import load_results, run  # noqa: E402

assert callable(run) and run is raylm.run and callable(load_results), run
try:
    raylm.no_such_name  # noqa: B018
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError
