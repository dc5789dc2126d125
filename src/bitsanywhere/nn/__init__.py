"""Modules with quantized weights, under bitsandbytes' names."""

from bitsanywhere.nn import parametrize
from bitsanywhere.nn.embedding import Embedding, StableEmbedding
from bitsanywhere.nn.embedding4bit import Embedding4bit, EmbeddingFP4, EmbeddingNF4
from bitsanywhere.nn.embedding8bit import Embedding8bit
from bitsanywhere.nn.int8params import Int8Params
from bitsanywhere.nn.linear4bit import Linear4bit, LinearFP4, LinearNF4
from bitsanywhere.nn.linear8bit import Linear8bitLt
from bitsanywhere.nn.outlier import OutlierAwareLinear
from bitsanywhere.nn.params4bit import Params4bit

__all__ = [
    "Embedding",
    "Embedding4bit",
    "Embedding8bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "Int8Params",
    "Linear4bit",
    "Linear8bitLt",
    "LinearFP4",
    "LinearNF4",
    "OutlierAwareLinear",
    "Params4bit",
    "StableEmbedding",
    "parametrize",
]
