"""Uploading a directory to the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapterkit.given import check_name
from adapterkit.hub.card import CARD_NAME
from adapterkit.hub.errors import explained


def upload(
    fill: Callable[[Path], None],
    repo_id: str,
    token: str | bool | None,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **message: Any,
) -> Any:
    """Make a repository if need be, write a directory on top of the card that is there, and commit all of it.

    Args:
        fill: writes the files into a directory, in which the repository's card is to be brought up to date.
        repo_id: ``"user/name"``.
        token: for the Hub; None takes the one that is stored.
        private: whether a new repository is private.
        revision: branch to commit to; made if need be.
        create_pr: open a pull request instead.
        message: ``commit_message`` and ``commit_description``.

    Returns:
        what `huggingface_hub.HfApi.upload_folder` returns: the commit.

    Raises:
        CheckpointError: the Hub refuses, or cannot be reached.
    """
    check_name(repo_id, "repo_id")
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        directory = Path(folder)
        with explained(repo_id, revision=revision):
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not create_pr:
                api.create_branch(name, branch=revision, exist_ok=True)
            if api.file_exists(name, CARD_NAME, revision=revision):
                shutil.copy(api.hf_hub_download(name, CARD_NAME, revision=revision), directory / CARD_NAME)
        fill(directory)
        with explained(name, revision=revision):
            return api.upload_folder(
                repo_id=name, folder_path=directory, revision=revision, create_pr=create_pr, **message
            )
