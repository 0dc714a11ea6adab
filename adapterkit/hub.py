"""Uploading a directory to the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterkit.card import CARD_NAME
from adapterkit.errors import CheckpointError


@contextmanager
def upload(
    directory: str | Path,
    repo_id: str,
    token: str | bool | None,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **message: str | None,
) -> Iterator[Callable[[], Any]]:
    """Prepare a repository, put its card into ``directory`` to be brought up to date, and give what uploads all.

    Args:
        directory: where the files are going to be.
        repo_id: ``"user/name"``; made if need be.
        token: for the Hub; None takes the one that is stored.
        private: whether a new repository is private.
        revision: branch to commit to; made if need be.
        create_pr: open a pull request instead.
        message: ``commit_message`` and ``commit_description``.

    Raises:
        CheckpointError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(name, branch=revision, exist_ok=True)
        if api.file_exists(name, CARD_NAME, revision=revision):
            shutil.copy(api.hf_hub_download(name, CARD_NAME, revision=revision), Path(directory) / CARD_NAME)
        yield lambda: api.upload_folder(
            repo_id=name, folder_path=directory, revision=revision, create_pr=create_pr, **message
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(f"{repo_id} could not be uploaded to the Hub: {error}") from error
