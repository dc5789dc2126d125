"""Which 4-bit library the Hugging Face stack finds: the demo's only line about it."""

from __future__ import annotations


def use_bitsanywhere() -> str:
    """Make bitsanywhere answer for `bitsandbytes`, installed or not; return what it is.

    Call it before transformers, peft or accelerate are imported.
    """
    import bitsanywhere.compat

    bitsanywhere.compat.install(force=True)
    return f"bitsanywhere {bitsanywhere.__version__}"
