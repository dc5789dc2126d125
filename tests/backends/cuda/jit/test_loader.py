"""Loading kernels by a fake driver and real compilers; GPU tests ask the real driver."""

from __future__ import annotations

import threading

import pytest

from bitsanywhere.backends.cuda.jit import compiler
from bitsanywhere.backends.cuda.jit import loader as loading
from bitsanywhere.backends.cuda.jit.cache import DiskCache
from bitsanywhere.backends.cuda.jit.loader import Loader
from bitsanywhere.backends.cuda.jit.pack_builder import build
from bitsanywhere.backends.cuda.jit.packs import install
from bitsanywhere.errors import BackendUnavailable, UnsupportedDeviceError
from bitsanywhere.targets import known


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch):
    monkeypatch.setattr(loading, "_kernels", {})
    monkeypatch.setattr(loading, "_ahead", {})


@pytest.fixture
def loader(tmp_path):
    def make(driver, compiler=None, forced=None):
        def find():
            if compiler is None:
                raise BackendUnavailable("No NVRTC is installed.")
            return compiler

        cache = DiskCache(tmp_path / "cache", 1 << 20)
        return Loader(driver, find, cache, tmp_path / "packs", forced)

    return make


def test_the_second_process_compiles_nothing(fake_driver, loader, saxpy, newest_nvrtc, monkeypatch):
    first = loader(fake_driver(), newest_nvrtc).load(saxpy, 0)
    assert first.way == "NVRTC for sm_87"

    def fail(*args, **kwargs):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "compile_source", fail)
    second = loader(fake_driver(), newest_nvrtc).load(saxpy, 0)
    assert second.image == first.image


def test_the_second_process_does_not_load_nvrtc(tmp_path, newest_nvrtc, monkeypatch):
    monkeypatch.setattr(loading.nvrtc, "_candidates", lambda major: [newest_nvrtc.path])
    for loaded in (True, False):
        cache = DiskCache(tmp_path / "cache", 1 << 20)
        found = loading.find_nvrtc(cache, 13)
        assert found.version == newest_nvrtc.version
        assert ("_library" in vars(found)) is loaded


def test_a_later_chip_gets_ptx(fake_driver, loader, saxpy, nvrtc_12_6):
    driver = fake_driver(capability=(12, 1))
    kernel = loader(driver, nvrtc_12_6).load(saxpy, 0)
    assert kernel.way == "NVRTC for compute_90, finished by the driver"
    assert b".target sm_90" in driver.loaded[0][0]


def test_a_forced_architecture_is_used_on_any_chip(fake_driver, loader, saxpy, newest_nvrtc):
    driver = fake_driver(capability=(9, 0))
    loader(driver, newest_nvrtc, "compute_87").load(saxpy, 0)
    assert b".target sm_87" in driver.loaded[0][0]


def test_without_nvrtc_a_pack_serves(fake_driver, loader, saxpy, newest_nvrtc, tmp_path):
    build(["sm_86", "sm_87"], tmp_path / "new", lambda target: [saxpy], newest_nvrtc, False)
    install(tmp_path / "new", tmp_path / "packs")
    driver = fake_driver()
    kernel = loader(driver).load(saxpy, 0)
    assert kernel.way == "kernel pack for sm_87"
    assert kernel.image.parameters == "<qqqqf"
    assert driver.loaded[0][1:] == ("saxpy", 0)


def test_a_pack_of_other_sources_does_not(fake_driver, loader, saxpy, fill, newest_nvrtc, tmp_path):
    build(["sm_87"], tmp_path / "new", lambda target: [fill], newest_nvrtc, False)
    install(tmp_path / "new", tmp_path / "packs")
    with pytest.raises(UnsupportedDeviceError, match="do not hold this kernel"):
        loader(fake_driver()).load(saxpy, 0)


def test_code_that_the_driver_refuses_gives_way_to_a_pack(
    fake_driver, loader, saxpy, newest_nvrtc, nvrtc_12_6, tmp_path
):
    build(["sm_87"], tmp_path / "new", lambda target: [saxpy], nvrtc_12_6, False)
    install(tmp_path / "new", tmp_path / "packs")
    packed = next((tmp_path / "new").glob("sm_87/*")).read_bytes()
    driver = fake_driver(refuse=lambda image: image != packed)
    assert loader(driver, newest_nvrtc).load(saxpy, 0).way == "kernel pack for sm_87"


def test_one_error_says_all_and_nothing_is_launched(fake_driver, loader, saxpy, newest_nvrtc):
    driver = fake_driver(refuse=lambda image: True)
    with pytest.raises(UnsupportedDeviceError) as info:
        loader(driver, newest_nvrtc).load(saxpy, 0)
    text = str(info.value)
    for part in (
        "saxpy",
        "Orin",
        "8.7",
        "CUDA 12.6",
        "NVRTC for sm_87: cuModuleLoadDataEx: error 209",
        "kernel packs: none installed in",
        "pip install 'bitsanywhere[cuda12]'",
        "bitsanywhere pack build --arch sm_87 --out PACK",
        "bitsanywhere pack install PACK",
    ):
        assert part in text
    assert driver.launches == []


def test_the_error_without_nvrtc_says_so(fake_driver, loader, saxpy):
    with pytest.raises(UnsupportedDeviceError, match="NVRTC: No NVRTC is installed"):
        loader(fake_driver()).load(saxpy, 0)


def test_handles_are_looked_up_once_and_per_device(
    fake_driver, loader, saxpy, fill, newest_nvrtc, monkeypatch
):
    driver = fake_driver()
    only = loader(driver, newest_nvrtc)
    monkeypatch.setattr(loading, "_loader", lambda: only)
    target = known("orin-nano")
    kernel = loading.get_kernel(saxpy, target, 0)
    assert loading.get_kernel(saxpy, target, 0) is kernel
    assert loading.get_kernel(saxpy, target, 1).device_index == 1
    both = loading.compile_many([saxpy, fill, saxpy], target, 0, progress=False)
    assert both[0] is kernel is both[2]
    assert both[1].image.entry == "fill"
    assert [loaded[1:] for loaded in driver.loaded] == [("saxpy", 0), ("saxpy", 1), ("fill", 0)]


def test_compile_many_reports_what_cannot_run(fake_driver, loader, saxpy, monkeypatch):
    monkeypatch.setattr(loading, "_loader", lambda: loader(fake_driver()))
    with pytest.raises(UnsupportedDeviceError):
        loading.compile_many([saxpy], known("orin-nano"), 0, progress=False)


@pytest.fixture
def compilations(monkeypatch):
    """(entry, thread) of every compilation, on what looks like four cores."""
    compile_source, found = compiler.compile_source, []

    def noting(src, arch, **settings):
        found.append((src.entry, threading.current_thread()))
        return compile_source(src, arch, **settings)

    monkeypatch.setattr(compiler, "compile_source", noting)
    monkeypatch.setattr(loading.os, "cpu_count", lambda: 4)
    return found


@pytest.mark.parametrize("many", [False, True])
def test_what_is_compiled_ahead_is_compiled_once_and_elsewhere(
    fake_driver, loader, saxpy, fill, newest_nvrtc, monkeypatch, compilations, many
):
    only = loader(fake_driver(), newest_nvrtc)
    monkeypatch.setattr(loading, "_loader", lambda: only)
    for _ in range(2):
        loading.compile_ahead([saxpy, fill], 0)
    target = known("orin-nano")
    if many:
        loading.compile_many([saxpy, fill], target, 0, progress=False)
    kernels = [loading.get_kernel(src, target, 0) for src in (saxpy, fill)]
    assert [kernel.image.entry for kernel in kernels] == ["saxpy", "fill"]
    assert sorted(entry for entry, _ in compilations) == ["fill", "saxpy"]
    assert threading.current_thread() not in [thread for _, thread in compilations]
    assert len(compilations) == 2


def test_what_is_cached_is_not_compiled_ahead(
    fake_driver, loader, saxpy, newest_nvrtc, monkeypatch, compilations
):
    loader(fake_driver(), newest_nvrtc).load(saxpy, 0)
    only = loader(fake_driver(), newest_nvrtc)
    monkeypatch.setattr(loading, "_loader", lambda: only)
    loading.compile_ahead([saxpy], 0)
    assert loading._ahead == {}
    assert loading.get_kernel(saxpy, known("orin-nano"), 0).image.entry == "saxpy"
    assert len(compilations) == 1


@pytest.mark.parametrize("forced", [None, "compute_87"])
def test_without_a_compiler_nothing_is_begun(fake_driver, loader, saxpy, monkeypatch, forced):
    only = loader(fake_driver(), forced=forced)
    monkeypatch.setattr(loading, "_loader", lambda: only)
    monkeypatch.setattr(loading.os, "cpu_count", lambda: 4)
    loading.compile_ahead([saxpy], 0)
    assert loading._ahead == {}


def test_half_of_the_cores_stay_free(
    fake_driver, loader, saxpy, fill, newest_nvrtc, monkeypatch, compilations
):
    monkeypatch.setattr(loading.os, "cpu_count", lambda: 3)
    only = loader(fake_driver(), newest_nvrtc)
    monkeypatch.setattr(loading, "_loader", lambda: only)
    go, prepare = threading.Event(), only.prepare
    monkeypatch.setattr(only, "prepare", lambda *args: go.wait(10) and prepare(*args))
    loading.compile_ahead([saxpy, fill], 0)
    loading.get_kernel(fill, known("orin-nano"), 0)
    assert [entry for entry, _ in compilations] == ["fill"]
    go.set()
    loading.get_kernel(saxpy, known("orin-nano"), 0)
    assert compilations[0][1] is threading.current_thread()
    assert compilations[1][1] is not threading.current_thread()


def test_what_fails_ahead_is_reported_when_it_is_needed(
    fake_driver, loader, saxpy, newest_nvrtc, monkeypatch
):
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setattr(loading.os, "cpu_count", lambda: 4)

    def fail(*args, **settings):
        raise compiler.CompilationError("no such instruction", "log")

    monkeypatch.setattr(compiler, "compile_source", fail)
    only = loader(fake_driver(), newest_nvrtc)
    monkeypatch.setattr(loading, "_loader", lambda: only)
    loading.compile_ahead([saxpy], 0)
    assert (saxpy, 0) in loading._ahead
    with pytest.raises(UnsupportedDeviceError, match="no such instruction"):
        loading.get_kernel(saxpy, known("orin-nano"), 0)
    assert raised == []


def test_a_kernel_is_compiled_here_if_no_thread_can_start(
    fake_driver, loader, saxpy, newest_nvrtc, monkeypatch, compilations
):
    def start(self):
        raise RuntimeError("can't start new thread")

    only = loader(fake_driver(), newest_nvrtc)
    monkeypatch.setattr(loading, "_loader", lambda: only)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        loading.compile_ahead([saxpy], 0)
    assert loading.get_kernel(saxpy, known("orin-nano"), 0).image.entry == "saxpy"
    assert compilations == [("saxpy", threading.current_thread())]


def test_many_threads_may_ask_for_the_same_kernels(
    fake_driver, loader, saxpy, fill, newest_nvrtc, monkeypatch, compilations
):
    only = loader(fake_driver(), newest_nvrtc)
    monkeypatch.setattr(loading, "_loader", lambda: only)
    barrier, kernels, target = threading.Barrier(8), [], known("orin-nano")

    def work():
        barrier.wait(10)
        loading.compile_ahead([saxpy, fill], 0)
        kernels.extend(loading.get_kernel(src, target, 0) for src in (saxpy, fill))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(kernels) == 16
    assert len(set(map(id, kernels))) == 2
    assert sorted(entry for entry, _ in compilations) == ["fill", "saxpy"]
