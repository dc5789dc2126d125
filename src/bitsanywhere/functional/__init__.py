"""Public functions, with bitsandbytes' names and signatures; one file a family."""

from bitsanywhere.checkpoint import pack_dict_to_tensor, unpack_tensor_to_dict
from bitsanywhere.formats import (
    create_dynamic_map,
    create_fp8_map,
    create_linear_map,
    create_normal_map,
)
from bitsanywhere.functional.blockwise import (
    dequantize_4bit,
    dequantize_blockwise,
    dequantize_fp4,
    dequantize_nf4,
    gemv_4bit,
    get_4bit_type,
    name2qmap,
    quantize_4bit,
    quantize_blockwise,
    quantize_fp4,
    quantize_nf4,
)
from bitsanywhere.functional.context import C, CUBLAS_Context, has_avx512bf16
from bitsanywhere.functional.deprecated import batched_igemm, check_matmul, igemm
from bitsanywhere.functional.int8 import (
    int8_double_quant,
    int8_linear_matmul,
    int8_mm_dequant,
    int8_vectorwise_dequant,
    int8_vectorwise_quant,
)
from bitsanywhere.functional.optimizer import (
    optimizer_update_8bit_blockwise,
    optimizer_update_32bit,
)
from bitsanywhere.functional.paged import (
    GlobalPageManager,
    elementwise_func,
    fill,
    get_paged,
    get_ptr,
    is_on_gpu,
    prefetch_tensor,
)
from bitsanywhere.quant_state import QuantState

__all__ = [
    "C",
    "CUBLAS_Context",
    "GlobalPageManager",
    "QuantState",
    "batched_igemm",
    "check_matmul",
    "create_dynamic_map",
    "create_fp8_map",
    "create_linear_map",
    "create_normal_map",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_fp4",
    "dequantize_nf4",
    "elementwise_func",
    "fill",
    "gemv_4bit",
    "get_4bit_type",
    "get_paged",
    "get_ptr",
    "has_avx512bf16",
    "igemm",
    "int8_double_quant",
    "int8_linear_matmul",
    "int8_mm_dequant",
    "int8_vectorwise_dequant",
    "int8_vectorwise_quant",
    "is_on_gpu",
    "name2qmap",
    "optimizer_update_8bit_blockwise",
    "optimizer_update_32bit",
    "pack_dict_to_tensor",
    "prefetch_tensor",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_fp4",
    "quantize_nf4",
    "unpack_tensor_to_dict",
]
