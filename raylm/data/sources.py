"""Text sources: the documentation in every Python, the Hugging Face Hub, local files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from raylm.config.dataset import DatasetSpec
from raylm.data import hub, hub_datasets, local_files, tables, wikitext
from raylm.data.hub_datasets import HubName
from raylm.data.local_files import LocalFiles, TextSplits
from raylm.data.tables import TableTexts
from raylm.data.text import TextSplit, last_tenth_start
from raylm.errors import UserError

CLEANING_VERSION = "1"
"""Version of the cleaning rules; part of every fingerprint."""
IMDB_SHUFFLE_SEED = 0
FIXED_DATASETS = ("pydocs", "wikitext2", "wikitext103", "imdb")
"""Known datasets, whose splits and documents are fixed."""


@dataclass(frozen=True)
class Source:
    """Identity of a dataset's text, known before any of it is tokenized. Equal sources have equal text."""

    spec: DatasetSpec
    """Dataset in a sweep."""
    kind: str
    """`pydocs`, `hub` or `file`."""
    revision: str
    """Commit of a Hub repository, or hash of the text."""
    hub_id: str = ""
    """Repository on the Hub, as `owner/name`."""
    config_name: str | None = None
    """Configuration ("subset") of the repository."""
    reading: str = ""
    """Way in which the text is read, if the same revision was read in another way before; part of the fingerprint."""
    test_revision: str = ""
    """Hash of the test split's files, where earlier versions of raylm, whose fingerprints are kept, ignored them."""

    @property
    def name(self) -> str:
        """Name of the dataset in a sweep."""
        return self.spec.dataset

    @property
    def subject(self) -> str:
        """Beginning of error messages."""
        return f"dataset {self.name}"


def resolve_source(spec: DatasetSpec) -> Source:
    """Return the source of a dataset. From the Hub, only the commit is requested.

    Raises:
        UserError: if the dataset cannot be found or read.
    """
    dataset = spec.dataset
    if dataset == "pydocs":
        return Source(spec, "pydocs", _hash_texts(_load_pydocs_topics()))
    files = None if dataset in FIXED_DATASETS else local_files.find(spec)
    if files is not None:
        return _resolve_local_source(spec, files)
    name = HubName.parse(dataset)
    try:
        commit = hub.resolve_commit(name.repo_id, "dataset", name.revision)
    except UserError as error:
        if dataset in FIXED_DATASETS:
            raise
        raise type(error)(f"{error}; there is no file or folder of this name either") from error
    return Source(spec, "hub", commit, name.repo_id, name.config_name)


def _resolve_local_source(spec: DatasetSpec, files: LocalFiles) -> Source:
    reading, names = local_files.describe_reading(files), set(files.splits)
    if reading or "test" not in names:
        return Source(spec, "file", local_files.compute_revision(files, names), reading=reading)
    revision = local_files.compute_revision(files, names - {"test"})
    return Source(spec, "file", revision, test_revision=local_files.compute_revision(files, {"test"}))


def read_splits(source: Source, *, is_partial: bool = False) -> TextSplits:
    """Return the train, the validation and the test split; the test split is None if there is none.

    Args:
        is_partial: the beginning of the train split is enough.

    Raises:
        UserError: if the dataset lacks a split or a text column, or cannot be fetched or decoded.
    """
    spec, subject = source.spec, source.subject
    if source.kind == "pydocs":
        return *_split_last_tenth(_load_pydocs_topics()), None
    if source.kind == "file":
        files = local_files.find(spec)
        if files is None:
            raise UserError(f"{subject} is no longer there")
        return local_files.read_splits(files)
    is_partial = (is_partial or spec.max_documents is not None) and source.name not in FIXED_DATASETS
    load = partial(hub_datasets.load_tables, subject, source.hub_id, source.config_name, source.revision)
    splits = load(is_partial=is_partial)
    if is_partial and spec.max_documents is None and tables.choose_splits(subject, list(splits), spec)[1] is None:
        splits = load(is_partial=False)  # the last tenth of the rows is needed
    guard = hub_datasets.guard(subject)
    if source.name not in FIXED_DATASETS:
        return tables.build_splits(subject, splits, spec, guard)
    expected = ("train", "test") if source.name == "imdb" else ("train", "validation", "test")
    if missing := [name for name in expected if name not in splits]:
        raise UserError(f"{subject} has no {' and no '.join(missing)} split; it has {', '.join(splits)}")
    texts = [TableTexts(subject, name, splits[name], "text", guard=guard) for name in expected]
    if source.name == "imdb":
        return *_split_imdb([text for split in texts for text in split]), None
    train, validation, test = map(wikitext.build_split, texts)
    return train, validation, test


def _hash_texts(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _split_last_tenth(documents: Sequence[str]) -> tuple[TextSplit, TextSplit]:
    cut = last_tenth_start(len(documents))
    return TextSplit.of_documents(documents[:cut]), TextSplit.of_documents(documents[cut:])


def _load_pydocs_topics() -> list[str]:
    """Return the help topics of `help()`, which are part of every CPython, sorted by name."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _split_imdb(reviews: Sequence[str]) -> tuple[TextSplit, TextSplit]:
    """Return all labelled reviews, shuffled with a fixed seed: 90 % to train on and 10 % to validate on."""
    order = np.random.default_rng(IMDB_SHUFFLE_SEED).permutation(len(reviews))
    return _split_last_tenth([reviews[i] for i in order])
