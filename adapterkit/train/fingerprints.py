"""What was there when a run was made: packages, plugins, machine, base model."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import socket
import sys
from importlib import metadata
from typing import Any

import psutil
import torch
from torch import nn

from adapterkit import launcher
from adapterkit.registry import KINDS

PACKAGES = ("adapterkit", "torch", "transformers", "accelerate", "datasets", "safetensors", "pydantic", "hydra-core")
_SAMPLES = 64


def packages() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def plugins(**names: str) -> dict[str, str]:
    """Distribution and version behind each plugin of a run, ``{"method": "adapterkit 0.1.0"}``."""
    found = {}
    for kind, name in names.items():
        known = name.rpartition("/")[2] in KINDS[kind].declared
        found[kind] = f"{name} ({KINDS[kind].plugin(name).origin if known else 'registered by hand'})"
    return found


def machine() -> dict[str, Any]:
    """What a run was made on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count(), "gpus": gpus}


def process() -> dict[str, Any]:
    """Which process a run is made by, of how many that train together."""
    began = psutil.Process().create_time()
    place = {"host": socket.gethostname(), "pid": os.getpid(), "began": began, "cwd": os.getcwd()}
    return {**place, "of": launcher.count(), "argv": sys.argv}


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 over name, shape, type and evenly spaced values of every tensor of a model: quick at any size.

    It tells one checkpoint from another, and not one from a copy in which few numbers were changed on purpose.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.is_meta or not tensor.numel():
            continue
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLES)].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def peak_memory() -> dict[str, int]:
    """Bytes: the process' largest resident size, and the most allocated on an accelerator."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        found["cuda"] = sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    return found
