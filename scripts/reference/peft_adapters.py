"""Pins adapters in PEFT's format: what they add to a model's matrices, and the loss of their average.

Writes peft.json, and the adapters themselves as PEFT saves them, peft/{plain,rslora,conv1d}. The first two belong to the
tiny Llama of common.py, the third to a GPT-2, whose matrices lie transposed. Updates and losses are float64.
"""

import json
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from common import GOLDEN, batch, tiny_model, values, write_golden

ADAPTERS = {
    "plain": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 3},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 7},
    },
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["gate_proj", "o_proj", "v_proj"]},
    "conv1d": {"r": 2, "lora_alpha": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
}
SHARES = (0.3, 0.7)


def base(name):
    if name != "conv1d":
        return tiny_model(tied=True, float64=False)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=12, n_layer=1, n_head=2))


def fill(wrapped, name):
    """Hash-made factors: PEFT starts B at 0, which would update nothing."""
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.from_numpy(values(f"{name} {key}", parameter.numel())).reshape(parameter.shape))


def save(wrapped, name):
    folder = GOLDEN / "peft" / name
    shutil.rmtree(folder, ignore_errors=True)
    wrapped.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set, in another order in every run
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    assert all(tensor.abs().sum() > 0 for tensor in load_file(folder / "adapter_model.safetensors").values())


def updates(wrapped):
    """PEFT's own update of every layer, in the layout of the layer's weight, from factors in float64."""
    found = {}
    for key, layer in wrapped.double().named_modules():
        if hasattr(layer, "get_delta_weight"):
            found[key.removeprefix("base_model.model.") + ".weight"] = layer.get_delta_weight("default").detach()
    return found


def loss(model):
    inputs, targets = batch()
    return cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten()).item()


def with_updates(parts):
    model = tiny_model(tied=True, float64=True)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for share, found in parts:
            for key, update in found.items():
                parameters[key] += share * update
    return model


cases, found = {}, {}
for name, options in ADAPTERS.items():
    wrapped = get_peft_model(base(name), LoraConfig(task_type="CAUSAL_LM", **options))
    fill(wrapped, name)
    save(wrapped, name)
    found[name] = updates(wrapped)
    shapes = {key: list(update.shape) for key, update in found[name].items()}
    tails = {key: [float(f"{x:.9g}") for x in update.flatten()[-5:].tolist()] for key, update in found[name].items()}
    sums = {key: update.sum().item() for key, update in found[name].items()}
    cases[name] = {"shapes": shapes, "tails": tails, "sums": sums}
    if name != "conv1d":
        cases[name]["loss"] = loss(with_updates([(1.0, found[name])]))
merged = loss(with_updates([(share, found[name]) for share, name in zip(SHARES, ("plain", "rslora"))]))
content = {"shares": SHARES, "seed_loss": loss(with_updates([])), "merged_loss": merged, "adapters": cases}
write_golden("peft", ["torch", "transformers", "peft"], content)
