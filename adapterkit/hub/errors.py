"""What the Hub's refusals mean, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adapterkit.errors import CheckpointError, first_line

_TOKEN = "pass token=..., or log in with `hf auth login`"


@contextmanager
def explained(repo_id: str, *, revision: str | None = None, wanted: str = "") -> Iterator[None]:
    """Turn whatever `huggingface_hub` raises inside the block into one error.

    Args:
        repo_id: the repository; ``"user/name"``.
        revision: branch, tag or commit; None is the default branch.
        wanted: the file that is fetched; empty where files are uploaded.

    Raises:
        CheckpointError: names repository, revision and file, says what is wrong and what to do.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # The errors of the HTTP library, whichever it is: those of connections have no class of the Hub's.
    faults: tuple[type[BaseException], ...] = (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)
    try:
        yield
    except faults as error:
        place = f"{repo_id} (revision {revision or 'main'})"
        act = f"fetching {wanted} from" if wanted else "uploading to"
        raise CheckpointError(f"{act} {place}: {_reason(error, repo_id, revision)}") from error


def _reason(error: BaseException, repo_id: str, revision: str | None) -> str:
    from huggingface_hub import errors

    if type(error) in (ValueError, RuntimeError) and error.__cause__:  # the client's words around the fault itself
        return _reason(error.__cause__, repo_id, revision)
    meanings = {
        errors.HFValidationError: "this is neither a directory nor the name of a repository, which is user/name",
        errors.GatedRepoError: f"its authors grant access on request: ask for it on the Hub, then {_TOKEN}",
        errors.RevisionNotFoundError: f"there is no branch, tag or commit {revision!r}; the Hub lists those there are",
        errors.RepositoryNotFoundError: "no such directory, and no such repository on the Hub that this token may "
        f"see: check the name; if it is private, {_TOKEN}",
        errors.RemoteEntryNotFoundError: "the repository has no such file there: check revision and subfolder",
    }
    for kind, meaning in meanings.items():
        if isinstance(error, kind):
            return meaning
    refused = _refused(error) or _refused(error.__cause__)
    if refused is not None:
        return refused
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return _not_reached(error)
    return f"{type(error).__name__}: {first_line(error)}"


def _refused(error: BaseException | None) -> str | None:
    """What a status of the Hub says about the token; None where it is about something else."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the Hub does not accept the token, or wants one: {_TOKEN}"
    if status == 403:
        return "the token does not allow this: it needs the right to read there, and to write for uploading"
    return None


def _not_reached(error: BaseException) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    else:
        why = f"the Hub was not reached ({first_line(error.__cause__)})" if error.__cause__ else "the Hub is not asked"
    return f"{why}, and the files are not in the cache: load them once with a connection, or give a directory"
