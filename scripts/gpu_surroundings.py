"""What gpu-check and study-gpu give the programs they run on a GPU machine: where CUDA's libraries are, and where the driver keeps what it compiled."""

import os
import sys
import tempfile
from pathlib import Path

LIBRARIES = ["libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"]


def surroundings():
    """The environment in which CUDA libraries of Python's wheels are found after those that the machine names."""
    environment = dict(os.environ)
    places = [Path(entry) for entry in sys.path if entry]
    patterns = ("nvidia/*/lib", "nvidia/*/lib64", "torch/lib")
    found = [folder for place in places for pattern in patterns for folder in sorted(place.glob(pattern)) if any(folder.glob("*.so*"))]
    named = [environment["LD_LIBRARY_PATH"]] if environment.get("LD_LIBRARY_PATH") else []
    environment["LD_LIBRARY_PATH"] = ":".join(dict.fromkeys([*named, *map(str, found)]))
    kept = Path(tempfile.gettempdir())
    environment.setdefault("CUDA_CACHE_PATH", str(kept / "mixpool-driver-cache"))
    environment.setdefault("CUDA_CACHE_MAXSIZE", str(1 << 30))
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept / "mixpool-inductor-cache"))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def runnable(program, scratch):
    """The program, or a copy of it that may be run where it was carried without its mode."""
    program = program.resolve()
    if program.exists() and not os.access(program, os.X_OK):
        copy = scratch / "mixpool"
        copy.write_bytes(program.read_bytes())
        copy.chmod(0o755)
        return copy
    return program
