"""The compatibility rules as data: what each verdict means, who says so, and what mends it.

Nothing here decides anything: `verdict` does, and the reports and the documentation's rule table
read their words from this table.
"""

from __future__ import annotations

from dataclasses import dataclass

DOCUMENTED, REPORTED, INFERRED, MEASURED = "documented", "reported", "inferred", "measured"

GITHUB = "https://github.com"
CUDA_DOCS = "https://docs.nvidia.com/cuda"


@dataclass(frozen=True)
class Source:
    """Where a rule comes from.

    Attributes:
        title: what it is.
        url: where to read it.
        evidence: "documented", "reported", "inferred" or "measured".
        says: what it says, in our words.
    """

    title: str
    url: str
    evidence: str
    says: str


@dataclass(frozen=True)
class CudaError:
    """An error that a user meets.

    Attributes:
        code: its number in the CUDA runtime, or None if it is not CUDA that complains.
        name: its name there, or the program that prints it.
        text: the words that the user sees, and will search for.
    """

    code: int | None
    name: str
    text: str


@dataclass(frozen=True)
class Rule:
    """What one verdict means.

    Attributes:
        covered: whether the code is expected to run.
        statement: the rule, in one sentence.
        evidence: the weakest link of the chain that leads to the verdict.
        sources: keys of `SOURCES` that support it.
        contrary: keys of `SOURCES` that report otherwise.
        error: key of `ERRORS`, or "" where none follows or the build decides which.
        fix: what to do, with the fields {arch}, {capability}, {driver} and
            {hosts}; "" if nothing is needed.
    """

    covered: bool
    statement: str
    evidence: str
    sources: tuple[str, ...]
    contrary: tuple[str, ...] = ()
    error: str = ""
    fix: str = ""


SOURCES = {
    "guide-binary": Source(
        "CUDA C++ Programming Guide, binary compatibility",
        f"{CUDA_DOCS}/cuda-c-programming-guide/index.html#binary-compatibility",
        DOCUMENTED,
        "Machine code for X.y runs on X.z with z >= y, and never on another major.",
    ),
    "guide-tegra": Source(
        "CUDA C++ Programming Guide 12, section 6.1.2",
        f"{CUDA_DOCS}/archive/12.6.0/cuda-c-programming-guide/index.html#binary-compatibility",
        DOCUMENTED,
        "Binary compatibility holds for desktop chips only: not for Tegra, nor between both.",
    ),
    "guide-ptx": Source(
        "CUDA C++ Programming Guide, PTX compatibility",
        f"{CUDA_DOCS}/cuda-c-programming-guide/index.html#ptx-compatibility",
        DOCUMENTED,
        "PTX is compiled at load time for its own capability and every higher one.",
    ),
    "guide-family": Source(
        "CUDA Programming Guide, compute capabilities appendix",
        f"{CUDA_DOCS}/cuda-programming-guide/05-appendices/compute-capabilities.html",
        DOCUMENTED,
        "Suffix a: that capability only. Suffix f: the members of its family.",
    ),
    "ptx-isa": Source(
        "PTX ISA, release notes",
        f"{CUDA_DOCS}/parallel-thread-execution/index.html#release-notes",
        DOCUMENTED,
        "Each PTX version needs the driver of the CUDA release that introduced it.",
    ),
    "nvcc-rdc": Source(
        "NVCC documentation, separate compilation",
        f"{CUDA_DOCS}/cuda-compiler-driver-nvcc/index.html",
        DOCUMENTED,
        "Relocatable code is linked by the driver if every object has PTX or machine code.",
    ),
    "nvcc-compress": Source(
        "NVCC documentation, --compress-mode",
        f"{CUDA_DOCS}/cuda-compiler-driver-nvcc/index.html",
        DOCUMENTED,
        "Modes beyond the classic one need a driver of CUDA 12.4 or later.",
    ),
    "compatibility": Source(
        "CUDA Compatibility",
        "https://docs.nvidia.com/deploy/cuda-compatibility/",
        DOCUMENTED,
        "Within one CUDA major, libraries run on older drivers; across majors they do not.",
    ),
    "errors": Source(
        "CUDA Runtime API, error types",
        f"{CUDA_DOCS}/cuda-runtime-api/group__CUDART__TYPES.html",
        DOCUMENTED,
        "Numbers and names of the errors.",
    ),
    "torch": Source(
        "PyTorch 2.13, DEVICE_REQUIREMENT",
        f"{GITHUB}/pytorch/pytorch/blob/v2.13.0/torch/cuda/__init__.py",
        DOCUMENTED,
        "PyTorch does not count sm_80 and sm_86 as running on 8.7.",
    ),
    "experiment": Source(
        "One kernel built nine ways and run on an H100",
        "docs/named-symbol-not-found.md",
        MEASURED,
        "A missing architecture is error 209 in a plain build and error 500 in a relocatable one.",
    ),
    "bitsandbytes-1930": Source(
        "bitsandbytes issue 1930",
        f"{GITHUB}/bitsandbytes-foundation/bitsandbytes/issues/1930",
        REPORTED,
        "The 0.46.1 wheel (sm_80 code) fails on an Orin Nano: named symbol not found.",
    ),
    "bitsandbytes-1939": Source(
        "bitsandbytes pull request 1939",
        f"{GITHUB}/bitsandbytes-foundation/bitsandbytes/pull/1939",
        REPORTED,
        "A build for sm_80 alone ran on Orin; that build also carried compute_80 PTX.",
    ),
    "vllm-19328": Source(
        "vLLM pull request 19328",
        f"{GITHUB}/vllm-project/vllm/pull/19328",
        REPORTED,
        "Kernels for 8.0 fail on Orin: no kernel image is available.",
    ),
    "jax-22723": Source(
        "JAX issue 22723",
        f"{GITHUB}/jax-ml/jax/issues/22723",
        REPORTED,
        "Wheels without sm_87 fail on an Orin Nano: no kernel image is available.",
    ),
    "jax-40492": Source(
        "JAX pull request 40492",
        f"{GITHUB}/jax-ml/jax/pull/40492",
        REPORTED,
        "On Orin an sm_80 cubin has no kernel image; compute_80 PTX and sm_87 run.",
    ),
    "conda-forge-527": Source(
        "conda-forge pytorch issue 527",
        f"{GITHUB}/conda-forge/pytorch-cpu-feedstock/issues/527",
        REPORTED,
        "Under JetPack 7.2, sm_80 code seems to run on Orin.",
    ),
    "holohub-1687": Source(
        "holohub pull request 1687",
        f"{GITHUB}/nvidia-holoscan/holohub/pull/1687",
        REPORTED,
        "Under JetPack 7.2, a PyTorch wheel with sm_80 and without sm_87 passes tests on Orin.",
    ),
    "dispatch": Source(
        "bitsandbytes, cextension.py",
        f"{GITHUB}/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/cextension.py",
        DOCUMENTED,
        "One library per CUDA version; from 0.50 the nearest one of the same major is taken.",
    ),
    "tags": Source(
        "Python packaging, platform compatibility tags",
        "https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/",
        DOCUMENTED,
        "An installer takes only wheels whose system and processor match.",
    ),
}

ERRORS = {
    "no-image": CudaError(
        209,
        "cudaErrorNoKernelImageForDevice",
        "no kernel image is available for execution on the device",
    ),
    "no-symbol": CudaError(500, "cudaErrorSymbolNotFound", "named symbol not found"),
    "ptx": CudaError(
        222,
        "cudaErrorUnsupportedPtxVersion",
        "the provided PTX was compiled with an unsupported toolchain.",
    ),
    "invalid-image": CudaError(
        200, "cudaErrorInvalidKernelImage", "device kernel image is invalid"
    ),
    "driver": CudaError(
        35,
        "cudaErrorInsufficientDriver",
        "CUDA driver version is insufficient for CUDA runtime version",
    ),
    "loader": CudaError(
        None,
        "dynamic linker",
        "cannot open shared object file: No such file or directory",
    ),
    "pip": CudaError(None, "pip", "is not a supported wheel on this platform."),
}

BUILD = (
    "Build it with machine code for this chip: nvcc -gencode arch=compute_{arch},code=sm_{arch}, "
    "CMAKE_CUDA_ARCHITECTURES={arch} or TORCH_CUDA_ARCH_LIST={capability}"
)

# From the best verdict to the worst: a library is judged by the worst of its containers.
RULES = {
    "sass-exact": Rule(
        True,
        "Machine code for exactly this chip is there.",
        DOCUMENTED,
        ("guide-binary",),
    ),
    "family": Rule(
        True,
        "Machine code for the family (suffix f) of this chip is there.",
        DOCUMENTED,
        ("guide-family",),
    ),
    "sass-minor": Rule(
        True,
        "Machine code for a lower minor of the same major runs on this chip.",
        DOCUMENTED,
        ("guide-binary", "torch"),
    ),
    "ptx-jit": Rule(
        True,
        "The driver compiles PTX for this chip at the first use, which takes time.",
        DOCUMENTED,
        ("guide-ptx", "experiment"),
    ),
    "rdc-jit-link": Rule(
        True,
        "No linked machine code fits, but every relocatable object has PTX (or code) that does: "
        "the driver compiles and links them at the first use.",
        MEASURED,
        ("nvcc-rdc", "experiment"),
    ),
    "compression-driver": Rule(
        False,
        "The code that fits is compressed with zstd, which drivers before CUDA 12.4 cannot read.",
        DOCUMENTED,
        ("nvcc-compress",),
        error="invalid-image",
        fix="Update the driver to CUDA {driver} or later, or build with --compress-mode=none.",
    ),
    "ptx-too-new": Rule(
        False,
        "The only code that fits is PTX of a version that the driver of this CUDA does not know.",
        DOCUMENTED,
        ("guide-ptx", "ptx-isa"),
        error="ptx",
        fix=f"Update the driver to CUDA {{driver}} or later, or build with an older CUDA. {BUILD}.",
    ),
    "tegra-undocumented": Rule(
        False,
        "Machine code of the same major is there, but binary compatibility between desktop chips "
        "and Tegra is not documented: reported failing up to JetPack 6, and reported working "
        "under JetPack 7.2.",
        REPORTED,
        (
            "guide-tegra",
            "torch",
            "bitsandbytes-1930",
            "vllm-19328",
            "jax-22723",
            "jax-40492",
            "experiment",
        ),
        contrary=("conda-forge-527", "holohub-1687", "bitsandbytes-1939"),
        fix=BUILD + ", or keep PTX of compute_80 in the last -gencode.",
    ),
    "unknown-arch": Rule(
        False,
        "This capability is not in our table: whether lower machine code of its major runs on it "
        "depends on whether it is a Tegra.",
        INFERRED,
        ("guide-binary", "guide-tegra"),
        fix=BUILD + ".",
    ),
    "no-image": Rule(
        False,
        "Nothing in the library fits this chip.",
        MEASURED,
        ("guide-binary", "guide-ptx", "errors", "experiment"),
        error="no-image",
        fix=BUILD + ", or add PTX: -gencode arch=compute_{arch},code=compute_{arch}.",
    ),
    "no-symbol": Rule(
        False,
        "Nothing in the library fits this chip, and it is relocatable device code, where the "
        "failed link shows as a missing symbol.",
        MEASURED,
        ("guide-binary", "nvcc-rdc", "errors", "experiment", "bitsandbytes-1930"),
        error="no-symbol",
        fix=BUILD + ", or add PTX: -gencode arch=compute_{arch},code=compute_{arch}.",
    ),
    "cuda-major": Rule(
        False,
        "The library belongs to another major version of CUDA than the one in use.",
        INFERRED,
        ("compatibility", "dispatch"),
        error="loader",
        fix="Install a build for the CUDA major in use, or the CUDA libraries that it asks for.",
    ),
    "platform-tag": Rule(
        False,
        "The file is for another operating system or processor than this device has.",
        DOCUMENTED,
        ("tags",),
        error="pip",
        fix="Take the file that was built for {hosts}.",
    ),
    "no-gpu-code": Rule(
        False,
        "There is no CUDA code in the file.",
        MEASURED,
        (),
        fix="If it should have some, check that the build enabled CUDA.",
    ),
}
SEVERITY = {verdict: rank for rank, verdict in enumerate(RULES)}

# Members of a family: code with suffix f runs on these and on no other capability.
FAMILIES = {
    100: frozenset({100, 103, 107}),
    103: frozenset({103, 107}),
    107: frozenset({107}),
    110: frozenset({110}),
    120: frozenset({120, 121}),
    121: frozenset({121}),
}

# The first driver that reads fat binaries compressed with zstd.
ZSTD_CUDA = (12, 4)

# PTX ISA of the CUDA releases whose minor version is not that of their PTX.
PTX_ISA = {(12, 6): (8, 5), (12, 7): (8, 6), (12, 8): (8, 7), (12, 9): (8, 8)}


def newest_isa(cuda: tuple[int, int]) -> tuple[int, int]:
    """The newest PTX ISA that the driver of a CUDA release knows (11.x: 7.x, 12.x: 8.x, ...)."""
    return PTX_ISA.get(cuda, (cuda[0] - 4, cuda[1]))


def oldest_cuda(isa: tuple[int, int]) -> tuple[int, int]:
    """The oldest CUDA release whose driver knows a PTX ISA."""
    listed = [cuda for cuda, known in PTX_ISA.items() if known == isa and cuda != (12, 6)]
    return listed[0] if listed else (isa[0] + 4, isa[1])
