"""Messages for the errors of `huggingface_hub` and `datasets`: one line each, with what to do."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from pathlib import Path

from raylm.errors import UserError, is_disk_full, is_not_writable, one_line

CONNECTION_ERRORS = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
"""Errors of the operating system below any HTTP client: refused, reset, timed out, unknown host, failed TLS."""
MAX_CONFIGS_SHOWN = 12
"""Configurations of a dataset that a message lists; some datasets have hundreds."""


class HubUnreachableError(UserError):
    """No connection to the Hub, or only server errors."""


def check_endpoint() -> None:
    """Check the address of the Hub.

    Raises:
        UserError: if HF_ENDPOINT is not the URL of a server.
    """
    from huggingface_hub import constants

    if not re.match(r"https?://[^/\s]", constants.ENDPOINT):
        raise UserError(f"HF_ENDPOINT: got {constants.ENDPOINT!r}; expected http://... or https://..., or unset it")


def exception_chain(error: BaseException) -> list[BaseException]:
    """Return an error and those it was raised from, in order."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, or None."""
    for link in exception_chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def is_cast_error(error: BaseException) -> bool:
    """Return whether files of a dataset have other columns or types than its first one."""
    from datasets.table import CastError

    return any(isinstance(link, CastError) for link in exception_chain(error))


def is_busy(status: int) -> bool:
    """Return whether an HTTP status means that a later request may succeed."""
    return status == 429 or status >= 500


def to_user_error(error: Exception, subject: str) -> UserError:
    """Return the one message for an error of huggingface_hub or datasets.

    Args:
        error: error of one of these libraries, or of those below them.
        subject: beginning of the message, such as `dataset me/texts`.
    """
    if isinstance(error, UserError):
        return error
    unreachable = _explain_unreachable(error)
    if unreachable is not None:
        return HubUnreachableError(f"{subject}: {unreachable}")
    return UserError(f"{subject}: {_explain_access(error) or _explain_content(error, subject)}")


def _is_caused_by(error: Exception, *kinds: type[BaseException]) -> bool:
    return any(isinstance(link, kinds) for link in exception_chain(error))


def _explain_unreachable(error: Exception) -> str | None:
    """Return why a Hub could not be reached, or None if it answered."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    status, hub = http_status(error), constants.ENDPOINT
    is_offline = _is_caused_by(error, OfflineModeIsEnabled)
    if any(map(is_disk_full, exception_chain(error))):
        return None
    if is_offline or (status is None and _is_caused_by(error, *CONNECTION_ERRORS)):
        reason = "HF_HUB_OFFLINE is set" if is_offline else "no connection"
        return f"{hub} cannot be reached ({reason}); check the network and HF_ENDPOINT, then try again"
    if status is not None and is_busy(status):
        return f"{hub} answers {status} to each attempt; try again later"
    return None


def _explain_access(error: Exception) -> str | None:
    """Return why a repository could not be opened, or None if it could."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status, hub = http_status(error), constants.ENDPOINT
    if any(map(is_disk_full, exception_chain(error))):
        return f"the disk of {constants.HF_HOME} is full; free some space, or set HF_HOME to another"
    if problem := next(filter(None, map(_explain_cache, exception_chain(error))), None):
        return problem
    if _is_caused_by(error, GatedRepoError):
        return f"access is restricted; request it on {hub} and log in with `hf auth login`"
    if status == 401 and get_token():
        return f"{hub} refuses your token; log in with `hf auth login`, or unset HF_TOKEN if you need none"
    if _is_caused_by(error, RevisionNotFoundError):
        return f"no such branch, tag or commit on {hub}; check what follows '@'"
    if _is_caused_by(error, RepositoryNotFoundError, DatasetNotFoundError) or status in (401, 404):
        return f"not found on {hub}; check the spelling, or log in with `hf auth login` if it is private"
    if status == 403:
        return f"{hub} gives no access to it; log in with `hf auth login`, with a token that may read it"
    return None


def _explain_cache(error: BaseException) -> str | None:
    """Return why a file of the Hub's cache cannot be written or locked, or None if an error is another."""
    from datasets import config
    from huggingface_hub import constants

    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOLCK:
        return f"{constants.HF_HOME} is on a file system without locks; set HF_HOME to a folder of a local disk"
    name = str(error.filename or "")
    caches = (constants.HF_HOME, constants.HF_HUB_CACHE, str(config.HF_DATASETS_CACHE))
    if not is_not_writable(error) or not name or not any(Path(name).is_relative_to(cache) for cache in caches):
        return None
    return f"the cache cannot be written: {error.strerror} ({name}); set HF_HOME to a folder that can be written"


def _explain_content(error: Exception, subject: str) -> str:
    """Return why the files of a repository could not be read."""
    from datasets.exceptions import DataFilesNotFoundError
    from huggingface_hub import constants
    from pyarrow.lib import ArrowInvalid

    text = str(error)
    names = re.findall(r"'([^']+)'", text.partition("vailable")[2].splitlines()[0]) if "vailable" in text else []
    shown = ", ".join([*names[:MAX_CONFIGS_SHOWN], *(["..."] if len(names) > MAX_CONFIGS_SHOWN else [])])
    repository = subject.partition(" ")[2].partition("@")[0].partition(":")[0]
    if text.startswith("Config name is missing") and names:
        return f"has several configurations: {shown}; expected one of them, as {repository}:{names[0]}"
    if re.match("BuilderConfig .* not found", text) and names:
        return f"has no such configuration; it has {shown}"
    if "scripts are no longer supported" in text:
        return f"is a script, which is not run; try its converted files: {repository}@refs/convert/parquet"
    if _is_caused_by(error, DataFilesNotFoundError) or "contain any data files" in text:
        return "has no data files that can be read; expected Parquet, JSON, CSV or text"
    if is_cast_error(error):
        return "files of one split have different columns or types; expected the same in all of them"
    if _is_caused_by(error, ArrowInvalid):
        advice = f"delete it from {constants.HF_HUB_CACHE} to fetch it again"
        return f"a file of it is damaged or truncated ({one_line(error)}); {advice}"
    causes = [link for link in exception_chain(error) if str(link).strip()]
    return f"cannot be loaded: {one_line(causes[-1] if text.startswith('An error occurred') and causes else error)}"
