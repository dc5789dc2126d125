"""A kernel's parameters as a `struct` format, read from its PTX, so that a launch packs them in one
call and a wrong number or kind of arguments is an error instead of a read of foreign memory.
"""

from __future__ import annotations

import ctypes
import re
import struct

from bitsanywhere.errors import InvalidArgumentError

# PTX calls int and unsigned alike u32. Packed as signed; `coerce` takes large unsigned ones.
_CODES = {
    **dict.fromkeys(("u64", "s64", "b64"), "q"),
    **dict.fromkeys(("u32", "s32", "b32"), "i"),
    **dict.fromkeys(("u16", "s16", "b16", "f16", "bf16"), "h"),
    **dict.fromkeys(("u8", "s8", "b8"), "B"),
    "f64": "d",
    "f32": "f",
}
_SIGNED_BITS = {"q": 64, "i": 32, "h": 16}
_FORMAT = re.compile(r"<([0-9]{0,5}[xs]|[qihBdf])*")
# The limit of kernel parameters since CUDA 12.1.
_MOST_BYTES = 32764


def parameter_format(ptx: str, entry: str) -> str:
    """The parameters of an entry point in the driver's layout, such as "<qqif4x48s".

    Pointers and 64-bit integers are `q`, 32-bit ones `i`, floats `f` and `d`, structures passed by
    value `<bytes>s` (pass a bytes object); padding is explicit.

    Raises:
        InvalidArgumentError: the PTX has no such entry point or a parameter of unknown kind.
    """
    found = re.search(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", ptx)
    if found is None:
        raise InvalidArgumentError(
            f"There is no entry point {entry!r} in the compiled source.",
            'A kernel is an extern "C" __global__ function.',
        )
    parts, offset = ["<"], 0
    for declaration in filter(None, map(str.strip, found.group(1).split(","))):
        matched = re.match(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\b", declaration)
        array = re.search(r"\[(\d+)\]$", declaration)
        if matched is None or matched.group(2) not in _CODES:
            raise InvalidArgumentError(f"{entry} has a parameter of unknown kind: {declaration}")
        code = f"{array.group(1)}s" if array else _CODES[matched.group(2)]
        size = struct.calcsize(f"<{code}")
        align = int(matched.group(1) or (1 if array else size))
        padding = -offset % align
        parts += [f"{padding}x"] * bool(padding) + [code]
        offset += padding + size
    return checked("".join(parts))


def checked(parameters: str) -> str:
    """The format itself, once it is known to be one of ours.

    Raises:
        InvalidArgumentError: it is not.
    """
    if not _FORMAT.fullmatch(parameters) or struct.calcsize(parameters) > _MOST_BYTES:
        raise InvalidArgumentError(f"{parameters[:80]!r} is no format of kernel parameters.")
    return parameters


def coerce(parameters: str, arguments: tuple[object, ...]) -> tuple[object, ...]:
    """Arguments as `struct` takes them: ctypes scalars unwrapped, unsigned integers too large for
    the signed code as their two's complement.

    Raises:
        InvalidArgumentError: the arguments do not fit the parameters.
    """
    codes = re.findall(r"[0-9]*s|[qihBdf]", parameters)
    values = list(arguments)
    for index, (value, code) in enumerate(zip(arguments, codes, strict=False)):
        if isinstance(value, ctypes._SimpleCData):
            # A null c_void_p holds None.
            value = value.value or 0
        bits = _SIGNED_BITS.get(code, 0)
        if bits and isinstance(value, int) and 1 << (bits - 1) <= value < 1 << bits:
            value -= 1 << bits
        values[index] = value
    try:
        struct.pack(parameters, *values)
    except struct.error as error:
        raise InvalidArgumentError(
            f"The arguments {arguments!r} do not fit the kernel's parameters {parameters!r}.",
            str(error),
        ) from error
    return tuple(values)
