"""An optimizer that steps by plan beside one that does not."""

from __future__ import annotations

import torch

from bitsanywhere import optim

SHAPES = ((20, 20), (11,), (3, 150), (0, 5), (20, 20))


class Pair:
    """An optimizer with plans and its twin without, which take the same steps."""

    def __init__(self, launches, name="AdamW8bit", dtype=torch.float32, shapes=SHAPES, **settings):
        self.launches, self.generator = launches, torch.Generator().manual_seed(1)
        start = [torch.randn(s, generator=self.generator).to(dtype) for s in shapes]
        self.params = [[torch.nn.Parameter(x.clone()) for x in start] for _ in range(2)]
        settings = {"lr": 1e-2, "min_8bit_size": 300, **settings}
        self.optimizers = [getattr(optim, name)(self.split(p), **settings) for p in self.params]

    def split(self, params):
        """Two groups."""
        return [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.5}]

    def both(self, change) -> None:
        """Does something to the optimizer and its parameters, twice."""
        for optimizer, params in zip(self.optimizers, self.params, strict=True):
            change(optimizer, params)

    def new_gradients(self, without=()) -> None:
        for i, (p, q) in enumerate(zip(*self.params, strict=True)):
            g = torch.randn(p.shape, generator=self.generator).to(p.dtype)
            p.grad, q.grad = (None, None) if i in without else (g, g.clone())

    def step(self, without=()) -> bool:
        """One step of both, whose results must be the same; whether it went by plan."""
        self.new_gradients(without)
        return self.go()

    def go(self) -> bool:
        self.optimizers[1]._planner.forget()
        self.optimizers[1]._planner._waited = -10
        before = len(self.launches)
        self.optimizers[0].step()
        by_plan = len(self.launches) > before
        self.optimizers[1].step()
        for p, q in zip(*self.params, strict=True):
            assert torch.equal(p, q)
            mine, other = (o.state.get(x, {}) for o, x in zip(self.optimizers, (p, q)))
            assert mine.keys() == other.keys()
            for key, value in mine.items():
                same = torch.equal if isinstance(value, torch.Tensor) else int.__eq__
                assert same(value, other[key]), key
        return by_plan

    def steady(self) -> Pair:
        """After as many steps as a plan takes."""
        assert [self.step() for _ in range(4)] == [False, False, True, True]
        return self
