"""Makes the demo's package importable as the demo itself imports it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
