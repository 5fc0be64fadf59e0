"""Read datasets; print the texts of each split, or the message of the user error, as JSON.

Arguments: a JSON list of the fields of a trial, a dict for each dataset; optionally the size in bytes from which
a repository is streamed.
"""

import json
import sys
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.data import hub_datasets, sources
from raylm.errors import UserError


def read(fields: dict[str, Any]) -> Any:
    """Return the texts of the splits, or the message of the user error."""
    try:
        source = sources.resolve_source(TrialConfig(**fields).dataset_spec)
        splits = sources.read_splits(source, is_partial="max_train_tokens" in fields)
        return [split and ["".join(piece.text for piece in text) for text in split.texts] for split in splits]
    except UserError as error:
        return str(error)


if len(sys.argv) > 2:
    hub_datasets.MIN_STREAMED_BYTES = int(sys.argv[2])
print(json.dumps([read(fields) for fields in json.loads(sys.argv[1])]))
