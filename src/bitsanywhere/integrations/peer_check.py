"""Whether the installed bitsandbytes can run on the GPUs that are here, by what is in its library.

A library without code for a chip installs and imports, and stops at its first kernel. Its file
tells that beforehand; see `bitsanywhere.arch`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping

import torch

logger = logging.getLogger("bitsanywhere")

PEER = "bitsandbytes"
# The variable by which bitsandbytes is told which of its libraries to load: 126 for CUDA 12.6.
OVERRIDE = "BNB_CUDA_VERSION"
# These depend on the driver, which may be newer than torch's CUDA, or on files that no package
# lists, as in an editable installation: nothing is known for certain.
UNCERTAIN = ("ptx-too-new", "compression-driver", "no-gpu-code")
SERVED = (
    "bitsanywhere serves its quantization, matrix product and optimizer ops in its place; what "
    "else it has (memory of paged optimizers) still needs its own library."
)


def warn_if_peer_cannot_run() -> bool:
    """Gives one warning if bitsandbytes has no code for a visible NVIDIA GPU.

    Costs nothing where torch sees none, otherwise the reading of one library (20 MB). Never
    raises: what goes wrong is logged, as no import may fail for the sake of a warning.

    Returns:
        Whether a GPU here is one that bitsandbytes cannot run on.
    """
    if not torch.version.cuda or not torch.cuda.is_available():
        return False
    try:
        problem = why_not(visible_gpus(), os.environ.get(OVERRIDE), torch.version.cuda)
    except Exception:
        logger.info("could not tell whether %s runs here", PEER, exc_info=True)
        return False
    if problem:
        try:
            warnings.warn(problem, stacklevel=2)
        except UserWarning:
            logger.warning(problem)
    return bool(problem)


def visible_gpus() -> dict[int, str]:
    """Names of the GPUs that torch sees by compute capability times ten, such as ``{87: "Orin"}``.

    bitsandbytes asks the same at its import, so the CUDA context is there already.
    """
    found = {}
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        found[10 * major + minor] = torch.cuda.get_device_name(index)
    return found


def why_not(gpus: Mapping[int, str], override: str | None, torch_cuda: str) -> str:
    """On which GPUs the installed bitsandbytes cannot run, and why; "" if on all or unknown.

    Args:
        gpus: names by compute capability times ten.
        override: the CUDA version that bitsandbytes is told to use, such as "126".
        torch_cuda: torch's CUDA version, such as "12.6".

    Raises:
        AuditError: a library of bitsandbytes is damaged or cannot be read.
        InvalidArgumentError: a version is none.
    """
    from bitsanywhere.arch import audit_installed, explain, of_arch
    from bitsanywhere.arch.report import parse_cuda

    cuda = parse_cuda(f"{override[:-1]}.{override[-1:]}" if override else torch_cuda)
    told = []
    for arch, name in gpus.items():
        device = of_arch(arch)
        file = audit_installed(PEER, device, cuda)
        finding = file.devices[0].finding if file else None
        if file is None or finding is None or finding.covered or finding.verdict in UNCERTAIN:
            continue
        words = explain(finding, file)
        told.append(
            f"{PEER} {file.version} is not expected to run on {name} (compute capability"
            f" {device.capability}). {words.reason} The error to expect: {words.error_text}."
        )
    return "\n".join([*told, SERVED, "`bitsanywhere doctor` tells more."]) if told else ""
