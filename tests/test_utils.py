"""`bitsanywhere.utils`, beside bitsandbytes where that runs, and the names kept for its users."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from bitsanywhere import functional, utils
from bitsanywhere.errors import InvalidArgumentError


@pytest.fixture
def tracer(monkeypatch):
    monkeypatch.setattr(utils.OutlierTracer, "_instance", None)
    return utils.OutlierTracer.get_instance()


def planted() -> torch.Tensor:
    """A weight of shape (64, 128) whose inputs 77 (wide) and 5 (constant) stand out."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    weight[:, 77] *= 12
    weight[:, 5] = 3
    return weight


@pytest.mark.parametrize(
    "options", [{}, {"topk": 3}, {"zscore": 1.0}, {"reduction_dim": 1, "zscore": 0.5}]
)
def test_outlier_dims_are_the_peers(options):
    peer = pytest.importorskip("bitsandbytes.utils")
    found = utils.find_outlier_dims(planted(), **options)
    assert found.tolist() == peer.find_outlier_dims(planted(), **options).tolist()
    assert len(found)


def test_random_dims_need_a_count():
    found = utils.find_outlier_dims(planted(), rdm=True, topk=4)
    assert found.shape == (4,)
    assert found.max() < 128
    with pytest.raises(InvalidArgumentError, match="topk"):
        utils.find_outlier_dims(planted(), rdm=True)


def test_tracer(tracer):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[2].weight[:, 9] *= 30
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    x[:, 12] *= 30
    x[3, 40] = 7
    assert tracer.get_outliers(model[0].weight) is None
    model(x)
    assert not tracer.is_initialized()
    tracer.initialize(model)
    assert len(tracer.hooks) == 3
    for _ in range(2):
        model(x)
    found = [tracer.get_outliers(model[i].weight).tolist() for i in (0, 2, 3)]
    assert found == [[12, 40], [9], []]
    assert tracer is utils.OutlierTracer.get_instance()


@pytest.mark.parametrize("single", [utils.OutlierTracer, functional.CUBLAS_Context])
def test_single_instances(single):
    with pytest.raises(RuntimeError, match="get_instance"):
        single()
    assert single.get_instance() is single.get_instance()


def test_replace_linear():
    class Other(nn.Linear):
        def seen(self, module):
            module.was_seen = True

    class Old(nn.Linear):
        def seen(self, module):
            module.was_seen = True

    model = nn.ModuleDict(
        {
            "a": Old(4, 3),
            "lm_head": nn.Linear(4, 4),
            "b": nn.Sequential(nn.Linear(3, 5, bias=False)),
        }
    )
    first = model["a"]
    assert utils.replace_linear(model, Other, ("lm_head",), True, "seen") is model
    assert type(model["a"]) is Other
    assert model["a"].weight is first.weight
    assert model["a"].bias is first.bias
    assert first.was_seen
    assert type(model["lm_head"]) is nn.Linear
    assert type(model["b"][0]) is Other
    assert model["b"][0].bias is None


def test_programs_run_without_a_shell(tmp_path):
    there = tmp_path / "there"
    command = f"{sys.executable} -c 'print(1); import sys; sys.exit(1)' ; touch {there}"
    assert utils.execute_and_return(command) == ("1", "")
    assert not there.exists()
    out, err = utils.execute_and_return(f"{sys.executable} -c 'raise ValueError(7)'")
    assert out == ""
    assert err.endswith("ValueError: 7")


def test_constants_are_the_peers():
    peer = pytest.importorskip("bitsandbytes.utils")
    assert utils.LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING == peer.LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING
    assert (
        utils.INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING
        == peer.INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING
    )
    assert functional.C == pytest.importorskip("bitsandbytes.functional").C
    # In a process of its own: our backend tells the peer's layers that there is none.
    script = "import bitsandbytes.functional as F; print(bool(F.has_avx512bf16()))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"BITSANYWHERE_BACKEND": "0", "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(functional.has_avx512bf16())


def test_sync_gpu_on_a_cpu_returns():
    assert utils.sync_gpu(torch.zeros(1)) is None
