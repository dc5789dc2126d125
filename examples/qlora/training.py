"""Loading the model, in bf16 or 4-bit, and fine-tuning it by LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DemoError
from .evaluation import messages
from .files import checkpoint
from .syllogisms import Item

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTTrainer

BATCH = 8


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; DemoError if it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.chat_template is None:
        raise DemoError(f"the tokenizer in {folder} has no chat template", "use an instruct model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def compute_dtype(device: str) -> torch.dtype:
    """bfloat16, or float32 on a processor that has no instructions for bfloat16: torch then takes
    more than a minute for a training step."""
    import torch

    from bitsanywhere.validate.machine import arithmetic

    return getattr(torch, arithmetic(device))


def load_model(folder: Path, device: str, *, four_bit: bool) -> PreTrainedModel:
    """The folder's model in bf16, or with its linear layers in NF4 with double quantization.

    What is bf16 is widened to `compute_dtype`.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = compute_dtype(device)
    extra: dict[str, Any] = {}
    if four_bit:
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": torch.device(device)},
        local_files_only=True,
        **extra,
    )
    return model.eval()


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    steps: int,
    scratch: Path,
    seed: int = 0,
) -> SFTTrainer:
    """A ready SFTTrainer: LoRA of rank 16 on every linear layer, loss on the answers alone.

    `model` may be 4-bit (QLoRA) or bf16; adapter weights have the dtype that both compute in, so
    that a step of the one differs from a step of the other in the frozen weights only. The trainer
    writes nothing, not even into `scratch`. `trainer.model` is the PeftModel; `trainer.train()`
    trains it.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback
    from trl import SFTConfig

    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    rows = [
        {"prompt": messages(item), "completion": [{"role": "assistant", "content": item.answer}]}
        for item in items
    ]
    settings = SFTConfig(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 15),
        max_grad_norm=1.0,
        logging_steps=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        dataset_num_proc=None,
        max_length=512,
    )
    trainer = _trainer_class()(
        model=get_peft_model(model, lora, autocast_adapter_dtype=False),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_progress_callback(steps)],
    )
    # trl rounds them to bfloat16, in which they would then be multiplied too.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(compute_dtype(model.device.type))
    trainer.remove_callback(PrinterCallback)
    return trainer


@cache
def _trainer_class() -> type[SFTTrainer]:
    import torch
    from trl import SFTTrainer

    class AnswerTrainer(SFTTrainer):
        """SFTTrainer that computes logits only where some answer of the batch has a token.

        Off the GPU, SFTTrainer computes the 49,152 logits of every position, those of the
        question included, and drops most of them: over half of a step's time here.
        """

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            targets = inputs["labels"][:, 1:]
            wanted = (targets != -100).any(dim=0).nonzero().flatten()
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                logits_to_keep=wanted,
                use_cache=False,
            )
            targets = targets[:, wanted]
            total = torch.nn.functional.cross_entropy(
                outputs.logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
            )
            count = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
            loss = total / count
            return (loss, outputs) if return_outputs else loss

    return AnswerTrainer


def _progress_callback(steps: int) -> Any:
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """One bar with the latest loss; ends training if a Ctrl-C got lost in foreign code."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = tqdm(total=steps, desc="  training", unit="step", dynamic_ncols=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update()
            checkpoint()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    return Progress()
