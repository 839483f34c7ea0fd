"""Takes every family from transformers through mixpool and back: nothing may change.

    families_check.py MIXPOOL

transformers writes a model of each family in shards, MIXPOOL (the program) makes a pool that starts from it and exports
its seed model, and transformers loads that. Fails unless configs ask for the same model and name the same special tokens,
every tensor is the same to the byte and so are the logits. The bare model of GPT-2, whose tensors have no prefix, and
a tied model with its output matrix stored once more go the same way.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from common import tokens, write_word_tokenizer
from families import FAMILIES, NO_IDS, VOCAB, named, sizes, weight

WEIGHTS = "model.safetensors"
IDS = NO_IDS | {"bos_token_id": 3, "eos_token_id": [5, 7]}
GENERATION = {"bos_token_id": 3, "eos_token_id": [5, 7], "temperature": 0.7, "do_sample": True}
RECIPE = """from: {folder}
window: 16
expert: {{learning_rate: 1e-3, tokens: 16, batch_size: 1, sequence_length: 16}}
"""


def single(options):
    """A model of the family in float32, with hash-made weights."""
    options = sizes(options) | IDS
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in named(made):
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return made.eval()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("mixpool", type=Path)
mixpool = str(parser.parse_args().mixpool.resolve())
inputs = torch.from_numpy(tokens(16, vocab=VOCAB))[None]



def through_mixpool(scratch):
    """Takes the model in `scratch/original` through a pool that starts from it to `scratch/exported`, and loads that."""
    (scratch / "original" / "generation_config.json").write_text(json.dumps(GENERATION))
    write_word_tokenizer(scratch / "original", VOCAB)
    (scratch / "recipe.yaml").write_text(RECIPE.format(folder=scratch / "original"))
    for command in (["init", scratch / "recipe.yaml"], ["export", "model", "seed", "--out", scratch / "exported"]):
        subprocess.run([mixpool, "--pool", scratch / "pool", "--quiet", *command], check=True)
    exported, loading = AutoModelForCausalLM.from_pretrained(
        scratch / "exported", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading
    generation = json.loads((scratch / "exported" / "generation_config.json").read_text())
    assert generation == GENERATION, generation
    return exported.eval()


def compare(family, original, exported):
    assert type(exported) is type(original), family
    ids = {name: getattr(exported.config, name) for name in IDS}
    assert ids == IDS, (family, ids)
    before, after = original.state_dict(), exported.state_dict()
    assert before.keys() == after.keys(), family
    assert all(torch.equal(before[name], after[name]) for name in before), family
    with torch.no_grad():
        same = torch.equal(original(inputs).logits, exported(inputs).logits)
    assert same, f"{family}: other logits"
    return len(before)


for family, options in FAMILIES.items():
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        original = single(options)
        original.save_pretrained(scratch / "original", max_shard_size="30KB")
        shards = len(list((scratch / "original").glob("*.safetensors")))
        assert shards > 1, "one shard is no check of shards"
        tensors = compare(family, original, through_mixpool(scratch))
        in_file = load_file(scratch / "exported" / "model.safetensors")
        held = {name: tensor for path in (scratch / "original").glob("*.safetensors") for name, tensor in load_file(path).items()}
        assert in_file.keys() == held.keys() and all(torch.equal(in_file[name], held[name]) for name in held), family
        print(f"{family}: {shards} shards in, {tensors} tensors and the logits the same")

with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)
    original = single(FAMILIES["gpt2"])
    original.save_pretrained(scratch / "original")
    bare = {name.removeprefix("transformer."): t for name, t in load_file(scratch / "original" / WEIGHTS).items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 24, 24).tril() for layer in range(2)}
    save_file(bare, scratch / "original" / WEIGHTS, {"format": "pt"})
    compare("gpt2, bare", original, through_mixpool(scratch))
    print("gpt2: names without prefix and masks in, the same model out")

with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)
    original = single(FAMILIES["smollm"])
    original.save_pretrained(scratch / "original")
    held = load_file(scratch / "original" / WEIGHTS)
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}, scratch / "original" / WEIGHTS, {"format": "pt"})
    compare("smollm, tied twice", original, through_mixpool(scratch))
    print("smollm: the tied matrix twice in, the same model out")
