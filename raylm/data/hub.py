"""Hugging Face Hub: commits, downloads and uploads of repositories, and one clear message for every failure.

Every repository is resolved to a commit once per sweep and then loaded from local files.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from raylm.data import cache
from raylm.data.hub_errors import HubUnreachableError, check_endpoint, http_status, is_busy, to_user_error
from raylm.errors import UserError, one_line
from raylm.files import write_text_atomic

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_DELAYS_SECONDS = (1, 2, 4, 8)
"""Waits between attempts while the Hub is busy or broken (HTTP status 429 or 5xx)."""
TIMEOUT_SECONDS = 10.0
"""Timeout of one request for metadata."""


def resolve_commit(repo_id: str, repo_type: str, revision: str | None = None) -> str:
    """Return the commit that a branch or tag of a repository points to.

    If the Hub cannot be reached, return the commit that was current at the last successful request, of raylm or of any
    program that has filled the Hugging Face cache.

    Args:
        repo_id: `owner/name`.
        repo_type: `model` or `dataset`.
        revision: branch, tag or commit; None: `main`.

    Raises:
        UserError: if there is no such repository, or the Hub cannot be reached and never was.
    """
    from huggingface_hub import HfApi

    name = f"{repo_id}@{revision}" if revision else repo_id
    last_commit = cache.cache_dir("commits") / f"{repo_type}s--{name.replace('/', '--')}"
    request = functools.partial(HfApi().repo_info, repo_id, repo_type=repo_type, timeout=TIMEOUT_SECONDS)
    try:
        info = call_with_retries(lambda: request(revision=revision), f"{repo_type} {name}")
    except HubUnreachableError:
        known = [file for file in (last_commit, _find_ref(repo_id, repo_type, revision)) if file.exists()]
        if not known:
            raise
        log.warning("the hub cannot be reached; %s %s is used at its last known commit", repo_type, name)
        return known[0].read_text().strip()
    commit = str(info.sha)
    write_text_atomic(last_commit, commit)
    return commit


def _find_ref(repo_id: str, repo_type: str, revision: str | None) -> Path:
    """Return the file of the Hugging Face cache that has the commit of a branch or tag; it may not exist."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=repo_type)
    return folder / "refs" / (revision or constants.DEFAULT_REVISION)


def repository_bytes(repo_id: str, revision: str) -> int | None:
    """Return the size of all files of a dataset's repository at a commit; None if the Hub does not tell it."""
    from huggingface_hub import HfApi

    request = functools.partial(HfApi().dataset_info, files_metadata=True, timeout=TIMEOUT_SECONDS)
    try:
        info = call_with_retries(lambda: request(repo_id, revision=revision), f"dataset {repo_id}")
    except UserError:
        return None
    return sum(file.size or 0 for file in info.siblings or [])


def check_connection() -> str:
    """Return why the Hub cannot be used; an empty string if it answers, or if HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return ""
    try:
        check_endpoint()
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS, follow_redirects=True)
    except Exception as error:  # type depends on the library's HTTP client
        return f"{constants.ENDPOINT} does not answer: {' '.join(str(error).split())[:200]}"
    return ""


def download_snapshot(repo_id: str, commit: str, *, include_weights: bool) -> Path:
    """Return the local folder of a model repository's files at a commit: configuration, tokenizer, optionally weights.

    Weights are fetched only in safetensors. Python files are never fetched.

    Raises:
        UserError: if they cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    def download(local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                revision=commit,
                allow_patterns=_allow_patterns(include_weights),
                ignore_patterns=["*/*"],
                local_files_only=local_files_only,
            )
        )

    try:
        return call_with_retries(lambda: download(local_files_only=False), f"model {repo_id}")
    except HubUnreachableError:
        try:
            return download(local_files_only=True)
        except OSError:
            raise HubUnreachableError(
                f"model {repo_id}: the hub cannot be reached, and the model is not in the local cache"
            ) from None


def _allow_patterns(include_weights: bool) -> list[str]:
    """Return the patterns of the files that are fetched from a model repository."""
    return ["*.json", "*.txt", "*.model"] + (["*.safetensors"] if include_weights else [])


def list_model_files(folder: Path, *, include_weights: bool) -> list[Path]:
    """Return the files of a folder that a snapshot of it as a model repository would hold."""
    return sorted(
        file for pattern in _allow_patterns(include_weights) for file in folder.glob(pattern) if file.is_file()
    )


def get_license(repo_id: str) -> str | None:
    """Return the license id in a model's card; None if there is none or the Hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        info = call_with_retries(lambda: HfApi().model_info(repo_id, timeout=TIMEOUT_SECONDS), f"model {repo_id}")
    except UserError:
        return None
    license_id = getattr(info.card_data, "license", None)
    return license_id if isinstance(license_id, str) else None


def create_repository(repo_id: str, *, public: bool) -> str:
    """Create a model repository unless it exists, and return its full name.

    Args:
        public: visibility of a new repository. An existing one keeps its visibility.

    Raises:
        UserError: if there is no token, it has no write access, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    request = functools.partial(HfApi().create_repo, repo_id, private=not public, exist_ok=True)
    return _call_with_write_access(request, f"--push {repo_id}").repo_id


def upload_folder(folder: Path, repo_id: str, commit_message: str) -> str:
    """Upload all files of a folder to a model repository, and return its URL.

    Raises:
        UserError: as `create_repository` does.
    """
    from huggingface_hub import HfApi, constants

    request = functools.partial(
        HfApi().upload_folder, repo_id=repo_id, folder_path=folder, commit_message=commit_message
    )
    _call_with_write_access(request, f"--push {repo_id}")
    return f"{constants.ENDPOINT}/{repo_id}"


def _call_with_write_access(request: Callable[[], T], subject: str) -> T:
    """Return the result of a request that needs a token with write access."""
    from huggingface_hub import constants

    try:
        return call_with_retries(request, subject)
    except HubUnreachableError:
        raise
    except UserError as error:
        hub, cause = constants.ENDPOINT, error.__cause__ or error
        messages = {
            401: f"{hub} requires a valid token; log in with `hf auth login`, or set HF_TOKEN",
            403: f"your token has no write access; create one that has at {hub}/settings/tokens",
        }
        raise UserError(f"{subject}: {messages.get(http_status(error) or 0, one_line(cause))}") from cause


def call_with_retries(request: Callable[[], T], subject: str) -> T:
    """Return the result of a request, repeated while the Hub is busy.

    Args:
        request: function that calls a client library.
        subject: beginning of error messages, such as `model gpt2`.

    Raises:
        UserError: with a reason of one line, for every failure of the client libraries.
    """
    check_endpoint()
    for wait in (*RETRY_DELAYS_SECONDS, None):
        try:
            return request()
        except Exception as error:
            status = http_status(error)
            if wait is not None and status is not None and is_busy(status):
                log.info("%s: the hub answers %s; retrying in %s s", subject, status, wait)
                time.sleep(wait)
                continue
            raise to_user_error(error, subject) from error
    raise AssertionError("unreachable: the last attempt returns or raises")
