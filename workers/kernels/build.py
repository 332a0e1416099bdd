"""Compiles workers/kernels/cpu for this machine: `python -m workers.kernels.build [LEVEL...]`, part
of `make install`. Without a compiler nothing breaks: plain torch does the same, slower.

An image that runs on several kinds of CPU builds for each: `... build AVX2 AVX512`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from workers.kernels.library import FLAGS, LEVELS, SOURCES, level, library_path

TORCH = Path(torch.__file__).parent
INCLUDES = (TORCH / "include", TORCH / "include" / "torch" / "csrc" / "api" / "include")
LINKS = (f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", "-lgomp")
TIMEOUT_S = 600


class BuildError(Exception):
    """Its text says what is missing or what the compiler said."""


def build(name: str) -> Path:
    """Compile for one level unless that was done before. Raises BuildError."""
    target = library_path(name)
    if target.exists():
        return target
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise BuildError("no C++ compiler (g++, or what CXX names)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        march = f"-march={LEVELS[name].march}"
        include = [part for path in INCLUDES for part in ("-isystem", str(path))]
        compiles = [
            [compiler, *FLAGS, march, *include, "-c", str(source), "-o", str(object_)]
            for source, object_ in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, compiles))
        library = Path(folder) / target.name
        _run([compiler, "-shared", *map(str, objects), *LINKS, "-o", str(library)])
        library.replace(target)  # whole or not at all: others may load it at this moment
    for old in target.parent.glob(f"kernels-{name}-*.so"):
        if old != target:
            old.unlink()
    return target


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{' '.join(command)}\n{error.stderr}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from None


def main(names: list[str]) -> None:
    own = level()
    for name in names or ([own] if own else []):
        try:
            build(name)
        except BuildError as error:
            print(f"== no compiled kernels, plain torch will compute: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
