"""Prepare a dataset for gpt2-nano; print its fingerprint, or the message of the user error. Argument: the dataset."""

import sys

from raylm.config.dataset import DatasetSpec
from raylm.data.preparation import prepare
from raylm.errors import UserError

try:
    print(prepare(DatasetSpec(sys.argv[1]), None, "gpt2-nano").fingerprint)
except UserError as error:
    print(error)
