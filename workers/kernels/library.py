"""Where the compiled kernels lie, and loading them."""

from __future__ import annotations

import hashlib
import logging
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno")


@dataclass(frozen=True, slots=True)
class Level:
    """A kind of CPU: what the compiler may use; elements of two vectors (kPair in vec.h)."""

    march: str
    columns: int


LEVELS = {"AVX2": Level("x86-64-v3", 16), "AVX512": Level("x86-64-v4", 32)}  # by torch's names


def level() -> str | None:
    """This machine's, or None where we have no kernels for it."""
    name = torch.backends.cpu.get_cpu_capability()
    return name if name in LEVELS else None


def columns() -> int:
    """Elements that the kernels take at once: two vectors. A head must be a multiple of it."""
    name = level()
    assert name is not None, "no kernels for this CPU"
    return LEVELS[name].columns


def library_path(name: str) -> Path:
    """Where the library for a level belongs: in this environment, under a name that changes with
    the sources and with torch."""
    state = hashlib.sha256(f"{torch.__version__} {FLAGS} {LEVELS[name]}".encode())
    for path in sorted(SOURCES.iterdir()):
        state.update(path.read_bytes())
    return Path(sys.prefix) / "lib" / "kvasir" / f"kernels-{name}-{state.hexdigest()[:16]}.so"


@cache
def load_library() -> bool:
    """Make torch.ops.kvasir known; whether this machine has the library."""
    name = level()
    path = library_path(name) if name else None
    if path is None or not path.exists():
        log.warning("no compiled kernels for this CPU: plain torch computes, slower (make install)")
        return False
    torch.ops.load_library(str(path))
    return True
