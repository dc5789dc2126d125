"""What transformers would make of each tensor, asked of transformers itself.

The model is instantiated on the meta device from its config, so that its modules and parameters
are known without weights; names in the checkpoint are mapped by the renaming rules that
transformers loads with. All that reaches into transformers' inner modules is in this file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bitsanywhere.convert.options import Options
from bitsanywhere.convert.sources import Stored
from bitsanywhere.errors import CheckpointError, InvalidArgumentError, MissingPackageError

try:
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        build_glob_alternation,
        dot_natural_key,
        rename_source_key,
    )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION, HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module
except ImportError as error:
    raise MissingPackageError(
        "transformers is not installed, or older than 5",
        f"It says which modules of a model are quantized ({error}).",
        "pip install -U 'transformers>=5'",
    ) from error

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SIDE_NAMES = (
    ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
    ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4",
    ".SCB", ".weight_format",
)  # fmt: skip

# Why a tensor is not quantized.
HEAD = "output embedding, tied, last, or to be kept in float32"
SKIPPED = "asked for with --skip"
REARRANGED = "transformers splits or merges it when it loads"
EXPERTS = "fused experts (3-D): bitsandbytes has no layer for them"
EMBEDDING = "embedding"
SMALL = "norms, biases and whatever else is no linear layer"


@dataclass(frozen=True)
class Job:
    """What becomes of one tensor of the source.

    Attributes:
        name: its name in source and result; a quantized weight's statistics follow it.
        dtype: what it is cast to, before it is quantized if it is.
        transposed: the layer holds the transpose.
        kept: why it is not quantized; None if it is.
    """

    name: str
    dtype: torch.dtype
    transposed: bool = False
    kept: str | None = None


@dataclass(frozen=True)
class Decisions:
    """The jobs in the order of loading, the result's config, and tensors without a place in it."""

    jobs: list[Job]
    config: Any
    unused: list[str]


def decide(config: Mapping[str, Any], tensors: Mapping[str, Stored], options: Options) -> Decisions:
    """Every tensor's fate.

    Args:
        config: content of config.json.
        tensors: what the checkpoint holds.

    Raises:
        CheckpointError: if the model is unknown to transformers, quantized already, or does not
            fit the tensors.
        InvalidArgumentError: if a name to skip fits no linear layer.
    """
    configuration, model = _meta_model(config, tensors)
    return _Decider(configuration, model, tensors, options).decisions()


def _meta_model(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> tuple[Any, Any]:
    """The configuration and the model without weights, in the dtype of the checkpoint."""
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            raise CheckpointError(
                f"the model is quantized already: config.json has a {key}",
                "Quantizing twice only adds error.",
                "Use it as it is, or quantize the checkpoint it was made from.",
            )
    model_class = _model_class(config)
    content = {key: copy.deepcopy(value) for key, value in config.items() if key != "auto_map"}
    try:
        configuration = CONFIG_MAPPING[str(config["model_type"])].from_dict(content)
        dtype = _dtype_of(configuration, tensors)
        with torch.device("meta"):
            return configuration, model_class._from_config(configuration, dtype=dtype)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"transformers cannot make a {model_class.__name__} from config.json",
            f"{type(error).__name__}: {str(error)[:500]}",
        ) from error


def _model_class(config: Mapping[str, Any]) -> Any:
    """The class that config.json names, if transformers itself has it."""
    architectures, kind = config.get("architectures"), config.get("model_type")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    found = None
    if isinstance(name, str) and isinstance(kind, str) and kind in CONFIG_MAPPING:
        found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise CheckpointError(
            f"config.json has architectures {str(architectures)[:100]} and model_type "
            f"{str(kind)[:40]!r}",
            f"transformers {transformers.__version__} has no such class, and code that comes with "
            "a checkpoint is not run.",
            "Install a newer transformers, if one knows the model.",
        )
    return found


def _dtype_of(configuration: Any, tensors: Mapping[str, Stored]) -> torch.dtype:
    """What transformers' dtype="auto" means here."""
    given = getattr(configuration, "dtype", None)
    if given is None:
        given = next((t.dtype for t in tensors.values() if t.dtype.is_floating_point), None)
    if isinstance(given, str):
        given = getattr(torch, given, None)
    if given not in FLOATS:
        raise CheckpointError(
            f"the model's dtype is {str(given)[:40]}",
            f"Allowed are {', '.join(str(dtype).removeprefix('torch.') for dtype in FLOATS)}.",
        )
    return given


class _Decider:
    """The rules of transformers for one model."""

    def __init__(
        self, config: Any, model: Any, tensors: Mapping[str, Stored], options: Options
    ) -> None:
        self.config, self.model, self.tensors, self.options = config, model, tensors, options
        self.parameters = model.state_dict()
        self.modules = dict(model.named_modules())
        self.dtype = config.dtype
        mapping = get_model_conversion_mapping(model)
        self.renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
        plan = model._get_dtype_plan(self.dtype)
        self.kept_wide = build_glob_alternation(list(plan))[0] if plan else None
        self.own_skips = HfQuantizer.get_modules_to_not_convert(model)
        self.linear = self._linear_modules()

    def decisions(self) -> Decisions:
        self._refuse_patched_layers()
        rearranged: set[str] = set()
        places: dict[str, tuple[list[str], bool]] = {}
        for name in sorted(self.tensors, key=dot_natural_key):
            found, converted = self._targets(name)
            if any(target in self.parameters for target in found):
                places[name] = found, converted
            if converted or not self._statistics_follow(name, found[0]):
                rearranged |= {target.removesuffix(".weight") for target in found}
        self._refuse_missing({target for found, _ in places.values() for target in found})
        rearranged &= self.linear.keys()
        skips = sorted({*self.own_skips, *self.options.skip, *rearranged})
        jobs = [self._job(name, *place, rearranged) for name, place in places.items()]
        if not any(job.kept is None for job in jobs):
            raise CheckpointError(
                f"{type(self.model).__name__} has no linear layer that would be quantized"
            )
        self.config.quantization_config = self.options.quantization_config(self.dtype, skips)
        self.config.architectures = [type(self.model).__name__]
        unused = [name for name in self.tensors if name not in places]
        return Decisions(jobs, self.config, sorted(unused, key=dot_natural_key))

    def _linear_modules(self) -> dict[str, Any]:
        """The modules that bitsandbytes has a layer for, `--skip` and the like aside."""
        kinds = {n: m for n, m in self.modules.items() if type(m) in (torch.nn.Linear, Conv1D)}
        for pattern in self.options.skip:
            try:
                fits = any(not should_convert_module(name, [pattern]) for name in kinds)
            except re.error as error:
                raise InvalidArgumentError(
                    f"--skip {pattern!r} is no valid pattern: {error}"
                ) from error
            if not fits:
                raise InvalidArgumentError(
                    f"--skip {pattern!r} fits no linear layer of {type(self.model).__name__}",
                    "It is a module's full name, its beginning or its end.",
                    f"Some that exist: {', '.join(list(kinds)[:8])}.",
                )
        return kinds

    def _refuse_patched_layers(self) -> None:
        """Models whose quantized form transformers loads into other modules than these."""
        for module in self.modules.values():
            patch = MODULES_TO_PATCH_FOR_QUANTIZATION.get(type(module).__name__)
            if patch and "bitsandbytes" in [str(m.value) for m in patch["quantization_methods"]]:
                raise CheckpointError(
                    f"{type(self.model).__name__} has {type(module).__name__}",
                    "transformers loads quantized checkpoints of it in another layout.",
                    "Quantize it at load with BitsAndBytesConfig.",
                )

    def _targets(self, name: str) -> tuple[list[str], bool]:
        """Names in the model, and whether more happens to the tensor than renaming."""
        prefix = self.model.base_model_prefix
        target, pattern = rename_source_key(
            name, self.renamings, self.converters, prefix, self.parameters
        )
        if target not in self.parameters and name in self.parameters:
            target, pattern = name, None
        if pattern is None:
            return [target], False
        converter = next(c for c in self.converters if pattern in c.source_patterns)
        first = converter.target_patterns[0]
        return [target.replace(first, each) for each in converter.target_patterns], True

    def _statistics_follow(self, name: str, target: str) -> bool:
        """Whether the names of a quantized weight's statistics are mapped beside the weight."""
        module, place = target.removesuffix(".weight"), name.removesuffix(".weight")
        if module not in self.linear or module == target:
            return True
        prefix = self.model.base_model_prefix
        own = {**self.parameters, **{module + side: self.parameters[target] for side in SIDE_NAMES}}
        return place != name and all(
            rename_source_key(place + side, self.renamings, self.converters, prefix, own)
            == (module + side, None)
            for side in SIDE_NAMES
        )

    def _refuse_missing(self, covered: set[str]) -> None:
        """What transformers would fill with random numbers."""
        tied = getattr(self.model, "all_tied_weights_keys", {}) or {}
        groups: dict[str, set[str]] = {}
        for target, source in tied.items():
            groups.setdefault(source, {source}).add(target)
        for group in groups.values():
            if group & covered:
                covered = covered | group
        ignored = self.model._keys_to_ignore_on_load_missing or ()
        missing = [
            name
            for name in self.parameters
            if name not in covered and not any(re.search(pattern, name) for pattern in ignored)
        ]
        if missing:
            raise CheckpointError(
                f"the checkpoint lacks {len(missing)} tensors of {type(self.model).__name__}",
                f"Among them {', '.join(missing[:5])}.",
                "Download the missing files, or correct config.json.",
            )

    def _job(self, name: str, targets: list[str], converted: bool, rearranged: set[str]) -> Job:
        target = next(target for target in targets if target in self.parameters)
        parameter, stored = self.parameters[target], self.tensors[name]
        if not converted and stored.shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{name} has shape {stored.shape}, the model wants {tuple(parameter.shape)}",
                mend="Correct config.json.",
            )
        kept = self._why_kept(target, rearranged)
        dtype = self._result_dtype(name, target, stored, parameter, kept is None)
        module = self.modules.get(target.removesuffix(".weight"))
        return Job(name, dtype, kept is None and isinstance(module, Conv1D), kept)

    def _why_kept(self, target: str, rearranged: set[str]) -> str | None:
        """A reason of this file, or None if the tensor is to be quantized."""
        module = target.removesuffix(".weight")
        if target.endswith(".weight") and module in self.linear:
            model_keeps = [*self.own_skips, *(self.model._keep_in_fp32_modules or ())]
            if module in rearranged:
                return REARRANGED
            if not should_convert_module(module, model_keeps):
                return HEAD
            return None if should_convert_module(module, list(self.options.skip)) else SKIPPED
        if self.parameters[target].dim() >= 3 and "experts" in target.split("."):
            return EXPERTS
        if isinstance(self.modules.get(module), torch.nn.Embedding):
            return EMBEDDING
        return SMALL

    def _result_dtype(
        self, name: str, target: str, stored: Stored, parameter: torch.Tensor, quantized: bool
    ) -> torch.dtype:
        """As transformers casts: the model's dtype, or the wider one that a parameter wants."""
        if not stored.dtype.is_floating_point or not parameter.dtype.is_floating_point:
            if stored.dtype != parameter.dtype:
                raise CheckpointError(
                    f"{name} is {stored.dtype}, the model wants {parameter.dtype}",
                    "Weights must be float32, float16 or bfloat16.",
                    "Take a checkpoint of the model that is not quantized.",
                )
            return stored.dtype
        if self.kept_wide is not None and self.kept_wide.search(target):
            return torch.float32
        return self.dtype if quantized else parameter.dtype
