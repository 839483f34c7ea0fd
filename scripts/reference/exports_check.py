"""Checks what mixpool exports against transformers, peft and mergekit: the same tensors and the same losses.

    exports_check.py MIXPOOL

Makes a pool from a tiny Llama of transformers, adopts a second and a third model and an adapter that peft saved, and exports
mixtures of them: as folders, whose losses under transformers must be mixpool's scores, and as configurations for mergekit,
which is run. Prints the largest differences.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import VOCAB, rolling_nll, tiny_model, values, write_word_tokenizer

WINDOW = 16
RECIPE = f"""from: seed
window: {WINDOW}
expert: {{learning_rate: 1e-3, tokens: 16, batch_size: 1, sequence_length: {WINDOW}}}
"""
MIXTURES = ["one=0.3+two=0.7", "one=0.25+law=0.75", "one+two+law"]


def moved(name):
    """The tiny model with every parameter a little elsewhere."""
    made = tiny_model(tied=True, float64=False)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            parameter += torch.from_numpy(values(f"{name} {key}", parameter.numel(), 0.05)).reshape(parameter.shape)
    return made


def loss(folder, documents):
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    nll = sum(rolling_nll(model.eval(), document, WINDOW, 0) for document in documents)
    return nll / sum(map(len, documents))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("mixpool", type=Path)
program = str(parser.parse_args().mixpool.resolve())

with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)

    def mixpool(*command):
        done = subprocess.run([program, "--quiet", *map(str, command)], cwd=scratch, check=True, capture_output=True, text=True)
        return done.stdout

    tiny_model(tied=True, float64=False).save_pretrained(scratch / "seed")
    write_word_tokenizer(scratch / "seed", VOCAB)
    for name in ("one", "two"):
        moved(name).save_pretrained(scratch / name)
    wrapped = get_peft_model(
        tiny_model(tied=True, float64=False), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"])
    )
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.from_numpy(values(key, parameter.numel())).reshape(parameter.shape))
    wrapped.save_pretrained(scratch / "law")

    words = [[1 + (7 * document + 3 * word * word) % 63 for word in range(40)] for document in range(3)]
    text = "\n\x1e\n".join(" ".join(f"w{word}" for word in document) for document in words)
    (scratch / "test.txt").write_text(text)
    (scratch / "recipe.yaml").write_text(RECIPE)
    mixpool("init", "recipe.yaml")
    mixpool("eval-set", "test", "test.txt")
    for name in ("one", "two", "law"):
        mixpool("adopt", name, name)

    worst = {"loss": 0.0, "loss in bf16": 0.0, "mergekit": 0.0}
    for number, mixture in enumerate(MIXTURES):
        score = json.loads(mixpool("score", mixture, "--format", "json"))["scores"][0]["loss"]
        for dtype, key in (("f32", "loss"), ("bf16", "loss in bf16")):
            out = scratch / f"out-{number}-{dtype}"
            mixpool("export", "model", mixture, "--out", out, "--dtype", dtype)
            worst[key] = max(worst[key], abs(loss(out, words) / score - 1))
        assert AutoTokenizer.from_pretrained(scratch / f"out-{number}-f32")("w3 w5")["input_ids"] == [3, 5]

        mixpool("export", "mergekit", mixture, "--out", scratch / f"merge-{number}.yaml")
        merged = scratch / f"mergekit-{number}"
        command = Path(sys.executable).with_name("mergekit-yaml")
        done = subprocess.run([command, scratch / f"merge-{number}.yaml", merged, "--lora-merge-cache", scratch / "cache"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        ours = load_file(scratch / f"out-{number}-f32" / "model.safetensors")
        theirs = {}
        for path in merged.glob("*.safetensors"):
            theirs |= load_file(path)
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        for name in ours:
            worst["mergekit"] = max(worst["mergekit"], (ours[name] - theirs[name]).abs().max().item())
    for what, error in worst.items():
        print(f"{what}: {error:.1e}")
    assert worst["loss"] < 1e-6 and worst["loss in bf16"] < 1e-2 and worst["mergekit"] < 2e-7, worst
