"""Suite `speed`: tokens per second, training steps and memory, each column in a process alone."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from bitsanywhere.validate.adapters import train, with_adapter
from bitsanywhere.validate.plan import BF16, OURS, PEER, Line, Settings
from bitsanywhere.validate.subject import Subject, now

COLUMNS = (BF16, OURS, PEER)
ALONE = True
ALLOWED_BYTES, BF16_BYTES = 0.26, 2
ALLOWED_SLOWER = 0.10
PROMPT, BATCH, LENGTH, REPEATS = 16, 4, 128, 3


@dataclass(frozen=True)
class Result:
    """One column's figures.

    Attributes:
        load_seconds: from files to a model on the device, quantization included.
        prefill: tokens a second of one prompt.
        generation: tokens a second of greedy writing, one sequence.
        step_seconds: median of a LoRA step of 4 sequences of 128 random tokens.
        losses: of those steps.
        linear_bytes: of the weights of linear layers but the last, with their statistics.
        linear_weights: how many weights these are.
        peak_inference: bytes; what torch held at most on a GPU, else the process.
        peak_training: the same over training as well.
    """

    load_seconds: float
    prefill: float
    generation: float
    step_seconds: float
    losses: tuple[float, ...]
    linear_bytes: int
    linear_weights: int
    peak_inference: int
    peak_training: int


def measure(subject: Subject) -> Result:
    """Loads, reads, writes; loads again and trains. Every shape runs once before it is timed.

    Training has a model of its own, since bitsandbytes on some CPUs repacks the weights of one
    that has been read with, and then has no gradients.
    """
    figures = _inference(subject)
    gc.collect()
    losses, step = _training(subject.model(), subject.settings, subject.device)
    peak = peak_bytes(subject.device)
    return Result(**figures, step_seconds=step, losses=losses, peak_training=peak)


def _inference(subject: Subject) -> dict[str, Any]:
    """The figures of `Result` that need no training."""
    settings, device = subject.settings, subject.device
    begun = now(device)
    model: Any = subject.model()
    loaded = now(device) - begun
    layers = linear_layers(model)
    held = sum(layer.weight.nbytes + _statistics_bytes(layer.weight) for layer in layers)
    ids = _random_ids(model, (1, settings.prefill_tokens), settings.seed)
    tokens = settings.generated_tokens
    with torch.inference_mode():
        model(ids, use_cache=True)
        prefill = statistics.median(_timed(device, lambda: model(ids)) for _ in range(REPEATS))
        generation = _generation_seconds(model, ids[:, :PROMPT], tokens, device)
    return {
        "load_seconds": loaded,
        "prefill": settings.prefill_tokens / prefill,
        "generation": tokens / generation,
        "linear_bytes": held,
        "linear_weights": sum(layer.in_features * layer.out_features for layer in layers),
        "peak_inference": peak_bytes(device),
    }


def _random_ids(model: Any, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    return ids.to(model.device)


def _timed(device: str, call: Any) -> float:
    begun = now(device)
    call()
    return now(device) - begun


def _generation_seconds(model: Any, ids: torch.Tensor, tokens: int, device: str) -> float:
    def write() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )

    write()
    return statistics.median(_timed(device, write) for _ in range(REPEATS))


def _training(model: Any, settings: Settings, device: str) -> tuple[tuple[float, ...], float]:
    """Losses of the steps, and the median time of all but the first."""
    adapted = with_adapter(model, settings.seed)
    batches = []
    for i in range(settings.speed_steps + 1):
        ids = _random_ids(model, (BATCH, LENGTH), settings.seed + i)
        every = torch.ones_like(ids)
        batches.append({"input_ids": ids, "attention_mask": every, "answers": every})
    losses, times, begun = [], [], now(device)
    steps = train(adapted, batches, settings.learning_rate)
    for loss in tqdm(steps, total=len(batches), desc="LoRA steps", leave=False):
        ended = now(device)
        losses.append(loss.every)
        times.append(ended - begun)
        begun = ended
    return tuple(losses[1:]), statistics.median(times[1:])


def linear_layers(model: Any) -> list[Any]:
    """The model's linear layers but the last."""
    last = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not last]


def _statistics_bytes(weight: Any) -> int:
    state = getattr(weight, "quant_state", None)
    if state is None:
        return 0
    held = [state.absmax]
    if state.nested:
        held += [state.state2.absmax, state.offset]
    return sum(tensor.nbytes for tensor in held)


def peak_bytes(device: str) -> int:
    """The most that torch has held on the GPU, or the process in memory, so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def judge(columns: Mapping[str, Result], settings: Settings) -> tuple[Line, ...]:
    """The format's size; and no slower than bitsandbytes, where that was measured."""
    ours, peer = columns[OURS], columns.get(PEER)
    lines = [
        Line(
            "bytes of quantized layers over those of bf16",
            ours.linear_bytes / (BF16_BYTES * ours.linear_weights),
            ALLOWED_BYTES,
            "4 bits and 8.125 / 64 of statistics a weight make 0.258",
            peer.linear_bytes / (BF16_BYTES * peer.linear_weights) if peer else None,
        )
    ]
    if peer:
        why = "bitsandbytes' time, measured beside it; one run each, so 10 % are noise"
        slower = {
            "generation": peer.generation / ours.generation,
            "prefill": peer.prefill / ours.prefill,
            "training step": ours.step_seconds / peer.step_seconds,
        }
        lines += [
            Line(f"{name}: time over bitsandbytes', less one", ratio - 1, ALLOWED_SLOWER, why)
            for name, ratio in slower.items()
        ]
    return tuple(lines)
