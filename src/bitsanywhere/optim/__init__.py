"""Optimizers with 8-bit, 32-bit and paged states, under bitsandbytes' names."""

from bitsanywhere.optim.adagrad import Adagrad, Adagrad8bit, Adagrad32bit
from bitsanywhere.optim.adam import (
    Adam,
    Adam8bit,
    Adam32bit,
    PagedAdam,
    PagedAdam8bit,
    PagedAdam32bit,
)
from bitsanywhere.optim.adamw import (
    AdamW,
    AdamW8bit,
    AdamW32bit,
    PagedAdamW,
    PagedAdamW8bit,
    PagedAdamW32bit,
)
from bitsanywhere.optim.ademamix import (
    AdEMAMix,
    AdEMAMix8bit,
    AdEMAMix32bit,
    PagedAdEMAMix,
    PagedAdEMAMix8bit,
    PagedAdEMAMix32bit,
)
from bitsanywhere.optim.lamb import LAMB, LAMB8bit, LAMB32bit
from bitsanywhere.optim.lars import LARS, LARS8bit, LARS32bit, PytorchLARS
from bitsanywhere.optim.lion import (
    Lion,
    Lion8bit,
    Lion32bit,
    PagedLion,
    PagedLion8bit,
    PagedLion32bit,
)
from bitsanywhere.optim.manager import GlobalOptimManager
from bitsanywhere.optim.rmsprop import RMSprop, RMSprop8bit, RMSprop32bit
from bitsanywhere.optim.sgd import SGD, SGD8bit, SGD32bit

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "AdEMAMix8bit",
    "AdEMAMix32bit",
    "Adagrad",
    "Adagrad8bit",
    "Adagrad32bit",
    "Adam",
    "Adam8bit",
    "Adam32bit",
    "AdamW",
    "AdamW8bit",
    "AdamW32bit",
    "GlobalOptimManager",
    "LAMB8bit",
    "LAMB32bit",
    "LARS8bit",
    "LARS32bit",
    "Lion",
    "Lion8bit",
    "Lion32bit",
    "PagedAdEMAMix",
    "PagedAdEMAMix8bit",
    "PagedAdEMAMix32bit",
    "PagedAdam",
    "PagedAdam8bit",
    "PagedAdam32bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "PagedLion",
    "PagedLion8bit",
    "PagedLion32bit",
    "PytorchLARS",
    "RMSprop",
    "RMSprop8bit",
    "RMSprop32bit",
    "SGD8bit",
    "SGD32bit",
]
