"""P-tuning: the network's table is PEFT's, is all that is saved, and can be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterkit import PeftModel, PromptEncoderConfig, get_peft_model
from adapterkit.errors import ConfigError
from tests.parity.helpers import add_noise, peft, quiet
from tests.parity.prompts import CASES, assert_files_go_back, assert_same_results, batch, bert, gpt2, pair, results

NETWORKS = {
    "MLP": {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": 5},
    "LSTM": {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2, "encoder_dropout": 0.5},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("case", ["SEQ_CLS", "FEATURE_EXTRACTION", "CAUSAL_LM-gpt2", "SEQ_2_SEQ_LM-t5"])
def test_table_forward_and_files_are_those_of_peft(case: str, network: str, tmp_path: Path) -> None:
    task_type, make, extra = CASES[case]
    config = {"task_type": task_type, "num_virtual_tokens": 3, **NETWORKS[network]}
    with quiet():
        theirs = peft.get_peft_model(make(), peft.PromptEncoderConfig(**config))
        add_noise(theirs)
    ours = get_peft_model(make(), PromptEncoderConfig(**config)).eval()
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    ours.prompt_encoder["default"].load_state_dict(theirs.eval().prompt_encoder["default"].state_dict())
    table = theirs.get_prompt_embedding_to_save("default")
    torch.testing.assert_close(ours.get_prompt_embedding_to_save("default"), table)
    ours, theirs = pair(config, PromptEncoderConfig, peft.PromptEncoderConfig, make, tmp_path)
    inputs = {**batch(), **extra}
    with quiet():
        expected = results(theirs, inputs)
    assert_same_results(results(ours, inputs), expected)
    assert_files_go_back(ours, make, inputs, tmp_path)


def test_a_saved_table_is_that_of_evaluation_and_goes_on_training(tmp_path: Path) -> None:
    config = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **NETWORKS["LSTM"])
    model = get_peft_model(gpt2(), config)
    model.train().save_pretrained(tmp_path)
    assert model.prompt_encoder["default"].training
    again = PeftModel.from_pretrained(gpt2(), tmp_path, is_trainable=True).eval()
    torch.testing.assert_close(again(**batch()).logits, model.eval()(**batch()).logits)
    assert again.get_nb_trainable_parameters()[0] == 3 * 16
    again(**batch(), labels=batch()["input_ids"]).loss.backward()
    assert again.prompt_encoder["default"].embedding.weight.grad.abs().sum() > 0


def test_the_network_learns_and_the_base_does_not() -> None:
    config = PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3, **NETWORKS["MLP"])
    model = get_peft_model(bert("AutoModelForSequenceClassification"), config)
    model(**batch(), labels=torch.tensor([0, 1, 1])).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("prompt_encoder" in name or "modules_to_save" in name for name in trained)


@pytest.mark.parametrize(
    "fields",
    [
        {"encoder_num_layers": 3},
        {"encoder_dropout": 0.1},
        {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1, "encoder_dropout": 0.1},
    ],
)
def test_settings_without_effect_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields)) if len(fields) == 1 else "encoder_dropout"):
        PromptEncoderConfig.from_dict({"num_virtual_tokens": 3, **fields})


def test_a_network_stays_if_it_makes_the_table_that_is_loaded(tmp_path: Path) -> None:
    config = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **NETWORKS["LSTM"])
    model = get_peft_model(gpt2(), config)
    model.save_pretrained(tmp_path)
    before = dict(model.prompt_encoder.named_parameters())
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert {name: id(p) for name, p in model.prompt_encoder.named_parameters()} == {n: id(p) for n, p in before.items()}
    add_noise(model)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert [name for name, _ in model.prompt_encoder.named_parameters()] == ["default.embedding.weight"]
