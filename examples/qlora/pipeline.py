"""The demo's stages in order; every result ends up in one dictionary, which the report draws."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import merging
from .evaluation import Scores, perplexity, sample_answer, score
from .files import check_model_folder, whole_folder
from .gguf_to_hf import convert, find_gguf
from .stages import Log, release
from .syllogisms import Item, generate
from .training import BATCH, build_trainer, compute_dtype, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT = resources.files("bitsanywhere.validate") / "text" / "harbour.txt"
QUESTION = "What is the capital of France, and what is it known for?"
HELD_OUT = 64
PROBES = 6


@dataclass(frozen=True)
class Settings:
    """What the command line chose. `model` is None for the packaged model."""

    model: Path | None
    device: str
    out: Path
    work: Path
    steps: int
    library: str
    seed: int = 0


def run(settings: Settings, written: list[Path]) -> dict[str, Any]:
    """Do the whole demo; return the results. Writes the adapter and the merged model.

    Every folder that is complete is appended to `written` at once, so that a caller knows what
    there is when this raises.
    """
    log = Log(settings.device)
    log.start()
    try:
        results = _run(settings, written, log)
    finally:
        log.stop()
    return results | log.as_dict()


def _run(settings: Settings, written: list[Path], log: Log) -> dict[str, Any]:
    folder = _model_folder(settings, written, log)
    with log.stage("Importing the model's code, preparing kernels (compiled once)"):
        tokenizer = load_tokenizer(folder)
        _warm_up(folder, settings.device)
    held_out = generate(HELD_OUT, seed=settings.seed, held_out=True)

    models: dict[str, Any] = {}
    model, bf16_logits = _examine(settings, folder, tokenizer, held_out, False, models, log)
    del model
    release()
    model, nf4_logits = _examine(settings, folder, tokenizer, held_out, True, models, log)
    first_error = merging.difference(nf4_logits, bf16_logits)

    with log.stage("Scoring the 4-bit model before training"):
        before = _score(model, tokenizer, held_out)
    trained, training = _train(settings, model, tokenizer, log)
    with log.stage("Scoring it after training"):
        after = _score(trained, tokenizer, held_out)
        trained_logits = merging.probe(trained, tokenizer, held_out[:PROBES])

    adapter = settings.out / "adapter"
    with log.stage("Saving the adapter"), whole_folder(adapter) as temporary:
        merging.save_adapter(trained, temporary)
    written.append(adapter)
    del model, trained
    release()

    checks, merged_scores = _merge(
        settings, folder, tokenizer, held_out, trained_logits, nf4_logits, first_error, written, log
    )
    all_scores = {"before": before, "after": after, **merged_scores}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "library": settings.library,
        "versions": _versions(),
        "machine": _machine(settings.device),
        "model": folder.name,
        "text": TEXT.name,
        "question": QUESTION,
        "models": models,
        "training": training,
        "scores": {name: scores.as_dict() for name, scores in all_scores.items()},
        "items": [
            {"question": i.question, "answer": i.answer} for i in held_out[: len(after.answers)]
        ],
        "checks": [check.as_dict() for check in checks],
        "written": [str(path) for path in written],
    }


def _model_folder(settings: Settings, written: list[Path], log: Log) -> Path:
    if settings.model is not None:
        check_model_folder(settings.model)
        return settings.model
    source = find_gguf()
    folder = settings.work / source.stem
    with log.stage("Converting the packaged GGUF to a bf16 folder (once)"):
        convert(source, folder)
    written.append(folder)
    check_model_folder(folder)
    return folder


def _warm_up(folder: Path, device: str) -> None:
    """Import the model's code and run one small 4-bit layer, so that load times are load times."""
    import torch
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    dtype = compute_dtype(device)
    layer = Linear4bit(
        256,
        128,
        bias=False,
        compute_dtype=dtype,
        quant_type="nf4",
        compress_statistics=True,
    ).to(dtype)
    layer = layer.to(device)
    for rows in (1, 4, 64):
        inputs = torch.ones(rows, 256, dtype=dtype, device=device, requires_grad=True)
        layer(inputs).sum().backward()
        with torch.inference_mode():
            layer.eval()(inputs)
        layer.train()


def _examine(
    settings: Settings,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Item],
    four_bit: bool,
    models: dict[str, Any],
    log: Log,
) -> tuple[PreTrainedModel, torch.Tensor]:
    name = "nf4" if four_bit else "bf16"
    title = "4-bit NF4, double quantization" if four_bit else "bf16"
    with log.stage(f"Loading the model in {title}") as loading:
        model = load_model(folder, settings.device, four_bit=four_bit)
    with log.stage("Reading the text and answering a question"):
        models[name] = {
            "title": title,
            "bytes": model_bytes(model),
            "linear_bytes": model_bytes(model, linear_only=True),
            "load_seconds": loading.seconds,
            "perplexity": perplexity(model, tokenizer, TEXT.read_text(encoding="utf-8")),
            "answer": sample_answer(model, tokenizer, QUESTION),
        }
        logits = merging.probe(model, tokenizer, held_out[:PROBES])
    return model, logits


def _score(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> Scores:
    from tqdm import tqdm

    with tqdm(total=len(items), desc="  scoring", unit="item", dynamic_ncols=True) as bar:
        return score(model, tokenizer, items, step=bar.update)


def _train(
    settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, log: Log
) -> tuple[Any, dict[str, Any]]:
    items = generate(settings.steps * BATCH, seed=settings.seed)
    with (
        log.stage(f"QLoRA: {settings.steps} steps of {BATCH} syllogisms") as stage,
        tempfile.TemporaryDirectory() as scratch,
    ):
        trainer = build_trainer(
            model, tokenizer, items, steps=settings.steps, scratch=Path(scratch), seed=settings.seed
        )
        trainer.train()
    trained = trainer.model
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    return trained, {
        "steps": settings.steps,
        "batch": BATCH,
        "items": len(items),
        "seconds": stage.seconds,
        "adapter_parameters": sum(p.numel() for p in trained.parameters() if p.requires_grad),
        "losses": losses,
    }


def _merge(
    settings: Settings,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Item],
    trained: torch.Tensor,
    untrained: torch.Tensor,
    first_error: float,
    written: list[Path],
    log: Log,
) -> tuple[list[merging.Check], dict[str, Scores]]:
    """Reload the adapter, merge it in both ways, write the bf16 merge; return checks and scores."""
    probes = held_out[:PROBES]
    with log.stage("Reloading the adapter on a fresh 4-bit model, merging it into 4 bits"):
        model = merging.attach(
            load_model(folder, settings.device, four_bit=True), settings.out / "adapter"
        )
        reloaded = merging.probe(model, tokenizer, probes)
        expected = merging.expected_weights(model)
        merged = model.merge_and_unload()
        merged_logits = merging.probe(merged, tokenizer, probes)
        rounding = merging.weight_error(merged, expected)
        nf4_scores = _score(merged, tokenizer, held_out)
        del model, merged
        release()

    final = settings.out / "merged"
    with log.stage("Merging it into bf16 weights and saving the model"):
        base = load_model(folder, settings.device, four_bit=True).dequantize()
        whole = merging.attach(base, settings.out / "adapter").merge_and_unload()
        with whole_folder(final) as temporary:
            whole.bfloat16().save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        written.append(final)
        del base, whole
        release()
    with log.stage("Loading the merged model and scoring it"):
        whole = load_model(final, settings.device, four_bit=False)
        whole_logits = merging.probe(whole, tokenizer, probes)
        bf16_scores = _score(whole, tokenizer, held_out)

    checks = merging.checks(
        trained=trained,
        reloaded=reloaded,
        merged_bf16=whole_logits,
        merged_nf4=merged_logits,
        untrained=untrained,
        first_error=first_error,
        weight_error=rounding,
        device=settings.device,
    )
    return checks, {"merged_bf16": bf16_scores, "merged_nf4": nf4_scores}


def model_bytes(model: torch.nn.Module, *, linear_only: bool = False) -> int:
    """Bytes of all parameters, statistics of the 4-bit ones included; shared ones count once.

    What is held in float32 for the arithmetic alone counts as bf16.
    """
    import torch

    seen: dict[int, int] = {}
    for module in model.modules():
        if linear_only and not isinstance(module, torch.nn.Linear):
            continue
        for parameter in module.parameters(recurse=False):
            size = min(parameter.itemsize, 2) * parameter.numel()
            seen[parameter.data_ptr()] = size + _state_bytes(parameter)
    if linear_only:
        tied = model.get_output_embeddings()
        seen.pop(tied.weight.data_ptr(), None)
    return sum(seen.values())


def _state_bytes(parameter: torch.nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return 0
    held = state.absmax.nbytes + state.code.nbytes
    if state.nested:
        held += state.state2.absmax.nbytes + state.state2.code.nbytes + state.offset.nbytes
    return held


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "trl", "accelerate", "numba", "cuda-core")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _machine(device: str) -> dict[str, Any]:
    import torch

    machine = {"device": device, "system": f"{platform.system()} {platform.machine()}"}
    machine["arithmetic"] = str(compute_dtype(device)).removeprefix("torch.")
    if device == "cuda":
        machine["name"] = torch.cuda.get_device_name()
    else:
        machine["name"] = _processor()
        machine["threads"] = torch.get_num_threads()
    return machine


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
