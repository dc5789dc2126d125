"""`quantize`: a checkpoint in, a quantized checkpoint out, for machines smaller than the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from bitsanywhere.checkpoint import STATE_PREFIX
from bitsanywhere.convert.encode import encode
from bitsanywhere.convert.hf_model import Decisions, Job, decide, transformers
from bitsanywhere.convert.layout import Layout, plan_layout, results_of
from bitsanywhere.convert.options import Options
from bitsanywhere.convert.sources import CONFIG_FILE, Source, open_source
from bitsanywhere.convert.summary import Group, Summary
from bitsanywhere.convert.work import Work, refuse_existing
from bitsanywhere.version import __version__


def quantize(
    source: Path | str, destination: Path | str, options: Options, progress: bool = False
) -> Summary:
    """Makes a folder that transformers loads as a 4-bit or 8-bit model with any bitsandbytes.

    The tensors are what ``from_pretrained(quantization_config=...)`` and ``save_pretrained`` of
    transformers write, bit by bit. Memory is needed for some rows of one tensor at a time. If the
    call is interrupted or killed, the same call goes on where it was.

    Args:
        source: a Hugging Face folder with safetensors, or a GGUF file of a Llama-like model.
        destination: a folder that does not exist yet; it appears when it is whole.
        options: what to make.
        progress: show a bar with bytes and the time left, where stderr is a terminal.

    Raises:
        CheckpointError: the source cannot be converted, or the destination cannot be made.
        DiskSpaceError: the result does not fit on the disk.
        MissingPackageError: transformers or, for a GGUF file, gguf is not installed.
    """
    source, destination = Path(source), Path(destination)
    refuse_existing(destination)
    opened = open_source(source)
    decisions = decide(opened.config(), opened.tensors, options)
    layout = plan_layout(decisions.jobs, opened.tensors, options)
    with Work(destination, layout, _plan(opened, options)) as work:
        resumed = len(work.states)
        _encode_all(opened, decisions, options, work, progress)
        states = {
            f"{name}.{STATE_PREFIX}{options.quant_type}": state
            for name, state in work.states.items()
            if state is not None
        }
        file_bytes = work.complete(states)
        opened.write_companions(work.result)
        decisions.config.to_json_file(work.result / CONFIG_FILE)
        work.publish()
    summary = _summary(opened, decisions, options, layout)
    summary.destination, summary.file_bytes = str(destination), file_bytes
    summary.resumed = resumed
    return summary


def _plan(source: Source, options: Options) -> dict[str, Any]:
    """What must be the same for a started conversion to go on."""
    versions = [__version__, torch.__version__, transformers.__version__]
    return {"source": source.identity(), "options": asdict(options), "versions": versions}


def _encode_all(
    source: Source, decisions: Decisions, options: Options, work: Work, progress: bool
) -> None:
    def size(job: Job) -> int:
        return source.tensors[job.name].file_bytes

    left = [job for job in decisions.jobs if job.name not in work.states]
    total = sum(map(size, decisions.jobs))
    with tqdm(
        desc="Quantizing",
        total=total,
        initial=total - sum(map(size, left)),
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    ) as bar:
        for job in left:
            state = encode(job, source, options, work.write, bar.update)
            work.finish(job.name, state)
    work.commit()


def _summary(source: Source, decisions: Decisions, options: Options, layout: Layout) -> Summary:
    summary = Summary("", options.quant_type, unused=decisions.unused)
    for job in decisions.jobs:
        stored = source.tensors[job.name]
        group = summary.quantized
        if job.kept is not None:
            group = summary.kept.setdefault(job.kept, Group())
        results = [layout.spots[name].entry for name, _, _ in results_of(job, stored, options)]
        group.add(job.name, stored.file_bytes, sum(e.stop - e.start for e in results))
    return summary
