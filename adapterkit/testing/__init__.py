"""The laws that methods and tasks obey, as test suites that a plugin inherits. Needs pytest.

::

    from adapterkit.testing import AdapterContract
    from adapterkit_hra.config import HraConfig

    class TestHra(AdapterContract):
        config = HraConfig(r=4)
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{part}" for part in ("capabilities", "configs", "layers", "models", "prompts", "states", "tasks"))
)

from adapterkit.testing.adapter import AdapterContract  # noqa: E402
from adapterkit.testing.prompts import PromptContract  # noqa: E402
from adapterkit.testing.tasks import TaskContract  # noqa: E402

__all__ = ["AdapterContract", "PromptContract", "TaskContract"]
