"""The module path that bitsandbytes' users import from."""

from bitsanywhere.functional import QuantState, has_avx512bf16
from bitsanywhere.nn.embedding import Embedding, StableEmbedding
from bitsanywhere.nn.embedding4bit import Embedding4bit, EmbeddingFP4, EmbeddingNF4
from bitsanywhere.nn.embedding8bit import Embedding8bit
from bitsanywhere.nn.int8_weight import maybe_rearrange_weight
from bitsanywhere.nn.int8params import Int8Params
from bitsanywhere.nn.linear4bit import Linear4bit, LinearFP4, LinearNF4
from bitsanywhere.nn.linear8bit import Linear8bitLt
from bitsanywhere.nn.outlier import OutlierAwareLinear
from bitsanywhere.nn.params4bit import Params4bit, fix_4bit_weight_quant_state_from_module
from bitsanywhere.optim.manager import GlobalOptimManager
from bitsanywhere.utils import INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING, OutlierTracer

__all__ = [
    "INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING",
    "Embedding",
    "Embedding4bit",
    "Embedding8bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "GlobalOptimManager",
    "Int8Params",
    "Linear4bit",
    "Linear8bitLt",
    "LinearFP4",
    "LinearNF4",
    "OutlierAwareLinear",
    "OutlierTracer",
    "Params4bit",
    "QuantState",
    "StableEmbedding",
    "fix_4bit_weight_quant_state_from_module",
    "has_avx512bf16",
    "maybe_rearrange_weight",
]
