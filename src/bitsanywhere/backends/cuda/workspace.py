"""Scratch memory that kernels share between their own thread blocks.

A workspace belongs to one device and stream, so launches that may overlap never share one. While
a CUDA graph is captured, the workspace belongs to that capture instead: graphs captured on one
stream may be replayed on several at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from bitsanywhere.backends.cuda.jit.driver import driver

_ARRIVALS = 4096


class Workspace(NamedTuple):
    """Memory for partial sums and arrival counters.

    Attributes:
        partial: float32, any content.
        arrivals: int32, zero between launches: whoever counts them up resets them.
        addresses: of both.
    """

    partial: torch.Tensor
    arrivals: torch.Tensor
    addresses: tuple[int, int]


_workspaces: dict[tuple[int, int], tuple[int, Workspace]] = {}


def workspace(device_index: int, stream: int, floats: int) -> Workspace:
    """A workspace of at least `floats` floats for a launch on the stream.

    Args:
        stream: torch's current raw stream on the device.
    """
    # The default stream cannot be captured.
    capture = _capture_id(stream) if stream else 0
    key = (device_index, stream)
    found = _workspaces.get(key)
    if found is not None and found[0] == capture and found[1].partial.numel() >= floats:
        return found[1]
    device = torch.device("cuda", device_index)
    with torch.inference_mode(False):
        partial = torch.empty(max(floats, 1 << 20), dtype=torch.float32, device=device)
        arrivals = torch.empty(_ARRIVALS, dtype=torch.int32, device=device)
    # torch.zeros would load a kernel of torch's, which takes some milliseconds.
    driver().clear(arrivals.data_ptr(), 4 * _ARRIVALS, stream, device_index)
    fresh = Workspace(partial, arrivals, (partial.data_ptr(), arrivals.data_ptr()))
    _workspaces[key] = (capture, fresh)
    return fresh


def _capture_id(stream: int) -> int:
    """A number of the capture under way on the stream, 0 if there is none."""
    return driver().capture_id(stream) if torch.cuda.is_current_stream_capturing() else 0
