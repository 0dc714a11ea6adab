"""Files and combinations on a GPU that is not there: nothing is made, loaded or combined in the wrong place."""

from __future__ import annotations

import pytest
import torch

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.hotswap import hotswap_adapter
from adapterkit.testing.elsewhere import GPU, Elsewhere
from tests.models import batch, net

FIELDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "bias": {"bias": "all"},
    "saved": {"modules_to_save": ["classifier"]},
}


def places(model):
    return {tensor.device for tensor in [*model.parameters(), *model.buffers()]}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_adapters_are_loaded_and_combined_where_the_base_is(tmp_path, fields):
    config = LoraConfig(**{"r": 2, "target_modules": ["query", "value"], "init_lora_weights": False} | fields)
    near, x = get_peft_model(net(), config).eval(), batch()
    near.save_pretrained(tmp_path)
    with Elsewhere(), torch.no_grad():
        far = PeftModel.from_pretrained(net().to(GPU), tmp_path)
        far.load_adapter(tmp_path, "b", low_cpu_mem_usage=True)
        for name in ("default", "b"):
            far.set_adapter(name)
            torch.testing.assert_close(far(x.to(GPU)).cpu(), near(x))
        for how in ("linear", "cat", "svd"):
            far.add_weighted_adapter(["default", "b"], [0.5, 0.5], how, combination_type=how)
            far.set_adapter(how)
            assert far(x.to(GPU)).device == GPU
        hotswap_adapter(far, tmp_path, "default")
        far.save_pretrained(tmp_path / "again")
        assert places(far) == {GPU}
