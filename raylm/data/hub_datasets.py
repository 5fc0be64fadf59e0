"""Datasets of the Hugging Face Hub: identity, and tables that are downloaded or streamed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raylm.config.catalog import DATASETS
from raylm.data import hub
from raylm.data.hub_errors import is_cast_error, to_user_error
from raylm.data.table_files import import_datasets
from raylm.errors import UserError

log = logging.getLogger(__name__)

MIN_STREAMED_BYTES = 2**30
"""Size of a repository's files from which a part of it is streamed instead of downloading all."""


@dataclass(frozen=True)
class HubName:
    """Dataset of the Hub, as `owner/name:config@revision`."""

    repo_id: str
    config_name: str | None
    revision: str | None

    @classmethod
    def parse(cls, dataset: str) -> HubName:
        """Return the parts of a dataset's name; a known dataset has a repository and a configuration."""
        known = DATASETS.get(dataset)
        if known is not None and known.hub_id is not None:
            return cls(known.hub_id, known.config_name, None)
        name, _, revision = dataset.partition("@")
        repo_id, _, config_name = name.partition(":")
        return cls(repo_id, config_name or None, revision or None)


def load_tables(
    subject: str, repo_id: str, config_name: str | None, revision: str, *, is_partial: bool
) -> Mapping[str, Any]:
    """Return the tables of a dataset by split, memory-mapped from local files.

    Args:
        subject: beginning of error messages, as `dataset me/texts`.
        is_partial: the beginning of the train split is enough: files of more than `MIN_STREAMED_BYTES` are streamed.

    Raises:
        UserError: if it cannot be loaded.
    """
    datasets = import_datasets()
    streaming = is_partial and (hub.repository_bytes(repo_id, revision) or 0) > MIN_STREAMED_BYTES

    def load() -> Mapping[str, Any]:
        try:
            return dict(datasets.load_dataset(repo_id, config_name, revision=revision, streaming=streaming))
        except datasets.exceptions.DatasetGenerationError as error:
            if not is_cast_error(error):
                raise
            return _load_each_split(repo_id, config_name, revision)

    return hub.call_with_retries(load, subject)


def _load_each_split(repo_id: str, config_name: str | None, revision: str) -> Mapping[str, Any]:
    """Return the tables of a dataset whose splits have different columns, which `datasets` loads one by one only."""
    datasets = import_datasets()
    builder = datasets.load_dataset_builder(repo_id, config_name, revision=revision)
    files = builder.config.data_files or {}
    form = type(builder).__module__.rpartition(".")[2]
    return {name: datasets.load_dataset(form, data_files={name: list(files[name])}, split=name) for name in files}


def guard(subject: str) -> Any:
    """Return a wrapper of iterations over texts with one message for each error of the libraries that read them."""

    def iterate(texts: Iterator[str]) -> Iterator[str]:
        try:
            yield from texts
        except UserError:
            raise
        except Exception as error:  # of a stream: the client libraries raise their own
            raise to_user_error(error, subject) from error

    return iterate
