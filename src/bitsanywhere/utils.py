"""Helpers that bitsandbytes' users import from ``bitsandbytes.utils``."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from bitsanywhere.checkpoint import pack_dict_to_tensor, unpack_tensor_to_dict
from bitsanywhere.errors import InvalidArgumentError

# How int8 weights may lie in memory by `weight_format` of a checkpoint; only "row" is written.
LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING = {"row": 0, "col32": 1, "col_turing": 2, "col_ampere": 3}
INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING = {
    number: name for name, number in LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING.items()
}
# Activations of this magnitude are outliers (LLM.int8(), Dettmers et al. 2022, section 3.2).
_MAGNITUDE = 6.0


def find_outlier_dims(weight, reduction_dim=0, zscore=4.0, topk=None, rdm=False):
    """Dimensions whose standard deviation stands out.

    Args:
        weight: a matrix of shape (out, in).
        reduction_dim: the dimension over which the deviation is taken; 0 finds inputs.
        zscore: how many deviations of the deviations above their mean is standing out.
        topk: the dimensions with the largest deviations instead, so many of them.
        rdm: random dimensions instead, ``topk`` of them (a baseline for comparisons).

    Returns:
        int64 indices: ascending by `zscore`; by falling deviation with ``topk``.

    Raises:
        InvalidArgumentError: ``rdm`` without ``topk``.
    """
    if rdm:
        if topk is None:
            raise InvalidArgumentError(
                "find_outlier_dims: rdm is True and topk is None",
                "Random dimensions need a count.",
                "Give topk=N.",
            )
        return torch.randint(0, weight.shape[1], (topk,), device=weight.device)
    deviation = weight.std(reduction_dim)
    if topk is not None:
        return deviation.topk(topk).indices
    score = (deviation - deviation.mean()) / deviation.std()
    return torch.where(score > zscore)[0]


def outlier_hook(module, input):
    """Forward pre-hook of a linear layer: notes the outlier dimensions of its input.

    They are those of the weight by `find_outlier_dims`. The first layer's input is no other
    layer's output, so there the activations themselves are looked at: dimensions whose
    standard deviation stands out, or that reach a magnitude of 6.
    """
    tracer = OutlierTracer.get_instance()
    if not isinstance(module, torch.nn.Linear) or not tracer.is_initialized():
        return
    hvalue = tracer.get_hvalue(module.weight)
    if hvalue in tracer.hvalue2outlier_idx:
        return
    found = find_outlier_dims(module.weight)
    tracer.outliers.append(found)
    tracer.hvalues.append(hvalue)
    if len(tracer.outliers) == 1:
        x = input[0].reshape(-1, input[0].shape[-1]).float()
        large = torch.where((x.abs() > _MAGNITUDE).any(0))[0]
        spread = find_outlier_dims(x) if len(x) > 1 else large[:0]
        found = torch.cat([spread, large]).unique()
    tracer.hvalue2outlier_idx[hvalue] = found


class OutlierTracer:
    """Which input dimensions of a model's linear layers hold outliers; one for the process."""

    _instance: OutlierTracer | None = None

    hvalues: list[int]
    outliers: list[torch.Tensor]
    hvalue2outlier_idx: dict[int, torch.Tensor]
    hooks: list[Any]
    initialized: bool

    def __init__(self):
        raise RuntimeError("OutlierTracer has one instance: call OutlierTracer.get_instance().")

    @classmethod
    def get_instance(cls):
        """The tracer of this process."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialized = False
        return cls._instance

    def initialize(self, model):
        """Hooks every linear layer of ``model``; a forward pass then fills the tracer."""
        self.hvalues, self.outliers, self.hvalue2outlier_idx = [], [], {}
        self.hooks = [
            module.register_forward_pre_hook(outlier_hook)
            for module in model.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        self.initialized = True

    def is_initialized(self):
        """Whether `initialize` was called."""
        return self.initialized

    def get_hvalue(self, weight):
        """What a weight is known by: the address of its memory."""
        return weight.data.untyped_storage().data_ptr()

    def get_outliers(self, weight):
        """Outlier dimensions of the input of the layer with that weight, or None if unknown."""
        if not self.initialized:
            return None
        return self.hvalue2outlier_idx.get(self.get_hvalue(weight))


def replace_linear(
    model,
    linear_replacement,
    skip_modules=("lm_head",),
    copy_weights=False,
    post_processing_function=None,
):
    """Replaces every `torch.nn.Linear` in ``model``, in place.

    Args:
        model: any module.
        linear_replacement: called with (in_features, out_features, has_bias).
        skip_modules: names of layers to leave alone.
        copy_weights: hand the old weight and bias over.
        post_processing_function: name of a method to call on each layer that was replaced,
            with the layer as its argument.

    Returns:
        ``model``.
    """
    for name, module in model.named_children():
        if len(list(module.children())) > 0:
            replace_linear(
                module, linear_replacement, skip_modules, copy_weights, post_processing_function
            )
        if not isinstance(module, torch.nn.Linear) or name in skip_modules:
            continue
        new = linear_replacement(module.in_features, module.out_features, module.bias is not None)
        if copy_weights:
            new.weight, new.bias = module.weight, module.bias
        setattr(model, name, new)
        if post_processing_function is not None:
            post: Callable[..., Any] | None = getattr(module, post_processing_function, None)
            if post is not None:
                post(module)
    return model


def execute_and_return(command_string: str) -> tuple[str, str]:
    """Runs a program, without a shell, and returns what it wrote: (stdout, stderr), stripped."""
    done = subprocess.run(shlex.split(command_string), capture_output=True, text=True)
    return done.stdout.strip(), done.stderr.strip()


def sync_gpu(t: torch.Tensor):
    """Waits for the work queued on the accelerator of ``t``; nothing to wait for on a CPU."""
    if t.device.type in ("cuda", "xpu"):
        getattr(torch, t.device.type).synchronize(t.device)


__all__ = [
    "INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING",
    "LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING",
    "OutlierTracer",
    "execute_and_return",
    "find_outlier_dims",
    "outlier_hook",
    "pack_dict_to_tensor",
    "replace_linear",
    "sync_gpu",
    "unpack_tensor_to_dict",
]
