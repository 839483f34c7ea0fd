"""Planted: bugs that a build with `--features planted-bugs` can be asked for; each must be seen."""

import os

from .calls import kill
from .order import claim, order

# Bug, the part that must see it, and on which command.
PLANTED = [
    ("no-file-fsync", "order", "register"),
    ("no-folder-fsync", "order", "register"),
    ("write-in-place", "kill", "register"),
    ("bind-before-object", "kill", "register"),
    ("skip-claim", "claim", "train"),
]


def planted(program, stages, scratch):
    """Switches on one bug at a time in a program built with `--features planted-bugs`: each must be seen."""
    parts = []
    for bug, kind_, name in PLANTED:
        os.environ["MIXPOOL_PLANTED_BUG"] = bug
        stage = stages[name].run_by(program)
        if kind_ == "order":
            part = order(stage, scratch)
        elif kind_ == "kill":
            part = kill(stage, None, scratch)
        else:
            part = claim(stage.line, stage.base, scratch)
        del os.environ["MIXPOOL_PLANTED_BUG"]
        seen, part.name = part.problems, f"planted {bug}"
        part.hit = int(bool(seen))
        part.problems = [] if seen else [f"planted {bug}: not seen by '{kind_} {name}'"]
        print(f"planted {bug}: {len(seen)} violations seen, the first: {seen[0]}" if seen else part.problems[0])
        parts.append(part)
    return parts
