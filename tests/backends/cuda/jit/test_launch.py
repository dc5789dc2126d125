"""Loading and launching against a fake driver; the real one is asked in the GPU tests."""

from __future__ import annotations

import ctypes
import struct
import threading

import pytest

from bitsanywhere.backends.cuda.jit import compiler, launch
from bitsanywhere.backends.cuda.jit.cache import DiskCache, Image
from bitsanywhere.backends.cuda.jit.driver import DriverError, LaunchAttribute, LaunchConfig
from bitsanywhere.backends.cuda.jit.launch import LoadedKernel, Loader
from bitsanywhere.backends.cuda.jit.pack_builder import build
from bitsanywhere.backends.cuda.jit.packs import install
from bitsanywhere.errors import (
    BackendUnavailable,
    InvalidArgumentError,
    UnsupportedDeviceError,
)
from bitsanywhere.targets import known

IMAGE = Image("k", "sm_87", "<qif4x8s", b"image")


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch):
    monkeypatch.setattr(launch, "_kernels", {})


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


def test_arguments_arrive_packed(fake_driver):
    driver = fake_driver()
    kernel = LoadedKernel(IMAGE, 0, "test", driver)
    kernel.launch((3, 2), 128, 1024, 0xDEADBEEF0, (1 << 40, -5, 0.25, b"8 bytes!"))
    kernel.launch((1, 1, 1), (32, 4, 2), 0, 0, (1 << 40, -5, 0.25, b"8 bytes!"))
    packed = struct.pack("<qif4x8s", 1 << 40, -5, 0.25, b"8 bytes!")
    assert driver.launches == [
        ((3, 2, 1, 128, 1, 1), 1024, 0xDEADBEEF0, packed),
        ((1, 1, 1, 32, 4, 2), 0, 0, packed),
    ]


def test_ctypes_scalars_arrive_too(fake_driver):
    driver = fake_driver()
    scalars = (ctypes.c_void_p(7), ctypes.c_int(1), ctypes.c_float(2.0), b"12345678")
    LoadedKernel(IMAGE, 0, "test", driver).launch((1,), 1, 0, 0, scalars)
    assert driver.launches[0][3] == struct.pack("<qif4x8s", 7, 1, 2.0, b"12345678")


@pytest.mark.parametrize("arguments", [(), (1, 2, 3.0), (1, 2.5, 3.0, b""), (1, 2, 3.0, b"", 5)])
def test_wrong_arguments_never_reach_the_driver(fake_driver, arguments):
    driver = fake_driver()
    with pytest.raises(InvalidArgumentError, match="do not fit"):
        LoadedKernel(IMAGE, 0, "test", driver).launch((1, 1, 1), 1, 0, 0, arguments)
    assert driver.launches == []


def test_a_grid_is_never_cut_to_32_bits(fake_driver):
    driver = fake_driver()
    with pytest.raises(InvalidArgumentError, match="grid"):
        LoadedKernel(IMAGE, 0, "test", driver).launch((2**32 + 1, 1, 1), 1, 0, 0, (1, 2, 3.0, b""))
    assert driver.launches == []


def test_a_bound_kernel_launches_alike(fake_driver):
    image = Image("k", "sm_87", "<24s", b"image")
    driver = fake_driver(codes=[0, 400])
    kernel = LoadedKernel(image, 1, "test", driver)
    bound = kernel.bind((3, 2), 128, 1024, "<QqiI")
    for stream in (0xDEADBEEF0, 0):
        bound.launch(stream, bound.pack(1 << 63, -1, -2, 7))
    packed = struct.pack("<QqiI", 1 << 63, -1, -2, 7)
    first = ((3, 2, 1, 128, 1, 1), 1024, 0xDEADBEEF0, packed)
    again = (*first[:2], 0, packed)
    assert driver.launches == [first, again, again]
    assert driver.events == [("push", 1), ("pop", 1)]


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 7), "sm_87"), ((9, 0), "sm_90a"), ((9, 0), "compute_87")]
)
def test_a_kernel_overlaps_where_chip_and_code_can(fake_driver, capability, arch):
    image = Image("k", arch, "<24s", b"image")
    driver = fake_driver(capability=capability, codes=[0, 0, 400])
    bound = LoadedKernel(image, 1, "test", driver).bind((3, 2), 128, 1024, "<QqiI", True)
    for stream in (0xDEADBEEF0, 0, 0):
        bound.launch(stream, bound.pack(1 << 63, -1, -2, 7))
    packed = struct.pack("<QqiI", 1 << 63, -1, -2, 7)
    launches = [((3, 2, 1, 128, 1, 1), 1024, stream, packed) for stream in (0xDEADBEEF0, 0, 0, 0)]
    assert driver.launches == launches
    # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert driver.attributes == ([(6, 1)] * 3 if arch == "sm_90a" else [])
    assert driver.events == [("push", 1), ("pop", 1)]


def test_a_launch_configuration_is_laid_out_as_the_drivers():
    assert ctypes.sizeof(LaunchAttribute) == 72
    assert LaunchAttribute.value.offset == 8
    assert ctypes.sizeof(LaunchConfig) == 56
    assert LaunchConfig.stream.offset == 32


def test_a_bound_layout_must_fill_the_parameters(fake_driver):
    kernel = LoadedKernel(Image("k", "sm_87", "<24s", b"image"), 0, "test", fake_driver())
    with pytest.raises(InvalidArgumentError, match="<24s"):
        kernel.bind((1,), 128, 0, "<QqiQ")
    with pytest.raises(InvalidArgumentError, match="grid"):
        kernel.bind((2**31,), 128, 0, "<QqiI")


@pytest.mark.parametrize("code", [201, 400, 709])
def test_another_context_is_switched_for_one_more_try(fake_driver, code):
    driver = fake_driver(codes=[code])
    kernel = LoadedKernel(IMAGE, 1, "test", driver)
    kernel.launch((1, 1, 1), 1, 0, 0, (1, 2, 3.0, b""))
    assert driver.events == [("push", 1), ("pop", 1)]
    assert len(driver.launches) == 2
    assert driver.launches[0] == driver.launches[1]


def test_a_context_that_stays_wrong_is_an_error(fake_driver):
    driver = fake_driver(codes=[400, 400])
    with pytest.raises(DriverError, match="400"):
        LoadedKernel(IMAGE, 1, "test", driver).launch((1, 1, 1), 1, 0, 0, (1, 2, 3.0, b""))


def test_a_refused_launch_says_what_was_launched(fake_driver):
    kernel = LoadedKernel(IMAGE, 0, "test", fake_driver(codes=[1]))
    with pytest.raises(DriverError, match=r"k, grid \(1, 1, 1\), block \(2048, 1, 1\)") as info:
        kernel.launch((1, 1, 1), 2048, 0, 0, (1, 2, 3.0, b""))
    assert info.value.code == 1


def test_threads_do_not_share_argument_buffers(fake_driver):
    driver = fake_driver()
    kernel = LoadedKernel(IMAGE, 0, "test", driver)
    addresses = []
    barrier = threading.Barrier(4)

    def work():
        barrier.wait(10)
        addresses.append(ctypes.addressof(kernel._arguments.buffer))
        barrier.wait(10)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(addresses)) == 4


def test_the_second_process_compiles_nothing(fake_driver, loader, saxpy, newest_nvrtc, monkeypatch):
    first = loader(fake_driver(), newest_nvrtc).load(saxpy, 0)
    assert first.way == "NVRTC for sm_87"

    def fail(*args, **kwargs):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "compile_source", fail)
    second = loader(fake_driver(), newest_nvrtc).load(saxpy, 0)
    assert second.image == first.image


def test_the_second_process_does_not_load_nvrtc(tmp_path, newest_nvrtc, monkeypatch):
    monkeypatch.setattr(launch.nvrtc, "_candidates", lambda major: [newest_nvrtc.path])
    for loaded in (True, False):
        cache = DiskCache(tmp_path / "cache", 1 << 20)
        found = launch.find_nvrtc(cache, 13)
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
    monkeypatch.setattr(launch, "_loader", lambda: only)
    target = known("orin-nano")
    kernel = launch.get_kernel(saxpy, target, 0)
    assert launch.get_kernel(saxpy, target, 0) is kernel
    assert launch.get_kernel(saxpy, target, 1).device_index == 1
    both = launch.compile_many([saxpy, fill, saxpy], target, 0, progress=False)
    assert both[0] is kernel is both[2]
    assert both[1].image.entry == "fill"
    assert [loaded[1:] for loaded in driver.loaded] == [("saxpy", 0), ("saxpy", 1), ("fill", 0)]


def test_compile_many_reports_what_cannot_run(fake_driver, loader, saxpy, monkeypatch):
    monkeypatch.setattr(launch, "_loader", lambda: loader(fake_driver()))
    with pytest.raises(UnsupportedDeviceError):
        launch.compile_many([saxpy], known("orin-nano"), 0, progress=False)
