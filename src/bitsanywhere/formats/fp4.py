"""FP4: one sign bit, two exponent bits, one mantissa bit, scaled to [-1, 1].

Code = sign * 8 + magnitude. The magnitudes in twelfths, by code, are 0, 1/16, 8, 12, 4, 6, 2, 3.
There are two zeros: code 0 takes scaled values in (-1/384, 0], code 8 those in (0, 1/384].
"""

from bitsanywhere.formats.base import Format4, as_float32

_MAGNITUDES = tuple(as_float32(twelfths / 12) for twelfths in (0, 1 / 16, 8, 12, 4, 6, 2, 3))

FP4 = Format4(
    name="fp4",
    values=_MAGNITUDES + tuple(-m if m else 0.0 for m in _MAGNITUDES),
    order=(11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3),
)
