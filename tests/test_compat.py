"""`bitsanywhere.compat`: the library under the name bitsandbytes."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import runpy
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import bitsanywhere
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.integrations.finder import VERSION, Finder

HIDING = runpy.run_path(str(Path(__file__).with_name("support") / "hiding.py"))
REAL_IS_INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture
def hidden(monkeypatch):
    """No bitsandbytes, neither installed nor imported; everything is put back afterwards."""
    before = {name: module for name, module in sys.modules.items() if _theirs(name)}
    for name in before:
        del sys.modules[name]
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    HIDING["hide_bitsandbytes"]()
    yield
    for name in [name for name in sys.modules if _theirs(name)]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def compat(hidden):
    """The module, with its finder installed."""
    module = importlib.import_module("bitsanywhere.compat")
    module.install()
    return module


def _theirs(name: str) -> bool:
    return name.split(".")[0] == "bitsandbytes"


def test_without_it_there_is_none(hidden):
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    assert importlib.util.find_spec("bitsandbytes") is None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("bitsandbytes")


def test_module_and_metadata_are_found(compat):
    assert importlib.util.find_spec("bitsandbytes") is not None
    assert importlib.metadata.version("bitsandbytes") == VERSION
    assert importlib.metadata.metadata("bitsandbytes")["Name"] == "bitsandbytes"
    assert importlib.metadata.packages_distributions()["bitsandbytes"] == ["bitsandbytes"]
    assert importlib.metadata.version("numpy").startswith(("1.", "2."))


def test_no_class_exists_twice(compat):
    import bitsandbytes as bnb

    assert bnb.nn.Linear4bit is bitsanywhere.nn.Linear4bit
    assert importlib.import_module("bitsandbytes.nn.modules").Params4bit is bnb.nn.Params4bit
    assert importlib.import_module("bitsandbytes.functional") is bitsanywhere.functional
    assert importlib.import_module("bitsandbytes.nn") is bitsanywhere.nn
    layer = bitsanywhere.nn.Linear4bit(4, 4)
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert type(layer).__name__ == "Linear4bit"


def test_our_modules_stay_themselves(compat):
    import bitsandbytes.nn
    import bitsandbytes.utils  # noqa: F401

    assert bitsanywhere.nn.__name__ == "bitsanywhere.nn"
    assert bitsanywhere.nn.__spec__.name == "bitsanywhere.nn"
    assert sys.modules["bitsanywhere.nn"] is bitsanywhere.nn


def test_top_level_names(compat):
    import bitsandbytes as bnb

    assert bnb.__name__ == "bitsandbytes"
    assert bnb.__version__ == VERSION
    assert bnb.features == {"multi_backend"}
    assert bnb.supported_torch_devices == bitsanywhere.supported_torch_devices
    assert bnb.matmul_4bit is bitsanywhere.matmul_4bit
    assert bnb.autograd._functions.MatMul4Bit is bitsanywhere.MatMul4Bit
    assert bnb.utils.pack_dict_to_tensor is bitsanywhere.functional.pack_dict_to_tensor
    assert "compute_dtype" in inspect.signature(bnb.nn.Linear4bit).parameters
    assert {"nn", "functional", "__version__"} <= set(dir(bnb))
    assert not hasattr(bnb, "nothing")
    assert not hasattr(bnb, "__nothing__")


def test_from_imports(compat):
    scope: dict[str, object] = {}
    exec("from bitsandbytes import *\nfrom bitsandbytes.nn import Linear4bit", scope)
    assert scope["Linear4bit"] is bitsanywhere.nn.Linear4bit
    assert scope["functional"] is bitsanywhere.functional
    with pytest.raises(ModuleNotFoundError, match=r"bitsandbytes\.nothing"):
        importlib.import_module("bitsandbytes.nothing")


def test_a_patch_reaches_both_names(compat, monkeypatch):
    import bitsandbytes as bnb

    monkeypatch.setattr(bnb.functional, "get_4bit_type", "patched")
    assert bitsanywhere.functional.get_4bit_type == "patched"


def test_install_twice_adds_one_finder(compat):
    compat.install()
    compat.install()
    assert [type(finder) for finder in sys.meta_path].count(Finder) == 1
    assert type(sys.meta_path[-1]) is Finder
    compat.install(force=True)
    assert [type(finder) for finder in sys.meta_path].count(Finder) == 1
    assert type(sys.meta_path[0]) is Finder


def test_uninstall(compat):
    import bitsandbytes as bnb

    compat.uninstall()
    assert "bitsandbytes" not in sys.modules
    assert "bitsandbytes.nn" not in sys.modules
    assert importlib.util.find_spec("bitsandbytes") is None
    assert bnb.nn.Linear4bit is bitsanywhere.nn.Linear4bit
    compat.uninstall()


def test_force_after_the_real_import_is_refused(compat, monkeypatch):
    real = type(sys)("bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes", real)
    with pytest.raises(InvalidArgumentError, match="before anything imports bitsandbytes"):
        compat.install(force=True)
    compat.uninstall()
    assert sys.modules["bitsandbytes"] is real


@pytest.mark.skipif(not REAL_IS_INSTALLED, reason="bitsandbytes is not installed")
def test_a_real_one_wins(compat, monkeypatch):
    """Until forced; only specs and metadata are looked at, nothing is imported."""
    monkeypatch.setattr(sys, "meta_path", [PathFinder, *sys.meta_path])
    assert importlib.util.find_spec("bitsandbytes").origin is not None
    real = importlib.metadata.version("bitsandbytes")
    assert real != VERSION
    everything = [d for d in importlib.metadata.distributions() if d.name == "bitsandbytes"]
    assert [d.version for d in everything] == [real]
    compat.install(force=True)
    assert importlib.util.find_spec("bitsandbytes").origin is None
    assert importlib.metadata.version("bitsandbytes") == VERSION


def test_importing_our_library_alone_installs_nothing():
    code = (
        "import sys, bitsanywhere; "
        "print([f for f in sys.meta_path if 'bitsanywhere' in type(f).__module__], "
        "'bitsandbytes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[0] == "[] False", done.stderr
