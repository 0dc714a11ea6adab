"""The contract of a prompt method: laws on small models of three kinds, each for the task it is made for."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapterkit.build import get_peft_model
from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.config.prompt import PromptConfig
from adapterkit.errors import CapabilityError
from adapterkit.model import PeftModel
from adapterkit.ondisk.reading import AdapterFiles
from adapterkit.ondisk.soundness import problems
from adapterkit.prompts.sizes import with_sizes
from adapterkit.testing.case import frozen_state, same
from adapterkit.testing.configs import ConfigLaws
from adapterkit.testing.elsewhere import GPU, Elsewhere
from adapterkit.testing.hosts import COLUMNS, HOSTS, ROWS, WORDS, Host, recompute
from adapterkit.testing.models import assert_near
from adapterkit.testing.toys import seeded

Inputs = dict[str, Any]


class PromptContract(ConfigLaws):
    """Every law of a prompt method. Set ``config``, which states no size but the number of virtual tokens."""

    config: PromptConfig  # type: ignore[misc]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """``host`` runs over all of `HOSTS`, ``generator`` over those that generate."""
        if "host" in metafunc.fixturenames:
            metafunc.parametrize("host", list(HOSTS.values()), ids=list(HOSTS))
        if "generator" in metafunc.fixturenames:
            chosen = {name: host for name, host in HOSTS.items() if host.task_type.endswith("LM")}
            metafunc.parametrize("generator", list(chosen.values()), ids=list(chosen))

    # -- shared by the laws -------------------------------------------------------------------------------------------

    def for_task(self, host: Host, tokens: int | None = None) -> PromptConfig:
        """The config for a host, perhaps with another number of virtual tokens."""
        count = self.config.num_virtual_tokens if tokens is None else tokens
        return self.config.model_copy(update={"task_type": host.task_type, "num_virtual_tokens": count})

    def prompted(self, host: Host, *names: str, moved: bool = True, base: nn.Module | None = None) -> PeftModel:
        """A model with prompts of these names (``a`` if none is given), the first one active."""
        first, *others = names or ("a",)
        with seeded(3):
            model = get_peft_model(host.make() if base is None else base, self.for_task(host), first)
            for name in others:
                model.add_adapter(name, self.for_task(host))
            model.set_requires_grad([first, *others])
        if moved:
            move(model)
        return model.eval()

    def inputs(self, host: Host, *, decoder: bool = True) -> Inputs:
        """Five rows, the second one padded on the right."""
        with seeded(6):
            ids = torch.randint(1, WORDS, (ROWS, COLUMNS))
        mask = torch.ones_like(ids)
        mask[1, -2:] = 0
        inputs = {"input_ids": ids * mask, "attention_mask": mask}
        if host.task_type == "SEQ_2_SEQ_LM" and decoder:
            inputs["decoder_input_ids"] = ids.flip(0)
        if self.config.adapter_class().conditional:
            inputs["task_ids"] = torch.zeros(ROWS, dtype=torch.long)
        return inputs

    def labelled(self, host: Host) -> Inputs:
        inputs = self.inputs(host, decoder=False)
        labels = inputs["input_ids"] if host.task_type.endswith("LM") else torch.tensor([0, 1, 1, 0, 1])
        return {**inputs, "labels": labels}

    # -- sizes and start ----------------------------------------------------------------------------------------------

    def test_sizes_are_read_off_the_model(self, host: Host) -> None:
        before = self.for_task(host)
        config = with_sizes(before, host.make(), None)
        sizes = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")
        assert all(getattr(config, name) for name in sizes)
        assert before == self.for_task(host)
        assert with_sizes(config, host.make(), None) == config
        assert config.num_transformer_submodules == (2 if host.task_type == "SEQ_2_SEQ_LM" else 1)

    def test_has_as_many_tokens_as_stated(self, host: Host) -> None:
        model = self.prompted(host)
        table = model.get_prompt_embedding_to_save("a")
        assert table.isfinite().all()
        assert len(table) % self.config.num_virtual_tokens == 0
        assert len(model.prompt_tokens["a"]) >= self.config.num_virtual_tokens

    def test_the_start_depends_on_nothing_but_the_seed(self, host: Host) -> None:
        torch.manual_seed(5)
        alone = get_peft_model(host.make(), self.for_task(host), "a")
        torch.manual_seed(5)
        model = get_peft_model(host.make(), self.for_task(host), "z")
        torch.rand(3)
        model.add_adapter("a", self.for_task(host))
        first, second = (get_peft_model_state_dict(m, adapter_name="a") for m in (alone, model))
        assert same(first, second)
        other = get_peft_model_state_dict(model, adapter_name="z")["prompt_embeddings"]
        assert not other.any() or not torch.equal(other, first["prompt_embeddings"])

    # -- training -----------------------------------------------------------------------------------------------------

    def test_only_its_own_tensors_train(self, host: Host) -> None:
        model = self.prompted(host)
        frozen = frozen_state(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        before = {name: p.detach().clone() for name, p in trained.items()}
        assert all("prompt_encoder.a." in name or "modules_to_save.a." in name for name in trained)
        optimizer = torch.optim.SGD(trained.values(), lr=1.0)
        model(**self.labelled(host)).loss.backward()
        assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        optimizer.step()
        assert not [name for name, p in trained.items() if torch.equal(p, before[name])]
        assert same(frozen_state(model), frozen)

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing_is_exact_or_refused(self, host: Host, use_reentrant: bool) -> None:
        model, inputs = self.prompted(host), self.labelled(host)
        model.train()
        model(**inputs).loss.backward()
        expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        recompute(model.get_base_model(), use_reentrant=use_reentrant)
        if self.config.adapter_class().place == "cache":
            with pytest.raises(CapabilityError, match="gradient checkpointing"):
                model(**inputs)
            return
        model(**inputs).loss.backward()
        torch.testing.assert_close({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)

    # -- state --------------------------------------------------------------------------------------------------------

    def test_files_are_exact(self, host: Host, tmp_path: Path) -> None:
        model, inputs = self.prompted(host), self.inputs(host)
        model.save_pretrained(tmp_path)
        assert problems(AdapterFiles(tmp_path / "a")) == []  # they have what `PeftConfig.saved_forms` says
        with seeded(99):
            loaded = PeftModel.from_pretrained(host.make(), tmp_path / "a", "other", is_trainable=True).eval()
        assert type(loaded) is type(model)
        state = get_peft_model_state_dict(model, adapter_name="a")
        assert same(get_peft_model_state_dict(loaded, adapter_name="other"), state)
        assert state.keys() >= {"prompt_embeddings"}
        assert all(key.startswith("base_model.") for key in state if "." in key)
        torch.testing.assert_close(first_of(loaded(**inputs)), first_of(model(**inputs)))
        assert [p for p in loaded.prompt_encoder.parameters() if p.requires_grad]
        loaded.save_pretrained(tmp_path / "again")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "again" / "other" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()

    def test_copies_are_independent(self, host: Host) -> None:
        model, inputs = self.prompted(host), self.inputs(host)
        expected = first_of(model(**inputs))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(first_of(twin(**inputs)), expected)
            move(twin)
            assert torch.equal(first_of(model(**inputs)), expected)

    def test_disabled_it_is_the_base(self, host: Host) -> None:
        model, inputs = self.prompted(host), self.inputs(host)
        plain = {name: tensor for name, tensor in inputs.items() if name != "task_ids"}
        expected = first_of(host.make().requires_grad_(False)(**plain))
        with model.disable_adapter():
            assert torch.equal(first_of(model(**plain)), expected)
        assert not torch.allclose(first_of(model(**inputs))[:, -expected.shape[1] :], expected)

    def test_adapters_are_independent(self, host: Host) -> None:
        model, inputs = self.prompted(host, "a", "b"), self.inputs(host)
        outputs = {}
        for name in ("a", "b"):
            model.set_adapter(name)
            outputs[name] = first_of(model(**inputs))
        assert not torch.allclose(outputs["a"], outputs["b"])
        move(model)  # b is the one that trains now
        model.set_adapter("a")
        assert torch.equal(first_of(model(**inputs)), outputs["a"])
        model.delete_adapter("b")
        assert torch.equal(first_of(model(**inputs)), outputs["a"])

    # -- computing ----------------------------------------------------------------------------------------------------

    def test_padding_changes_nothing(self, host: Host) -> None:
        model, inputs = self.prompted(host), self.inputs(host)
        together = first_of(model(**inputs))[1:2]
        row = {name: tensor[1:2] for name, tensor in inputs.items()}
        real = {name: t[:, :-2] if name in ("input_ids", "attention_mask") else t for name, t in row.items()}
        alone = first_of(model(**real))
        torch.testing.assert_close(together[:, : alone.shape[1]], alone, atol=1e-4, rtol=1e-4)

    def test_every_row_has_its_own_prompt(self, host: Host) -> None:
        model, inputs = self.prompted(host, "a", "b"), self.inputs(host)
        self.assert_rows(model, host, inputs, ["a", "b", "b", "a", "a"])

    def test_rows_without_a_prompt_and_with_a_shorter_one_are_exact_or_refused(self, host: Host) -> None:
        model, inputs = self.prompted(host, "a"), self.inputs(host)
        model.add_adapter("c", self.for_task(host, tokens=self.config.num_virtual_tokens + 2))
        for names in (["a", "__base__", "a", "a", "__base__"], ["a", "c", "c", "__base__", "a"]):
            refusal = ""
            try:
                self.assert_rows(model, host, inputs, names)
            except CapabilityError as error:
                refusal = str(error)
            if refusal:
                assert not host.column_outputs
                assert refusal.startswith(f"{self.config.peft_type}: adapter_names")

    def assert_rows(self, model: PeftModel, host: Host, inputs: Inputs, names: Sequence[str]) -> None:
        """Every row of a mixed batch is what it is alone."""
        together = first_of(model(**inputs, adapter_names=names))
        for index, name in enumerate(names):
            row = {key: tensor[index : index + 1] for key, tensor in inputs.items()}
            if name == "__base__":
                with model.disable_adapter():
                    alone = first_of(model(**{k: t for k, t in row.items() if k != "task_ids"}))
            else:
                model.set_adapter(name)
                alone = first_of(model(**row))
            columns = min(alone.shape[1], inputs["input_ids"].shape[1]) if host.column_outputs else alone.shape[1]
            mine = together[index : index + 1]
            torch.testing.assert_close(mine[:, -columns:], alone[:, -columns:], atol=1e-4, rtol=1e-4)

    def test_half_precision(self, host: Host) -> None:
        inputs = self.inputs(host)
        model = self.prompted(host, base=host.make().to(torch.bfloat16))
        exact = copy.deepcopy(model).float()
        output = first_of(model(**inputs))
        assert output.dtype == torch.bfloat16
        assert_near(output, first_of(exact(**inputs)))
        output.float().sum().backward()  # type: ignore[no-untyped-call]
        prompts = [p for p in model.prompt_encoder.parameters() if p.requires_grad]
        assert {p.dtype for p in prompts} == {torch.float32}
        assert all(p.grad is not None and p.grad.isfinite().all() for p in prompts)
        with torch.autocast("cpu", torch.bfloat16):
            assert_near(first_of(exact(**inputs)), output, tolerance=0.1)

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, when tracing
    def test_compiles_in_one_graph(self, host: Host) -> None:
        model, inputs = self.prompted(host), self.inputs(host)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(first_of(compiled(**inputs)), first_of(model(**inputs)))

    def test_on_a_gpu(self, host: Host) -> None:
        near, inputs = self.prompted(host, "a", "b"), self.inputs(host)
        with Elsewhere(), torch.no_grad():
            far = self.prompted(host, "a", "b", base=host.make().to(GPU))
            assert {t.device for t in [*far.parameters(), *far.buffers()]} == {GPU}
            there = {name: tensor.to(GPU) for name, tensor in inputs.items()}
            torch.testing.assert_close(first_of(far(**there)).cpu(), first_of(near(**inputs)).cpu())

    def test_counts_on_the_meta_device(self, host: Host) -> None:
        with torch.device("meta"):
            base = host.make()
        empty = get_peft_model(base, self.for_task(host), "a")
        assert all(p.is_meta for p in empty.parameters())
        counts = self.prompted(host, moved=False).get_nb_trainable_parameters()
        assert empty.get_nb_trainable_parameters() == counts

    def test_generates_the_same_with_and_without_a_cache(self, generator: Host) -> None:
        model, inputs = self.prompted(generator, "a", "b"), self.inputs(generator, decoder=False)
        inputs = left_padded(inputs)
        search: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
        sequences = model.generate(**inputs, **search)
        assert torch.equal(model.generate(**inputs, **search, use_cache=False), sequences)
        assert "prepare_inputs_for_generation" not in vars(model.get_base_model())
        names = ["a", "b", "a", "a", "b"]
        mixed = model.generate(**inputs, **search, adapter_names=names)
        model.set_adapter("b")
        other = model.generate(**inputs, **search)
        rows = [{"a": sequences, "b": other}[name][i] for i, name in enumerate(names)]
        assert torch.equal(mixed, torch.stack(rows))
        assert not torch.equal(other, sequences)

    def test_cannot_be_merged(self, host: Host) -> None:
        model = self.prompted(host)
        operations: tuple[Callable[[], Any], ...] = (model.merge_adapter, model.merge_and_unload)
        for operation in operations:
            with pytest.raises(CapabilityError, match=self.config.peft_type):
                operation()


def first_of(output: Any) -> Tensor:
    """The logits."""
    return output.logits  # type: ignore[no-any-return]


def move(model: nn.Module) -> None:
    """Put every trainable parameter away from where it is."""
    with seeded(2), torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


def left_padded(inputs: Inputs) -> Inputs:
    """The same rows with their padding on the left, as generation needs it."""
    order = inputs["attention_mask"].argsort(dim=1, stable=True)
    columns = ("input_ids", "attention_mask")
    return {name: tensor.gather(1, order) if name in columns else tensor for name, tensor in inputs.items()}
