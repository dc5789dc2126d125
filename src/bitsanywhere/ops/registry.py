"""How an op is declared, and how a call finds the kernel for its device.

An op is declared once (schema, check, fake, reference) and served by the first of: the backend of
its device, if that has a kernel which takes the call; the torch reference. A fall back to the
reference on a device that has a backend is logged once, with the reason.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch._C import _is_tracing, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from bitsanywhere.errors import BackendUnavailable, BitsAnywhereError, InvalidArgumentError

logger = logging.getLogger("bitsanywhere")

NAMESPACE = "bitsanywhere"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OPS: dict[str, Op] = {}

_BACKENDS = {"cpu": "bitsanywhere.backends.cpu", "cuda": "bitsanywhere.backends.cuda"}
_PLAIN = {torch.Tensor, torch.nn.Parameter}


@dataclass(frozen=True)
class Kernel:
    """A backend's implementation of one op.

    Attributes:
        run: takes the op's positional arguments, already checked; kernels of ops that have an
            ``.out`` overload also take the keyword ``out``.
        why_not: takes the same arguments; a reason if this call is not served, else None.
        bind: see `Op.bind`; only kernels that serve every checked call have it.
        expect: see `Op.expect`.
    """

    run: Callable[..., Any]
    why_not: Callable[..., str | None]
    bind: Callable[..., Callable[..., Any]] | None = None
    expect: Callable[..., None] | None = None


class LazyKernels(Mapping[str, Kernel]):
    """A backend's kernels by op name, each imported when it is first asked for.

    Args:
        package: of the backend.
        places: op name -> (module of the package, name of the kernel in it).
    """

    def __init__(self, package: str, places: Mapping[str, tuple[str, str]]) -> None:
        self._package, self._places = package, places
        self._found: dict[str, Kernel] = {}

    def __getitem__(self, name: str) -> Kernel:
        if name not in self._found:
            module, attribute = self._places[name]
            found = importlib.import_module(f"{self._package}.{module}")
            self._found[name] = getattr(found, attribute)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class Choice:
    """Which implementation serves an op on a device, and why the others do not."""

    op: str
    device: str
    implementation: str
    reasons: tuple[str, ...]


@dataclass
class Op:
    """One declared op: calling it runs it, through the dispatcher where something watches."""

    name: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    overload: Any = None
    place: int = 0
    _logged: set[str] = field(default_factory=set)

    def __call__(self, *args: Any) -> Any:
        first = self.subject(args) if self.place else args[0]
        # In this order, as the compiler of torch 2.5 cannot trace the second question.
        if is_watched() or type(first) not in _PLAIN:
            return self.overload(*args)
        if first.is_meta:
            self.check(*args)
            return self.fake(*args)
        # Without this every attribute of a Params4bit takes a detour through Python.
        with torch._C.DisableTorchFunctionSubclass():
            return self.eager(*args)

    def eager(self, *args: Any) -> Any:
        """Checks the arguments and runs the best implementation for the first one's device."""
        self.check(*args)
        return self.trusted(*args)

    def trusted(self, *args: Any) -> Any:
        """As `eager`, for arguments that were checked before."""
        run = self.select(*args)
        try:
            return run(*args)
        except BackendUnavailable as error:
            self._log(self.subject(args).device.type, str(error))
            return self.without_grad(*args)

    def bind(self, device: torch.device, *constants: Any) -> Callable[..., Any] | None:
        """A kernel's shorter way for calls that share the constants, if it has one.

        gemm_4bit: of (B, shapeB, absmax, blocksize, quant_type, absmax_8bit, absmax_code,
        absmax_offset), gemv_4bit: of (B, shapeB, absmax, code, blocksize, absmax_8bit, absmax_code,
        absmax_offset), it makes a function of A, B, bias. All but A and bias must have been checked
        and be contiguous; it returns None if A or bias do not fit them, or B is not as it was.

        The two multi-tensor updates: of (optimizer_name, p, state1, state2), for 8-bit states also
        (absmax1, absmax2), it makes a function of the gradients' addresses, then for 8-bit states
        qmap1 and qmap2, then the numbers. All must have been checked, and the tensors still be
        where they were.
        """
        kernel = load_backend(device.type)[0].get(self.name)
        return None if kernel is None or kernel.bind is None else kernel.bind(device, *constants)

    def expect(self, device: torch.device, *facts: Any) -> None:
        """Lets a backend get ready, in the background, for a call that is likely to come.

        gemm_4bit: with a weight of (shapeB, blocksize, nested) and a single row of A's dtype, the
        fourth fact. nest_absmax: no facts.
        """
        kernel = load_backend(device.type)[0].get(self.name)
        if kernel is not None and kernel.expect is not None:
            # What is wrong is for the call itself to say.
            with suppress(BitsAnywhereError):
                kernel.expect(device, *facts)

    def without_grad(self, *args: Any) -> Any:
        """The reference, which must not leave an autograd graph where kernels leave none."""
        with torch.no_grad():
            return self.reference(*args)

    def eager_out(self, *args: Any) -> None:
        """As `eager`, writing into the last argument."""
        *inputs, out = args
        self.check(*inputs)
        expected = self.fake(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs))
        check_out(self.name, out, expected.shape, expected.dtype, inputs[0].device)
        run = self.select(*inputs)
        if out.is_contiguous() and run != self.without_grad:
            run(*inputs, out=out)
        else:
            out.copy_(run(*inputs))

    def subject(self, args: tuple[Any, ...]) -> torch.Tensor:
        """The tensor whose device decides: argument `place`, or the first one of that list."""
        first = args[self.place]
        if not isinstance(first, (list, tuple)):
            return first
        if not first:
            self.check(*args)
        return first[0]

    def select(self, *args: Any) -> Callable[..., Any]:
        """The implementation for these arguments: a backend's kernel or the reference."""
        device = (self.subject(args) if self.place else args[0]).device.type
        kernels, problem = load_backend(device)
        kernel = kernels.get(self.name)
        reason = problem if kernel is None else kernel.why_not(*args)
        if kernel is not None and reason is None:
            return kernel.run
        if reason is not None:
            self._log(device, reason)
        return self.without_grad

    def _log(self, device: str, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning("%s on %s runs the torch reference: %s", self.name, device, reason)

    def explain(self, *args: Any) -> Choice:
        """What `select` would choose for these arguments, in words; runs nothing."""
        device = self.subject(args).device.type
        kernels, problem = load_backend(device)
        kernel = kernels.get(self.name)
        if kernel is None:
            return Choice(self.name, device, "torch reference", (problem or "no kernel here",))
        reason = kernel.why_not(*args)
        if reason is None:
            return Choice(self.name, device, f"{device} kernel", ())
        return Choice(self.name, device, "torch reference", (reason,))


def register(
    name: str,
    schema: str,
    *,
    check: Callable[..., None],
    fake: Callable[..., Any],
    reference: Callable[..., Any],
    out_schema: str | None = None,
    place: int = 0,
) -> Op:
    """Declares an op under ``torch.ops.bitsanywhere`` and returns it.

    Args:
        name: op name; ``schema`` its arguments and result, as torch.library writes them.
        check: raises a typed error unless the arguments are allowed; sees metadata only.
        fake: result metadata for tracing and the meta device.
        reference: the op in plain torch, right on any device.
        out_schema: arguments of the ``.out`` overload, which writes into the last one.
        place: which argument's device decides who serves a call; a tensor or a list of them.
    """
    op = Op(name, check, fake, reference, place=place)
    tags = (torch.Tag.pt2_compliant_tag,)

    def checked_fake(*args: Any) -> Any:
        check(*args)
        return fake(*args)

    LIBRARY.define(f"{name}{schema}", tags=tags)
    LIBRARY.impl(name, op.eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", checked_fake, lib=LIBRARY)
    packet = getattr(torch.ops.bitsanywhere, name)
    op.overload = packet.default
    if out_schema is not None:
        LIBRARY.define(f"{name}.out{out_schema}", tags=tags)
        LIBRARY.impl(f"{name}.out", op.eager_out, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"{NAMESPACE}::{name}.out", lambda *args: check(*args[:-1]), lib=LIBRARY
        )
    OPS[name] = op
    return op


def is_watched() -> bool:
    """Whether a tracer, a transform or a mode is to see the op, so that it must be dispatched."""
    return (
        is_dynamo_compiling()
        or _len_torch_dispatch_stack() > 0
        or _is_tracing()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def is_transformed() -> bool:
    """Whether forward-mode differentiation or a transform of torch.func (vmap) is under way."""
    return (
        not is_dynamo_compiling() and peek_interpreter_stack() is not None
    ) or forward_ad._current_level >= 0


def treat_as_plain(tensor_class: type) -> None:
    """Lets tensors of ``tensor_class`` (Params4bit) take the direct path around the dispatcher."""
    _PLAIN.add(tensor_class)


@cache
def load_backend(device_type: str) -> tuple[Mapping[str, Kernel], str | None]:
    """Kernels of a device's backend by op name, and why there are none if so."""
    module = _BACKENDS.get(device_type)
    if module is None:
        return {}, None
    try:
        return importlib.import_module(module).load(), None
    except BackendUnavailable as error:
        return {}, str(error)


def check_out(
    name: str, out: torch.Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> None:
    """Raises unless ``out`` is what the op would have returned."""
    if tuple(out.shape) != tuple(shape) or out.dtype != dtype or out.device != device:
        raise InvalidArgumentError(
            f"{name}: out is {out.dtype} {tuple(out.shape)} on {out.device}",
            f"The result is {dtype} {tuple(shape)} on {device}.",
        )
