"""From a kernel's Python source to a function in memory: numba, LLVM, and a cache of object code.

A kernel module `<op>_kernel.py` has ``build(machine, **variant)``, which returns a Python
function of one argument, a pointer to int64 words (addresses and sizes). numba turns it into
optimised LLVM IR, LLVM into object code for exactly this processor. With a warm cache numba is not
even imported.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from bitsanywhere.backends.cpu import cache
from bitsanywhere.backends.cpu.machine import Machine, host
from bitsanywhere.errors import BackendUnavailable

ENTRY = "bitsanywhere_kernel"
_PACKAGE = "bitsanywhere.backends.cpu"
# numba's convention: (result, exception, arguments) -> status; nothing here raises.
_WRAPPER = """
declare i32 @{inner}(ptr, ptr, ptr)
define void @{entry}(ptr %words) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @{inner}(ptr %result, ptr %error, ptr %words)
  ret void
}}
"""
_lock = Lock()
_LOADED: dict[tuple[Any, ...], Function] = {}


@dataclass(frozen=True)
class Function:
    """A compiled kernel: its address, the same as a ctypes function, and what keeps it alive."""

    address: int
    call: Any
    owner: Any


def kernel(name: str, machine: Machine | None = None, **variant: Any) -> Function:
    """The kernel of `<name>_kernel.py` in one variant, compiled on first use.

    Args:
        name: such as "quantize_4bit".
        machine: what to compile for; None for this machine.
        variant: keyword arguments of the module's ``build``.
    """
    key = (name, machine, *variant.values())
    found = _LOADED.get(key)
    if found is None:
        with _lock:
            found = _LOADED.get(key) or _make(name, machine or host(), variant)
            _LOADED[key] = found
    return found


def _make(name: str, machine: Machine, variant: dict[str, Any]) -> Function:
    key = hashlib.sha256(repr((_sources(), name, machine, sorted(variant.items()))).encode())
    code = cache.read(key.hexdigest())
    if code is None:
        try:
            code = compile_kernel(name, machine, variant)
        except ImportError as error:
            raise BackendUnavailable(
                f"The CPU kernel {name} cannot be compiled: {error}",
                f"numba {version('numba')} is installed and does not import.",
                'Mend it: pip install -U "bitsanywhere[cpu]"',
            ) from error
        cache.write(key.hexdigest(), code)
    return _load(code, machine)


@lru_cache(maxsize=1)
def _sources() -> str:
    """A digest of the kernels' sources and the versions of their compilers."""
    digest = hashlib.sha256(f"{version('numba')} {version('llvmlite')}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compile_kernel(name: str, machine: Machine, variant: dict[str, Any]) -> bytes:
    """Object code of one variant; its function is called `ENTRY`."""
    import llvmlite.binding as llvm
    from numba import njit, types

    build = importlib.import_module(f"{_PACKAGE}.{name}_kernel").build
    signature = types.void(types.CPointer(types.int64))
    # Without the wrappers for Python and C callers the object needs no symbol of numba's.
    options = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled = njit(signature, **options)(build(machine, **variant))
    inner = compiled.overloads[signature.args].fndesc.llvm_func_name
    module = llvm.parse_assembly(compiled.inspect_llvm(signature.args))
    module.link_in(llvm.parse_assembly(_WRAPPER.format(entry=ENTRY, inner=inner)))
    target = _target(machine)
    module.triple, module.data_layout = machine.triple, str(target.target_data)
    return target.emit_object(module)


def _target(machine: Machine) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(machine.triple)
    return target.create_target_machine(
        cpu=machine.cpu,
        features=machine.features,
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )


def _load(code: bytes, machine: Machine) -> Function:
    import llvmlite.binding as llvm

    target = _target(machine)
    empty = llvm.parse_assembly(f'target triple = "{machine.triple}"')
    engine = llvm.create_mcjit_compiler(empty, target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(ENTRY)
    return Function(address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), engine)


def _after_fork() -> None:
    # Another thread may have held the lock; it does not exist in the child.
    global _lock
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
