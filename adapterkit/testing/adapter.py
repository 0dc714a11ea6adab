"""The contract of a layer method."""

from __future__ import annotations

from adapterkit.testing.capabilities import CapabilityLaws
from adapterkit.testing.configs import ConfigLaws
from adapterkit.testing.layers import LayerLaws
from adapterkit.testing.models import ComputeLaws
from adapterkit.testing.states import StateLaws


class AdapterContract(ConfigLaws, LayerLaws, ComputeLaws, StateLaws, CapabilityLaws):
    """Every law of a layer method. Set ``config``; the rest of `adapterkit.testing.case.AdapterCase` is optional."""
