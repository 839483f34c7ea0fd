"""Ground: what a machine allows, and the scratch folder in which everything happens."""

import os
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from . import disk
from .calls import asked_to_stop, untraceable
from .world import World, prepare, tour

NEEDS_STRACE = {"order", "kill", "fail", "power"}
NEEDS_DISK = {"power", "full"}


def possible(wanted):
    """Of the wanted parts those that can be done here; says which cannot, and why."""
    reasons = {}
    if why := untraceable():
        reasons |= dict.fromkeys(NEEDS_STRACE, why)
    if why := disk.missing():
        reasons |= {part: why for part in NEEDS_DISK if part not in reasons}
    for part in wanted:
        if part in reasons:
            print(f"fault-test: SKIPPED {part}: {reasons[part]}", flush=True)
    return [part for part in wanted if part not in reasons]


@contextmanager
def ground(program):
    """A scratch folder, the world in it before there is a pool, and the stages of the tour."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaving nothing mounted
    with tempfile.TemporaryDirectory(prefix="fault-test-", dir=roomy()) as scratch:
        scratch = Path(scratch).resolve()
        (scratch / "first").mkdir()
        first = World(scratch / "first", program)
        prepare(first)
        stop = None if untraceable() else lambda call: asked_to_stop(call, scratch / "log")
        yield scratch, first, tour(first, scratch, stop)


def roomy():
    """A file system in memory, where there is one with room: flushing is what takes the time, and proves nothing there."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30 else None
