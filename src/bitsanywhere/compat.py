"""This library under the name ``bitsandbytes``, for code that imports that.

    import bitsanywhere.compat   # before transformers, peft, diffusers ...

From then on ``import bitsandbytes`` and ``importlib.metadata.version("bitsandbytes")`` find this
library, unless a real bitsandbytes is installed: that one wins (and runs our kernels; see
`integrations.bitsandbytes_backend`). ``install(force=True)`` prefers ours. The command
``bitsanywhere run script.py`` does the same for a script that must not be changed.
"""

from __future__ import annotations

import sys

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.integrations.finder import NAME, Finder, TopLoader


def install(force: bool = False) -> None:
    """Answers for ``bitsandbytes`` from now on; a second call with the same ``force`` does nothing.

    Args:
        force: answer also where a real bitsandbytes is installed.

    Raises:
        InvalidArgumentError: ``force``, and the real one is imported already.
    """
    if force and _is_real(sys.modules.get(NAME)):
        raise InvalidArgumentError(
            "install(force=True) after bitsandbytes was imported",
            "Its classes are in use and its ops are defined.",
            "Call install before anything imports bitsandbytes.",
        )
    if any(finder.force == force for finder in _installed()):
        return
    for finder in _installed():
        sys.meta_path.remove(finder)
    if force:
        sys.meta_path.insert(0, Finder(force=True))
    else:
        sys.meta_path.append(Finder(force=False))


def uninstall() -> None:
    """Stops answering and forgets the modules it gave; what others hold of them keeps working."""
    for finder in _installed():
        sys.meta_path.remove(finder)
    module = sys.modules.get(NAME)
    if module is not None and not _is_real(module):
        for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
            del sys.modules[name]


def _installed() -> list[Finder]:
    return [finder for finder in sys.meta_path if isinstance(finder, Finder)]


def _is_real(module: object) -> bool:
    spec = getattr(module, "__spec__", None)
    return module is not None and not isinstance(getattr(spec, "loader", None), TopLoader)


install()
