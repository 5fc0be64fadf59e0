"""The Hugging Face Hub: a repository's commit, its files on this disk, uploads, and one clear message when it fails.

Every repository is resolved to a commit once a sweep and loaded from local files from then on.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from raylm.data import cache
from raylm.errors import UserError, is_disk_full, one_line
from raylm.files import write_text_atomic

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_DELAYS_SECONDS = (1, 2, 4, 8)
"""Waits between tries while the hub answers that it is busy or broken (429, 5xx)."""
TIMEOUT_SECONDS = 10.0


def resolve_commit(repo_id: str, repo_type: str) -> str:
    """The commit that `main` of a repository points to.

    Where the hub cannot be reached, the commit that was current when it last could be.

    Args:
        repository: `owner/name`.
        kind: `model` or `dataset`.

    Raises:
        UserError: if there is no such repository, or no hub and nothing remembered.
    """
    from huggingface_hub import HfApi

    memory = cache.cache_dir("commits") / f"{repo_type}s--{repo_id.replace('/', '--')}"
    try:
        info = call_with_retries(
            lambda: HfApi().repo_info(repo_id, repo_type=repo_type, timeout=TIMEOUT_SECONDS), f"{repo_type} {repo_id}"
        )
    except HubUnreachableError:
        if not memory.exists():
            raise
        log.warning("the hub cannot be reached; %s %s is taken as it was last seen", repo_type, repo_id)
        return memory.read_text().strip()
    commit = str(info.sha)
    write_text_atomic(memory, commit)
    return commit


def check_connection() -> str:
    """Why the hub cannot be used, in a few words; nothing where it answers, or is not to be asked."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return ""
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS, follow_redirects=True)
    except Exception as error:  # of whichever HTTP client the library has
        return f"{constants.ENDPOINT} does not answer: {' '.join(str(error).split())[:200]}"
    return ""


def download_snapshot(repo_id: str, commit: str, *, include_weights: bool) -> Path:
    """The folder with a model repository's files at a commit: configuration, tokenizer and, if asked for, weights.

    Only safetensors count as weights; no Python file of a repository is ever fetched.

    Raises:
        UserError: if the hub cannot give them.
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
                f"model {repo_id}: the hub cannot be reached, and it is not on this disk"
            ) from None


def _allow_patterns(include_weights: bool) -> list[str]:
    """What raylm takes of a model's files."""
    return ["*.json", "*.txt", "*.model"] + (["*.safetensors"] if include_weights else [])


def list_model_files(folder: Path, *, include_weights: bool) -> list[Path]:
    """Those of a folder's files that a snapshot of it would have."""
    return sorted(
        file for pattern in _allow_patterns(include_weights) for file in folder.glob(pattern) if file.is_file()
    )


def get_license(repo_id: str) -> str | None:
    """The licence that a model's card names, in the hub's words; None where it names none or cannot be asked for."""
    from huggingface_hub import HfApi

    try:
        info = call_with_retries(lambda: HfApi().model_info(repo_id, timeout=TIMEOUT_SECONDS), f"model {repo_id}")
    except UserError:
        return None
    named = getattr(info.card_data, "license", None)
    return named if isinstance(named, str) else None


def create_repository(repo_id: str, *, public: bool) -> str:
    """A model repository to upload to, made where it is missing; its full name. One that is there keeps who sees it.

    Raises:
        UserError: if there is no token, it may not write there, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    make = functools.partial(HfApi().create_repo, repo_id, private=not public, exist_ok=True)
    return _call_with_write_access(make, f"--push {repo_id}").repo_id


def upload_folder(folder: Path, repo_id: str, commit_message: str) -> str:
    """Uploads all files of a folder to a model repository; says where they are.

    Raises:
        UserError: as `make_repository` does.
    """
    from huggingface_hub import HfApi, constants

    send = functools.partial(HfApi().upload_folder, repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    _call_with_write_access(send, f"--push {repo_id}")
    return f"{constants.ENDPOINT}/{repo_id}"


def _call_with_write_access(request: Callable[[], T], subject: str) -> T:
    """What the hub answers to something that takes a token with the right to write."""
    from huggingface_hub import constants

    try:
        return call_with_retries(request, subject)
    except HubUnreachableError:
        raise
    except UserError as error:
        hub, cause = constants.ENDPOINT, error.__cause__ or error
        refused = {
            401: f"{hub} asks for a token that it knows; log in with `hf auth login`, or set HF_TOKEN",
            403: f"your token may not write there; make one that may at {hub}/settings/tokens",
        }
        said = one_line(cause)
        raise UserError(f"{subject}: {refused.get(_http_status(error) or 0, said)}") from cause


class HubUnreachableError(UserError):
    """The hub did not answer, or nothing but errors."""


def call_with_retries(request: Callable[[], T], subject: str) -> T:
    """What the hub answers, asked again while it is busy.

    Raises:
        UserError: with the reason in a line, for every failure of the client libraries.
    """
    for wait in (*RETRY_DELAYS_SECONDS, None):
        try:
            return request()
        except Exception as error:
            status = _http_status(error)
            if wait is not None and status is not None and (status == 429 or status >= 500):
                log.info("%s: the hub answers %s, next try in %s s", subject, status, wait)
                time.sleep(wait)
                continue
            raise _to_user_error(error, subject) from error
    raise AssertionError("unreachable: the last try returns or raises")


def _exception_chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error, where there is one."""
    for one in _exception_chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _to_user_error(error: Exception, subject: str) -> UserError:
    """One message for an error of huggingface_hub or datasets."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
    from pyarrow.lib import ArrowInvalid

    if isinstance(error, UserError):
        return error
    hub = constants.ENDPOINT
    kinds = tuple(_exception_chain(error))
    if any(map(is_disk_full, kinds)):
        return UserError(
            f"{subject}: the disk of {constants.HF_HOME} is full; free some space, or set HF_HOME to another"
        )
    if any(isinstance(one, GatedRepoError) for one in kinds):
        return UserError(f"{subject}: access is restricted; ask for it on {hub} and log in with `hf auth login`")
    if (
        any(isinstance(one, (RepositoryNotFoundError, DatasetNotFoundError)) for one in kinds)
        and _http_status(error) != 503
    ):
        return UserError(
            f"{subject}: not found on {hub}; check the spelling, or log in with `hf auth login` if it is private"
        )
    status = _http_status(error)
    offline = any(isinstance(one, OfflineModeIsEnabled) for one in kinds)
    if offline or (status is None and any(_is_connection_error(one) for one in kinds)):
        reason = "HF_HUB_OFFLINE is set" if offline else "no connection"
        return HubUnreachableError(
            f"{subject}: {hub} cannot be reached ({reason}); check the network and HF_ENDPOINT, then try again"
        )
    if status is not None and (status == 429 or status >= 500):
        return HubUnreachableError(
            f"{subject}: {hub} answers {status}, {len(RETRY_DELAYS_SECONDS) + 1} times in a row; try again later"
        )
    if any(isinstance(one, ArrowInvalid) for one in kinds):
        advice = f"delete it from {constants.HF_HUB_CACHE} to fetch it again"
        return UserError(f"{subject}: a file of it is damaged or cut off ({one_line(error)}); {advice}")
    return UserError(f"{subject}: cannot be loaded: {one_line(error)}")


def _is_connection_error(error: BaseException) -> bool:
    """What the operating system says beneath any HTTP client: refused, reset, timed out, no such host, no TLS."""
    return isinstance(error, (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError))
