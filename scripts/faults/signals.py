"""Signals: commands asked to stop at random moments, then run again."""

import random
import signal
import struct
import time

from .part import Part
from .world import World

# Long enough to be stopped in: about thirty steps of each training.
RECIPE = """\
model: pico
tokenizer: tokenizer.json
seed: {files: [general.txt], tokens: 15k, learning_rate: 5e-3, batch_size: 8, sequence_length: 64}
expert: {tokens: 10k, learning_rate: 2e-3}
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LINES = {
    "train": "train",
    "score": "score " + " ".join(f"code={index / 200}+math={1 - index / 200}" for index in range(1, 200)),
    "online": "online --method dga --target test --tokens 10k --every 2",
    "shapley": "rank --estimator shapley",
}


def stop(first, count, scratch, *, seed=7):
    """Asks `train` (half of the time), `score`, `online` and `shapley` to stop, twice each, and lets them finish: every byte,
    seconds aside, is that of an undisturbed run; states of one step are equal however they came about."""
    worlds, parts = prepare(first, scratch), []
    for name, line in LINES.items():
        share = count - count // 2 if name == "train" else (count // 2 + ["score", "online", "shapley"].index(name)) // 3
        base, final, seconds = worlds[name]
        part, chance, states = Part(f"signal {name}", share, range(share)), random.Random(f"{seed} {name}"), {}
        compared = 0
        while part.hit < share:
            world, why = base.copy(scratch / "world"), []
            hit = asked(world, line, chance, seconds, why)
            if hit is None:
                seconds *= 0.8  # it was done before: sooner next time
                continue
            part.hit += 1
            direct = remember(world, states, why)
            if not why and asked(world, line, chance, seconds * 0.6, why):
                compared += remember(world, states, why)
            again = world.run(line)
            if again.returncode:
                why.append(f"again: exit {again.returncode}: {again.stderr.strip()}")
            there, expected = world.content(), final.content()
            names = sorted(set(there) | set(expected))
            why += [f"again: {name}: differs" for name in names if there.get(name) != expected.get(name)]
            part.note((*hit, f"{direct} states seen before"), why)
        part.said = f"signal {name}: {len(states)} different states, {compared} of resumed runs compared with others of that step"
        parts.append(part)
    return parts


def prepare(first, scratch):
    """For every command: the pool before it, after it, and how long it takes."""
    (scratch / "signals").mkdir(exist_ok=True)
    world = World(scratch / "signals", first.program)
    for path in first.folder.iterdir():
        if path.is_file():
            (world.folder / path.name).write_bytes(path.read_bytes())
    (world.folder / "recipe.yaml").write_text(RECIPE)
    for line in ("init recipe.yaml", "register code code.txt", "register math math.txt", "eval-set test test.txt"):
        world.ok(line)
    worlds = {}
    for name, line in LINES.items():
        base = world.copy(scratch / f"signal-{name}-before")
        final = base.copy(scratch / f"signal-{name}-after")
        started = time.monotonic()
        final.ok(line)
        worlds[name] = (base, final, time.monotonic() - started)
        if name == "train":
            world = final
    return worlds


def asked(world, line, chance, seconds, why):
    """Sends one signal at a random moment; returns which and when, or nothing when the command was done before."""
    asking, moment = chance.choice(SIGNALS), chance.uniform(0.02, seconds)
    running = world.start(line)
    time.sleep(moment)
    running.send_signal(asking)
    started = time.monotonic()
    code = running.wait()
    if code == -asking and moment < 0.2:
        return None  # it came before the program had begun to watch
    if code not in (0, 75):
        why.append(f"{asking.name} after {moment:.3f} s: exit {code}")
    if time.monotonic() - started > 5:
        why.append(f"{asking.name}: {time.monotonic() - started:.1f} s to stop")
    return None if code == 0 else (asking.name, f"after {moment:.3f} s")


def remember(world, states, why):
    """Compares every stored state with the one of the same run and step seen before; returns how many there were."""
    known = 0
    for path in (world.folder / "pool/work").glob("*.state"):
        data = path.read_bytes()
        key = (path.name, struct.unpack_from("<Q", data, 16)[0])
        content = without_curve_seconds(data)
        known += key in states
        if states.setdefault(key, content) != content:
            why.append(f"{path.name}: another state at step {key[1]}")
    return known


def without_curve_seconds(data):
    """A state whose parameters, moments and curve are bit for bit; online states carry seconds and are left to the end."""
    return data if data.startswith(b"mixpool-state-1") else len(data) and None
