"""``target_modules="all-linear"``: the output layers that PEFT leaves alone, by task and by how the adapter is made."""

from __future__ import annotations

import pytest
import transformers
from torch import nn

import adapterkit
from adapterkit.nn.layer import AdaptedLayer
from tests.parity.bases import SIZES, bert, seeded
from tests.parity.helpers import peft, quiet


def roberta():
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=32, pad_token_id=0)
    return seeded(lambda: transformers.RobertaForSequenceClassification(config))


def llama():
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0)
    return seeded(lambda: transformers.LlamaForSequenceClassification(config))


def distilbert():
    config = transformers.DistilBertConfig(vocab_size=30, dim=16, n_layers=2, n_heads=2, hidden_dim=16)
    return seeded(lambda: transformers.DistilBertForSequenceClassification(config))


def plain():
    return nn.ModuleDict({"query": nn.Linear(4, 4), "q_proj": nn.Linear(4, 4), "classifier": nn.Linear(4, 2)})


BASES = {
    "classifier": lambda: bert("ForSequenceClassification"),
    "score": llama,
    "classifier of several layers": roberta,
    "a layer before the classifier": distilbert,
    "tokens": lambda: bert("ForTokenClassification"),
    "answers": lambda: bert("ForQuestionAnswering"),
    "language": lambda: bert("ForMaskedLM"),
    "plain": plain,
}


def late(library, config, base):
    """Added to an adapter that says nothing of a task."""
    made = library.get_peft_model(base, library.LoraConfig(r=2, target_modules=r".*\b(query|q_proj|q_lin)"))
    made.add_adapter("second", config)
    return made.base_model.model


WAYS = {
    "injected": lambda library, config, base: library.inject_adapter_in_model(config, base),
    "mixed": lambda library, config, base: library.get_peft_model(base, config, mixed=True).base_model.model,
    "late": late,
}


def adapted(model, kind):
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("task", [None, "SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", BASES)
def test_pefts_layers_are_adapted(base, way, task):
    def make(library):
        config = library.LoraConfig(r=2, target_modules="all-linear", task_type=task)
        return WAYS[way](library, config, BASES[base]())

    with quiet():  # an output layer that is not trained is warned of
        ours, theirs = adapted(make(adapterkit), AdaptedLayer), make(peft)
    assert ours == adapted(theirs, peft.tuners.tuners_utils.BaseTunerLayer)
    assert ours
