"""All 21 rows of the reference table: those of wikitext2_grid.py and of imdb_grid.py, in its order."""

from imdb_grid import sweep as imdb
from wikitext2_grid import sweep as wikitext2

from raylm import Sweep

sweep = Sweep(name="reference-table", space=[*wikitext2.space, *imdb.space])
