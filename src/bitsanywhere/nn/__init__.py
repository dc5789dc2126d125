"""Modules with quantized weights, under bitsandbytes' names."""

from bitsanywhere.nn import parametrize
from bitsanywhere.nn.embedding4bit import Embedding4bit, EmbeddingFP4, EmbeddingNF4
from bitsanywhere.nn.linear4bit import Linear4bit, LinearFP4, LinearNF4
from bitsanywhere.nn.params4bit import Params4bit

__all__ = [
    "Embedding4bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "Linear4bit",
    "LinearFP4",
    "LinearNF4",
    "Params4bit",
    "parametrize",
]
