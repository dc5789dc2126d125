"""4-bit storage for any parameter of any module, such as fused 3-D expert weights.

The parameter holds codes; reading it gives the dequantized tensor. state_dict has the same keys as
for a 4-bit layer, and loads back.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Optional

import torch
from torch.nn.utils import parametrize

from bitsanywhere.checkpoint import select_state
from bitsanywhere.errors import CheckpointError, InvalidArgumentError
from bitsanywhere.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsanywhere.ops.checks import check_packed


class Bnb4bitParametrization(torch.nn.Module):
    """Codes -> dequantized tensor.

    Args:
        quant_state: state of the codes; moves with the module.
    """

    def __init__(self, quant_state: QuantState):
        super().__init__()
        self.quant_state = quant_state
        self._forwards = 0
        self._cached: Optional[torch.Tensor] = None

    @torch.no_grad()
    def forward(self, quantized_param: torch.Tensor) -> torch.Tensor:
        """The tensor of the state's shape and dtype, without autograd."""
        if self._cached is not None:
            return self._cached
        restored = dequantize_4bit(quantized_param, self.quant_state)
        if self._forwards:
            self._cached = restored
        return restored

    def enter(self) -> None:
        """From here to the matching `leave` the tensor is dequantized once."""
        self._forwards += 1

    def leave(self) -> None:
        """Ends what `enter` began; more calls than there were of `enter` do no harm."""
        self._forwards = max(self._forwards - 1, 0)
        if not self._forwards:
            self._cached = None

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, dtype=torch.uint8, device=self.quant_state.absmax.device)).device
        if device.type != "meta":
            self.quant_state.to(device)
        return self


def replace_parameter_4bit(
    module: torch.nn.Module,
    param_name: str,
    compress_statistics: bool = False,
    quant_type: Literal["nf4", "fp4"] = "nf4",
    blocksize: Optional[int] = None,
):
    """Quantizes ``module.<param_name>`` and keeps only its codes.

    Args:
        module: any module.
        param_name: name of a float parameter of its own, any shape.
        compress_statistics, quant_type, blocksize: as in functional.quantize_4bit.

    Raises:
        InvalidArgumentError: if there is no such parameter.
    """
    original = _own_parameter(module, param_name)
    codes, state = quantize_4bit(
        original.data,
        blocksize=blocksize,
        compress_statistics=compress_statistics,
        quant_type=quant_type,
    )
    setattr(module, param_name, torch.nn.Parameter(codes, requires_grad=False))
    _parametrize(module, param_name, state)


def replace_parameter_4bit_prequantized(
    module: torch.nn.Module, param_name: str, qs_dict: dict[str, Any], device: torch.device
):
    """Makes ``module.<param_name>``, which holds codes already, readable by its statistics.

    Args:
        module: any module.
        param_name: name of a parameter of its own that holds the codes.
        qs_dict: the other entries of the state_dict for it, keys with any prefix.
        device: where to put codes and statistics.

    Raises:
        CheckpointError: if the statistics are missing, inconsistent or out of bounds.
        InvalidArgumentError: if there is no such parameter or it has another number of codes.
    """
    original = _own_parameter(module, param_name)
    state = QuantState.from_dict(qs_dict, device=device)
    check_packed("replace_parameter_4bit_prequantized", param_name, original, state.shape.numel())
    setattr(module, param_name, torch.nn.Parameter(original.data.to(device), requires_grad=False))
    _parametrize(module, param_name, state)


def _own_parameter(module: torch.nn.Module, param_name: str) -> torch.nn.Parameter:
    found = dict(module.named_parameters(recurse=False)).get(param_name)
    if found is None:
        names = ", ".join(name for name, _ in module.named_parameters(recurse=False)) or "none"
        raise InvalidArgumentError(
            f"{type(module).__name__} has no parameter {param_name!r}", f"Its own are: {names}."
        )
    return found


def _parametrize(module: torch.nn.Module, name: str, state: QuantState) -> None:
    parametrize.register_parametrization(module, name, Bnb4bitParametrization(state), unsafe=True)
    module.register_state_dict_post_hook(partial(_save, name=name))
    module.register_load_state_dict_pre_hook(partial(_load, name=name))
    module.register_forward_pre_hook(partial(_enter, name=name))
    module.register_forward_hook(partial(_leave, name=name), always_call=True)


def _enter(module: Any, inputs: Any, *, name: str) -> None:
    if not torch.compiler.is_compiling():
        module.parametrizations[name][0].enter()


def _leave(module: Any, inputs: Any, output: Any, *, name: str) -> None:
    if not torch.compiler.is_compiling():
        module.parametrizations[name][0].leave()


def _save(module: Any, state_dict: Any, prefix: str, local_metadata: Any, *, name: str) -> None:
    """Stores the codes under the parameter's own name, with their statistics."""
    codes = state_dict.pop(f"{prefix}parametrizations.{name}.original", None)
    if codes is None:
        return
    state_dict[f"{prefix}{name}"] = codes
    state = module.parametrizations[name][0].quant_state
    for key, value in state.as_dict(packed=True).items():
        state_dict[f"{prefix}{name}.{key}"] = value


def _load(module: Any, state_dict: Any, prefix: str, *rest: Any, name: str) -> None:
    """Takes what `_save` stored, checks it, and makes it the module's state."""
    stats = select_state(state_dict, f"{prefix}{name}.")
    if not stats or f"{prefix}{name}" not in state_dict:
        return
    parametrization = module.parametrizations[name]
    state = QuantState.from_dict(stats, device=parametrization.original.device)
    expected = parametrization[0].quant_state.shape
    if state.shape != expected:
        raise CheckpointError(
            f"{prefix}{name} was quantized from shape {tuple(state.shape)}",
            f"This {type(module).__name__} needs {tuple(expected)}.",
            "Load it into a module of that shape.",
        )
    check_packed(
        "load_state_dict", f"{prefix}{name}", state_dict[f"{prefix}{name}"], state.shape.numel()
    )
    codes = state_dict.pop(f"{prefix}{name}")
    for key in stats:
        del state_dict[f"{prefix}{name}.{key}"]
    state_dict[f"{prefix}parametrizations.{name}.original"] = codes
    parametrization[0].quant_state = state
