"""Settings of single parameters that differ from those of their optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Optional

import torch

from bitsanywhere.errors import InvalidArgumentError


class MockArgs:
    """The settings of an optimizer as attributes: what ``args`` of its constructor looks like."""

    def __init__(self, initial_data):
        for name, value in initial_data.items():
            setattr(self, name, value)


class GlobalOptimManager:
    """The one place that knows which parameters have settings of their own.

    Get it with `get_instance`. Settings are names of an optimizer's group or of `MockArgs`:
    ``optim_bits``, ``min_8bit_size``, ``max_unorm``, ``skip_zeros``, ``lr``, ``betas``, ``eps``,
    ``weight_decay``. An optimizer reads them at its first step. Parameters and modules are held
    weakly, so a model that is dropped leaves nothing behind.

        manager = bnb.optim.GlobalOptimManager.get_instance()
        manager.override_config(model.head.weight, "optim_bits", 32)
        manager.register_module_override(model.embedding, "weight", {"optim_bits": 32})
    """

    _instance: Optional[GlobalOptimManager] = None

    def __init__(self):
        raise InvalidArgumentError(
            "GlobalOptimManager() was called",
            "There is one instance in a process.",
            "Call GlobalOptimManager.get_instance().",
        )

    def initialize(self) -> None:
        """Forgets all settings."""
        self.pid2config: dict[int, dict[str, Any]] = {}
        self._modules: list[tuple[weakref.ref[torch.nn.Module], str, dict[str, Any]]] = []

    @classmethod
    def get_instance(cls) -> GlobalOptimManager:
        """The instance of this process."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def register_parameters(self, params) -> None:
        """Makes parameters known; `override_config` does so by itself.

        Args:
            params: parameters, or groups of them as dicts with the key "params".
        """
        for entry in params:
            members = entry["params"] if isinstance(entry, dict) else [entry]
            for p in members:
                self._config_of(p)

    def override_config(self, parameters, key=None, value=None, key_value_dict=None) -> None:
        """Gives parameters settings of their own.

        Args:
            parameters: one parameter or several.
            key, value: one setting.
            key_value_dict: several.

        Raises:
            InvalidArgumentError: neither or both ways of naming settings are used.
        """
        if (key is None) == (key_value_dict is None):
            raise InvalidArgumentError(
                f"override_config: key={key!r}, key_value_dict={key_value_dict!r}",
                "Settings are named in exactly one of two ways.",
                'Pass key="optim_bits", value=32 or key_value_dict={"optim_bits": 32}.',
            )
        settings: dict[str, Any] = dict(key_value_dict or {str(key): value})
        several = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        for p in several:
            self._config_of(p).update(settings)

    def register_module_override(self, module, param_name, config) -> None:
        """Gives the parameter ``module.param_name`` settings of its own, whichever tensor that is
        when the optimizer takes its first step."""
        self._modules.append((weakref.ref(module), param_name, dict(config)))

    def overrides(self, params: Iterable[torch.Tensor]) -> dict[torch.Tensor, dict[str, Any]]:
        """Those of ``params`` that have settings of their own, with these."""
        found = {p: dict(self.pid2config[id(p)]) for p in params if self.pid2config.get(id(p))}
        members = {id(p): p for p in params}
        self._modules = [entry for entry in self._modules if entry[0]() is not None]
        for reference, name, config in self._modules:
            p = members.get(id(getattr(reference(), name, None)))
            if p is not None:
                found.setdefault(p, {}).update(config)
        return found

    def _config_of(self, p: torch.Tensor) -> dict[str, Any]:
        if id(p) not in self.pid2config:
            self.pid2config[id(p)] = {}
            weakref.finalize(p, self.pid2config.pop, id(p), None)
        return self.pid2config[id(p)]
