"""Kernel parameters as struct formats."""

from __future__ import annotations

import ctypes
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitsanywhere.backends.cuda.jit.signature import checked, coerce, parameter_format
from bitsanywhere.errors import InvalidArgumentError

PTX = """
.visible .entry other(.param .u8 other_param_0) { }
.visible .entry k(
	.param .u8 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1,
	.param .f32 k_param_2,
	.param .align 64 .b8 k_param_3[128],
	.param .f64 k_param_4
) { }
"""


def test_layout_follows_alignment():
    assert parameter_format(PTX, "k") == "<B7xqf44x128sd"
    assert parameter_format(PTX, "other") == "<B"


def test_unknown_kinds_and_entries_are_refused():
    with pytest.raises(InvalidArgumentError, match="unknown kind"):
        parameter_format(".entry k(.param .v4 x)", "k")
    with pytest.raises(InvalidArgumentError, match="absent"):
        parameter_format(PTX, "absent")


@pytest.mark.parametrize("text", ["qq", "<P", "<40000s", "<999999999999s", "<q;", "", "<q\n", ">q"])
def test_only_our_formats_pass(text):
    with pytest.raises(InvalidArgumentError):
        checked(text)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_large_unsigned_values_keep_their_bits(wide, narrow):
    packed = struct.pack("<qi", *coerce("<qi", (wide, narrow)))
    assert packed == struct.pack("<Q", wide) + struct.pack("<I", narrow)


def test_ctypes_scalars_are_unwrapped():
    arguments = (ctypes.c_void_p(None), ctypes.c_int(-3), ctypes.c_float(0.5))
    assert coerce("<qif", arguments) == (0, -3, 0.5)


@pytest.mark.parametrize(
    "arguments", [(), (1,), (1, 2, 3), (1, 2.5), (1, None), (1, 2**32), (2**64, 1)]
)
def test_arguments_that_do_not_fit_are_refused(arguments):
    with pytest.raises(InvalidArgumentError, match="do not fit"):
        coerce("<qi", arguments)
