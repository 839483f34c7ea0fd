"""Processes: several at once on one pool."""

import json
import random
import subprocess
import time

from .calls import strace, untraceable
from .part import Part
from .world import records, sentences


def register(stages, rounds, scratch):
    """Eight processes register at once: two partitions, one twice, one name for two contents, and documents that are to be
    trained on and held out."""
    part, heard = Part("8 register", rounds, range(rounds)), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    base = stages["register"].base
    for round_ in range(rounds):
        world = base.copy(scratch / "world")
        for name in ("p0", "p1", "p2"):
            (world.folder / f"{name}.txt").write_text(sentences("code", f"{round_} {name}", 30))
        lines = ["register p0 p0.txt", "register p1 p1.txt", "register same code.txt", "register same code.txt"]
        rivals = ["register other code.txt", "register other math.txt", "register clash p2.txt", "eval-set clash p2.txt"]
        started = time.monotonic()
        running = [world.start(line, **heard) for line in lines]
        running += [world.start(line, *slowly(scratch / f"log-{index}"), **heard) for index, line in enumerate(rivals)]
        ended = [(process.communicate()[1].decode(), process.returncode) for process in running]
        point = ("round", round_, f"{time.monotonic() - started:.2f} s")
        problems = [f"'{line}': exit {code}: {said.strip()}" for line, (said, code) in zip(lines, ended) if code]
        codes = [code for _, code in ended[4:]]
        if sorted(codes[:2]) != [0, 2]:
            problems.append(f"one name for two contents: exits {codes[:2]}, expected one 0 and one 2")
        if sorted(codes[2:]) != [0, 1]:
            problems.append(f"documents trained on and held out: exits {codes[2:]}, expected one 0 and one 1")
        winners = [line for line, code in zip(rivals, codes) if code == 0]
        problems = problems or whole(world, base, lines + winners)
        part.hit += 1
        part.note(point, problems)
    return part


def slowly(log):
    """Makes rivals wait before they bind a name, so that both have looked before either has written."""
    if untraceable():
        return ()
    calls = "rename,link,linkat"
    return strace(log, "-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter=100000")


def whole(world, base, lines):
    """How the pool differs from one in which the same was done one after another."""
    alone = base.copy(world.folder.parent / "alone")
    for path in world.folder.glob("p?.txt"):
        (alone.folder / path.name).write_bytes(path.read_bytes())
    for line in lines:
        alone.ok(line)
    there, expected = world.content(), alone.content()
    names = set(there) | set(expected)
    refused = {name for name in names if name not in expected and name.startswith("pool/tokens/")}  # gc's business
    problems = [f"{name}: differs" for name in sorted(names - refused) if there.get(name) != expected.get(name)]
    ran = world.run("verify --deep")
    problems += [f"verify --deep: exit {ran.returncode}: {ran.stderr.strip()}"] if ran.returncode else []
    return problems + [f"{name}: litter" for name in world.litter()]


def score(stages, mixtures, processes, twice, scratch):
    """Processes that score one plan at once: every unit's record once, equal to those of one process alone, and at most a
    share of `twice` of the work done more than once."""
    base = stages["score"].base.copy(scratch / "two-evals")
    (base.folder / "second.txt").write_text(sentences("math", "second", 6))
    base.ok("eval-set second second.txt")
    shares = (index / mixtures for index in range(1, mixtures))
    plan = " ".join(f"code={share}+math={1 - share}" for share in shares) + " code"
    line = f"score {plan} --format json"
    part, alone = Part(f"{processes} score", 2 * mixtures, range(2 * mixtures)), base.copy(scratch / "alone")
    started = time.monotonic()
    expected = rows(alone.run(line).stdout)
    seconds = time.monotonic() - started
    world = base.copy(scratch / "world")
    started = time.monotonic()
    outs = [open(scratch / f"out-{index}", "w+") for index in range(processes)]
    running = [world.start(line, stdout=out, stderr=subprocess.PIPE) for out in outs]
    complaints = [process.communicate()[1].decode() for process in running]
    together = time.monotonic() - started
    point, computed = ("units", 2 * mixtures, f"{seconds:.1f} s alone, {together:.1f} s together"), 0
    for index, (process, out) in enumerate(zip(running, outs)):
        out.seek(0)
        if process.returncode:
            part.note(point, [f"process {index}: exit {process.returncode}: {complaints[index].strip()}"])
            continue
        text = out.read()
        computed += sum(not row["cached"] for row in json.loads(text)["scores"])
        if rows(text) != expected:
            part.note(point, [f"process {index}: other scores than one process alone"])
        out.close()
    part.note(point, [])
    (found, doubled), (wanted, _) = stored(world), stored(alone)
    part.hit = len(found)
    if found != wanted:
        part.note(point, [f"{len(found)} units stored, {len(wanted)} expected, or with other values"])
    if doubled:
        part.note(point, [f"{doubled} units have more than one record"])
    share = computed / (2 * mixtures) - 1
    if share > twice:
        part.note(point, [f"work done twice: {share:.1%} of the units, at most {twice:.1%} allowed"])
    part.said = f"{processes} processes: {computed} units computed of {2 * mixtures} ({share:.2%} twice), {doubled} records "
    part.said += f"doubled, {seconds:.1f} s alone, {together:.1f} s together"
    return part


CROWD = ("train", "train math code", "score code code+math code=0.3+math=0.7", "rank", "rank --estimator ensemble")


def crowd(stages, rounds, scratch, seed=7):
    """Five processes work on one pool and are killed at random moments, three times over; then each command is run once more.

    The pool is that of the same commands one after another; score logs may hold their records in another order.
    """
    base, chance = stages["stop"].base, random.Random(seed)
    alone = base.copy(scratch / "alone")
    for line in CROWD:
        alone.ok(line)
    part = Part("crowd", 3 * len(CROWD) * rounds, range(3 * len(CROWD) * rounds))
    for round_ in range(rounds):
        world, problems = base.copy(scratch / "world"), []
        for _ in range(3):
            started = time.monotonic()
            running = [world.start(line) for line in CROWD]
            for moment, process in sorted((chance.uniform(0.003, 0.05), index) for index in range(len(CROWD))):
                time.sleep(max(0.0, started + moment - time.monotonic()))
                running[process].kill()
            part.hit += sum(process.wait() == -9 for process in running)
        for line in ("verify --deep", *CROWD):
            ran = world.run(line)
            problems += [f"'{line}': exit {ran.returncode}: {ran.stderr.strip()}"] if ran.returncode else []
        there, expected = unordered(world), unordered(alone)
        names = sorted(set(there) | set(expected))
        problems += [f"{name}: differs" for name in names if there.get(name) != expected.get(name)]
        problems += [f"{name}: litter" for name in world.litter()]
        part.note(("round", round_, f"{part.hit} killed so far"), problems)
    return part


def unordered(world):
    """The content of a pool, scores by log and key."""
    content = {name: value for name, value in world.content().items() if not name.endswith(".log")}
    return content | {f"{log} {key}": value for (log, key), value in stored(world)[0].items()}


def rows(text):
    """What a command that scores printed, without what is of that process."""
    own = {"cached", "merge_seconds", "eval_seconds", "tokens_per_second"}
    value = json.loads(text)
    found = value["scores"] if isinstance(value, dict) else value
    return [{key: inner for key, inner in row.items() if key not in own} for row in found]


def stored(world):
    """The distinct records of all score logs by log and key, and how many there are beyond those."""
    found, total = {}, 0
    for path in (world.folder / "pool/scores").glob("*.log"):
        for head, documents in records(path.read_bytes()):
            total += 1
            head.pop("mixture")  # as the first who scored it wrote it
            found[path.name, head["key"]] = (head, documents)
    return found, total - len(found)
