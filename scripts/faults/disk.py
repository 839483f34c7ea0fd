"""Disk: an ext4 image on a loop device, what is left of it after a power cut, and what happens when it is full."""

import os
import random
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

from .calls import CALLS, again, complaint, damage, points, stop_at, strace
from .part import Part
from .world import World

IMAGE = 48 << 20
# Nothing is written back unless a program asks for it, and nothing is guessed about what a program meant.
OPTIONS = "commit=9999,noauto_da_alloc,noatime"


@cache
def missing():
    """Why there can be no disk of our own here; empty when there can be one."""
    if os.geteuid() != 0:
        return "not root"
    tools = [tool for tool in ("mkfs.ext4", "losetup", "mount") if shutil.which(tool) is None]
    if tools:
        return f"no {', '.join(tools)} (Debian: apt-get install e2fsprogs mount)"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with Disk(Path(scratch, "image"), Path(scratch, "disk")), Memory(Path(scratch, "memory")):
                return ""
        except subprocess.CalledProcessError as error:
            return f"cannot mount an image: {error.stderr.strip().splitlines()[0]}"


def do(*words):
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout.strip()


class Disk:
    """A mounted image; used in a `with`, which unmounts it."""

    def __init__(self, image, folder, *, new=True):
        self.image, self.folder, self.new, self.device = Path(image), Path(folder), new, None

    def __enter__(self):
        if self.new:
            self.image.unlink(missing_ok=True)
            with open(self.image, "wb") as file:
                file.truncate(IMAGE)
            do("mkfs.ext4", "-q", "-F", "-b", 4096, "-m", 0, "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
        self.folder.mkdir(exist_ok=True)
        self.device = do("losetup", "-f", "--show", self.image)
        try:
            do("mount", "-t", "ext4", "-o", OPTIONS, self.device, self.folder)
        except BaseException:
            do("losetup", "-d", self.device)
            raise
        return self

    def __exit__(self, *_):
        do("umount", self.folder)
        do("losetup", "-d", self.device)

    def written(self):
        """Writes and flushes the device has done, and how many are under way."""
        numbers = Path("/sys/block", os.path.basename(self.device), "stat").read_text().split()
        return numbers[4], numbers[6], numbers[15:16], numbers[8]

    def cut(self, to):
        """Copies what has reached the device, while it is mounted and in use: what a power cut would leave.

        The copy takes a moment; it counts only when the device wrote nothing meanwhile.
        """
        for _ in range(100):
            before = self.written()
            do("cp", "--sparse=always", self.image, to)
            if before[-1] == "0" and before == self.written():
                return
            time.sleep(0.02)
        raise RuntimeError("the device is never still")


def texts(first, folder):
    """What a person has before there is a pool, on another disk."""
    for path in first.folder.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return World(folder, first.program)


# --------------------------------------------------------------------------------------------------------- power cuts


class Cut:
    """An image, and how far the commands had come."""

    def __init__(self, image, index, point, is_done):
        self.image, self.index, self.point, self.is_done = image, index, point, is_done


def power(stages, cuts, scratch, seed=7, bug=None, until=None):
    """Cuts the power while the tour runs on a disk of its own, at random calls and after commands that reported success.

    What was reported done must be there, whole and right, once the journal was replayed; the same commands then go on and end
    with the undisturbed pool. With `bug`, a name and a program, the commands up to `until` run with that bug planted, and the
    checks without.
    """
    tour = [stage for stage in stages.values() if stage.name != "repair"]  # whose damages are no writes of the program
    tour = tour[: [stage.name for stage in tour].index(until) + 1] if until else tour
    part = Part("power", sum(1 + len(at) for at in candidates(tour, scratch).values()), range(cuts))
    chance, left = random.Random(seed), cuts
    while left > 0:
        taken = cycle(tour, left, scratch, chance, bug)
        for cut in taken:
            problems = survived(cut, tour, scratch)
            part.hit += 1
            stage = tour[cut.index]
            what = "after" if cut.is_done else f"{cut.point[0]} {cut.point[1]}"
            part.note((f"{stage.name}:", what, stage.line), problems)
            cut.image.unlink()
        left -= len(taken)
    return part


KNOWN = {}  # mutating calls of every stage, which do not change


def candidates(tour, scratch):
    for stage in tour:
        if stage.name not in KNOWN:
            log = scratch / "log"
            KNOWN[stage.name] = points(stage.base.copy(scratch / "trace"), stage.line, stage.stop, log)
    return {stage.name: KNOWN[stage.name] for stage in tour}


def cycle(tour, wanted, scratch, chance, bug):
    """Runs the tour once on a new disk; returns the cuts it took: about a third after commands, the others inside them."""
    taken, at = [], candidates(tour, scratch)
    share = min(1.0, wanted / (2.5 * len(tour)))
    with Disk(scratch / "disk", scratch / "live"):
        texts(tour[0].base, scratch / "live")
    with Disk(scratch / "disk", scratch / "live", new=False) as disk:
        world = World(scratch / "live", tour[0].base.program)
        for index, stage in enumerate(tour):
            for step in stage.prepared:
                world.ok(step)
            if any(step.startswith("rm ") for step in stage.prepared):
                do("sync", "-f", world.folder)  # what a person removed stays removed
            chosen = {}
            for point in chance.sample(at[stage.name], min(2, len(at[stage.name]))):
                if chance.random() < share:
                    chosen[point[0]] = point  # one of each call: strace holds no more
            images = lambda: scratch / f"cut-{len(taken)}"
            keep = lambda point, done: taken.append(Cut(images(), index, point, done))
            stopped(world, stage, chosen.values(), disk, images, keep, scratch, bug)
            if chance.random() < share and len(taken) < wanted:
                disk.cut(images())
                keep(None, True)
            if len(taken) >= wanted:
                break
    return taken[:wanted]


def stopped(world, stage, chosen, disk, images, keep, scratch, bug):
    """Runs one command to its end, and takes a cut wherever it stops at a chosen call."""
    log = scratch / "stop-log"
    log.unlink(missing_ok=True)
    inject = ["-e", f"trace={CALLS}" + (f",{stage.stop}" if stage.stop else ""), *stop_at(stage.stop)]
    for call, count, _ in chosen:
        inject += ["-e", f"inject={call}:signal=STOP:when={count}"]
    if bug:
        os.environ["MIXPOOL_PLANTED_BUG"], world = bug[0], World(world.folder, bug[1])
    running = world.start(stage.line, *strace(log, *inject))
    os.environ.pop("MIXPOOL_PLANTED_BUG", None)
    seen = 0
    chosen = list(chosen)
    while running.poll() is None:
        said = log.read_text(errors="replace") if log.exists() else ""
        if said.count("--- SIGSTOP") > seen and "--- stopped by SIGSTOP" in said.rsplit("--- SIGSTOP", 1)[1]:
            call = said[: said.rindex("--- SIGSTOP")].splitlines()
            event = next((line for line in reversed(call) if "(INJECTED)" in line or "(" in line), "")
            seen = said.count("--- SIGSTOP")
            name = next((point for point in chosen if f" {point[0]}(" in f" {event}"), ("call", seen, event[:80]))
            disk.cut(images())
            keep(name, False)
            for child in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
                os.kill(int(child), 18)  # SIGCONT
        time.sleep(0.002)
    if running.returncode != (75 if stage.stop else 0) and not bug:
        raise RuntimeError(f"'{stage.line}' on a disk of its own: exit {running.returncode}")


def survived(cut, tour, scratch):
    """What is wrong with the pool that a power cut left."""
    stage = tour[cut.index]
    after = stage.final.content()
    with Disk(cut.image, scratch / "after-cut", new=False) as disk:
        world = World(disk.folder, stage.base.program)
        problems = damage(world, after if cut.is_done else stage.base.content(), after)
        for later in tour[cut.index + cut.is_done :] if not problems else ():
            if later is not stage:
                for step in later.prepared:
                    world.ok(step)
            if later.name == "stop":
                continue
            ran = world.run(later.line)
            if ran.returncode:
                return [f"then '{later.line}': exit {ran.returncode}: {ran.stderr.strip()}"]
        if not problems:
            last = next(stage for stage in reversed(tour) if stage.name != "stop")
            problems = again(world, last.line, last.final.content())
    return problems


# ---------------------------------------------------------------------------------------------------------- full disk


class Memory:
    """A small file system in memory; used in a `with`."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __enter__(self):
        self.folder.mkdir(exist_ok=True)
        do("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", self.folder)
        return self

    def __exit__(self, *_):
        do("umount", self.folder)


def full(stages, sizes, scratch):
    """Runs the tour on file systems with room for only so much; what does not fit must fail in one line, and succeed once
    there is room."""
    tour = [stage for stage in stages.values() if stage.stop is None and stage.name not in ("repair", "import")]
    needed = sum(path.stat().st_size for path in tour[-1].final.folder.rglob("*") if path.is_file())
    part = Part("full", 2 * sizes, range(2 * sizes))
    for index in range(sizes):
        room = needed * 13 // 10 * (index + 1) // (sizes + 1) // 4096 * 4096
        for place in (Memory(scratch / "small"), Disk(scratch / "small-disk", scratch / "small")):
            with place:
                kind = type(place).__name__.lower()
                at, problems = fill(tour, room, place.folder)
                part.hit += at is not None
                part.note((kind, f"{room} bytes", at or "never full"), problems)
    return part


def fill(tour, room, folder):
    """Runs the tour with room for `room` bytes; returns the first command that found the disk full, and what was wrong."""
    world, ballast, failed, problems = texts(tour[0].base, folder), folder / "ballast", None, []
    space = os.statvfs(folder)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(space.f_bavail * space.f_frsize - room, 4096))
    for stage in tour:
        for step in (*stage.prepared, stage.line):
            if step.startswith("rm "):
                world.ok(step)
                continue
            ran = world.run(step)
            if ran.returncode == 0:
                continue
            if failed:
                return failed, [f"'{step}' with room again: exit {ran.returncode}: {ran.stderr.strip()}"]
            failed, problems = step, complaint(ran)
            ballast.unlink()
            if not stage.prepared:
                problems += damage(world, stage.base.content(), stage.final.content())
            ran = world.run(step)
            if ran.returncode:
                problems.append(f"'{step}' with room again: exit {ran.returncode}: {ran.stderr.strip()}")
    ballast.unlink(missing_ok=True)
    return failed, problems or again(world, tour[-1].line, tour[-1].final.content())
