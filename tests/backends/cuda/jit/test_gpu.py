"""What only a real driver can show: loading, launching, captures, threads, devices, PTX."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from bitsanywhere.backends.cuda.jit import (
    KernelSource,
    compile_many,
    current_stream,
    get_kernel,
)
from bitsanywhere.backends.cuda.jit.compiler import compile_source
from bitsanywhere.backends.cuda.jit.driver import DriverError, driver
from bitsanywhere.targets import Target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
N = 1003


def variant(src: KernelSource, number: int) -> KernelSource:
    """The same kernel, not used before in this process."""
    return KernelSource(src.file, src.entry, (("FACTOR_BIAS", number),), root=src.root)


def run_saxpy(src: KernelSource, device: torch.device) -> torch.Tensor:
    """factor 2 * x + y into an output poisoned with NaN, and the expected result subtracted."""
    x = torch.arange(N, device=device, dtype=torch.float32)
    y = torch.full((N,), 0.5, device=device)
    out = torch.full((N,), torch.nan, device=device)
    launch_saxpy(src, out, x, y)
    return out - (x * (2 + src.defines[0][1]) + y)


def launch_saxpy(src, out, x, y):
    device = out.device
    kernel = get_kernel(src, Target.of(device), device.index)
    pointers = (out.data_ptr(), x.data_ptr(), y.data_ptr())
    stream = current_stream(device.index)
    kernel.launch(((N + 127) // 128, 1, 1), 128, 0, stream, (*pointers, N, 2.0))


def test_a_kernel_runs(saxpy):
    assert not run_saxpy(saxpy, torch.device("cuda", 0)).any()


def test_structures_and_over_48_kib_of_shared_memory(fill):
    device = torch.device("cuda", 0)
    target = Target.of(device)
    out = torch.full((N,), torch.nan, device=device)
    span = out.data_ptr().to_bytes(8, "little") + N.to_bytes(4, "little") + bytes(4)
    kernel = get_kernel(fill, target, 0)
    args = (span, True, 3, -5, 0.25)
    kernel.launch((1,), 1024, target.shared_memory, current_stream(0), args)
    assert (out == -0.5).all()
    # The target may be another chip's.
    most = getattr(torch.cuda.get_device_properties(0), "shared_memory_per_block_optin", 1 << 20)
    with pytest.raises(DriverError, match="shared"):
        kernel.launch((1,), 1024, most + 1, current_stream(0), args)


def test_capture_as_first_use(saxpy):
    src = variant(saxpy, 1)
    device = torch.device("cuda", 0)
    x = torch.arange(N, device=device, dtype=torch.float32)
    y = torch.ones(N, device=device)
    out = torch.full((N,), torch.nan, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch_saxpy(src, out, x, y)
    assert out.isnan().all()
    for offset in (0.0, 7.0):
        x.add_(offset)
        graph.replay()
        assert torch.equal(out, x * 3 + y)


def test_another_stream(saxpy):
    stream = torch.cuda.Stream(0)
    with torch.cuda.stream(stream):
        difference = run_saxpy(saxpy, torch.device("cuda", 0))
    stream.synchronize()
    assert not difference.any()


def test_a_thread_that_never_used_the_device(saxpy):
    results = []

    def work():
        device = torch.device("cuda", 0)
        kernel = get_kernel(saxpy, Target.of(device), 0)
        pointers = (out.data_ptr(), x.data_ptr(), x.data_ptr())
        kernel.launch((8, 1, 1), 128, 0, 0, (*pointers, N, 2.0))
        results.append("launched")

    x = torch.ones(N, device="cuda:0")
    out = torch.full((N,), torch.nan, device="cuda:0")
    torch.cuda.synchronize()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert results == ["launched"]
    assert (out == 3).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_every_device_without_making_it_current(saxpy):
    torch.cuda.set_device(0)
    for index in (1, 0, 1):
        assert not run_saxpy(saxpy, torch.device("cuda", index)).any()
        assert torch.cuda.current_device() == 0


def test_many_are_compiled_at_once(saxpy):
    device = torch.device("cuda", 0)
    sources = [variant(saxpy, number) for number in range(10, 16)]
    kernels = compile_many(sources, Target.of(device), 0, progress=False)
    assert [get_kernel(src, Target.of(device), 0) for src in sources] == kernels


def test_ptx_that_the_driver_cannot_compile_is_explained(saxpy):
    ptx = compile_source(saxpy, "compute_87").image.replace(b"ld.param", b"no.such", 1)
    with pytest.raises(DriverError, match="ptxas"):
        driver().load(ptx, "saxpy", 0)


def test_the_path_of_orin(tmp_path):
    """Everything as compute_87 PTX, configurations for Orin Nano: a process of its own."""
    if torch.cuda.get_device_capability(0) < (8, 7):
        pytest.skip("compute_87 PTX needs a chip of at least 8.7")
    script = (
        "import sys, torch\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import test_gpu, conftest\n"
        "src = test_gpu.KernelSource('saxpy.cuh', 'saxpy', (('FACTOR_BIAS', 0),), False,\n"
        "                            str(conftest.SOURCES))\n"
        "assert not test_gpu.run_saxpy(src, torch.device('cuda', 0)).any()\n"
        "target = test_gpu.Target.of(torch.device('cuda', 0))\n"
        "print(target.name, test_gpu.get_kernel(src, target, 0).way)\n"
    )
    variables = {
        "BITSANYWHERE_JIT_ARCH": "compute_87",
        "BITSANYWHERE_TARGET": "orin-nano",
        "BITSANYWHERE_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "orin-nano NVRTC for compute_87, finished by the driver\n"
    assert len(list((tmp_path / "cache").glob("*.kernel"))) == 1
