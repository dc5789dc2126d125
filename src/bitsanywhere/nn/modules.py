"""The module path that bitsandbytes' users import from."""

from bitsanywhere.functional import QuantState
from bitsanywhere.nn.embedding4bit import Embedding4bit, EmbeddingFP4, EmbeddingNF4
from bitsanywhere.nn.linear4bit import Linear4bit, LinearFP4, LinearNF4
from bitsanywhere.nn.params4bit import Params4bit, fix_4bit_weight_quant_state_from_module

__all__ = [
    "Embedding4bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "Linear4bit",
    "LinearFP4",
    "LinearNF4",
    "Params4bit",
    "QuantState",
    "fix_4bit_weight_quant_state_from_module",
]
