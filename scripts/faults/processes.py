"""Processes: several at once on one pool."""

import json
import shutil
import subprocess
import time

from .calls import strace
from .part import Part
from .world import records, sentences


def register(stages, rounds, scratch):
    """Eight processes register at once: four partitions, two that are the same, two of one name with other content."""
    part, heard = Part("8 register", rounds, range(rounds)), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    base = stages["register"].base
    for round_ in range(rounds):
        world = base.copy(scratch / "world")
        lines = []
        for index in range(4):
            (world.folder / f"p{index}.txt").write_text(sentences("code", f"{round_} {index}", 30))
            lines.append(f"register p{index} p{index}.txt")
        lines += ["register same code.txt", "register same code.txt", "register other code.txt", "register other math.txt"]
        started = time.monotonic()
        running = [world.start(line, *slowly(line, scratch), **heard) for line in lines]
        ended = [(process.communicate()[1].decode(), process.returncode) for process in running]
        point = ("round", round_, f"{time.monotonic() - started:.2f} s")
        problems = [f"'{line}': exit {code}: {said.strip()}" for line, (said, code) in zip(lines[:6], ended) if code]
        winners = [code for _, code in ended[6:]]
        if sorted(winners) != [0, 2]:
            problems.append(f"one name for two contents: exits {winners}, expected one 0 and one 2")
        problems += whole(world, base, lines[:6] + [line for line, code in zip(lines[6:], winners) if code == 0][:1])
        part.hit += 1
        part.note(point, problems)
    return part


def slowly(line, scratch):
    """Makes those who disagree about a name wait before each renaming, so that both have looked before either has written."""
    if "other" not in line or shutil.which("strace") is None:
        return ()
    return strace(scratch / f"log-{line.split()[-1]}", "-e", "trace=rename", "-e", "inject=rename:delay_enter=100000")


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
