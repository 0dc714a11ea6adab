"""PEFT's question-answering wrapper does not pass ``token_type_ids`` on to the base; ours does."""

from __future__ import annotations

import copy

import torch
from transformers import BertConfig, BertForQuestionAnswering

import adapterkit
from tests.parity.helpers import peft, quiet


def test_segments_reach_the_base_of_question_answering():
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = BertForQuestionAnswering(BertConfig(**sizes, intermediate_size=12)).eval()
    batch = {"input_ids": torch.arange(6)[None], "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]])}
    fields = {"task_type": "QUESTION_ANS", "target_modules": ["query"]}
    with quiet():
        theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**fields)).eval()
    expected = base(**batch).start_logits
    ours = adapterkit.get_peft_model(base, adapterkit.LoraConfig(**fields)).eval()
    torch.testing.assert_close(ours(**batch).start_logits, expected)
    torch.testing.assert_close(theirs.get_base_model()(**batch).start_logits, expected)
    assert not torch.allclose(theirs(**batch).start_logits, expected)
