"""NVIDIA's network pickles, written as by their code."""

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Pickled:
    """A module as pickled by NVIDIA's code: source, class name, state."""

    def __init__(self, tensors: Mapping[str, Tensor], kind: str, extra: dict[str, Any]) -> None:
        state: dict[str, Any] = {"training": False, "dtype": torch.float32, **extra}
        state |= {"_parameters": OrderedDict(), "_buffers": OrderedDict()}
        state |= {"_modules": OrderedDict(), "_non_persistent_buffers_set": set()}
        children: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            head, _, tail = name.partition(".")
            if tail:
                children.setdefault(head, {})[tail] = tensor
            elif head in ("w_avg", "resample_filter", "noise_const"):
                state["_buffers"][head] = tensor
            else:
                state["_parameters"][head] = nn.Parameter(tensor)
        for name, own in children.items():
            state["_modules"][name] = Pickled(own, name, extra)
        self.meta: dict[str, Any] = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit(9)",
        }
        self.meta |= {"class_name": kind, "state": state}

    def __reduce__(self) -> tuple[object, ...]:
        return _reconstruct_persistent_obj, (self.meta,), None


def _reconstruct_persistent_obj(meta: object) -> object:
    raise AssertionError("the file's own code was called")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextmanager
def nvidia_modules() -> Iterator[None]:
    """A context in which pickle finds the function that NVIDIA's files name."""
    module = types.ModuleType("torch_utils.persistence")
    vars(module)["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), module.__name__: module}
    try:
        yield
    finally:
        for name in ("torch_utils", module.__name__):
            sys.modules.pop(name, None)


def as_pkl(tensors: Mapping[str, Tensor], path: Path, **extra: Any) -> Path:
    """The file of a generator with these weights; `extra` is in every module's state."""
    net = Pickled(tensors, "Generator", {"conv_clamp": None, "bias_gain": 0.01, **extra})
    with nvidia_modules():
        content = pickle.dumps({"G": None, "D": None, "G_ema": net, "augment_pipe": None})
    path.write_bytes(content)
    return path
