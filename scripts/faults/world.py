"""World: a folder with texts and a pool, what it holds, and the tour of commands that everything is tried on."""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

RECIPE = """\
model: pico
tokenizer: tokenizer.json
seed: {files: [general.txt], tokens: 1k, learning_rate: 5e-3, batch_size: 4, sequence_length: 32}
expert: {tokens: 400, learning_rate: 2e-3}
"""
WORDS = {
    "code": "let mut for in if else match return struct enum impl fn use pub self index value option vector string",
    "math": "prime sum proof lemma integral group ring field point line circle angle number theorem limit series",
}
# Name, command, a call at which SIGTERM asks it to stop, and what is done to the pool before.
TOUR = [
    ("init", "init recipe.yaml", None, ()),
    ("register", "register code code.txt --units 2", None, ()),
    ("eval-set", "eval-set test test.txt", None, ("register math math.txt",)),
    ("stop", "train", "flock", ()),  # ends with a stored state
    ("train", "train", None, ()),  # from that state on
    ("score", "score code code+math code=0.3+math=0.7", None, ()),
    ("rank", "rank --estimator ensemble", None, ()),
    ("fit", "rank --estimator regmean", None, ()),
    ("watch", "rank --estimator shapley", None, ()),
    ("truth", "validate --mixtures 2 --estimator merged", None, ()),
    ("export", "export model code+math --out merged", None, ()),
    ("table", "export scores --out scores.csv", None, ()),
    ("gc", "gc", None, ("register spare spare.txt", "train spare", "rm pool/partitions/spare.json")),
    ("verify", "verify --deep", None, ()),
    ("repair", "verify --deep --repair", None, ("flip pool/partitions/code.json", "flip pool/evals/test.json")),
    ("import", "import other", None, ("copy pool other", "rm pool/partitions/math.json", "gc")),
]
# What only some versions of the program can do: stage, the words of the command line, what `--help` of the first shows.
OPTIONAL = {"gc": ("gc", "Usage:"), "import": ("import", "Usage:"), "repair": ("verify", "--repair")}
SECONDS = {"seconds", "merge_seconds", "eval_seconds", "gradient_seconds", "checksum"}
ELSEWHERE = ("ballast", "other/", "pool/quarantine/")  # no part of the pool, or what was set aside
NOBODYS = {".claim", ".lock", ".lease"}  # locks and marks of who works: they mean nothing once nobody does


def sentences(domain, stream, count):
    """Sentences of a domain's words; the same ones for the same stream."""
    words = (WORDS.get(domain) or " ".join(WORDS.values())).split()
    chance = random.Random(f"{domain} {stream}")
    return "\n\x1e\n".join(" ".join(chance.choices(words, k=9)) + "." for _ in range(count))


class World:
    """A folder with texts and, as commands go on, a pool."""

    def __init__(self, folder, program):
        self.folder, self.program = Path(folder), program

    def run(self, line, *before):
        return subprocess.run(
            self.command(line, *before), cwd=self.folder, capture_output=True, text=True, timeout=300
        )

    def command(self, line, *before):
        return [*before, self.program, *line.split(), "--threads", "1"]

    def start(self, line, *before, **channels):
        """Starts a command and does not wait for it."""
        channels = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **channels}
        return subprocess.Popen(self.command(line, *before), cwd=self.folder, **channels)

    def ok(self, line):
        """Runs a command that must succeed, or does what is no command: removes, copies or damages files."""
        verb, _, name = line.partition(" ")
        if verb == "rm":
            return (self.folder / name).unlink()
        if verb == "copy":
            return shutil.copytree(*(self.folder / part for part in name.split()), dirs_exist_ok=True)
        if verb == "flip":
            path = self.folder / name
            whole = bytearray(path.read_bytes())
            whole[len(whole) // 2] ^= 1
            return path.write_bytes(whole)
        ran = self.run(line)
        if ran.returncode:
            sys.exit(f"fault-test: '{line}' failed undisturbed: {ran.stderr}")

    def copy(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        return World(folder, self.program)

    def content(self):
        """Every named file with what it holds, seconds aside; temporary files, claims and what was damaged are nobody's business."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.is_file() and "/.tmp-" not in f"/{name}" and path.suffix not in NOBODYS and not name.startswith(ELSEWHERE):
                found[name] = normal(path)
        return found

    def litter(self):
        return [str(path) for path in self.folder.rglob(".tmp-*")]


def normal(path):
    """A file's content without the seconds that things took."""
    data = path.read_bytes()
    if path.suffix == ".log":
        return records(data)
    if path.name == "scores.csv":
        return [line.split(b",")[:9] for line in data.splitlines()]  # the rest is timing
    if path.suffix == ".json" and path.name != "tokenizer.json":
        try:
            return without_seconds(json.loads(data))
        except ValueError:
            pass
    if path.suffix == ".f32":
        return data[:16] + data[24:-16]
    return data


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(inner) for key, inner in value.items() if key not in SECONDS}
    return [without_seconds(inner) for inner in value] if isinstance(value, list) else value


def records(data):
    """The whole records of a score log."""
    found, at = [], 0
    while len(data) - at >= 16 and data[at : at + 4] == b"mps1":
        head, documents = struct.unpack_from("<II", data, at + 4)
        body = at + 16 + head
        end = body + 8 * documents
        if end + 16 > len(data):
            break
        found.append((without_seconds(json.loads(data[at + 16 : body])), data[body:end]))
        at = end + 16
    return found


def prepare(world):
    """Texts, recipe, tokenizer."""
    for name, domain, stream, count in [
        ("general.txt", "general", 1, 80),
        ("code.txt", "code", 2, 60),
        ("math.txt", "math", 3, 40),
        ("spare.txt", "math", 5, 20),
        ("test.txt", "code", 4, 6),
    ]:
        (world.folder / name).write_text(sentences(domain, stream, count))
    (world.folder / "recipe.yaml").write_text(RECIPE)
    world.ok("tokenizer train general.txt --vocab 300 --out tokenizer.json")


def has(program, command, words):
    """Whether this version of the program can do something."""
    ran = subprocess.run([program, *command.split(), "--help"], capture_output=True, text=True)
    return ran.returncode == 0 and words in ran.stdout


class Stage:
    """One command of the tour: the pool before it and after it, undisturbed."""

    def __init__(self, name, line, stop, prepared, base, final):
        self.name, self.line, self.stop, self.prepared = name, line, stop, prepared
        self.base, self.final = base, final

    def run_by(self, program):
        """The same stage, run by another program."""
        worlds = (World(world.folder, program) for world in (self.base, self.final))
        return Stage(self.name, self.line, self.stop, self.prepared, *worlds)


def tour(first, scratch, strace):
    """Every stage of the tour by name, undisturbed; `strace`, if any, gives the words that ask a command to stop at a call."""
    stages, world = {}, first
    for name, line, stop, prepared in TOUR:
        if name in OPTIONAL and not has(first.program, *OPTIONAL[name]):
            continue
        base = world.copy(scratch / f"{name}-before")
        for step in prepared:
            base.ok(step)
        final = base.copy(scratch / f"{name}-after")
        if stop is None:
            final.ok(line)
        elif strace:
            final.run(line, *strace(stop))
        stages[name] = Stage(name, line, stop, prepared, base, final)
        world = final
    return stages
