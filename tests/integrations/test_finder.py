"""The finder's answers, without installing it."""

from __future__ import annotations

import sys
from importlib.metadata import DistributionFinder

import pytest

import bitsanywhere
from bitsanywhere.integrations.finder import NAME, VERSION, Finder

Context = DistributionFinder.Context


class Empty:
    """A finder of another kind that has, or has not, a real bitsandbytes."""

    def __init__(self, has: bool) -> None:
        self.has = has

    def find_spec(self, name, path=None, target=None):
        return object() if self.has and name == NAME else None


@pytest.fixture
def others(monkeypatch):
    """Stand-in for all other finders: no real bitsandbytes, unless the test says so."""
    other = Empty(has=False)
    monkeypatch.setattr(sys, "meta_path", [other])
    return other


@pytest.mark.parametrize("name", ["bitsandbytes_extra", "numpy", "bitsanywhere", "abitsandbytes"])
def test_other_names_are_not_ours(name):
    assert Finder(force=True).find_spec(name) is None


def test_a_submodule_that_we_lack_is_not_found():
    assert Finder(force=True).find_spec("bitsandbytes.nothing") is None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("bitsandbytes.nn", "bitsanywhere.nn"),
        ("bitsandbytes.nn.modules", "bitsanywhere.nn.modules"),
        ("bitsandbytes.functional", "bitsanywhere.functional"),
        ("bitsandbytes.autograd._functions", "bitsanywhere.autograd"),
    ],
)
def test_submodules_are_ours(theirs, ours):
    spec = Finder(force=True).find_spec(theirs)
    assert spec is not None
    assert spec.loader.real == ours


def test_top_is_a_package():
    assert Finder(force=False).find_spec(NAME).submodule_search_locations == []


@pytest.mark.parametrize("context", [Context(), Context(name=NAME), Context(name="BitsAndBytes")])
def test_distribution(others, context):
    (found,) = Finder(force=False).find_distributions(context)
    assert found.metadata["Name"] == NAME
    assert found.version == VERSION
    assert found.read_text("top_level.txt").split() == [NAME]
    assert found.read_text("RECORD") is None
    assert found.files is None


def test_other_distributions_are_not_ours(others):
    assert not list(Finder(force=True).find_distributions(Context(name="numpy")))


@pytest.mark.parametrize(("force", "count"), [(False, 0), (True, 1)])
def test_a_real_one_keeps_its_metadata_unless_forced(others, force, count):
    others.has = True
    assert len(list(Finder(force).find_distributions(Context(name=NAME)))) == count


def test_version_is_theirs_with_our_label():
    from packaging.version import Version

    assert Version(VERSION).base_version == "0.50.2"
    assert Version(VERSION).local == bitsanywhere.__name__
    assert Version(VERSION) >= Version("0.46.1")
