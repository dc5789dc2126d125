"""Adapters on a 4-bit model: training and merging; each function is one check of scenario.py."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import Trainer, TrainingArguments

TARGETS = ["q_proj", "v_proj", "down_proj"]


def check_prepare_for_kbit_training(here: Any) -> None:
    """Everything is frozen, float parameters are float32, codes stay codes."""
    model = tiny.load_4bit(here.float_folder)
    codes = {name: layer.weight.data.clone() for name, layer in tiny.linears(model).items()}
    model = prepare_model_for_kbit_training(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.model.norm.weight.dtype == torch.float32
    for name, layer in tiny.linears(model).items():
        assert torch.equal(layer.weight.data, codes[name])


def check_lora_training(here: Any) -> None:
    """The loss falls and the base stays, bit by bit."""
    _train(here, use_dora=False)


def check_dora_training(here: Any) -> None:
    """As LoRA; DoRA dequantizes the weight to take its norm."""
    _train(here, use_dora=True)


def check_trainer(here: Any) -> None:
    """transformers.Trainer trains the adapter."""
    model = _adapted(here)
    data = Dataset.from_list([{k: v[0].tolist() for k, v in tiny.batch().items()}] * 4)
    arguments = TrainingArguments(
        output_dir=str(here.work / "trainer"), per_device_train_batch_size=2, max_steps=4,
        learning_rate=1e-2, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    fell([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def check_sft_trainer(here: Any) -> None:
    """trl.SFTTrainer makes the adapter itself and trains it."""
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(here.work / "sft"), per_device_train_batch_size=2, max_steps=4,
        learning_rate=1e-2, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False, max_length=32,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=tiny.load_4bit(here.float_folder),
        args=arguments,
        train_dataset=Dataset.from_list([{"text": tiny.TEXT}] * 4),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )
    trainer.train()
    fell([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def check_merge_before_and_after_eval(here: Any) -> None:
    """Merging is within 4-bit error of base + adapter, the same after an eval forward."""
    inputs = {"input_ids": tiny.batch()["input_ids"]}
    merged = []
    for forward_first in (False, True):
        model = _adapted(here, trained=True).eval()
        wanted = {
            name: _dequantized(layer.base_layer) + layer.get_delta_weight("default")
            for name, layer in model.named_modules()
            if hasattr(layer, "get_delta_weight")
        }
        assert len(wanted) == 2 * len(TARGETS)
        if forward_first:
            with torch.no_grad():
                model(**inputs)
        model = model.merge_and_unload()
        for name, weight in wanted.items():
            layer = model.get_submodule(name.removeprefix("base_model.model."))
            assert tiny.relative_error(_dequantized(layer), weight) < 0.12, name
        with torch.no_grad():
            merged.append(model(**inputs).logits)
    assert torch.equal(*merged)


def check_unmerge(here: Any) -> None:
    """Merging and unmerging an adapter after an eval forward returns to within 4-bit error."""
    model = _adapted(here, trained=True).eval()
    before = {name: _dequantized(layer) for name, layer in tiny.linears(model).items()}
    with torch.no_grad():
        model(**tiny.batch())
    model.merge_adapter()
    model.unmerge_adapter()
    for name, layer in tiny.linears(model).items():
        assert tiny.relative_error(_dequantized(layer), before[name]) < 0.2, name


def check_adapter_save_and_load(here: Any) -> None:
    """An adapter saved from one 4-bit model computes the same on another."""
    from peft import PeftModel

    inputs = {"input_ids": tiny.batch()["input_ids"]}
    model = _adapted(here, trained=True).eval()
    model.save_pretrained(here.work / "adapter")
    other = PeftModel.from_pretrained(tiny.load_4bit(here.float_folder), here.work / "adapter")
    with torch.no_grad():
        assert torch.equal(other.eval()(**inputs).logits, model(**inputs).logits)


def _adapted(here: Any, trained: bool = False, **options: Any) -> Any:
    """A fresh 4-bit model with an adapter; ``trained`` gives it weights that do something."""
    model = adapter_of(tiny.load_4bit(here.float_folder), **options)
    if trained:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def _train(here: Any, **options: Any) -> None:
    model = _adapted(here, **options).train()
    codes = {name: layer.weight.data.clone() for name, layer in tiny.linears(model).items()}
    fell(steps(model))
    assert len(codes) == 14
    for name, layer in tiny.linears(model).items():
        assert torch.equal(layer.weight.data, codes[name])


def adapter_of(model: Any, **options: Any) -> Any:
    """The model with a fresh adapter."""
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM", **options)
    return get_peft_model(model, config)


def steps(model: Any) -> list[float]:
    """The losses of four steps on one example."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**tiny.batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def fell(losses: list[float]) -> None:
    """Four losses, the last clearly below the first."""
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.05, losses


def _dequantized(layer: Any) -> torch.Tensor:
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
