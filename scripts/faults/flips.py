"""Flips: single bits in every kind of file."""

import random
from pathlib import Path

from .part import Part
from .processes import rows
from .world import has

# Commands that use models, tokens, scores, fitted values and answers; `--verify-on-load` is added.
USERS = (
    "score code+math code=0.45+math=0.55 --format json",
    "rank --estimator ensemble --format json",
)


def kind(name):
    """Which kind of file a path in the pool is."""
    parts = name.split("/")
    if len(parts) == 1:
        return name
    return f"{parts[0]}/*/{parts[-1]}" if len(parts) == 3 else f"{parts[0]}/*{Path(name).suffix}"


def flip(base, flips, scratch, seed=7):
    """Flips single bits in every kind of file: `verify --deep` must name each and say what mends it.

    Where the program has `--verify-on-load`, commands that use the file must refuse it or answer as if nothing had happened.
    """
    world = base.copy(scratch / "flipped")
    users = answers(base, scratch) if has(base.program, "score", "--verify-on-load") else {}
    pool = world.folder / "pool"
    kinds = {}
    for path in sorted(path for path in pool.rglob("*") if path.is_file() and path.stat().st_size):
        kinds.setdefault(kind(str(path.relative_to(pool))), []).append(path)
    chance, parts = random.Random(seed), []
    for index, (name, paths) in enumerate(kinds.items()):
        chosen = range(flips // len(kinds) + (index < flips % len(kinds)))
        part = Part(f"flip {name}", sum(8 * path.stat().st_size for path in paths), chosen)
        for _ in chosen:
            path = chance.choice(paths)
            whole = path.read_bytes()
            bit = chance.randrange(8 * len(whole))
            bytes_ = bytearray(whole)
            bytes_[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes_)
            ran = world.run("verify --deep")
            said = ran.stderr
            named = any(str(at.relative_to(world.folder)) in said for at in (path, path.parent) if at != pool)
            part.hit += ran.returncode == 12 and named
            problems = [] if ran.returncode == 12 and named else [f"exit {ran.returncode}: {said.strip()}"]
            if "repair: " not in said and not problems:
                problems = [f"no repair: {said.strip()}"]
            problems += used(world, users, scratch)
            part.note((str(path.relative_to(pool)), f"bit {bit}", chr(whole[bit // 8])), problems)
            path.write_bytes(whole)
        parts.append(part)
    return parts


def answers(base, scratch):
    """What the commands print when nothing is damaged."""
    world = base.copy(scratch / "unharmed")
    return {line: rows(world.run(f"{line} --verify-on-load").stdout) for line in USERS}


def used(world, users, scratch):
    """Commands that neither refused a damaged file nor answered as if it were whole."""
    problems = []
    for line, expected in users.items():
        ran = world.copy(scratch / "used").run(f"{line} --verify-on-load")
        if ran.returncode == 0 and rows(ran.stdout) != expected:
            problems.append(f"'{line}' used it")
        elif ran.returncode not in (0, 12):
            problems.append(f"'{line}': exit {ran.returncode}: {ran.stderr.strip()}")
    return problems
