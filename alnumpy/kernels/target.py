"""The CPU that kernels are compiled for: chosen once, before simd.py is imported.

The environment variable ALNUMPY_TARGET names a level of the CPU family, so that kernels for lower levels can be tested
and timed on this CPU; without it, kernels are for exactly this CPU. ``python tools/dev/targets.py`` tests all levels.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import llvmlite.binding as llvm

from ..errors import AlnumpyError


class Target(NamedTuple):
    triple: str
    cpu: str  # LLVM's name of the CPU
    features: str  # features beyond those of the CPU's name
    lanes: int  # float32 in one vector register


LEVELS = {"x86-64": 4, "x86-64-v3": 8, "x86-64-v4": 16}  # lanes with SSE2, with AVX2 and FMA, with AVX-512
NEEDED = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}  # a feature that shows the level


def choose(name: str) -> Target:
    """The target with a name: one of LEVELS, or "" for this CPU. Raises AlnumpyError if it cannot run here."""
    triple, features = llvm.get_process_triple(), llvm.get_host_cpu_features()
    if not name:
        lanes = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
        return Target(triple, llvm.get_host_cpu_name(), features.flatten(), lanes)
    if name not in LEVELS:
        raise AlnumpyError(f"the environment variable ALNUMPY_TARGET must be one of {', '.join(LEVELS)}, not {name!r}")
    if not features.get(NEEDED[name]):
        raise AlnumpyError(f"ALNUMPY_TARGET is {name}, which this CPU cannot run")
    return Target(triple, name, "", LEVELS[name])


TARGET = choose(os.environ.get("ALNUMPY_TARGET", ""))
