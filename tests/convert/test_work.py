"""Going on after a kill, what the journal promises, and folders that are refused."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from bitsanywhere.convert import quantize as module
from bitsanywhere.convert import work as work_module
from bitsanywhere.convert.options import Options
from bitsanywhere.convert.quantize import quantize
from bitsanywhere.convert.work import work_folder
from bitsanywhere.errors import CheckpointError
from tests.convert.models import CASES, save

SCRIPT = Path(__file__).with_name("killed.py")
OPTIONS = Options(double_quant=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(CASES["llama"], tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def wanted(source):
    quantize(source, source.parent / "wanted", OPTIONS)
    return contents(source.parent / "wanted")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Stop(Exception):
    """Ends a conversion in the test's own process."""


def stop_after(monkeypatch, count: int, error: type[BaseException] = Stop) -> None:
    """The conversion raises when it begins another tensor than its first ``count``."""
    begun = []
    encode = module.encode

    def limited(job, *rest):
        begun.append(job.name)
        if len(begun) > count:
            raise error
        return encode(job, *rest)

    monkeypatch.setattr(module, "encode", limited)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_three_random_points_and_resumed_gives_the_same_bytes(source, wanted, tmp_path):
    deaths = [str(random.randint(2, 24)) for _ in range(3)]
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, SCRIPT, source, tmp_path / "made", *deaths],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (deaths, done.stderr[-2000:])
    assert contents(tmp_path / "made") == wanted, deaths
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert 0 <= int(done.stdout.split()[-1]) < 21


@pytest.mark.parametrize("count", [0, 1, 9, 20])
def test_what_is_finished_is_not_done_again(source, wanted, tmp_path, monkeypatch, count):
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(Stop):
            quantize(source, tmp_path / "made", OPTIONS)
    assert not (tmp_path / "made").exists()
    summary = quantize(source, tmp_path / "made", OPTIONS)
    assert summary.resumed == count
    assert contents(tmp_path / "made") == wanted


def test_a_torn_line_of_the_journal_does_not_count(source, wanted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            quantize(source, tmp_path / "made", OPTIONS)
    journal = work_folder(tmp_path / "made") / "journal"
    journal.write_bytes(journal.read_bytes()[:-3])
    assert quantize(source, tmp_path / "made", OPTIONS).resumed == 4
    assert contents(tmp_path / "made") == wanted


def test_a_lost_file_or_plan_means_a_fresh_start(source, wanted, tmp_path, monkeypatch):
    for lost in ("result/model.safetensors", "plan.json"):
        made = tmp_path / Path(lost).stem
        with monkeypatch.context() as patch:
            stop_after(patch, 5)
            with pytest.raises(Stop):
                quantize(source, made, OPTIONS)
        (work_folder(made) / lost).unlink()
        assert quantize(source, made, OPTIONS).resumed == 0
        assert contents(made) == wanted


def test_a_line_follows_the_bytes_it_stands_for(source, tmp_path, monkeypatch):
    """Whenever the journal reaches the disk, every file of weights has done so before."""
    order = []
    sync = os.fsync
    made = work_folder(tmp_path / "made")

    def record(descriptor: int) -> None:
        sync(descriptor)
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        order.append((name, (made / "journal").stat().st_size if made.exists() else 0))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(work_module, "COMMIT_BYTES", 20_000)
    quantize(source, tmp_path / "made", OPTIONS)
    lines = 0
    for (name, size), (before, earlier) in zip(order[1:], order):
        if name == "journal" and size > earlier:
            lines += 1
            assert before == "model.safetensors"
        else:
            assert size <= earlier
    assert lines > 3
    assert order[-1][0] == tmp_path.name


def test_another_plan_is_refused(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            quantize(source, tmp_path / "made", OPTIONS)
    before = (work_folder(tmp_path / "made") / "journal").read_bytes()
    with pytest.raises(CheckpointError, match="unfinished conversion") as caught:
        quantize(source, tmp_path / "made", Options("fp4"))
    assert "delete" in caught.value.mend
    changed = source / "config.json"
    os.utime(changed, ns=(1, changed.stat().st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match="unfinished conversion"):
        quantize(source, tmp_path / "made", OPTIONS)
    assert (work_folder(tmp_path / "made") / "journal").read_bytes() == before


def test_two_at_once_are_refused(source, tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    encode = module.encode

    def second(*args):
        monkeypatch.setattr(module, "encode", encode)
        with pytest.raises(CheckpointError, match="is in use"):
            quantize(source, tmp_path / "made", OPTIONS)
        return encode(*args)

    monkeypatch.setattr(module, "encode", second)
    quantize(source, tmp_path / "made", OPTIONS)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_destination_that_exists_is_refused(source, tmp_path, kind):
    made = tmp_path / "made"
    {"file": made.touch, "folder": made.mkdir, "dangling link": lambda: made.symlink_to("no")}[
        kind
    ]()
    with pytest.raises(CheckpointError, match="made exists"):
        quantize(source, made, OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save(CASES["llama"], tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][7, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for options in (OPTIONS, Options("int8")):
        with pytest.raises(CheckpointError, match=name):
            quantize(folder, tmp_path / options.quant_type, options)
    kept = quantize(folder, tmp_path / "made", Options(skip=("layers.1.mlp.up_proj",)))
    assert len(kept.quantized.names) == 13


def test_plan_is_json_with_what_matters(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        with pytest.raises(Stop):
            quantize(source, tmp_path / "made", OPTIONS)
    plan = json.loads((work_folder(tmp_path / "made") / "plan.json").read_text())
    assert plan["options"]["double_quant"] is True
    assert [entry[0] for entry in plan["source"]] == ["config.json", "model.safetensors"]
