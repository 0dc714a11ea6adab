"""Poly against PEFT's: outputs, gradients and files, for rows of several tasks."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from adapterkit import PeftModel, PolyConfig
from tests.parity.helpers import add_noise, assert_parity, peft, peft_model, quiet


def t5():
    torch.manual_seed(7)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=20, decoder_start_token_id=0, **sizes)).eval()


@pytest.mark.parametrize(
    "variant",
    [{}, {"n_splits": 2}, {"n_skills": 1}, {"n_tasks": 5, "init_weights": False, "target_modules": ["q", "wi"]}],
    ids=str,
)
def test_rows_of_several_tasks(variant):
    kwargs = {"r": 2, "n_tasks": 3, "task_type": "SEQ_2_SEQ_LM", **variant}
    ids = torch.arange(20).reshape(4, 5)
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :3], "task_ids": torch.tensor([2, 0, 1, 2])}
    assert_parity(kwargs, PolyConfig, peft.PolyConfig, t5, inputs, merge=False, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_follows_the_tasks(beams, tmp_path):
    theirs = peft_model(peft.PolyConfig(r=2, n_tasks=3, task_type="SEQ_2_SEQ_LM"), t5(), lambda m: add_noise(m, 3.0))
    with quiet():
        theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(t5(), tmp_path)
    ids, tasks = torch.arange(12).reshape(3, 4) + 1, torch.tensor([0, 1, 2])
    options = {"max_new_tokens": 6, "do_sample": False}
    got = ours.generate(input_ids=ids, task_ids=tasks, num_beams=beams, **options)
    if beams == 1:  # PEFT does not repeat the tasks for the beams
        with quiet():
            assert torch.equal(got, theirs.generate(input_ids=ids, task_ids=tasks, **options))
    alone = [ours.generate(input_ids=ids[[i]], task_ids=tasks[[i]], num_beams=beams, **options)[0] for i in range(3)]
    for row, expected in zip(got, alone, strict=True):
        assert torch.equal(row[: len(expected)], expected)
    assert not all(torch.equal(row, got[0]) for row in got)
