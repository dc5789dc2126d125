"""Our kernels under an installed bitsandbytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bitsanywhere import errors, ops
from bitsanywhere.integrations import bitsandbytes_backend as backend
from bitsanywhere.ops.registry import Kernel

PROBE = Path(__file__).parent / "backend_probe.py"
needs_peer = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def run_probe(setting: str, part: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", BITSANYWHERE_BACKEND=setting)
    return subprocess.run(
        [sys.executable, PROBE, part], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module", params=["cpu kernels", "no cpu kernels"])
def beside(request):
    """What the probe found with our backend registered, and without a CPU backend of ours."""
    if request.param == "cpu kernels" and find_spec("numba") is None:
        pytest.skip("numba is not installed")
    done = run_probe("1", request.param)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_entry_point_names_register():
    found = entry_points(group="bitsandbytes.backends")
    targets = {point.name: point.value for point in found}
    assert targets["bitsanywhere"] == "bitsanywhere.integrations.bitsandbytes_backend:register"


@pytest.mark.parametrize(("value", "expected"), [(None, True), ("1", True), ("0", False)])
def test_variable_turns_it_off(monkeypatch, value, expected):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(backend.VARIABLE, value)
    assert backend.enabled() is expected


@pytest.mark.parametrize("value", ["", "2", "false", "yes"])
def test_variable_is_validated(monkeypatch, value):
    monkeypatch.setenv(backend.VARIABLE, value)
    with pytest.raises(errors.InvalidArgumentError, match="BITSANYWHERE_BACKEND"):
        backend.register()


class TestKernelFor:
    """Who serves a call: our kernel, the peer's, or our reference."""

    A = torch.linspace(-1, 1, 130).reshape(10, 13)
    ARGS = (A, 64, "nf4", torch.uint8)

    @pytest.fixture
    def kernels(self, monkeypatch):
        """Kernels of the CPU backend, to be filled in by the test."""
        table: dict[str, Kernel] = {}
        monkeypatch.setattr(backend, "load_backend", lambda device: (table, None))
        return table

    def peer(self, *args):
        return ("peer", *args)

    def test_ours_if_it_takes_the_call(self, kernels):
        kernels["quantize_4bit"] = Kernel(lambda *args: ("ours", *args), lambda *args: None)
        served = backend.kernel_for("quantize_4bit", "cpu", self.peer)(*self.ARGS)
        assert served[0] == "ours"
        assert served[1] is self.A

    def test_peer_if_we_have_none(self, kernels):
        assert backend.kernel_for("quantize_4bit", "cpu", self.peer)(*self.ARGS)[0] == "peer"

    def test_peer_if_ours_refuses(self, kernels):
        kernels["quantize_4bit"] = Kernel(lambda *args: "ours", lambda *args: "too small")
        assert backend.kernel_for("quantize_4bit", "cpu", self.peer)(*self.ARGS)[0] == "peer"

    def test_peer_for_a_dtype_that_the_op_does_not_know(self, kernels):
        kernels["quantize_4bit"] = Kernel(lambda *args: "ours", lambda *args: None)
        run = backend.kernel_for("quantize_4bit", "cpu", self.peer)
        assert run(self.A.double(), *self.ARGS[1:])[0] == "peer"

    def test_reference_where_the_peer_is_wrong(self, kernels, monkeypatch):
        monkeypatch.setattr(ops.registry, "load_backend", lambda device: ({}, None))
        run = backend.kernel_for("dequantize_4bit", "cpu", self.peer)
        for shape, served_by_peer in (((10, 13), False), ((2, 64), True)):
            weight = torch.linspace(-1, 1, shape[0] * shape[1]).reshape(shape)
            codes, absmax = ops.quantize_4bit.reference(weight, 64, "nf4", torch.uint8)
            args = (codes, absmax, 64, "nf4", shape, torch.float32)
            served = run(*args)
            assert isinstance(served, tuple) is served_by_peer
            if not served_by_peer:
                assert torch.equal(served, ops.dequantize_4bit.reference(*args))

    def test_other_faults_raise_ours(self, kernels):
        kernels["quantize_4bit"] = Kernel(lambda *args: "ours", lambda *args: None)
        run = backend.kernel_for("quantize_4bit", "cpu", self.peer)
        with pytest.raises(errors.InvalidArgumentError, match="quant_type"):
            run(self.A, 64, "int4", torch.uint8)

    def test_reference_if_nobody_has_one(self, kernels, monkeypatch):
        monkeypatch.setattr(ops.registry, "load_backend", lambda device: ({}, None))
        codes, absmax = backend.kernel_for("quantize_4bit", "cpu", None)(*self.ARGS)
        expected = ops.quantize_4bit.reference(*self.ARGS)
        assert torch.equal(codes, expected[0])
        assert torch.equal(absmax, expected[1])

    def test_out_overload_writes_and_shows_the_peer_its_out(self, kernels):
        weight = torch.linspace(-1, 1, 3 * 64).reshape(3, 64)
        codes, absmax = ops.quantize_4bit.reference(weight, 64, "nf4", torch.uint8)
        args = (codes, absmax, 64, "nf4", (3, 64), torch.float32)
        out = torch.full((3, 64), float("nan"))
        assert backend.kernel_for("dequantize_4bit.out", "cpu", self.peer)(*args, out)[-1] is out
        backend.kernel_for("dequantize_4bit.out", "cpu", None)(*args, out)
        assert torch.equal(out, ops.dequantize_4bit.reference(*args))


class TestPeerKernel:
    """What bitsandbytes would have run, with an op of torch's in the place of theirs."""

    @pytest.fixture(autouse=True)
    def peer(self, monkeypatch):
        monkeypatch.setattr(backend, "PEER", "aten")

    def test_runs_what_was_registered(self):
        if not hasattr(torch.library, "get_kernel"):
            pytest.skip("this torch cannot tell")
        negate = backend.peer_kernel("neg", "cpu")
        assert torch.equal(negate(torch.tensor([1.0, -2.0])), torch.tensor([-1.0, 2.0]))

    def test_none_if_torch_cannot_tell(self, monkeypatch):
        monkeypatch.delattr(torch.library, "get_kernel", raising=False)
        assert backend.peer_kernel("neg", "cpu") is None

    def test_none_if_there_is_none(self):
        assert backend.peer_kernel("no_such_op", "cpu") is None

    def test_none_on_cuda_if_their_library_did_not_load(self, monkeypatch):
        class ErrorHandlerMock:
            """As bitsandbytes puts in the library's place."""

        cextension = type(sys)("aten.cextension")
        cextension.lib = ErrorHandlerMock()
        monkeypatch.setitem(sys.modules, "aten.cextension", cextension)
        assert backend.peer_kernel("neg", "cuda") is None


@pytest.mark.parametrize("refuses", [False, True])
def test_override_replaces_what_python_registered(refuses, recwarn):
    """Also with a torch that refuses a second registration and has no `allow_override`."""
    namespace = f"bitsanywhere_test_{'old' if refuses else 'new'}"
    first = torch.library.Library(namespace, "DEF")
    first.define("double(Tensor x) -> Tensor")
    first.impl("double", lambda x: x * 3, "CPU")

    class Old(torch.library.Library):
        def impl(self, op_name, fn, dispatch_key=""):
            if f"{self.ns}/{op_name}/{dispatch_key}" in torch.library._impls:
                raise RuntimeError("already a kernel registered from python")
            super().impl(op_name, fn, dispatch_key)

    second = (Old if refuses else torch.library.Library)(namespace, "IMPL")
    backend.override(second, "double", lambda x: x * 2, "CPU")
    x = torch.tensor([1.0, 5.0])
    assert torch.equal(getattr(torch.ops, namespace).double(x), x * 2)


@needs_peer
class TestBeside:
    """A bitsandbytes in a process of its own; see backend_probe.py."""

    def test_import_loads_no_backend(self, beside):
        assert beside["loaded at import"] == []

    def test_import_prints_no_warning_of_ours(self, beside):
        assert beside["warnings"] == []

    def test_a_second_register_does_nothing(self, beside):
        assert beside["libraries"] == 1

    def test_every_op_agrees_with_our_reference(self, beside):
        assert len(beside["ops"]) == 17 * 3
        assert {key: value for key, value in beside["ops"].items() if value != "ok"} == {}

    def test_our_kernels_serve(self, beside):
        expected = beside["part"] == "cpu kernels"
        assert beside["served by ours"] is expected

    def test_a_dtype_that_they_alone_take_still_works(self, beside):
        assert beside["float64"] == "accepted"

    def test_an_eval_forward_leaves_the_weight(self, beside):
        """Shape (72, 128), which the peer repacks in place on AVX512-BF16 processors."""
        assert beside["weight after eval"] == "same"
        assert beside["dequantized after eval"] == "same"
        assert beside["eval error"] < 0.02


@needs_peer
def test_zero_leaves_bitsandbytes_alone():
    done = run_probe("0", "alone")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["libraries"] == 0
    assert found["served by ours"] is False
