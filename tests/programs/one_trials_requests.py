"""Ask the hub for all that a single trial needs."""

from __future__ import annotations

from raylm.config.dataset import DatasetSpec
from raylm.data import preparation
from raylm.training import models

source = models.resolve_model("raylm-test/gpt2-tiny", pretrained=True)
preparation.prepare(DatasetSpec("imdb"), source.fetch_files(), source.name)
