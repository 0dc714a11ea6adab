"""Laws of state: files, copies, pickles and seeds."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from adapterkit.build import get_peft_model
from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.errors import CheckpointError
from adapterkit.model import PeftModel
from adapterkit.nn.adapter import Adapter
from adapterkit.ondisk.reading import AdapterFiles
from adapterkit.ondisk.soundness import problems
from adapterkit.testing.case import AdapterCase, same, train
from adapterkit.testing.toys import Toy, seeded


class StateLaws(AdapterCase):
    """What holds when adapters are stored, copied or made again."""

    def test_tensors_are_loaded_exactly(self, layer: nn.Module) -> None:
        model, other = self.adapted(layer), self.adapted(layer, moved=False)
        pairs = list(zip(model.base_model.parts("a"), other.base_model.parts("a"), strict=True))
        assert pairs
        for (name, part), (other_name, fresh) in pairs:
            assert name == other_name
            assert isinstance(part, Adapter)
            assert isinstance(fresh, Adapter)
            fresh.load_tensors(part.tensors())
            assert same(fresh.tensors(), part.tensors())
        x = self.inputs(layer)
        assert torch.equal(other(x), model(x))

    def test_tensors_that_do_not_fit_are_refused(self, sample: nn.Module) -> None:
        for _, part in self.adapted(sample).base_model.parts("a"):
            assert isinstance(part, Adapter)
            tensors = part.tensors()
            with pytest.raises(CheckpointError, match="surplus"):
                part.load_tensors({**tensors, "surplus": torch.zeros(1)})
            for name in tensors:
                with pytest.raises(CheckpointError, match=name):
                    part.load_tensors({k: t for k, t in tensors.items() if k != name})

    def test_files_are_exact(self, layer: nn.Module, tmp_path: Path) -> None:
        model, x = self.adapted(layer), self.inputs(layer)
        model.save_pretrained(tmp_path)
        directory = tmp_path / "a"
        assert problems(AdapterFiles(directory)) == []  # they have what `PeftConfig.saved_forms` says
        with seeded(99):  # what was drawn at random is in the file, or comes from a seed in the config
            loaded = PeftModel.from_pretrained(Toy(copy.deepcopy(layer)), directory, "other")
        assert same(
            get_peft_model_state_dict(loaded, adapter_name="other"), get_peft_model_state_dict(model, adapter_name="a")
        )
        torch.testing.assert_close(loaded(x), model(x))  # up to the rounding of products
        loaded.save_pretrained(tmp_path / "again")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "again" / "other" / name).read_bytes() == (directory / name).read_bytes()

    def test_copies_are_independent(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample), self.inputs(sample)
        expected = model(x)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), expected)
        list(train(twin, x))
        with twin.disable_adapter():
            assert torch.equal(model(x), expected)

    def test_pickles(self, sample: nn.Module) -> None:
        model, x = self.adapted(sample, "a", "b"), self.inputs(sample)
        twin = pickle.loads(pickle.dumps(model))
        for name in ("b", "a"):
            model.set_adapter(name)
            twin.set_adapter(name)
            assert torch.equal(twin(x), model(x))

    def test_the_start_depends_on_nothing_but_the_seed(self, sample: nn.Module) -> None:
        alone = get_peft_model(self.seeded_base(sample), self.targeting("target"), "a")
        mixed = self.seeded_base(sample)
        model = get_peft_model(mixed, self.targeting("second"), "z")
        torch.rand(3)
        model.add_adapter("a", self.targeting("second", "target"))
        there = get_peft_model_state_dict(model, adapter_name="a")
        state = get_peft_model_state_dict(alone, adapter_name="a")
        assert state
        assert same(state, {key: there[key] for key in state})

    def seeded_base(self, layer: nn.Module) -> Toy:
        """A base model, and the random numbers at the start of a run."""
        torch.manual_seed(5)
        return Toy(copy.deepcopy(layer))
