"""The result is what transformers with stock bitsandbytes writes, and loads with both libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

from bitsanywhere.convert import encode, layout
from bitsanywhere.convert.hf_model import EMBEDDING, EXPERTS, HEAD, REARRANGED, SKIPPED
from bitsanywhere.convert.options import Options
from bitsanywhere.convert.quantize import quantize
from bitsanywhere.errors import DiskSpaceError
from tests.convert.models import CASES, save

SCRIPT = Path(__file__).with_name("stock.py")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Every case: X/source, X/ours, and what was said about it."""
    folder = tmp_path_factory.mktemp("quantize")
    summaries = {}
    # So that the tensors of these models, too, are taken in several slices.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SLICE_ELEMENTS", 5000)
        for name, case in CASES.items():
            source = save(case, folder / name / "source")
            summaries[name] = quantize(source, folder / name / "ours", case.options)
            if case.options.skip or case.model == "dinov2":
                (folder / name / "explicit").touch()
    return folder, summaries


def load_with(way: str, folder: Path) -> None:
    environment = dict(
        os.environ, BITSANYWHERE_BACKEND="0", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS=str(torch.get_num_threads()),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, SCRIPT, way, folder],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def stock(work):
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    load_with("bitsandbytes", work[0])
    return work[0]


@pytest.fixture(scope="module")
def ours(work):
    load_with("bitsanywhere", work[0])
    return work[0]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


# On CPUs bitsandbytes 0.50.2 cannot compute with blocks that span rows.
COMPUTABLE = [name for name in CASES if name != "llama_odd"]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", CASES)
def test_tensors_are_those_that_transformers_saves(stock, name):
    given, wanted = tensors(stock / name / "ours"), tensors(stock / name / "stock")
    assert given.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (given[key].dtype, given[key].shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(as_bytes(given[key]), as_bytes(tensor)), key


@pytest.mark.parametrize("name", CASES)
def test_config_is_the_one_that_transformers_saves(stock, name):
    given = json.loads((stock / name / "ours" / "config.json").read_text())
    wanted = json.loads((stock / name / "stock" / "config.json").read_text())
    skipped = given["quantization_config"].pop("llm_int8_skip_modules")
    assert "lm_head" in skipped or "layernorm.bias" in skipped
    del wanted["quantization_config"]["llm_int8_skip_modules"]
    assert given == wanted


@pytest.mark.parametrize("name", COMPUTABLE)
def test_logits_are_those_of_a_model_quantized_at_load(stock, name):
    given = torch.load(stock / name / "logits_bitsandbytes.pt")
    wanted = torch.load(stock / name / "logits_quantized_at_load.pt")
    assert wanted.isfinite().all()
    assert wanted.std() > 0.01
    assert torch.equal(given, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in COMPUTABLE if CASES[n].options.quant_type != "int8"])
def test_logits_in_4_bits_differ_by_what_each_library_rounds(stock, ours, name):
    """Apart by no more than both are from the same weights in float32."""
    given = torch.load(ours / name / "logits_bitsanywhere.pt").double()
    wanted = torch.load(stock / name / "logits_bitsandbytes.pt").double()
    exact = torch.load(ours / name / "logits_float32.pt").double()
    rounding = (wanted - exact).norm()
    assert rounding < 0.05 * exact.norm()
    summing = 1e-5 * exact.norm()
    assert (given - exact).norm() <= 1.25 * rounding + summing
    assert (given - wanted).norm() <= 1.5 * rounding + summing


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].options.quant_type == "int8"])
def test_logits_in_int8_are_bit_equal_between_the_libraries(stock, ours, name):
    given = torch.load(ours / name / "logits_bitsanywhere.pt")
    assert given.isfinite().all()
    assert torch.equal(given, torch.load(stock / name / "logits_bitsandbytes.pt"))


@pytest.mark.parametrize("name", CASES)
def test_summary_counts_what_was_done(work, name):
    folder, summaries = work
    summary = summaries[name]
    quantized, experts = CASES[name].counts
    assert len(summary.quantized.names) == quantized
    assert len(summary.kept[EXPERTS].names if EXPERTS in summary.kept else []) == experts
    files = list((folder / name / "ours").glob("*.safetensors"))
    assert summary.file_bytes == sum(path.stat().st_size for path in files)
    source = tensors(folder / name / "source").values()
    assert summary.bytes_before == sum(tensor.nbytes for tensor in source)
    assert summary.unused == []


def test_summary_says_why(work):
    _, summaries = work
    assert summaries["llama"].kept[EMBEDDING].names == ["model.embed_tokens.weight"]
    assert summaries["llama"].kept[HEAD].names == ["lm_head.weight"]
    assert len(summaries["llama_skip"].kept[SKIPPED].names) == 5
    assert len(summaries["dinov2"].kept[REARRANGED].names) == 2
    text = summaries["mixtral"].text()
    assert "bitsandbytes has no layer for them" in text
    assert "experts.*.w1.weight (4)" in text


def test_tokenizer_and_generation_files_follow_and_others_do_not(tmp_path):
    source = save(CASES["llama"], tmp_path / "source")
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer.model", "LICENSE"):
        (source / name).write_text(name)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("tool")
    for name in ("modeling_evil.py", "pytorch_model.bin", "training_args.bin", "run.sh"):
        (source / name).write_text("no")
    quantize(source, tmp_path / "made", Options())
    assert {str(p.relative_to(tmp_path / "made")) for p in (tmp_path / "made").rglob("*")} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "chat_template.jinja", "tokenizer.model", "LICENSE", "additional_chat_templates",
        "additional_chat_templates/tool.jinja",
    }  # fmt: skip
    assert (tmp_path / "made" / "tokenizer.model").read_text() == "tokenizer.model"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_large_result_is_cut_into_files_with_an_index(work, tmp_path, monkeypatch):
    folder, _ = work
    monkeypatch.setattr(layout, "SHARD_BYTES", 40_000)
    quantize(folder / "llama" / "source", tmp_path / "made", Options(double_quant=True))
    files = sorted(path.name for path in (tmp_path / "made").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    given, wanted = tensors(tmp_path / "made"), tensors(folder / "llama" / "ours")
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[key], wanted[key]) for key in wanted)
    index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
    for name in files:
        held = {key for key, file in index["weight_map"].items() if file == name}
        assert held == load_file(tmp_path / "made" / name).keys()


def test_a_full_disk_is_said_before_anything_is_written(work, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskSpaceError, match="1,000 are available") as caught:
        quantize(work[0] / "llama" / "source", tmp_path / "made", Options())
    assert caught.value.available == 1000
    assert caught.value.needed > 100_000
    assert list(tmp_path.iterdir()) == []
