"""Ask the hub for all that a single trial needs."""

from __future__ import annotations

from raylm.data import preparation
from raylm.training import models

source = models.resolve_model("raylm-test/gpt2-tiny", pretrained=True)
preparation.prepare("imdb", source.fetch_files(), source.name)
