"""The optimizers in float64 numpy, written from their papers; nothing of the library is used."""

from __future__ import annotations

import numpy as np


class Reference:
    """One parameter under one rule.

    Args:
        rule: name of the rule.
        p: float64 start. settings: lr, eps, weight_decay, betas and the like.
        rounding: what the parameter is rounded to after each step, as a function.
    """

    def __init__(self, rule, p, rounding=lambda p: p, **settings):
        self.rule, self.p, self.rounding = rule, p.copy(), rounding
        self.m, self.n, self.v = (np.zeros_like(p) for _ in range(3))
        self.t = 0
        self.lr, self.eps = settings.get("lr", 1e-2), settings.get("eps", 1e-8)
        self.wd, self.max_unorm = settings.get("weight_decay", 0.0), settings.get("max_unorm", 0.0)
        self.b1, self.b2, self.b3 = (*settings.get("betas", (0.9, 0.999)), 0.0)[:3]
        self.alpha = settings.get("alpha", 0.0)

    def step(self, g):
        self.t += 1
        update, size = getattr(self, self.rule)(g)
        if self.rule in ("adam", "lamb", "ademamix", "lion"):
            shrunk = self.p * (1 - self.lr * self.wd)
        else:
            shrunk = self.p
        self.p = self.rounding(shrunk - size * update)

    def _limited(self, measured):
        norm, allowed = np.linalg.norm(measured), self.max_unorm * np.linalg.norm(self.p)
        return allowed / norm if self.max_unorm > 0 and norm > allowed else 1.0

    def _moments(self, g):
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        return self.m / (1 - self.b1**self.t), np.sqrt(self.v / (1 - self.b2**self.t))

    def adam(self, g):
        mean, root = self._moments(g)
        return mean / (root + self.eps), self.lr

    def lamb(self, g):
        mean, root = self._moments(g)
        update, correction = mean / (root + self.eps), np.sqrt(1 - self.b2**self.t)
        # What bitsandbytes measures has neither correction.
        limit = self._limited(update * (1 - self.b1**self.t) / correction)
        return update, self.lr * limit

    def ademamix(self, g):
        mean, root = self._moments(g)
        self.n = self.b3 * self.n + (1 - self.b3) * g
        return (mean + self.alpha * self.n) / (root + self.eps), self.lr

    def momentum(self, g):
        self.m = self.b1 * self.m + g + self.wd * self.p
        return self.m, self.lr

    def lars(self, g):
        self.momentum(g)
        return self.m, self.lr * self._limited(self.m)

    def rmsprop(self, g):
        g = g + self.wd * self.p
        self.v = self.b1 * self.v + (1 - self.b1) * g**2
        return g / (np.sqrt(self.v) + self.eps), self.lr

    def adagrad(self, g):
        g = g + self.wd * self.p
        self.v = self.v + g**2
        return g / (np.sqrt(self.v) + self.eps), self.lr

    def lion(self, g):
        update = np.sign(self.b1 * self.m + (1 - self.b1) * g)
        self.m = self.b2 * self.m + (1 - self.b2) * g
        return update, self.lr
