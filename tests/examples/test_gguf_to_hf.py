"""Conversion of a small GGUF file that the test writes: weights, and whole or not at all."""

import pytest
import torch

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from qlora import gguf_to_hf  # noqa: E402
from qlora.errors import DemoError  # noqa: E402

from tests.convert.gguf_files import byte_tokens, small_model, write_gguf  # noqa: E402


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    model = small_model()
    write_gguf(folder / "small.gguf", model)
    return model, gguf_to_hf.convert(folder / "small.gguf", folder / "small")


def test_weights_come_back_exactly_and_logits_agree(converted):
    model, folder = converted
    back = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    ids = torch.arange(37)[None] % len(byte_tokens())
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert transformers.AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"


def test_weights_are_stored_as_bf16(converted):
    from safetensors.torch import load_file

    _, folder = converted
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_conversion_runs_once_and_again_for_another_file(converted, monkeypatch):
    _, folder = converted
    source = folder.parent / "small.gguf"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    gguf_to_hf.convert(source, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    monkeypatch.setattr(gguf_to_hf, "LAYOUT", gguf_to_hf.LAYOUT + 1)
    gguf_to_hf.convert(source, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns > before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["small", "small.gguf"]


@pytest.mark.parametrize("moment", [0, 3])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, moment):
    write_gguf(tmp_path / "small.gguf", small_model())
    left = [moment]

    def interrupt() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(gguf_to_hf, "checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gguf_to_hf.convert(tmp_path / "small.gguf", tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir()] == ["small.gguf"]


def test_wrong_files_are_refused(tmp_path):
    (tmp_path / "text.gguf").write_text("no model at all, only some words")
    with pytest.raises(DemoError, match="not a readable GGUF"):
        gguf_to_hf.convert(tmp_path / "text.gguf", tmp_path / "out")
    write_gguf(tmp_path / "other.gguf", small_model(), architecture="falcon")
    with pytest.raises(DemoError, match="falcon"):
        gguf_to_hf.convert(tmp_path / "other.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(DemoError, match="pip install"):
        gguf_to_hf.find_gguf("a-package-that-nobody-has")
