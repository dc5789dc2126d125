"""What is computed: one op, one file; each is math, schema, check, fake and reference.

Importing this package defines every op under ``torch.ops.bitsanywhere``.
"""

from bitsanywhere.ops.dequantize_4bit import OP as dequantize_4bit
from bitsanywhere.ops.dequantize_4bit_nested import OP as dequantize_4bit_nested
from bitsanywhere.ops.dequantize_blockwise import OP as dequantize_blockwise
from bitsanywhere.ops.gemm_4bit import OP as gemm_4bit
from bitsanywhere.ops.gemv_4bit import OP as gemv_4bit
from bitsanywhere.ops.int8_double_quant import OP as int8_double_quant
from bitsanywhere.ops.int8_linear import OP as int8_linear
from bitsanywhere.ops.int8_linear_matmul import OP as int8_linear_matmul
from bitsanywhere.ops.int8_mixed_scaled_mm import OP as int8_mixed_scaled_mm
from bitsanywhere.ops.int8_mm_dequant import OP as int8_mm_dequant
from bitsanywhere.ops.int8_scaled_mm import OP as int8_scaled_mm
from bitsanywhere.ops.int8_vectorwise_dequant import OP as int8_vectorwise_dequant
from bitsanywhere.ops.int8_vectorwise_quant import OP as int8_vectorwise_quant
from bitsanywhere.ops.nest_absmax import OP as nest_absmax
from bitsanywhere.ops.optimizer_update_8bit_blockwise import (
    OP as optimizer_update_8bit_blockwise,
)
from bitsanywhere.ops.optimizer_update_8bit_blockwise_multi import (
    OP as optimizer_update_8bit_blockwise_multi,
)
from bitsanywhere.ops.optimizer_update_32bit import OP as optimizer_update_32bit
from bitsanywhere.ops.optimizer_update_32bit_multi import OP as optimizer_update_32bit_multi
from bitsanywhere.ops.quantize_4bit import OP as quantize_4bit
from bitsanywhere.ops.quantize_blockwise import OP as quantize_blockwise

__all__ = [
    "dequantize_4bit",
    "dequantize_4bit_nested",
    "dequantize_blockwise",
    "gemm_4bit",
    "gemv_4bit",
    "int8_double_quant",
    "int8_linear",
    "int8_linear_matmul",
    "int8_mixed_scaled_mm",
    "int8_mm_dequant",
    "int8_scaled_mm",
    "int8_vectorwise_dequant",
    "int8_vectorwise_quant",
    "nest_absmax",
    "optimizer_update_8bit_blockwise",
    "optimizer_update_8bit_blockwise_multi",
    "optimizer_update_32bit",
    "optimizer_update_32bit_multi",
    "quantize_4bit",
    "quantize_blockwise",
]
