"""The loopback Hub, and the client pointed at it, with a cache of its own."""

from __future__ import annotations

import pytest
from huggingface_hub import constants, hf_api

from tests import loopback


@pytest.fixture
def use(tmp_path, monkeypatch):
    """What makes the client use another Hub, and nothing that it has cached before."""

    def point(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(hf_api.api, "endpoint", url)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return point


@pytest.fixture
def hub(use):
    """A running server that the client uses."""
    with loopback.running() as running:
        use(running.url)
        yield running
