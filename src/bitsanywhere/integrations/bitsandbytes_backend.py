"""Our kernels under an installed bitsandbytes.

On import, bitsandbytes calls every entry point of the group ``bitsandbytes.backends``; `register`
is ours. It puts our kernels behind ``torch.ops.bitsandbytes.*`` for CPU and CUDA. Nothing else
changes, save one thing: on processors with AVX512-BF16 bitsandbytes' Linear4bit repacks the weight
in place in an eval forward, after which `dequantize_4bit`, a merge of an adapter and
``model.dequantize()`` return wrong values; our kernels do not need that layout, so it is off.

Nothing is compiled or loaded at import. Each call is served by the first of: our kernel, if our
backend for the device loads and has one that takes the call; the kernel that bitsandbytes would
have used, where that is right; our torch reference. If bitsandbytes has no code for a GPU that is
here, one warning says so, and its CUDA kernels count as not there. Environment:
``BITSANYWHERE_BACKEND=0`` leaves bitsandbytes alone.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from bitsanywhere import ops  # noqa: F401  (defines the ops)
from bitsanywhere.errors import BlocksizeError, DtypeError, InvalidArgumentError
from bitsanywhere.integrations.peer_check import PEER, warn_if_peer_cannot_run
from bitsanywhere.ops.registry import OPS, Kernel, load_backend

logger = logging.getLogger("bitsanywhere")

VARIABLE = "BITSANYWHERE_BACKEND"
DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
TAKEN_OVER = (
    "quantize_4bit",
    "dequantize_4bit",
    "dequantize_4bit.out",
    "gemm_4bit",
    "gemv_4bit",
    "gemv_4bit.out",
    "quantize_blockwise",
    "dequantize_blockwise",
    "dequantize_blockwise.out",
    "int8_vectorwise_quant",
    "int8_vectorwise_dequant",
    "int8_linear_matmul",
    "int8_linear_matmul.out",
    "int8_mm_dequant",
    "int8_scaled_mm",
    "int8_mixed_scaled_mm",
    "int8_double_quant",
    "optimizer_update_32bit",
    "optimizer_update_8bit_blockwise",
)
_kept: list[torch.library.Library] = []


def register() -> None:
    """Takes over the ops of the bitsandbytes that is being imported; a second call does nothing.

    Raises:
        InvalidArgumentError: ``BITSANYWHERE_BACKEND`` is neither 0 nor 1.
    """
    if not enabled() or _kept:
        return
    library = torch.library.Library(PEER, "IMPL")
    _kept.append(library)
    taken = [name for name in TAKEN_OVER if _is_defined(name)]
    useless = {"cuda"} if warn_if_peer_cannot_run() else set()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for name in taken:
            for device, key in DEVICES.items():
                peer = None if device in useless else peer_kernel(name, device)
                override(library, name, kernel_for(name, device, peer), key)
    _keep_weights_unpacked()
    logger.info("bitsandbytes runs our kernels for %s on %s", ", ".join(taken), ", ".join(DEVICES))


def enabled() -> bool:
    """Whether the environment lets us register; unset means yes."""
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise InvalidArgumentError(
            f"{VARIABLE} is {value!r}",
            "Allowed are 1 (our kernels serve bitsandbytes; the default) and 0 (they do not).",
        )
    return value == "1"


def kernel_for(name: str, device: str, peer: Callable[..., Any] | None) -> Callable[..., Any]:
    """The function to put behind one op on one device.

    Args:
        name: name of the op, with ``.out`` for that overload.
        device: "cpu" or "cuda".
        peer: what bitsandbytes would have run, or None if nothing that works.
    """
    base, _, overload = name.partition(".")
    op = OPS[base]
    ours = op.eager_out if overload else op.eager
    if peer is None:
        return ours

    def run(*args: Any) -> Any:
        inputs = args[:-1] if overload else args
        if base == "gemm_4bit" and torch.is_autocast_enabled(device):
            inputs = args = autocast(args, torch.get_autocast_dtype(device))
        kernel, reason = choose(base, device, inputs)
        if kernel is not None and not overload:
            return kernel.run(*args)
        if kernel is not None or peer_is_wrong(base, device, inputs):
            return ours(*args)
        _log_once(name, device, reason)
        return peer(*args)

    return run


def autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of gemm_4bit with activations and bias (the seventh) as autocast wants them."""
    A, bias = args[0].to(dtype), args[6] if len(args) > 6 else None
    return (A, *args[1:6], None if bias is None else bias.to(dtype), *args[7:])


def peer_is_wrong(name: str, device: str, args: tuple[Any, ...]) -> bool:
    """Whether bitsandbytes 0.50.2 is measured to return wrong values for a call.

    On CPUs its dequantize_4bit assumes that every row starts a block (errors of 20 % for shape
    (96, 96)), and its gemv_4bit for AVX512-BF16 reads the repacked layout alone.
    """
    if device != "cpu":
        return False
    if name == "dequantize_4bit":
        _, _, blocksize, _, shape, _ = args
        return len(shape) == 0 or shape[-1] % blocksize != 0
    return name == "gemv_4bit"


def choose(name: str, device: str, args: tuple[Any, ...]) -> tuple[Kernel | None, str]:
    """Our kernel for a call, its arguments checked; or None and the reason.

    A dtype or block size that the op does not know is left to bitsandbytes.

    Raises:
        InvalidArgumentError: the arguments do not fit each other.
    """
    kernels, problem = load_backend(device)
    kernel = kernels.get(name)
    if kernel is None:
        return None, problem or f"no {device} kernel of {name}"
    try:
        OPS[name].check(*args)
    except (BlocksizeError, DtypeError) as error:
        return None, str(error)
    reason = kernel.why_not(*args)
    return (kernel, "") if reason is None else (None, reason)


def peer_kernel(name: str, device: str) -> Callable[..., Any] | None:
    """What bitsandbytes runs for an op on a device, to be asked for before it is overridden.

    None where it has nothing, where its native library did not load (its CUDA kernels then only
    raise), or where torch is too old to tell; our reference stands in.
    """
    get_kernel = getattr(torch.library, "get_kernel", None)
    native = getattr(sys.modules.get(f"{PEER}.cextension"), "lib", None)
    broken = "Mock" in type(native).__name__
    if get_kernel is None or (device != "cpu" and broken):
        return None
    try:
        kernel = get_kernel(f"{PEER}::{name}", DEVICES[device])
    except RuntimeError:
        return None
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, DEVICES[device]))
    return lambda *args: kernel.call_boxed(keys, *args)


def override(
    library: torch.library.Library, name: str, function: Callable[..., Any], key: str
) -> None:
    """Registers ``function`` although Python has registered another one for the same key.

    Older torch has no `allow_override` and refuses on the word of a set of names, so the name is
    taken out of that set first; the dispatcher underneath takes the newest registration.
    """
    if "allow_override" in inspect.signature(library.impl).parameters:
        library.impl(name, function, key, allow_override=True)
        return
    torch.library._impls.discard(f"{library.ns}/{name}/{key}")
    library.impl(name, function, key)


def _is_defined(name: str) -> bool:
    """Whether this bitsandbytes has the op; older ones lack some."""
    base, _, overload = name.partition(".")
    packet = getattr(getattr(torch.ops, PEER), base, None)
    return packet is not None and (overload or "default") in packet.overloads()


def _keep_weights_unpacked() -> None:
    """Tells bitsandbytes' layers that the processor has no AVX512-BF16, so none repacks."""
    modules = sys.modules.get(f"{PEER}.nn.modules")
    if modules is None or not hasattr(modules, "has_avx512bf16"):
        return
    if modules.has_avx512bf16():
        logger.info("bitsandbytes' repacking of 4-bit weights for AVX512-BF16 is off")
    modules.__dict__["has_avx512bf16"] = lambda: False


@cache
def _log_once(name: str, device: str, reason: str) -> None:
    logger.warning("%s on %s stays with bitsandbytes: %s", name, device, reason)
