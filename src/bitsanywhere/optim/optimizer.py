"""The base of all optimizers: one loop, which the rules of `ops.optimizer_rules` fill.

An 8-bit optimizer keeps its states in 8 bits with one scale for 256 elements (Dettmers et al.
2022, "8-bit Optimizers via Block-wise Quantization"), except those of parameters with fewer than
``min_8bit_size`` elements, which stay in float32. A step looks at everything before it changes
anything: sparse gradients, other dtypes or devices and, on CPUs, gradients that are not finite
raise a typed error and leave all parameters as they were. On GPUs, where looking would mean
waiting for the device, an element whose gradient is not finite is skipped.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Optional

import torch

from bitsanywhere.errors import CheckpointError, InvalidArgumentError
from bitsanywhere.functional.paged import GlobalPageManager, get_paged, prefetch_tensor
from bitsanywhere.ops.optimizer_rules import RULES
from bitsanywhere.optim import state as states
from bitsanywhere.optim.manager import GlobalOptimManager, MockArgs
from bitsanywhere.optim.plan import Planner
from bitsanywhere.optim.settings import SETTINGS, check_bits, checked_defaults, settings, warmed
from bitsanywhere.optim.update import (
    Batch,
    Numbers,
    Owner,
    check_finite,
    check_gradient,
    check_state,
)

__all__ = [
    "GlobalOptimManager",
    "MockArgs",
    "Optimizer1State",
    "Optimizer2State",
    "Optimizer8bit",
]

# Smaller states are not worth paging: a page of managed memory is 64 KiB or more.
_SMALLEST_PAGED = 100_000


class _NamesThePeer(type(torch.optim.Optimizer)):
    """transformers.Trainer keeps embeddings in 32 bits if str(class) says "bitsandbytes"."""

    def __repr__(cls) -> str:
        return f"<class '{cls.__module__}.{cls.__qualname__}' (bitsandbytes)>"


class Optimizer8bit(torch.optim.Optimizer, metaclass=_NamesThePeer):
    """What all optimizers here share.

    Args:
        params: parameters or groups of them.
        defaults: settings that a group can override: lr, betas, eps, weight_decay, alpha, t_alpha,
            t_beta3.
        optim_bits: 32 or 8.
        is_paged: keep large states in memory that CPU and GPU share (CUDA managed memory).
    """

    non_castable_tensor_keys = states.NESTED
    optimizer_name: str
    args: Any
    _bits: Optional[int] = None
    _paged = False

    def __init__(self, params, defaults, optim_bits=32, is_paged=False):
        super().__init__(params, defaults)
        self._planner = Planner()
        self.is_paged = is_paged
        self.page_mng = GlobalPageManager.get_instance()
        self._overrides: dict[torch.Tensor, dict[str, Any]] = {}

    @property
    def mng(self) -> GlobalOptimManager:
        """The settings of single parameters."""
        return GlobalOptimManager.get_instance()

    def __getstate__(self) -> dict[str, Any]:
        names = ("args", "optimizer_name", "is_paged", "_overrides")
        kept = {**super().__getstate__(), **{name: getattr(self, name) for name in names}}
        # A copy's memory is ordinary until its first step.
        plain = {p: states.unpaged(state) for p, state in self.state.items()}
        return {**kept, "state": defaultdict(dict, plain)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._planner = Planner()
        self.page_mng = GlobalPageManager.get_instance()
        self.initialized = False

    def add_param_group(self, param_group) -> None:
        """As in torch; the settings of single parameters are read again at the next step."""
        super().add_param_group(param_group)
        self.initialized = False

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient.

        Args:
            closure: computes the loss anew, if given.

        Returns:
            What the closure returned, or None.

        Raises:
            InvalidArgumentError, DtypeError: a gradient or a state does not fit its parameter;
                nothing was updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._prepare()
        prefetch = self.prefetch_state if self.is_paged else None
        if self._planner.step(self.param_groups, self.state, self._numbers_of, prefetch):
            return loss
        batches = self._update(
            [
                (group, p, gindex, pindex)
                for gindex, group in enumerate(self.param_groups)
                for pindex, p in enumerate(group["params"])
                if p.grad is not None
            ]
        )
        self._planner.learn(self.optimizer_name, self.param_groups, self.state, batches)
        return loss

    def _prepare(self) -> None:
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True

    def _fixed_bits(self, given: int, default: int = 32) -> int:
        """The bits of a class: ``given``, unless its name says otherwise."""
        if self._bits is None:
            return given
        if given not in (default, self._bits):
            raise InvalidArgumentError(
                f"{type(self).__name__}: optim_bits is {given}",
                f"This class keeps states in {self._bits} bits.",
                "Leave optim_bits out, or take the class without bits in its name.",
            )
        return self._bits

    def _warn_ignored(self, **options: Any) -> None:
        for name, value in options.items():
            if value:
                text = f"{type(self).__name__}: {name}={value} has no effect, as in bitsandbytes"
                warnings.warn(text, stacklevel=4)

    def check_overrides(self) -> None:
        """Reads the settings of single parameters from `GlobalOptimManager`."""
        self._planner.forget()
        params = [p for group in self.param_groups for p in group["params"]]
        self._overrides = {**self._overrides, **self.mng.overrides(params)}

    def to_gpu(self) -> None:
        """Moves each state to the device of its parameter, and into paged memory if need be."""
        for p, state in self.state.items():
            for key, value in state.items():
                if not isinstance(value, torch.Tensor):
                    continue
                if self.is_paged and key in ("state1", "state2") and not hasattr(value, "is_paged"):
                    state[key] = self._buffer(tuple(value.shape), value.dtype, p.device).copy_(
                        value
                    )
                elif value.device != p.device:
                    state[key] = value.to(p.device)

    def get_config(self, gindex, pindex, group) -> dict[str, Any]:
        """The settings of one parameter: those of its group, then its own."""
        config = {key: value for key, value in group.items() if key != "params"}
        config.update({name: getattr(self.args, name) for name in SETTINGS})
        return {**config, **self._overrides.get(group["params"][pindex], {})}

    @torch.no_grad()
    def init_state(self, group, p, gindex, pindex) -> None:
        """Gives a parameter the state that its first step needs."""
        config, rule = self.get_config(gindex, pindex, group), RULES[self.optimizer_name]
        bits = check_bits(config["optim_bits"])
        small = p.numel() < config["min_8bit_size"]
        state = states.fresh(rule, p, 32 if small else bits, self._buffer)
        if config["max_unorm"] > 0:
            state["unorm_vec"] = torch.zeros(1, dtype=torch.float32, device=p.device)
        self.state[p].update(state)

    @torch.no_grad()
    def update_step(self, group, p, gindex, pindex) -> None:
        """The step of one parameter; `step` does the same for all at once."""
        self._update([(group, p, gindex, pindex)])

    def _update(self, work: list[tuple[dict[str, Any], torch.Tensor, int, int]]) -> list[Batch]:
        """Updates parameters of (group, parameter, number of the group, number in it)."""
        grads = [check_gradient(p, f"Parameter {j} of group {i}") for _, p, i, j in work]
        check_finite(grads)
        rule = RULES[self.optimizer_name]
        held = []
        for group, p, gindex, pindex in work:
            state = self.state[p]
            if "state1" not in state:
                self.init_state(group, p, gindex, pindex)
            check_state(p, state, rule.rows, f"Parameter {pindex} of group {gindex}")
            held.append(state)
        shared: dict[int, int] = {}
        numbers: dict[Any, Numbers] = {}
        batches: dict[Any, Batch] = {}
        for (_, p, gindex, pindex), g, state in zip(work, grads, held, strict=True):
            step = state["step"] + 1
            alone = self._overrides and p in self._overrides
            owner = (gindex, pindex if alone else shared.setdefault(gindex, pindex))
            if (owner, step) not in numbers:
                numbers[owner, step] = self._numbers_of(owner, step)
            found = numbers[owner, step]
            self.prefetch_state(p)
            kind = (p.device, p.dtype, state["state1"].dtype)
            maps = (id(state.get("qmap1")), id(state.get("qmap2")))
            batch = batches.get((found, kind, maps))
            if batch is None:
                batch = batches[found, kind, maps] = Batch(found)
            batch.owners[owner] = None
            batch.p.append(p)
            batch.g.append(g)
            batch.states.append(state)
        for batch in batches.values():
            batch.run(self.optimizer_name, rule)
        for state in held:
            state["step"] += 1
        return list(batches.values())

    def _numbers_of(self, owner: Owner, step: int) -> Numbers:
        gindex, pindex = owner
        config = self.get_config(gindex, pindex, self.param_groups[gindex])
        return self._numbers(config, step)

    def _numbers(self, config: dict[str, Any], step: int) -> Numbers:
        beta1, beta2, beta3 = (*config["betas"], 0.0, 0.0)[:3]
        alpha = config.get("alpha", 0.0)
        t_alpha, t_beta3 = config.get("t_alpha"), config.get("t_beta3")
        if t_alpha is not None:
            alpha = min(step * alpha / t_alpha, alpha)
        if t_beta3 is not None:
            beta3 = warmed(step / t_beta3, beta1, beta3)
        return Numbers(
            beta1, beta2, beta3, alpha, config["eps"], config["weight_decay"], step,
            float(config["lr"]), config["max_unorm"], config["skip_zeros"],
        )  # fmt: skip

    def get_state_buffer(self, p, dtype=torch.float32) -> torch.Tensor:
        """Zeros of the shape of ``p`` on its device, paged if the optimizer is."""
        return self._buffer(tuple(p.shape), dtype, p.device)

    def _buffer(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        if self.is_paged and math.prod(shape) >= _SMALLEST_PAGED:
            return get_paged(*shape, dtype=dtype, device=device).zero_()
        return torch.zeros(shape, dtype=dtype, device=device)

    def prefetch_state(self, p) -> None:
        """Asks for the paged states of ``p`` to be brought to its device."""
        if self.is_paged:
            for key in ("state1", "state2"):
                tensor = self.state[p].get(key)
                if getattr(tensor, "is_paged", False):
                    prefetch_tensor(tensor)

    def state_dict(self) -> dict[str, Any]:
        """The state as torch has it, with the tensors of each parameter nested one level deeper.

        Interchanges with bitsandbytes' state dicts; holds tensors, numbers and strings only.
        """
        saved = super().state_dict()
        saved["state"] = {key: states.nest(value) for key, value in saved["state"].items()}
        return saved

    def load_state_dict(self, state_dict, move_to_device=True) -> None:
        """Takes over a state dict, of this library or of bitsandbytes; its tensors are copied.

        Args:
            state_dict: as `state_dict` returns it.
            move_to_device: copy each tensor to the device of its parameter.

        Raises:
            CheckpointError: sizes, dtypes or groups do not fit; nothing was changed.
        """
        if not isinstance(state_dict.get("state"), Mapping):
            raise CheckpointError(
                f"The state dict has the keys {', '.join(map(str, state_dict))}",
                'It must have "state", a dict, and "param_groups".',
                states.MEND,
            )
        params = states.match(self.param_groups, state_dict.get("param_groups"))
        rule = RULES[self.optimizer_name]
        flat = {}
        for key, value in state_dict["state"].items():
            if key not in params:
                raise CheckpointError(
                    f"The state dict has a state for parameter {key!r}",
                    f"Its groups list {len(params)} parameters, and not this one.",
                    states.MEND,
                )
            flat[key] = states.unnest(value, f"state[{key!r}]")
            states.check_loaded(f"state[{key!r}]", flat[key], rule, params[key])
        ready = {
            key: states.loaded(value, params[key], move_to_device, self._buffer)
            for key, value in flat.items()
        }
        super().load_state_dict({**state_dict, "state": ready})
        for state in self.state.values():
            for key, value in state.items():
                if isinstance(value, states.Kept):
                    state[key] = value.tensor


class Optimizer2State(Optimizer8bit):
    """An optimizer with two states: adam, lamb, ademamix.

    Args:
        optimizer_name: key of `ops.optimizer_rules.RULES`.
        params: parameters or groups of them.
        lr, betas, eps, weight_decay: see the rules; weight decay is decoupled (AdamW).
        optim_bits: 32 or 8.
        args: object with the attributes optim_bits, min_8bit_size, max_unorm and skip_zeros, which
            then count instead of the arguments.
        min_8bit_size: smaller parameters keep 32-bit states.
        max_unorm: largest norm of an update, as a share of the parameter's norm; 0 for no limit.
            8-bit states have none.
        skip_zeros: leave elements alone whose gradient is zero.
        is_paged: keep large states in memory that CPU and GPU share.
        alpha, t_alpha, t_beta3: AdEMAMix; weight of the slow average, and over how many steps it
            and beta3 grow to their values.
    """

    def __init__(
        self,
        optimizer_name,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        max_unorm=0.0,
        skip_zeros=False,
        is_paged=False,
        alpha=0.0,
        t_alpha: Optional[int] = None,
        t_beta3: Optional[int] = None,
    ):
        defaults = checked_defaults(lr, betas, eps, weight_decay)
        defaults.update(alpha=alpha, t_alpha=t_alpha, t_beta3=t_beta3)
        super().__init__(params, defaults, optim_bits, is_paged)
        self.optimizer_name = optimizer_name
        self.args = args or settings(optim_bits, min_8bit_size, max_unorm, skip_zeros)


class Optimizer1State(Optimizer8bit):
    """An optimizer with one state: momentum, lars, rmsprop, adagrad, lion.

    Args: those of `Optimizer2State`; weight decay joins the gradient, except in lion.
    """

    def __init__(
        self,
        optimizer_name,
        params,
        lr=1e-3,
        betas=(0.9, 0.0),
        eps=1e-8,
        weight_decay=0.0,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        max_unorm=0.0,
        skip_zeros=False,
        is_paged=False,
    ):
        super().__init__(
            params, checked_defaults(lr, betas, eps, weight_decay), optim_bits, is_paged
        )
        self.optimizer_name = optimizer_name
        self.args = args or settings(optim_bits, min_8bit_size, max_unorm, skip_zeros)
