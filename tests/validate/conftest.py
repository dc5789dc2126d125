"""A tiny random Llama that knows the problems' words, and the fixtures that run suites on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bitsanywhere.validate.job import Job
from bitsanywhere.validate.plan import BF16, Plan, Settings
from bitsanywhere.validate.sorites.wording import HELD_OUT, TRAINING

TINY = Settings(
    block_tokens=128, resamples=50, steps=3, batch=2, renderings=1, written_tokens=3,
    generated_tokens=4, prefill_tokens=24, speed_steps=2, gaussian_rows=1024,
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 Llama of two layers; no dimension is a multiple of the blocksize."""
    for package in ("transformers", "peft", "accelerate"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        hidden_size=96, intermediate_size=200, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(_tokenizer()), max_position_embeddings=1024,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """One token a word, those of the problems; without a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    template = "All No None of the There are no that Every one is Only not . Conclusion : clock"
    words = f"{HELD_OUT.sorts} {HELD_OUT.properties} {TRAINING.sorts} {TRAINING.properties}"
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *f"{template} {words}".split()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


@pytest.fixture
def ours_as_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This library under the name bitsandbytes, whatever was imported before."""
    import sys

    from bitsanywhere import compat

    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    compat.install(force=True)
    yield
    compat.install(force=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def tiny_plan(tiny_folder: Path, tmp_path: Path) -> Plan:
    """A plan of every suite on the tiny model, with small settings."""
    return Plan(tiny_folder, tmp_path / "out", "cpu", settings=TINY)


@pytest.fixture(scope="session")
def made_up() -> Callable[[Job], dict[str, Any]]:
    """A runner that measures nothing: plausible results of the columns asked for."""
    return _made_up


def _made_up(job: Job) -> dict[str, Any]:
    rows = [[-1.0, -2.0, -2.0, -2.0], [-3.0, -2.0, -2.0, -2.5]] * 29
    offset = 0.0 if job.columns == (BF16,) else 0.001
    results: dict[str, Any] = {
        "roundtrip": {
            "formats": ["nf4"], "measured": [0.0921], "theory": [0.09198], "names": ["a", "b"],
            "errors": [0.093, 0.094], "best": [0.0929, 0.094], "left_out": [],
        },
        "logits": {
            "tokens": [10, 11], "nll": [30.0 + offset, 33.0], "kl": [0.1, 0.3], "agree": [9, 10],
        },
        "training": {
            "losses": [2.0 + offset, 1.0], "answer_losses": [1.0, 0.5], "likelihoods": rows,
        },
        "carroll": {"likelihoods": rows, "answers": ["x"] * 16, "keywords": [0.5] * 16},
        "speed": {
            "load_seconds": 1.0, "prefill": 100.0, "generation": 10.0, "step_seconds": 0.1,
            "losses": [1.0], "linear_bytes": 1000 if job.columns == (BF16,) else 258,
            "linear_weights": 500, "peak_inference": 5000, "peak_training": 6000,
        },
    }  # fmt: skip
    return {column: {"result": results[job.suite], "seconds": 1.5} for column in job.columns}
