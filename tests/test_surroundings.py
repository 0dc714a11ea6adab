"""What goes on around an adapted model: compiling, copying, longer embeddings, checkpoints of gradients, processes."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch

from adapterkit import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from adapterkit.errors import CapabilityError, StateError
from tests.parity.bases import IDS, llama
from tests.parity.helpers import add_noise

# PyTorch's own, while it traces functions with a backward of their own.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

FIELDS = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def adapted(base=None, **fields):
    model = get_peft_model(llama() if base is None else base, LoraConfig(**{**FIELDS, **fields}))
    add_noise(model)
    return model.eval()


def logits(model):
    return model(input_ids=IDS).logits.detach()


def compiled(model):
    return torch.compile(model, backend="eager")


def around(model):
    return compiled(model)


def inside(model):
    model.base_model.model = compiled(model.base_model.model)
    return model


CONFIGS = {
    "lora": LoraConfig(**FIELDS, lora_dropout=0.1, init_lora_weights=False),
    "dora": LoraConfig(**FIELDS, use_dora=True),
    "loha": LoHaConfig(**FIELDS),
    "oft": OFTConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", oft_block_size=4),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


class Logits(torch.nn.Module):
    """The model, as a tracer takes it: from tensor to tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False, return_dict=False)[0]


def jit_traced(model):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, (IDS,)), file)
    return torch.jit.load(io.BytesIO(file.getvalue()))


def exported(model):
    return torch.export.export(model, (IDS,)).module()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("through", [jit_traced, exported])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_traced_model_is_the_model(config, through):
    model = get_peft_model(llama(), config).eval()
    add_noise(model)
    torch.testing.assert_close(through(Logits(model))(IDS), logits(model))


@pytest.mark.parametrize("kind", ["dora", "oft", "prompt"])
def test_a_program_for_onnx_takes_any_batch(kind):
    model = get_peft_model(llama(num_hidden_layers=1), CONFIGS[kind]).eval()
    rows = {0: torch.export.Dim("rows", min=2, max=64)}
    program = torch.export.export(Logits(model), (IDS,), dynamic_shapes={"ids": rows}, strict=False)
    used = {str(node.target) for node in program.graph.nodes}
    assert not any(name in each for each in used for name in ("dequantize", "diagonal"))  # which ONNX does not have
    ids = torch.cat([IDS, IDS])
    torch.testing.assert_close(program.module()(ids), Logits(model)(ids))


@pytest.mark.parametrize("how", [around, inside])
def test_a_compiled_model_is_saved_and_loaded_under_the_same_names(tmp_path, how):
    model = adapted()
    expected, names = logits(model), list(get_peft_model_state_dict(model))
    model = how(model)
    torch.testing.assert_close(logits(model), expected)
    state = get_peft_model_state_dict(model)
    assert list(state) == names
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(llama(), tmp_path)), expected)
    set_peft_model_state_dict(model, {key: torch.zeros_like(tensor) for key, tensor in state.items()})
    torch.testing.assert_close(logits(model), logits(llama()))


def test_a_base_that_was_compiled_first_has_the_same_names(tmp_path):
    model = adapted(compiled(llama()))
    assert list(get_peft_model_state_dict(model)) == list(get_peft_model_state_dict(adapted()))
    model.save_pretrained(tmp_path)
    for base in (llama(), compiled(llama())):
        torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path)), logits(model))


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def through_its_state(model):
    other = adapted()
    other.load_state_dict({key: tensor.clone() for key, tensor in model.state_dict().items()})
    return other


@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle, through_a_file, through_its_state])
def test_a_copy_is_the_model_and_stands_alone(through):
    model = adapted()
    expected, other = logits(model), through(model)
    assert torch.equal(logits(other), expected)
    set_peft_model_state_dict(other, {k: torch.zeros_like(t) for k, t in get_peft_model_state_dict(other).items()})
    assert not torch.equal(logits(other), expected)
    assert torch.equal(logits(model), expected)
    with other.disable_adapter():
        assert model.base_model.selection.enabled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_and_back(dtype):
    model = adapted()
    expected = logits(model)
    model.to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert logits(model).dtype is dtype
    torch.testing.assert_close(logits(model.float()), expected, atol=0.05, rtol=0.05)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # the name in use so far
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_the_same_from_checkpoints(reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = adapted().train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(plain, other) for plain, other in zip(*gradients, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


def longer(model):
    model.resize_token_embeddings(40, mean_resizing=False)
    return model


def offloaded(base):
    accelerate.cpu_offload(base, execution_device=torch.device("cpu"))
    return base


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**FIELDS, init_lora_weights=False),
        LoraConfig(**FIELDS, use_dora=True),
        LoHaConfig(**FIELDS),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: f"{config.peft_type} {getattr(config, 'use_dora', '')}",
)
def test_an_offloaded_base_is_adapted(tmp_path, config):
    plain, model = (get_peft_model(base, config).eval() for base in (llama(), offloaded(llama())))
    for each in (plain, model):
        add_noise(each)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(logits(model), logits(plain))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(offloaded(llama()), tmp_path)), logits(plain))
    with pytest.raises(CapabilityError, match="is offloaded" if not config.is_prompt_learning else "cannot merge"):
        model.merge_adapter()
    assert torch.equal(logits(model.unload()), logits(llama()))


def test_adapters_and_copies_are_not_offloaded():
    with pytest.raises(CapabilityError, match="accelerate is to offload the tensors of an adapter, a "):
        offloaded(adapted())
    with pytest.raises(CapabilityError, match="a Linear is offloaded and cannot be trained whole"):
        adapted(offloaded(llama()), modules_to_save=["lm_head"])


def test_embeddings_grow_before_and_after(tmp_path):
    model = adapted()
    expected, trainable = logits(model), model.get_nb_trainable_parameters()[0]
    longer(model)
    assert logits(model).shape[-1] == 40
    assert torch.equal(logits(model)[..., :32], expected)
    assert model.get_nb_trainable_parameters()[0] == trainable
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert get_peft_model_state_dict(model, save_embedding_layers=True)[
        "base_model.model.model.embed_tokens.weight"
    ].shape == (40, 16)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(longer(llama()), tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("fields", "which"),
    [
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"trainable_token_indices": [1]}, "model.embed_tokens"),
    ],
)
def test_embeddings_that_are_trained_do_not_grow(fields, which):
    model = adapted(**fields)
    expected = logits(model)
    with pytest.raises(StateError, match=rf"{which} belongs to the adapters \['default'\].*before they are made"):
        longer(model)
    with pytest.raises(StateError, match=which):
        model.resize_token_embeddings(new_num_tokens=40)
    assert torch.equal(logits(model), expected)
    assert model.resize_token_embeddings() is not None


PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from adapterkit import LoraConfig, get_peft_model
from tests.parity.bases import llama
from tests.parity.helpers import add_noise

IDS = torch.arange(16).reshape(4, 4) % 30


def adapted():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    add_noise(model)
    return model.train()


def loss(model, rows):
    return model(input_ids=rows, labels=rows).loss


def steps(model, rows):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, rows).backward()
        gradients = [p.grad.clone() for p in trained]
        optimizer.step()
    return gradients, [p.detach().clone() for p in trained]


def work(rank):
    expected = steps(adapted(), IDS)
    model = DistributedDataParallel(adapted())
    found = steps(model, IDS[2 * rank : 2 * rank + 2])
    for ours, theirs in zip(found, expected):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    if rank == 0:
        model.module.save_pretrained(sys.argv[1])


if __name__ == "__main__":
    dist.init_process_group("gloo")
    work(dist.get_rank())
    print("the same", flush=True)
    dist.destroy_process_group()
"""


def run_program(text, tmp_path):
    (tmp_path / "program.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launched, str(tmp_path / "program.py"), str(tmp_path / "adapter")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "the same\n" * 2, done.stderr


def test_two_processes_train_as_one(tmp_path):
    """Three steps under `DistributedDataParallel` on halves of a batch are three steps on the batch."""
    run_program(PROGRAM, tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    assert not torch.equal(logits(loaded), logits(llama()))


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from adapterkit import LoHaConfig, LoraConfig, get_peft_model
from adapterkit.errors import CapabilityError
from tests.parity.bases import llama

IDS = torch.arange(16).reshape(4, 4) % 30
FIELDS = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
CONFIGS = LoraConfig(**FIELDS, use_dora=True), LoraConfig(**FIELDS, init_lora_weights="pissa"), LoHaConfig(**FIELDS)


def sharded(base, mesh):
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(base, mesh=mesh)


def refused(what):
    try:
        what()
    except CapabilityError as error:
        return str(error)


def work(rank):
    mesh = init_device_mesh("cpu", (2,))
    for config in CONFIGS:
        gradients, outputs = [], []
        for base in (llama(), sharded(llama(), mesh)):
            torch.manual_seed(0)
            model = get_peft_model(base, config)
            outputs.append(model(input_ids=IDS).logits)
            outputs[-1].cos().sum().backward()
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*gradients)
        assert "shared out among processes" in refused(model.merge_adapter)
    whole = LoraConfig(**FIELDS, modules_to_save=["lm_head"])
    assert "is sharded and cannot be trained whole" in refused(lambda: get_peft_model(sharded(llama(), mesh), whole))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    work(dist.get_rank())
    print("the same", flush=True)
    dist.destroy_process_group()
"""


def test_a_sharded_base_is_adapted(tmp_path):
    """DoRA and PiSSA read the weight, of which FSDP's second version has left each process a part."""
    run_program(SHARDED, tmp_path)
