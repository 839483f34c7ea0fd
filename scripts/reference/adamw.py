"""Pins five optimiser steps: torch's AdamW, clip_grad_norm_ (factor 1 / (norm + 1e-6)) and a linear warm-up.

Writes adamw_tied.json and adamw_untied.json: float64 at the top, the same run in float32 under "float32"; and, in float64,
adamw_gpt2.json and adamw_gpt_neox.json, models of these families. Step s trains on token(1000 s + i) for i in 0..34; only matrices decay.
"""

import json

import torch
from torch.nn.functional import cross_entropy

from common import CONFIG, VOCAB, batch, tiny_model, write_golden
from families import model as family_model
from families import named

STEPS = 5
SETTINGS = {
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
}


def train(model):
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": SETTINGS["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=SETTINGS["learning_rate"],
        betas=SETTINGS["betas"],
        eps=SETTINGS["eps"],
    )
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / SETTINGS["warmup_steps"]))
    steps = []
    for step in range(STEPS):
        inputs, targets = batch(1000 * step)
        loss = cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["clip_norm"])
        rate = warmup.get_last_lr()[0]
        optimizer.step()
        warmup.step()
        steps.append({"learning_rate": rate, "loss": loss.item(), "gradient_norm": norm.item()})
    return {"steps": steps, "tensors": {name: summary(without_keys(model, name, p)) for name, p in named(model)}}


def without_keys(model, name, parameter):
    """A parameter, of a fused bias without the part of the keys: what is added to every key alike changes no softmax, so
    its gradient is 0 but for rounding, which Adam scales up to whole steps."""
    parameter = parameter.detach()
    if name.endswith("c_attn.bias"):
        return parameter.reshape(3, -1)[[0, 2]].flatten()
    if name.endswith("query_key_value.bias"):
        return parameter.reshape(model.config.num_attention_heads, 3, -1)[:, [0, 2]].flatten()
    return parameter


def summary(tensor):
    wide = tensor.double()
    return {"norm": wide.norm().item(), "sum": wide.sum().item(), "head": wide.flatten()[:8].tolist()}


for tied in (True, False):
    write_golden(
        "adamw_tied" if tied else "adamw_untied",
        ["torch", "transformers"],
        {"config": CONFIG | {"tie_word_embeddings": tied}, "settings": SETTINGS}
        | train(tiny_model(tied, float64=True))
        | {"float32": train(tiny_model(tied, float64=False))},
    )

for family in ("gpt2", "gpt_neox"):
    model = family_model({"model_type": family, "vocab_size": VOCAB})
    config = json.loads(model.config.to_json_string())
    write_golden(f"adamw_{family}", ["torch", "transformers"], {"config": config, "settings": SETTINGS} | train(model))
