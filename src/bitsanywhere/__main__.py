"""``python -m bitsanywhere``: the same as the command ``bitsanywhere``."""

from __future__ import annotations

import sys

from bitsanywhere.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
