"""Calls: mixpool killed, or failed, at one system call, and what must hold then."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

from .part import Part

CALLS = "openat,write,pwrite64,writev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,rmdir"
FAILING = ("write", "pwrite64", "writev", "fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "ftruncate", "mkdir", "openat")

EVENT = re.compile(r"^(\d+) +(\w+)\((.*)")


@cache
def untraceable():
    """Why calls cannot be watched here; empty when they can."""
    if shutil.which("strace") is None:
        return "no strace (Debian: apt-get install strace)"
    ran = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True)
    return f"strace may not trace: {ran.stderr.strip()}" if ran.returncode else ""


def strace(log, *more):
    return ["strace", "-f", "-qq", "-s", "16", "-y", "-o", str(log), *more]


def stop_at(call):
    return ["-e", f"inject={call}:signal=TERM:when=1"] if call else []


def asked_to_stop(stop, log):
    """What runs a command and asks it to stop at a call."""
    return strace(log, "-e", f"trace={stop}", *stop_at(stop))


def points(world, line, stop, log):
    """The mutating calls of an undisturbed run: (call, how many of that call its thread had made, what it was).

    strace counts the calls of each thread, and acts on whichever thread gets there first.
    """
    traced = CALLS + (f",{stop}" if stop else "")
    ran = world.run(line, *strace(log, "-e", f"trace={traced}", *stop_at(stop)))
    if ran.returncode != (75 if stop else 0):
        sys.exit(f"fault-test: '{line}' under strace: exit {ran.returncode}: {ran.stderr}")
    counts, seen, found = Counter(), set(), []
    for text in Path(log).read_text(errors="replace").splitlines():
        event = EVENT.match(text)
        if not event:
            continue
        thread, call, arguments = event.groups()
        counts[thread, call] += 1
        key = (call, counts[thread, call])
        if key in seen:
            continue
        seen.add(key)
        if mutates(call, arguments, world):
            found.append((*key, arguments[:100]))
    return found


def mutates(call, arguments, world):
    if call == "openat":
        return "O_CREAT" in arguments or "O_TRUNC" in arguments
    if "write" in call:
        return f"<{world.folder}" in arguments.split(",")[0]
    return call in CALLS.split(",")


def sample(found, wanted):
    if not wanted or len(found) <= wanted:
        return found
    return [found[round(index * (len(found) - 1) / (wanted - 1))] for index in range(wanted)]


def damage(world, before, after, *, is_mending=False):
    """What is wrong with the pool of an interrupted command, given the files before it and after an undisturbed one.

    A command that mends begins with a damaged pool, and may leave one.
    """
    problems, there = [], world.content()
    for name, value in before.items():
        if name in there and (there[name] == value or there[name] == after.get(name)):
            continue
        if name.endswith(".log") and there.get(name, [])[: len(value)] == value:
            continue
        if name not in after and name not in there:
            continue  # the state of a training that is finished, or what was to be removed
        problems.append(f"{name}: lost or changed")
    for name, value in there.items():
        if name.endswith(".log"):
            if after.get(name, [])[: len(value)] != value and value:
                problems.append(f"{name}: other scores")
        elif name not in before and name not in after and not name.endswith((".state", ".seen")):
            problems.append(f"{name}: appeared")
        elif name not in before and name in after and value != after[name] and not name.startswith("pool/estimates/"):
            problems.append(f"{name}: differs from the undisturbed one")
    for kind in () if is_mending else ("partitions", "evals"):
        for path in (world.folder / "pool" / kind).glob("[!.]*.json"):
            try:
                tokens = json.loads(path.read_text())["tokens"]
            except (ValueError, KeyError):
                problems.append(f"{path.name}: not a whole binding")
                continue
            if not (world.folder / "pool/tokens" / tokens / "manifest.json").exists():
                problems.append(f"{path.name}: names tokens that are not there")
    if (world.folder / "pool/pool.json").exists() and not is_mending:
        ran = world.run("verify --deep")
        if ran.returncode:
            problems.append(f"verify --deep: exit {ran.returncode}: {ran.stderr.strip()}")
    return problems


def again(world, line, after):
    """What is wrong after the same command was run again."""
    ran = world.run(line)
    if ran.returncode:
        return [f"again: exit {ran.returncode}: {ran.stderr.strip()}"]
    problems, there = [], world.content()
    for name in sorted(set(there) | set(after)):
        if there.get(name) != after.get(name):
            what = "missing" if name not in there else "left over" if name not in after else "differs"
            problems.append(f"again: {name}: {what}")
    problems += [f"again: {name}: litter" for name in world.litter()]
    return problems


def killed(ran):
    return ran.returncode in (-9, 137)


def kill(stage, wanted, scratch, *, chance=None):
    """Kills one command at its points; with `chance`, also kills the command that follows, at a random point."""
    log, line, stop = scratch / "log", stage.line, stage.stop
    found = points(stage.base.copy(scratch / "trace"), line, stop, log)
    chosen = sample(found, wanted)
    part = Part(f"kill {stage.name}" + (" twice" if chance else ""), len(found), chosen)
    before, after = stage.base.content(), stage.final.content()
    traced = CALLS + (f",{stop}" if stop else "")
    for point in chosen:
        world = stage.base.copy(scratch / "world")
        inject = ["-e", f"trace={traced}", *stop_at(stop), "-e", f"inject={point[0]}:signal=KILL:when={point[1]}"]
        part.hit += killed(world.run(line, *strace(log, *inject)))
        if chance:  # the recovery dies as well; stages that are asked to stop are not killed twice
            call, count, _ = chance.choice(found)
            world.run(line, *strace(log, "-e", f"trace={CALLS}", "-e", f"inject={call}:signal=KILL:when={count}"))
        problems = damage(world, before, after, is_mending=stage.name == "repair")
        if not problems and not stop:
            problems = again(world, line, after)
        elif not problems:
            ran = world.run(line)  # undisturbed now, it is not asked to stop: it must finish
            problems = [] if ran.returncode == 0 else [f"again: exit {ran.returncode}: {ran.stderr.strip()}"]
        part.note(point, problems)
    return part


def fail(stage, errors, wanted, scratch):
    """Makes the calls of one command fail, one at a time."""
    log, line = scratch / "log", stage.line
    found = [point for point in points(stage.base.copy(scratch / "trace"), line, None, log) if point[0] in FAILING]
    chosen = [(*point, error) for error in errors for point in sample(found, wanted)]
    part = Part(f"fail {stage.name}", len(found) * len(errors), chosen)
    before, after = stage.base.content(), stage.final.content()
    for call, count, what, error in chosen:
        world = stage.base.copy(scratch / "world")
        inject = ["-e", f"trace={CALLS}", "-e", f"inject={call}:error={error}:when={count}"]
        ran = world.run(line, *strace(log, *inject))
        injected = [text for text in log.read_text(errors="replace").splitlines() if "(INJECTED)" in text]
        part.hit += bool(injected)
        is_mending = stage.name == "repair"
        problems = damage(world, before, after, is_mending=is_mending) + complaint(ran, injected) or again(world, line, after)
        part.note((f"{error} {call}", count, what), problems)
    return part


def complaint(ran, injected=()):
    """What is wrong with how a failed command ended: one line that names the failure, exit code 1."""
    lines = [text for text in ran.stderr.splitlines() if text.startswith("mixpool: ")]
    if "panicked" in ran.stderr or ran.returncode not in (1,):
        return [f"exit {ran.returncode}: {ran.stderr.strip()}"]
    silenced = any("write(2<" in text for text in injected)  # the complaint itself was refused
    return [] if len(lines) == 1 or silenced else [f"{len(lines)} lines of complaint: {ran.stderr.strip()}"]
