"""OutlierAwareLinear finds outlier dimensions by the tracer and quantizes once."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.nn import OutlierAwareLinear
from bitsanywhere.utils import OutlierTracer


class Halved(OutlierAwareLinear):
    """Stores half the weight, and hands out what it was told."""

    def quantize_weight(self, w, outlier_idx):
        return w * 0.5

    def forward_with_outliers(self, x, outlier_idx):
        self.seen = outlier_idx
        return torch.nn.functional.linear(x, self.weight, self.bias)


@pytest.fixture
def tracer():
    tracer = OutlierTracer.get_instance()
    tracer.initialized = False
    yield tracer
    tracer.initialized = False


def test_needs_the_tracer(tracer):
    with pytest.raises(InvalidArgumentError, match="OutlierTracer"):
        Halved(8, 4)(torch.randn(2, 8))


def test_quantizes_once_with_what_the_tracer_saw(tracer):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    layer = Halved(64, 32)
    layer.weight = model[0].weight
    before = layer.weight.data.clone()
    tracer.initialize(model)
    x = torch.randn(5, 64)
    x[2, 7] = 9.0
    model(x)
    for _ in range(2):
        out = layer(x)
        assert 7 in layer.seen.tolist()
        assert torch.equal(layer.weight.data, before * 0.5)
        assert torch.equal(out, torch.nn.functional.linear(x, before * 0.5, layer.bias))


def test_subclasses_say_how():
    base = OutlierAwareLinear(8, 4)
    with pytest.raises(NotImplementedError, match="forward_with_outliers"):
        base.forward_with_outliers(None, None)
    with pytest.raises(NotImplementedError, match="quantize_weight"):
        base.quantize_weight(None, None)
