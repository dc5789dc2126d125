"""The header of a cubin: is it an NVIDIA ELF file, and for which architecture?"""

from __future__ import annotations

import struct

from bitsanywhere.errors import PackError

_EM_CUDA = 190


def architecture(cubin: bytes) -> int:
    """Compute capability of a cubin, as 10 * major + minor, from its ELF header's flags.

    OS ABI 0x33 (ABI version 7) keeps it in bits 0 to 7, OS ABI 0x41 (version 8; all of CUDA 13) in
    bits 8 to 15, as measured on 2,931 published cubins.

    Raises:
        PackError: not a little-endian 64-bit ELF file for CUDA, or of an unknown layout.
    """
    if len(cubin) < 64 or cubin[:6] != b"\x7fELF\x02\x01":
        raise PackError("This is no cubin: it has no 64-bit little-endian ELF header.")
    (machine,) = struct.unpack_from("<H", cubin, 18)
    (flags,) = struct.unpack_from("<I", cubin, 48)
    if machine != _EM_CUDA:
        raise PackError(f"This is no cubin: its ELF machine is {machine}, not {_EM_CUDA} (CUDA).")
    if cubin[7] == 0x33:
        return flags & 0xFF
    if cubin[7] == 0x41:
        return (flags >> 8) & 0xFF
    raise PackError(f"This cubin has the unknown OS ABI {cubin[7]:#x}.")
