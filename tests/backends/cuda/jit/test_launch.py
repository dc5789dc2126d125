"""Launching by a fake driver; the real one is asked in the GPU tests."""

from __future__ import annotations

import ctypes
import struct
import threading

import pytest

from bitsanywhere.backends.cuda.jit.cache import Image
from bitsanywhere.backends.cuda.jit.driver import DriverError, LaunchAttribute, LaunchConfig
from bitsanywhere.backends.cuda.jit.launch import LoadedKernel
from bitsanywhere.errors import InvalidArgumentError

IMAGE = Image("k", "sm_87", "<qif4x8s", b"image")


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


@pytest.mark.parametrize("since_11_8", [True, False])
def test_a_bound_kernel_launches_alike(fake_driver, since_11_8):
    image = Image("k", "sm_87", "<24s", b"image")
    driver = fake_driver(codes=[0, 400])
    if not since_11_8:
        driver.launch_config = None
    kernel = LoadedKernel(image, 1, "test", driver)
    bound = kernel.bind((3, 2), 128, 1024, "<QqiI")
    for stream in (0xDEADBEEF0, 0):
        bound.launch(stream, bound.pack(1 << 63, -1, -2, 7))
    packed = struct.pack("<QqiI", 1 << 63, -1, -2, 7)
    first = ((3, 2, 1, 128, 1, 1), 1024, 0xDEADBEEF0, packed)
    again = (*first[:2], 0, packed)
    assert driver.launches == [first, again, again]
    assert driver.events == [("push", 1), ("pop", 1)]
    assert driver.configured == (2 if since_11_8 else 0)


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
