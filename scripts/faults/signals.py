"""Signals: commands asked to stop at random moments, then run again."""

import random
import signal
import struct
import time

from .part import Part
from .world import World

# Long enough to be stopped in, with few enough steps that several runs stop at the same one.
RECIPE = """\
model: pico
tokenizer: tokenizer.json
seed: {files: [general.txt], tokens: 40k, learning_rate: 5e-3, batch_size: 64, sequence_length: 64}
expert: {tokens: 20k, learning_rate: 2e-3}
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LINES = {
    "train": "train",
    "score": "score " + " ".join(f"code={index / 200}+math={1 - index / 200}" for index in range(1, 200)),
    "online": "online --method dga --target test --tokens 10k --every 2",
    "shapley": "rank --estimator shapley",
}


def stop(first, count, scratch, seed=7):
    """Asks `train` (half of the time), `score`, `online` and `shapley` to stop, up to eight times a run, and lets them finish.

    Every byte, seconds aside, is then that of an undisturbed run. States (parameters, moments, curve) that different runs stored at
    one step are equal, however often each had been stopped before.
    """
    worlds = prepare(first, scratch)
    shares = dict(zip(LINES, [count - count // 2, *((count // 2 + index) // 3 for index in range(3))]))
    for name, line in LINES.items():
        base, final, seconds = worlds[name]
        part = Part(f"signal {name}", shares[name], range(shares[name]))
        chance, states, compared, signals = random.Random(f"{seed} {name}"), {}, 0, 0
        while part.hit < shares[name]:
            world, why, hits = base.copy(scratch / "world"), [], []
            while len(hits) < 8 and not why and (hit := asked(world, line, chance, seconds / (1 + bool(hits)), why)):
                hits.append(hit)
                compared += remember(world, states, len(hits), why)
            if not hits:
                seconds *= 0.9  # it was done before: sooner next time
                continue
            part.hit, signals = part.hit + 1, signals + len(hits)
            again = world.run(line)
            if again.returncode:
                why.append(f"again: exit {again.returncode}: {again.stderr.strip()}")
            there, expected = world.content(), final.content()
            names = sorted(set(there) | set(expected))
            why += [f"again: {name}: differs" for name in names if there.get(name) != expected.get(name)]
            part.note(("runs", part.hit, ", ".join(hits)), why)
        for _ in range(10 * shares[name] if states else 0):
            if compared >= shares[name]:
                break
            world, why = base.copy(scratch / "world"), []
            if hit := asked(world, line, chance, seconds, why):
                signals, compared = signals + 1, compared + remember(world, states, 1, why)
            part.note(("a run", "stopped once", hit), why)
        part.said = f"signal {name}: {signals} signals in {part.hit} runs; {compared} states equal to those of runs stopped less or more often"
        yield part


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
    """Sends one signal at a random moment; returns which and when; empty when the command was done before."""
    asking, moment = chance.choice(SIGNALS), chance.uniform(0.02, seconds)
    running = world.start(line)
    time.sleep(moment)
    running.send_signal(asking)
    started = time.monotonic()
    code = running.wait()
    if code == -asking and moment < 0.2:
        return ""  # it came before the program had begun to watch
    if code not in (0, 130 if asking == signal.SIGINT else 75):
        why.append(f"{asking.name} after {moment:.3f} s: exit {code}")
    if time.monotonic() - started > 5:
        why.append(f"{asking.name}: {time.monotonic() - started:.1f} s to stop")
    return f"{asking.name} after {moment:.3f} s" if code else ""


def remember(world, states, stops, why):
    """Compares every stored state with one that a run stopped less or more often stored at that step; returns how many."""
    compared = 0
    for path in (world.folder / "pool/work").glob("*.state"):
        data = path.read_bytes()
        if not data.startswith(b"mixpool-state-1"):
            continue  # of an online run: holds seconds; what it leads to is compared in the end
        key = (path.name, struct.unpack_from("<Q", data, 16)[0])
        others, known = states.setdefault(key, (stops, data))
        compared += others != stops
        if known != data:
            why.append(f"{path.name}: another state at step {key[1]}")
    return compared
