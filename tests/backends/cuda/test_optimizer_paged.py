"""Paged tensors without a GPU: where they are ordinary ones, what is refused, who knows them."""

from __future__ import annotations

import ctypes
import gc
import logging
from types import SimpleNamespace

import pytest
import torch

from bitsanywhere import functional as F
from bitsanywhere.backends.cuda import managed
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.functional import paged


def test_on_the_cpu_they_are_ordinary_and_that_is_said_once(caplog):
    paged._note.cache_clear()
    with caplog.at_level(logging.WARNING, "bitsanywhere"):
        made = [F.get_paged(3, 5, dtype=torch.uint8, device="cpu") for _ in range(2)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    for tensor in made:
        assert (tensor.shape, tensor.dtype) == ((3, 5), torch.uint8)
        assert tensor.is_paged is False
        F.prefetch_tensor(tensor)
        F.prefetch_tensor(tensor, to_cpu=True)


def test_only_tensors_from_get_paged_can_be_moved():
    with pytest.raises(InvalidArgumentError, match="not paged"):
        F.prefetch_tensor(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_elementwise_functions(dtype):
    x = F.get_paged(3, 4, dtype=dtype, device="cpu")
    F.fill(x, 7)
    assert (x == 7).all()
    F.elementwise_func("arange", x, None, 0)
    assert x.flatten().tolist() == list(range(12))
    F.elementwise_func("_mul", x, torch.full((3, 4), 2, dtype=dtype), 0)
    assert x.flatten().tolist() == list(range(0, 24, 2))
    for name, other in (("pow", x), ("_mul", None)):
        with pytest.raises(InvalidArgumentError, match=name):
            F.elementwise_func(name, x, other, 0)


def test_the_manager_knows_tensors_as_long_as_they_live(monkeypatch):
    calls = []
    fake = SimpleNamespace(
        why_not=lambda index: None,
        empty=lambda shape, dtype, index: torch.empty(shape, dtype=dtype),
        prefetch=lambda tensor, to_cpu: calls.append((tensor.shape[0], to_cpu)),
    )
    monkeypatch.setattr(paged, "_backend", lambda: fake)
    manager = F.GlobalPageManager.get_instance()
    assert manager is F.GlobalPageManager.get_instance()
    with pytest.raises(InvalidArgumentError, match="get_instance"):
        F.GlobalPageManager()
    manager.initialize()
    kept, dropped = F.get_paged(5), F.get_paged(6)
    assert kept.is_paged
    assert kept.page_deviceid == 0
    del dropped
    gc.collect()
    last = F.get_paged(7)
    assert list(map(id, manager.paged_tensors)) == [id(kept), id(last)]
    manager.prefetch_all(to_cpu=True)
    F.prefetch_tensor(kept)
    F.fill(last, 1.0)
    F.fill(last, 1.0, prefetch=False)
    assert calls == [(5, True), (7, True), (5, False), (7, False)]
    manager.initialize()
    assert manager.paged_tensors == []


def test_is_on_gpu_and_get_ptr():
    assert F.is_on_gpu([None, None])
    with pytest.raises(InvalidArgumentError, match="cpu"):
        F.is_on_gpu([None, torch.zeros(1)])
    x = torch.zeros(3)
    assert F.get_ptr(None) is None
    pointer = F.get_ptr(x)
    assert isinstance(pointer, ctypes.c_void_p)
    assert pointer.value == x.data_ptr()


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({18: 0, 83: 1, 89: 1}, None),
        ({18: 1, 83: 1, 89: 1}, "memory of the CPU"),
        ({18: 0, 83: 0, 89: 0}, "same time"),
        ({18: 0, 83: 1, 89: 0}, "same time"),
    ],
)
def test_where_there_is_managed_memory(attributes, reason, monkeypatch):
    def get_attribute(value, attribute, device):
        value._obj.value = attributes[attribute]
        return 0

    library = SimpleNamespace(cuDeviceGet=lambda *_: 0, cuDeviceGetAttribute=get_attribute)
    fake = SimpleNamespace(_library=library, check=lambda *_: None)
    monkeypatch.setattr(managed, "driver", lambda: fake)
    found = managed.why_not.__wrapped__(0)
    assert found is None if reason is None else reason in found


def test_more_than_there_is_is_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3 << 30, 4 << 30))
    monkeypatch.setattr(managed, "host_bytes", lambda: 2 << 30)
    monkeypatch.setattr(managed, "_Allocation", lambda *_: pytest.fail("allocated"))
    with pytest.raises(managed.PagedMemoryError, match=r"3\.0 GiB left and the host 2\.0 GiB"):
        managed.empty((5 << 30,), torch.uint8, 0)
    with pytest.raises(MemoryError):
        managed.empty((1 << 20, 1 << 20), torch.float32, 0)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(managed, "_CGROUP", tmp_path)
    plain = managed.host_bytes()
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert managed.host_bytes() > 1 << 20
    (tmp_path / "memory.max").write_text("5000\n")
    assert managed.host_bytes() == 4000 < plain
    (tmp_path / "memory.max").write_text("500\n")
    assert managed.host_bytes() == 0
