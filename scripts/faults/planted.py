"""Planted: bugs that a build with `--features planted-bugs` can be asked for; each must be seen."""

import os

from . import disk
from .calls import kill
from .order import claim, order

# Bug, the part that must see it, and on which command.
PLANTED = [
    ("no-file-fsync", "order", "register"),
    ("no-folder-fsync", "order", "register"),
    ("write-in-place", "kill", "register"),
    ("bind-before-object", "kill", "register"),
    ("skip-claim", "claim", "train"),
    ("no-file-fsync", "power", "register"),
    ("no-folder-fsync", "power", "register"),
]


def planted(program, stages, scratch):
    """Switches on one bug at a time in a program built with `--features planted-bugs`: each must be seen."""
    parts, no_disk = [], disk.missing()
    for bug, kind_, name in PLANTED:
        if kind_ == "power":
            if not no_disk:
                parts.append(judged(bug, kind_, name, disk.power(stages, 8, scratch, bug=(bug, program), until=name)))
            continue
        os.environ["MIXPOOL_PLANTED_BUG"] = bug
        stage = stages[name].run_by(program)
        if kind_ == "order":
            part = order(stage, scratch)
        elif kind_ == "kill":
            part = kill(stage, None, scratch)
        else:
            part = claim(stage.line, stage.base, scratch)
        del os.environ["MIXPOOL_PLANTED_BUG"]
        parts.append(judged(bug, kind_, name, part))
    return parts


def judged(bug, kind_, name, part):
    """Turns a part that had to find something into one that had to succeed."""
    seen, part.name = part.problems, f"planted {bug}" + (", power" if kind_ == "power" else "")
    part.hit = int(bool(seen))
    part.problems = [] if seen else [f"planted {bug}: not seen by '{kind_} {name}'"]
    part.said = f"{part.name}: {len(seen)} violations seen, the first: {seen[0]}" if seen else ""
    return part
