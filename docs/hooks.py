"""Pages that are generated while the site is built: the support matrix."""

from __future__ import annotations

from typing import Any

from bitsanywhere.arch.support import load, rows
from bitsanywhere.cli.matrix import as_markdown

PAGE = "support-matrix.md"
HEAD = """\
# Support matrix

Generated from recorded test runs (`bitsanywhere matrix`); see [For maintainers](maintainers.md).

"""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=HEAD + as_markdown(rows(load()))))
    return files
