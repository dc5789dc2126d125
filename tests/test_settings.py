"""Environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.settings import Settings, _user_folders


def test_defaults_follow_the_platform():
    home = {"HOME": "/home/u"}
    chosen = Settings.of(home)
    assert chosen.cache_bytes == 512 << 20
    assert chosen.forced_arch is None
    assert _user_folders(home, "linux") == (
        Path("/home/u/.cache/bitsanywhere"),
        Path("/home/u/.local/share/bitsanywhere"),
    )
    assert _user_folders({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "linux")[0] == Path(
        "/x/bitsanywhere"
    )
    assert _user_folders({"HOME": "/h", "XDG_CACHE_HOME": "relative"}, "linux")[0] == Path(
        "/h/.cache/bitsanywhere"
    )


def test_values_are_taken():
    chosen = Settings.of(
        {
            "BITSANYWHERE_CACHE_DIR": "/c",
            "BITSANYWHERE_CACHE_MB": "3",
            "BITSANYWHERE_PACK_DIR": "/p",
            "BITSANYWHERE_JIT_ARCH": "compute_87",
        }
    )
    assert chosen == Settings(Path("/c"), 3 << 20, Path("/p"), "compute_87")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BITSANYWHERE_CACHE_MB", "0"),
        ("BITSANYWHERE_CACHE_MB", "-1"),
        ("BITSANYWHERE_CACHE_MB", "many"),
        ("BITSANYWHERE_CACHE_MB", ""),
        ("BITSANYWHERE_CACHE_DIR", "relative/folder"),
        ("BITSANYWHERE_PACK_DIR", "relative/folder"),
        ("BITSANYWHERE_JIT_ARCH", "87"),
        ("BITSANYWHERE_JIT_ARCH", "orin"),
    ],
)
def test_other_values_are_refused_by_name(variable, value):
    with pytest.raises(InvalidArgumentError, match=variable):
        Settings.of({"HOME": "/h", variable: value})
