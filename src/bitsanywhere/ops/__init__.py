"""What is computed: one op, one file; each is math, schema, check, fake and reference.

Importing this package defines every op under ``torch.ops.bitsanywhere``.
"""

from bitsanywhere.ops.dequantize_4bit import OP as dequantize_4bit
from bitsanywhere.ops.dequantize_blockwise import OP as dequantize_blockwise
from bitsanywhere.ops.gemm_4bit import OP as gemm_4bit
from bitsanywhere.ops.gemv_4bit import OP as gemv_4bit
from bitsanywhere.ops.quantize_4bit import OP as quantize_4bit
from bitsanywhere.ops.quantize_blockwise import OP as quantize_blockwise

__all__ = [
    "dequantize_4bit",
    "dequantize_blockwise",
    "gemm_4bit",
    "gemv_4bit",
    "quantize_4bit",
    "quantize_blockwise",
]
