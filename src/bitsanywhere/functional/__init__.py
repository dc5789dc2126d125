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
from bitsanywhere.quant_state import QuantState

__all__ = [
    "QuantState",
    "create_dynamic_map",
    "create_fp8_map",
    "create_linear_map",
    "create_normal_map",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_fp4",
    "dequantize_nf4",
    "gemv_4bit",
    "get_4bit_type",
    "name2qmap",
    "pack_dict_to_tensor",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_fp4",
    "quantize_nf4",
    "unpack_tensor_to_dict",
]
