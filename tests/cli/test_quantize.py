"""`bitsanywhere quantize`, from arguments to a folder, a summary and an exit status."""

from __future__ import annotations

import argparse

import pytest

pytest.importorskip("transformers")

from bitsanywhere.cli import quantize
from tests.convert.models import CASES, save


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(CASES["mixtral"], tmp_path_factory.mktemp("source") / "mixtral")


def run(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="bitsanywhere quantize")
    quantize.configure_parser(parser)
    return quantize.execute(parser.parse_args([str(word) for word in words]))


def test_a_folder_is_made_and_summed_up(source, tmp_path, capsys):
    assert run(source, tmp_path / "made", "--double-quant", "--skip", " o_proj, v_proj,") == 0
    shown = capsys.readouterr().out
    assert "nf4: 4 tensors, 0.1 MB -> 0.0 MB" in shown
    assert "(asked for with --skip)\n    model.layers.*.self_attn.o_proj.weight (2)" in shown
    assert "(fused experts (3-D): bitsandbytes has no layer for them)" in shown
    assert "finished by an earlier run" not in shown
    assert (tmp_path / "made" / "config.json").is_file()


def test_int8_and_gguf(tmp_path, capsys):
    pytest.importorskip("gguf")
    from tests.convert.gguf_files import small_model, write_gguf

    path = write_gguf(tmp_path / "small.gguf", small_model())
    assert run(path, tmp_path / "made", "--quant-type", "int8") == 0
    assert "int8: 14 tensors" in capsys.readouterr().out
    assert (tmp_path / "made" / "tokenizer.json").is_file()
    assert (tmp_path / "made" / "generation_config.json").is_file()


def test_errors_are_one_message_and_status_1(source, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for words, message in [
        ((source, tmp_path / "there"), "there exists"),
        ((tmp_path / "no", tmp_path / "made"), "neither a folder nor"),
        ((tmp_path / "there", tmp_path / "made"), "holds neither"),
        ((source, tmp_path / "made", "--skip", "nothing"), "fits no linear layer"),
        ((source, tmp_path / "made", "--quant-type", "int8", "--double-quant"), "4-bit formats"),
    ]:
        assert run(*words) == 1
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ")
        assert message in shown.err
        assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_write_error_is_a_message_too(source, tmp_path, monkeypatch, capsys):
    from bitsanywhere.convert import work

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(work.Work, "write", full)
        assert run(source, tmp_path / "made") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert run(source, tmp_path / "made") == 0


def test_ctrl_c_leaves_what_is_done_and_says_so(source, tmp_path, monkeypatch, capsys):
    from bitsanywhere.convert import quantize as module

    encode = module.encode
    begun = []

    def interrupted(job, *rest):
        begun.append(job.name)
        if len(begun) == 6:
            raise KeyboardInterrupt
        return encode(job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", interrupted)
        assert run(source, tmp_path / "made") == 130
    assert f"goes on from {tmp_path / '.made.quantizing'}" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    assert run(source, tmp_path / "made") == 0
    assert "5 tensors were finished by an earlier run" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    "words", [(), ("a",), ("a", "b", "--quant-type", "int4"), ("a", "b", "--device", "tpu")]
)
def test_bad_usage_is_status_2(words):
    with pytest.raises(SystemExit) as info:
        run(*words)
    assert info.value.code == 2
