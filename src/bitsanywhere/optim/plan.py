"""What a step found out about its tensors, so that the next step only makes sure of it.

On a GPU the host's part of a step over hundreds of tensors would take longer than the device's. A
plan keeps the launches of a step, all but their gradients and numbers, and the looks of every
tensor: shape, strides, dtype, device, address. It keeps no gradient and no state, whose memory
others may want back. Whatever differs at the next step (a gradient is missing or new, a state was
loaded or moved, a group was added, settings that were one are two), the step is taken without the
plan: that is where errors are raised and where the next plan comes from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import is_, itemgetter
from typing import Any, NamedTuple, Optional

import torch

from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.ops.optimizer_rules import RULES
from bitsanywhere.ops.registry import is_watched
from bitsanywhere.optim.update import PLAIN, Batch, Numbers, Owner

try:
    # Compares hundreds of tensors in one call (torch 2.5 to 2.14 at least).
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None

_MOST_PATIENCE = 64
Groups = Sequence[Mapping[str, Any]]
States = Mapping[torch.Tensor, dict[str, Any]]
NumbersOf = Callable[[Owner, int], Numbers]


class Ready(NamedTuple):
    """A launch whose tensors are as planned."""

    part: Part
    states: list[dict[str, Any]]
    gradients: list[int]
    maps: list[Any]
    numbers: Numbers

    def run(self) -> None:
        """Updates the parameters and their states, all but their count of steps."""
        self.part.launch(self.gradients, *self.maps, *self.numbers.in_order())
        torch.autograd.graph.increment_version(self.part.p)


@dataclass(frozen=True)
class Part:
    """What stays of a batch from step to step.

    Attributes:
        p: the parameters.
        places: of their states among all states.
        owners: whose numbers they take; all of them must agree.
        fields: takes the step, the tensors and the codebooks out of a state.
        tensors: how many tensors a state has, codebooks not counted.
        addresses: of the parameters and of these tensors.
        guards: the looks of gradients, parameters and first states.
        launch: see `Batch.bound`.
        may_clip: whether a max_unorm above 0 would mean another way.
    """

    p: list[torch.Tensor]
    places: list[int]
    owners: list[Owner]
    fields: Callable[[dict[str, Any]], tuple[Any, ...]]
    tensors: int
    addresses: list[int]
    guards: Any
    launch: Callable[..., None]
    may_clip: bool

    def ready(self, held: Sequence[dict[str, Any]], numbers_of: NumbersOf) -> Optional[Ready]:
        """The launch, or None if anything is not as planned.

        Raises:
            KeyError, TypeError: so little is as planned that a state lacks a tensor.
        """
        states = [held[i] for i in self.places]
        steps, *columns = zip(*map(self.fields, states))
        gradients = [p.grad for p in self.p]
        tensors, maps = columns[: self.tensors], columns[self.tensors :]
        if not self.guards.check(*gradients, *self.p, *tensors[0]):
            return None
        if _addresses(chain(self.p, *tensors)) != self.addresses:
            return None
        if not all(all(map(is_, column, repeat(column[0]))) for column in maps):
            return None
        if type(steps[0]) is not int or steps.count(steps[0]) != len(steps):
            return None
        numbers, *others = [numbers_of(owner, steps[0] + 1) for owner in self.owners]
        if any(other != numbers for other in others) or (self.may_clip and numbers.max_unorm > 0):
            return None
        codebooks = [column[0] for column in maps] + [None] * (len(maps) == 1)
        return Ready(self, states, _addresses(gradients), codebooks, numbers)


class Plan:
    """All launches of a step.

    Args:
        members: the parameters of each group.
        keys: the parameters that have a state, in the order of the states.
        parts: the launches.
    """

    def __init__(
        self, members: list[list[torch.Tensor]], keys: list[torch.Tensor], parts: list[Part]
    ) -> None:
        self._sizes, self._members = list(map(len, members)), list(chain(*members))
        self._keys, self._parts = keys, parts
        used = {id(p) for part in parts for p in part.p}
        self._idle = [p for p in self._members if id(p) not in used]

    @classmethod
    def of(
        cls, name: str, groups: Groups, state: States, batches: Sequence[Batch]
    ) -> Optional[Plan]:
        """The plan of the step that was just taken, or None if it must be looked at each time."""
        keys = list(state)
        places = {id(p): i for i, p in enumerate(keys)}
        parts = [_part(name, batch, places) for batch in batches]
        if not parts or None in parts:
            return None
        return cls([list(group["params"]) for group in groups], keys, parts)  # type: ignore[arg-type]

    def ready(self, groups: Groups, state: States, numbers_of: NumbersOf) -> list[Ready]:
        """The launches of the next step; none if anything is not as planned."""
        members = [group["params"] for group in groups]
        if list(map(len, members)) != self._sizes:
            return []
        if not all(map(is_, chain(*members), self._members)):
            return []
        if any(p.grad is not None for p in self._idle):
            return []
        if len(state) != len(self._keys) or not all(map(is_, state, self._keys)):
            return []
        held, found = list(state.values()), []
        for part in self._parts:
            try:
                ready = part.ready(held, numbers_of)
            except (KeyError, TypeError):
                ready = None
            if ready is None:
                return []
            found.append(ready)
        return found


class Planner:
    """An optimizer's plan, if it has one.

    A plan takes as long to make as a step without it. So one is made after two steps without, and
    later each time that a plan cannot be made or fails before it was of any use.
    """

    def __init__(self) -> None:
        self._plan: Optional[Plan] = None
        self._served = False
        self._patience, self._waited = 1, 0

    def forget(self) -> None:
        """Drops the plan."""
        self._plan, self._waited = None, 0

    def step(
        self,
        groups: Groups,
        state: States,
        numbers_of: NumbersOf,
        prefetch: Optional[Callable[[torch.Tensor], None]],
    ) -> bool:
        """Takes a step as planned; False, and nothing was done, if there is no plan that fits.

        Args:
            groups, state: of the optimizer.
            numbers_of: the numbers of an owner at a step.
            prefetch: asks for the states of a parameter, if they are paged.
        """
        if is_watched() or self._plan is None:
            return False
        launches = self._plan.ready(groups, state, numbers_of)
        if not launches:
            self._patience = 1 if self._served else min(2 * self._patience, _MOST_PATIENCE)
            self.forget()
            return False
        self._served = True
        if prefetch is not None:
            for launch in launches:
                deque(map(prefetch, launch.part.p), maxlen=0)
        for launch in launches:
            launch.run()
        for launch in launches:
            for own in launch.states:
                own["step"] = launch.numbers.step
        return True

    def learn(self, name: str, groups: Groups, state: States, batches: Sequence[Batch]) -> None:
        """Notes a step that was taken without a plan."""
        if is_watched():
            return
        self._waited += 1
        if self._waited > self._patience:
            self._plan, self._served = Plan.of(name, groups, state, batches), False
            self._waited = 0
            if self._plan is None:
                self._patience = min(2 * self._patience, _MOST_PATIENCE)


def _part(name: str, batch: Batch, places: Mapping[int, int]) -> Optional[Part]:
    rule = RULES[name]
    tensors, maps = batch.names(rule)
    columns = [[state[key] for state in batch.states] for key in tensors]
    if TensorGuards is None or (not maps and batch.numbers.max_unorm > 0):
        return None
    if not all(x.is_contiguous() and type(x) in PLAIN for x in chain(batch.p, batch.g, *columns)):
        return None
    try:
        launch = batch.bound(name, rule)
    except BackendUnavailable:
        return None
    if launch is None:
        return None
    looks = [*batch.g, *batch.p, *columns[0]]
    # Both keywords must be there: without them the constructor reads address 0.
    guards = TensorGuards(
        *looks,
        dynamic_dims_sizes=[list(x.shape) for x in looks],
        dynamic_dims_strides=[list(x.stride()) for x in looks],
    )
    return Part(
        p=batch.p,
        places=[places[id(p)] for p in batch.p],
        owners=list(batch.owners),
        fields=itemgetter("step", *tensors, *maps),
        tensors=len(tensors),
        addresses=_addresses(chain(batch.p, *columns)),
        guards=guards,
        launch=launch,
        may_clip=not maps,
    )


def _addresses(tensors: Any) -> list[int]:
    return list(map(torch.Tensor.data_ptr, tensors))
