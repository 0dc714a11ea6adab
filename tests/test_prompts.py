"""Prompts around whole models: sizes, the public surface, positions, padding, caches and refusals."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers as hf
from torch import nn

from adapterkit import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from adapterkit.errors import BrokenPluginError, CapabilityError, ConfigError, StateError
from adapterkit.nn.adapter import PromptAdapter
from adapterkit.prompts.sizes import with_sizes
from tests.parity.helpers import peft, quiet
from tests.parity.prompts import COLUMNS, ROWS, bart, batch, bert, gpt2, lively, llama, mistral, t5

PREFIX = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


def moved(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "dim", "heads", "layers"),
    [(gpt2, 16, 2, 2), (llama, 8, 2, 2), (t5, 16, 2, 3), (bart, 16, 2, 2), (lambda: bert("AutoModel"), 16, 2, 2)],
)
def test_sizes_of_keys_and_values(make: object, dim: int, heads: int, layers: int) -> None:
    config = with_sizes(PREFIX, make(), None)
    assert (config.token_dim, config.num_attention_heads, config.num_layers) == (dim, heads, layers)
    assert config.encoder_hidden_size == dim


def test_an_embedding_is_as_wide_as_the_model() -> None:
    assert with_sizes(PROMPT, llama(), None).token_dim == 16


def test_heads_of_another_width_than_their_share() -> None:
    config = hf.T5Config(
        vocab_size=50, d_model=16, d_kv=3, d_ff=16, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    prefix = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    model = get_peft_model(lively(hf.T5ForConditionalGeneration, config), prefix)
    assert model.peft_config["default"].token_dim == 12
    assert model(**batch(), labels=batch()["input_ids"]).logits.shape == (ROWS, COLUMNS, 50)


def falcon() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    return lively(hf.FalconForCausalLM, hf.FalconConfig(vocab_size=50, **sizes, bos_token_id=1, eos_token_id=2))


def test_heads_that_share_one_key_and_one_value() -> None:
    model = get_peft_model(falcon(), PREFIX)
    config = model.peft_config["default"]
    assert (config.num_attention_heads, config.token_dim) == (1, 4)
    ids = batch()["input_ids"]
    assert model(input_ids=ids).logits.shape == (ROWS, COLUMNS, 50)
    assert model.generate(input_ids=ids, max_new_tokens=2, min_new_tokens=2).shape == (ROWS, COLUMNS + 2)


def test_stated_sizes_are_kept_and_missing_ones_named() -> None:
    stated = PROMPT.model_copy(update={"token_dim": 4, "num_layers": 1, "num_attention_heads": 1})
    assert with_sizes(stated, nn.Linear(2, 2), None).token_dim == 4
    with pytest.raises(ConfigError, match="Linear does not say num_layers, token_dim, num_attention_heads"):
        with_sizes(PROMPT, nn.Linear(2, 2), None)


# -- the public surface -----------------------------------------------------------------------------------------------


def test_attributes_are_those_of_peft() -> None:
    with quiet():
        config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
        theirs = peft.get_peft_model(t5(), config)
    ours = get_peft_model(t5(), PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3))
    assert torch.equal(ours.prompt_tokens["default"], theirs.prompt_tokens["default"])
    assert ours.word_embeddings is ours.get_base_model().shared
    assert ours.get_prompt(4).shape == theirs.get_prompt(4).shape
    ours.prompt_encoder["default"].load_state_dict(theirs.prompt_encoder["default"].state_dict())
    assert torch.equal(ours.get_prompt(4), theirs.get_prompt(4))
    expected = theirs.get_prompt_embedding_to_save("default")
    assert torch.equal(ours.get_prompt_embedding_to_save("default"), expected)


@pytest.mark.parametrize("make", [llama, t5, bart])
def test_a_prefix_is_a_filled_cache(make: object) -> None:
    task_type = "CAUSAL_LM" if make is llama else "SEQ_2_SEQ_LM"
    with quiet():
        theirs = peft.get_peft_model(make(), peft.PrefixTuningConfig(task_type=task_type, num_virtual_tokens=3))
    ours = get_peft_model(make(), PrefixTuningConfig(task_type=task_type, num_virtual_tokens=3))
    ours.prompt_encoder["default"].load_state_dict(theirs.prompt_encoder["default"].state_dict())
    mine, expected = ours.get_prompt(2), theirs.get_prompt(2)
    assert mine.get_seq_length() == 3
    if make is not llama:
        mine, expected = mine.self_attention_cache, expected.self_attention_cache
    for layer, reference in zip(mine.layers, expected.layers, strict=False):
        assert torch.equal(layer.keys, reference.keys)
        assert torch.equal(layer.values, reference.values)


def test_backbones_and_methods_without_a_prompt() -> None:
    assert get_peft_model(bert("AutoModelForSequenceClassification"), PREFIX).transformer_backbone_name == "bert"
    assert get_peft_model(bert("AutoModel"), PREFIX).transformer_backbone_name == ""
    lora = get_peft_model(gpt2(), LoraConfig(task_type="CAUSAL_LM"))
    assert lora.prompt_tokens == {}
    for call in (lambda: lora.get_prompt(1), lambda: lora.get_prompt_embedding_to_save("default")):
        with pytest.raises(CapabilityError, match="LORA has no virtual tokens"):
            call()


# -- positions, padding, caches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PREFIX, PROMPT])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_stated_positions_follow_on_the_virtual_tokens(make: object, config: object) -> None:
    model = moved(get_peft_model(make(), config))
    expected = model(**batch()).logits
    actual = model(**batch(), position_ids=torch.arange(COLUMNS)[None]).logits
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(model(**batch(), position_ids=torch.arange(COLUMNS)[None] * 2).logits, expected)


@pytest.mark.parametrize("config", [PREFIX, PROMPT])
def test_token_types_reach_the_model(config: object) -> None:
    model = moved(
        get_peft_model(bert("AutoModelForSequenceClassification"), config.model_copy(update={"task_type": "SEQ_CLS"}))
    )
    types = torch.ones_like(batch()["input_ids"])
    assert not torch.allclose(model(**batch(), token_type_ids=types).logits, model(**batch()).logits)


@pytest.mark.parametrize("config", [PREFIX, PROMPT])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_classifier_reads_the_last_real_column(make: object, config: object) -> None:
    config = config.model_copy(update={"task_type": "SEQ_CLS"})
    model = moved(get_peft_model(make("AutoModelForSequenceClassification"), config))
    right, rows = batch(), range(ROWS)
    expected = torch.cat(
        [model(input_ids=right["input_ids"][i : i + 1, : right["attention_mask"][i].sum()]).logits for i in rows]
    )
    torch.testing.assert_close(model(**right).logits, expected)
    torch.testing.assert_close(model(input_ids=right["input_ids"]).logits, expected)
    if config.peft_type == "PROMPT_TUNING":
        embedded = {
            "inputs_embeds": model.word_embeddings(right["input_ids"]),
            "attention_mask": right["attention_mask"],
        }
        torch.testing.assert_close(model(**embedded).logits, expected)


@pytest.mark.parametrize("config", [PREFIX, PROMPT])
@pytest.mark.parametrize("make", [gpt2, llama, mistral])
def test_a_forward_goes_on_from_its_cache(make: object, config: object) -> None:
    model = moved(get_peft_model(make(), config))
    ids = batch()["input_ids"][:1]
    whole = model(input_ids=ids).logits[:, -COLUMNS:]
    first = model(input_ids=ids[:, :4])
    assert first.past_key_values.get_seq_length() == 3 + 4
    second = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits[:, -4:], second.logits], dim=1), whole)


def test_embeddings_instead_of_ids() -> None:
    for config in (PREFIX, PROMPT):
        model = moved(get_peft_model(llama(), config))
        embedded = model(
            inputs_embeds=model.word_embeddings(batch()["input_ids"]), attention_mask=batch()["attention_mask"]
        )
        torch.testing.assert_close(embedded.logits, model(**batch()).logits)


def test_positional_inputs() -> None:
    model = moved(get_peft_model(llama(), PREFIX))
    inputs = batch()
    assert torch.equal(model(inputs["input_ids"], inputs["attention_mask"]).logits, model(**inputs).logits)


def test_a_static_cache_of_the_caller_is_used() -> None:
    model = moved(get_peft_model(llama(), PREFIX))
    inputs = batch(left=True)
    cache = hf.StaticCache(config=model.config, max_cache_len=20)
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False, past_key_values=cache), expected)
    assert int(cache.get_seq_length()) == 3 + COLUMNS + 3


def test_a_prompt_alone_decides_what_is_generated_for_rows() -> None:
    model = get_peft_model(llama(), PREFIX, "a")
    model.add_adapter("b", PREFIX.model_copy(update={"num_virtual_tokens": 5}))
    model.set_requires_grad(["a", "b"])
    moved(model)
    inputs = batch(left=True)
    search = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2}
    mixed = model.generate(**inputs, **search, adapter_names=["b", "__base__", "a"])
    expected = {}
    for name in ("a", "b"):
        model.set_adapter(name)
        expected[name] = model.generate(**inputs, **search)
    with model.disable_adapter():
        expected["__base__"] = model.generate(**inputs, **search)
    assert torch.equal(mixed, torch.stack([expected["b"][0], expected["__base__"][1], expected["a"][2]]))
    assert not torch.equal(expected["a"], expected["b"])


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_models_own_preparation_stays_in_place() -> None:
    base, calls = llama(), []
    usual = base.prepare_inputs_for_generation

    @functools.wraps(usual)
    def own(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return usual(*args, **kwargs)

    plain = get_peft_model(base, PROMPT)
    plain.generate(input_ids=batch()["input_ids"], max_new_tokens=2, do_sample=False)
    assert "prepare_inputs_for_generation" not in vars(base)
    base.prepare_inputs_for_generation = own
    for count in (2, 4):
        plain.generate(input_ids=batch()["input_ids"], max_new_tokens=2, do_sample=False)
        assert len(calls) == count
    assert base.prepare_inputs_for_generation is own


def test_what_takes_no_cache_is_refused() -> None:
    config = hf.DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=16)
    base = hf.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(CapabilityError, match="PREFIX_TUNING: DistilBertForSequenceClassification takes no past_key"):
        get_peft_model(base, PREFIX.model_copy(update={"task_type": "SEQ_CLS"}))


def test_layers_without_keys_and_values_are_named() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16, "num_attention_heads": 2}
    kinds = ["linear_attention", "full_attention"]
    config = hf.Qwen3NextConfig(vocab_size=50, **sizes, layer_types=kinds, num_experts=2, num_experts_per_tok=1)
    model = get_peft_model(hf.Qwen3NextForCausalLM(config), PREFIX)
    with pytest.raises(CapabilityError, match="layer 0 of a Qwen3NextForCausalLM keeps a state in the place of keys"):
        model(input_ids=batch()["input_ids"])


def test_keys_and_values_of_another_shape_are_named() -> None:
    model = get_peft_model(falcon(), PREFIX.model_copy(update={"num_attention_heads": 2, "token_dim": 8}))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match") as caught:
        model(input_ids=batch()["input_ids"])
    assert "puts keys and values into the cache, by num_attention_heads=2, token_dim=8" in caught.value.__notes__[0]


def test_a_recurrent_model_goes_on_from_its_state() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1}
    config = hf.Mamba2Config(vocab_size=50, **sizes, bos_token_id=1, eos_token_id=None)
    base = lively(hf.Mamba2ForCausalLM, config)
    model = moved(get_peft_model(base, PROMPT.model_copy(update={"num_attention_heads": 1})))
    ids = batch()["input_ids"]
    for _ in range(4):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(input_ids=batch()["input_ids"], max_new_tokens=4, do_sample=False), ids)


@pytest.mark.parametrize("family", ["Albert", "Electra"])
def test_prompts_are_as_wide_as_the_embeddings(family: str) -> None:
    sizes = {"embedding_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = getattr(hf, f"{family}Config")(vocab_size=50, num_hidden_layers=2, **sizes)
    base = hf.AutoModelForSequenceClassification.from_config(config)
    model = get_peft_model(base, PROMPT.model_copy(update={"task_type": "SEQ_CLS"}))
    assert model.peft_config["default"].token_dim == 8
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([0])).loss.backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.abs().sum() > 0


class Blind(nn.Module):
    """A model that says nothing of its input embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = llama()
        self.config = self.inner.config

    def forward(self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None) -> object:
        return self.inner(input_ids, inputs_embeds=inputs_embeds)


class Closed(Blind):
    """A model that takes no embeddings."""

    def forward(self, input_ids: torch.Tensor) -> object:
        return self.inner(input_ids)


class Unsaid(Blind):
    """A model of a class of transformers' that has no input embeddings."""

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


class Passing(Blind):
    """A model that hands all of its inputs on, whatever they are."""

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.inner(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()


def test_what_names_none_of_its_inputs_takes_a_prompt() -> None:
    logits = []
    for base in (Passing(), llama()):
        torch.manual_seed(0)
        logits.append(get_peft_model(base, PROMPT).eval()(input_ids=torch.tensor([[3, 4, 5]])).logits)
    torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [(Blind, "Blind has no input embeddings"), (Unsaid, "Unsaid has no input emb"), (Closed, "Closed takes no inputs")],
)
def test_what_takes_no_embeddings_is_refused(make: type[nn.Module], message: str) -> None:
    base = make()
    with pytest.raises(CapabilityError, match=f"PROMPT_TUNING: {message}"):
        get_peft_model(base, PROMPT)
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_the_prompt_of_another_method_has_to_fit_it() -> None:
    class Other(PromptAdapter):
        def __init__(self, config: object, model: nn.Module) -> None:
            super().__init__(config, model)
            self.vectors = nn.Embedding(3, 16)

    class Narrow(Other):
        def __init__(self, config: object, model: nn.Module) -> None:
            super().__init__(config, model)
            self.embedding = nn.Embedding(3, 8)

    class Config(PromptTuningConfig):
        def adapter_class(self) -> type[PromptAdapter]:
            return Other

    with pytest.raises(BrokenPluginError, match=r"Config: its adapter .* has no embedding: an nn\.Embedding"):
        get_peft_model(llama(), Config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    Config.adapter_class = lambda self: Narrow
    with pytest.raises(BrokenPluginError, match=r"has a table \(3, 8\), where \(3, 16\) is needed.*token_dim=16"):
        get_peft_model(llama(), Config(task_type="CAUSAL_LM", num_virtual_tokens=3))


def test_a_cache_that_is_not_looked_at_is_noticed() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = llama()
            self.config, self.dtype = self.inner.config, self.inner.dtype

        def forward(self, input_ids: torch.Tensor, past_key_values: object = None) -> object:
            return self.inner(input_ids)

    with pytest.raises(CapabilityError, match="Deaf left out the prompt"):
        get_peft_model(Deaf(), PREFIX)(input_ids=batch()["input_ids"])


def test_rows_at_other_positions_are_refused_where_they_cannot_be_told() -> None:
    config = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    model = get_peft_model(bart(), config, "a")
    inputs = {**batch(), "labels": batch()["input_ids"]}
    model(**inputs, adapter_names=["a"] * ROWS)
    with pytest.raises(CapabilityError, match=r"PREFIX_TUNING: adapter_names .* learnt positions"):
        model(**inputs, adapter_names=["a", "__base__", "a"])


def test_misuse_is_named() -> None:
    model = get_peft_model(llama(), PROMPT)
    with pytest.raises(CapabilityError, match="PromptTuningAdapter takes no task_ids"):
        model(**batch(), task_ids=torch.zeros(ROWS, dtype=torch.long))
    with pytest.raises(CapabilityError, match="two dimensions"):
        model(input_ids=batch()["input_ids"], attention_mask=torch.ones(ROWS, 1, COLUMNS, COLUMNS))
    with pytest.raises(StateError, match="input_ids"):
        model(attention_mask=batch()["attention_mask"])
    model.add_adapter("b", PROMPT)
    model.base_model.activate(("default", "b"))
    with pytest.raises(StateError, match="one prompt at a time"):
        model(**batch())
