"""Order: the calls of one command, read for what a power cut could take; and who holds a claim."""

import os
import re
import time

from .calls import CALLS, EVENT, stop_at, strace
from .part import Part


def order(stage, scratch):
    """Reads the calls of one undisturbed command: what is renamed is on the disk, and its folder is before what follows.

    A kill cannot show a missing fsync, because what was written outlives the process; the order of calls can.
    """
    world, log, line, stop = stage.base.copy(scratch / "trace"), scratch / "log", stage.line, stage.stop
    known = {str(path) for path in world.folder.rglob("*")}
    world.run(line, *strace(log, "-e", f"trace={CALLS}" + (f",{stop}" if stop else ""), *stop_at(stop)))
    audit = Audit(world.folder, known)
    events = [event.groups() for event in map(EVENT.match, log.read_text(errors="replace").splitlines()) if event]
    problems = [(index, problem) for index, (_, call, said) in enumerate(events) for problem in audit.see(call, said)]
    part = Part(f"order {stage.name}", audit.published, range(audit.published))
    part.hit = audit.published
    for index, problem in problems + [(len(events), problem) for problem in audit.end()]:
        part.note(("call", index, line), [problem])
    return part


def claim(line, base, scratch):
    """Starts a training while another process, made to wait with the claim in its hands, is at it: it must be refused."""
    world, part = base.copy(scratch / "world"), Part("claim train", 1, (1,))
    slowly = strace(scratch / "log", "-e", "trace=flock", "-e", "inject=flock:delay_exit=1000000:when=1")
    first = world.start(line, *slowly)
    time.sleep(0.5)
    second = world.run(line)
    part.hit = 1
    point = ("flock", 1, line)
    part.note(point, [] if second.returncode == 11 else [f"the second process: exit {second.returncode}: {second.stderr.strip()}"])
    part.note(point, [] if first.wait() == 0 else [f"the first process: exit {first.returncode}"])
    return part


class Audit:
    """Which files and folders hold something that a power cut could take, call by call."""

    def __init__(self, root, known):
        self.root, self.known, self.files, self.folders, self.published = root, known, set(), set(), 0

    def path(self, said):
        return os.path.normpath(os.path.join(self.root, said))

    def see(self, call, said):
        """Takes in one call; returns what is wrong with it."""
        if " = -1 " in said:
            return []
        if call == "openat" and "O_CREAT" in said:
            self.create(self.path(re.search(r'"([^"]*)"', said)[1]))
        elif call == "mkdir":
            self.create(self.path(re.search(r'"([^"]*)"', said)[1]))
        elif call.startswith(("rename", "link")):
            old, new = (self.path(name) for name in re.findall(r'"([^"]*)"', said))
            return self.rename(old, new)
        elif call in ("write", "pwrite64", "writev", "ftruncate"):
            path = re.match(r"\d+<([^>]*)>", said)[1]
            if path.startswith(str(self.root)):
                self.files.add(path)
        elif call in ("fsync", "fdatasync"):
            path = re.match(r"\d+<([^>]*)>", said)[1]
            self.files.discard(path)
            self.folders.discard(path)
        elif call in ("unlink", "unlinkat"):
            self.files = {path for path in self.files if not path.endswith(re.search(r'"([^"]*)"', said)[1])}
        return []

    def create(self, path):
        if path not in self.known and not os.path.basename(path).startswith(".tmp-") and not path.endswith(".claim"):
            self.folders.add(os.path.dirname(path))
        self.known.add(path)

    def rename(self, old, new):
        below = lambda path: path == old or path.startswith(f"{old}/")
        waiting = sorted(path for path in self.folders if not below(path) and ".tmp-" not in path)
        problems = [f"{os.path.basename(new)}: renamed before it was flushed: {path}" for path in self.files if below(path)]
        problems += [f"{os.path.basename(new)}: renamed before the names in it were" for path in self.folders if below(path)]
        problems += [f"{os.path.basename(new)}: published before the names in {path} were flushed" for path in waiting]
        self.files = {path for path in self.files if not below(path)}
        self.folders = {path for path in self.folders if not below(path)} | {os.path.dirname(new)}
        self.published += 1
        return problems

    def end(self):
        lost = [path for path in self.files | self.folders if ".tmp-" not in path]
        return [f"{path}: not flushed when the command reported success" for path in lost]
