"""The disk cache: round trips, damage, pruning, many processes, unsafe or full disks."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import stat
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bitsanywhere.backends.cuda.jit import cache as cache_module
from bitsanywhere.backends.cuda.jit.cache import DiskCache, Image, cache_key
from bitsanywhere.errors import CacheError

KEY = "ab" * 32
IMAGE = Image("k", "sm_87", "<qqi", b"\x7fELF" + bytes(range(256)))
LIMIT = 1 << 20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "cache"


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_an_image_comes_back_in_another_process(folder):
    assert DiskCache(folder, LIMIT).get(KEY) is None
    DiskCache(folder, LIMIT).put(KEY, IMAGE)
    assert DiskCache(folder, LIMIT).get(KEY) == IMAGE
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(folder).stat().st_mode) == 0o600


def test_notes_come_back_and_damaged_ones_do_not(folder):
    DiskCache(folder, LIMIT).write_note("nvrtc", {"path": [1, [2]]})
    cache = DiskCache(folder, LIMIT)
    assert cache.read_note("nvrtc") == {"path": [1, [2]]}
    assert cache.read_note("other") == {}
    for content in (b"", b"[1]", b"\xff", b"{", b" " * (1 << 17)):
        (folder / "nvrtc.json").write_bytes(content)
        assert cache.read_note("nvrtc") == {}


def test_every_part_of_the_key_matters():
    keys = [
        cache_key("a", "sm_87", (12, 6)),
        cache_key("b", "sm_87", (12, 6)),
        cache_key("a", "compute_87", (12, 6)),
        cache_key("a", "sm_87", (12, 8)),
    ]
    assert len(set(keys)) == 4


@given(st.data())
@hypothesis_settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_file_is_never_loaded(folder, data):
    DiskCache(folder, LIMIT).put(KEY, IMAGE)
    path = only_file(folder)
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        damaged = content[:position]
    else:
        damaged = bytearray(content)
        damaged[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    assert DiskCache(folder, LIMIT).get(KEY) is None
    DiskCache(folder, LIMIT).put(KEY, IMAGE)
    assert DiskCache(folder, LIMIT).get(KEY) == IMAGE


@given(content=st.binary(max_size=200))
@hypothesis_settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_with_a_right_hash_are_still_checked(folder, content):
    DiskCache(folder, LIMIT).put(KEY, IMAGE)
    digest = cache_module.hashlib.sha256(content).digest()
    only_file(folder).write_bytes(b"BITSANY1" + digest + content)
    assert DiskCache(folder, LIMIT).get(KEY) is None


def test_a_link_or_a_pipe_is_not_read(folder, tmp_path):
    DiskCache(folder, LIMIT).put(KEY, IMAGE)
    path = only_file(folder)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert DiskCache(folder, LIMIT).get(KEY) is None
    path.unlink()
    os.mkfifo(path)
    assert DiskCache(folder, LIMIT).get(KEY) is None


def test_a_giant_file_is_not_read(folder, monkeypatch):
    DiskCache(folder, LIMIT).put(KEY, IMAGE)
    monkeypatch.setattr(cache_module, "_MOST_BYTES", 100)
    assert DiskCache(folder, LIMIT).get(KEY) is None


def test_the_least_recently_used_go_first(folder):
    big = Image("k", "sm_87", "<", bytes(300_000))
    first = DiskCache(folder, LIMIT)
    keys = [f"{i:064x}" for i in range(3)]
    for age, key in enumerate(keys):
        first.put(key, big)
        path = folder / f"{key}.kernel"
        os.utime(path, (time.time() - 1000 + age, time.time() - 1000 + age))
    # Using the oldest makes it the youngest.
    assert DiskCache(folder, LIMIT).get(keys[0]) == big
    first.put("f" * 64, big)
    left = {path.stem for path in folder.iterdir()}
    assert left == {keys[0], keys[2], "f" * 64}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMIT


def test_pruning_leaves_other_files_and_fresh_temporaries(folder):
    cache = DiskCache(folder, 1)
    for name in ("notes.txt", ".fresh.tmp", ".old.tmp"):
        (folder / name).write_bytes(bytes(1000))
    os.utime(folder / ".old.tmp", (1, 1))
    cache.put(KEY, IMAGE)
    assert {path.name for path in folder.iterdir()} == {"notes.txt", ".fresh.tmp", f"{KEY}.kernel"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("step", ["replace", "mkstemp"])
def test_a_full_or_read_only_disk_means_memory_logged_once(folder, monkeypatch, caplog, code, step):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    cache = DiskCache(folder, LIMIT)
    owner = os if step == "replace" else cache_module.tempfile
    monkeypatch.setattr(owner, step, fail)
    with caplog.at_level(logging.WARNING):
        cache.put(KEY, IMAGE)
        cache.put("cd" * 32, IMAGE)
    assert cache.get(KEY) == IMAGE
    assert list(folder.iterdir()) == []
    assert len(caplog.records) == 1
    assert "BITSANYWHERE_CACHE_DIR" in caplog.text


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_means_memory(tmp_path, caplog, place):
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / place, LIMIT)
    cache.put(KEY, IMAGE)
    assert cache.get(KEY) == IMAGE
    assert KEY in cache
    assert "other" not in cache
    assert len(caplog.records) == 1


def test_what_may_not_be_looked_for_is_not_there(folder, monkeypatch):
    cache = DiskCache(folder, LIMIT)

    def stat(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        assert KEY not in cache
    cache.put(KEY, IMAGE)
    assert KEY in DiskCache(folder, LIMIT)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720, 0o1777])
def test_a_folder_that_others_may_write_is_refused(folder, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(CacheError, match="chmod go-w"):
        DiskCache(folder, LIMIT)


def test_another_users_folder_is_refused(folder, monkeypatch):
    folder.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(CacheError, match="belongs to user"):
        DiskCache(folder, LIMIT)


def _work(folder, barrier, failures):
    try:
        barrier.wait(60)
        for number in range(6):
            key, image = f"{number:064x}", Image("k", "sm_87", "<q", bytes([number]) * 100_000)
            assert DiskCache(folder, 450_000).get(key) in (None, image)
            DiskCache(folder, 450_000).put(key, image)
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_32_processes_starting_at_once(folder):
    """They share six kernels under a bound that holds four, so that they also prune each other.

    Forked, since 32 imports of torch would take minutes on a small machine.
    """
    context = multiprocessing.get_context("fork")
    barrier, failures = context.Barrier(32), context.SimpleQueue()
    workers = [context.Process(target=_work, args=(folder, barrier, failures)) for _ in range(32)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert failures.empty() or failures.get() is None
    assert [worker.exitcode for worker in workers] == [0] * 32
    # The last to write has pruned.
    DiskCache(folder, 450_000).put(KEY, IMAGE)
    left = sorted(folder.iterdir())
    assert len(left) > 1
    assert all(path.suffix == ".kernel" for path in left)
    assert sum(path.stat().st_size for path in left) <= 450_000
    for path in left:
        assert DiskCache(folder, 450_000).get(path.stem) is not None
