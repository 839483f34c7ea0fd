"""The PyTorch side of bench-peers: sets up one piece of work, then measures it once for every line on stdin."""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM


def llama(config):
    """transformers' model of mixpool's config, randomly initialised."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**config, attn_implementation="sdpa", use_cache=False)).float()


def batches(config, count, batch, length):
    """Random inputs and targets."""
    ids = torch.randint(config["vocab_size"], (count, batch, length + 1))
    return [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in ids]


def loss_of(model, inputs, targets, reduction):
    return cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def score(config, window, tokens, batch):
    """Forward passes over `tokens` ids, `batch` windows at a time."""
    model = llama(config).eval()
    data = batches(config, tokens // (batch * window), batch, window)

    @torch.inference_mode()
    def run():
        return sum(loss_of(model, *pair, "sum").item() for pair in data)

    return run, {}


def train(config, batch, length):
    """One optimiser step, with whichever of AdamW's implementations is faster here."""
    model = llama(config).train()
    data = itertools.cycle(batches(config, 16, batch, length))

    def run(optimizer):
        loss = loss_of(model, *next(data), "mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        start = time.perf_counter()
        optimizer.step()
        step = time.perf_counter() - start
        optimizer.zero_grad(set_to_none=True)
        return step, loss.item()

    def adamw(kind):
        return torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, **{kind: True})

    def cost(kind):
        optimizer = adamw(kind)
        return min(run(optimizer)[0] for _ in range(3))

    best = min(["foreach", "fused"], key=cost)
    optimizer = adamw(best)
    return lambda: run(optimizer), {"optimizer": best}


def merge(count, folders, variant):
    """Average `count` state dicts into a new one, one folder further each time.

    `loop` is the usual `acc += w * tensor.float()`, `add_` the same without temporaries for float32, `load` the loop
    with loading counted; for the others the dicts lie in memory beforehand.
    """
    from safetensors.torch import load_file

    load = {folder: (lambda folder=folder: load_file(Path(folder, "model.safetensors"))) for folder in folders}
    if variant != "load":
        held = {folder: {name: t.clone() for name, t in load[folder]().items()} for folder in folders}
        load = {folder: (lambda folder=folder: held[folder]) for folder in folders}
    weight = 1 / count
    starts = itertools.cycle(range(len(folders)))
    acc = {name: torch.zeros(t.shape) for name, t in load[folders[0]]().items()}

    @torch.inference_mode()
    def run():
        start = next(starts)
        for tensor in acc.values():
            tensor.zero_()
        for index in range(start, start + count):
            members = load[folders[index % len(folders)]]()
            for name, tensor in acc.items():
                if variant == "add_":
                    tensor.add_(members[name], alpha=weight)
                else:
                    tensor += weight * members[name].float()

    return run, {}


def members(config, count, folder, dtype):
    """Write `count` different models of one type under `folder`; nothing is measured."""
    transformers.utils.logging.disable_progress_bar()
    model = llama(config)
    state = {name: p.clone() for name, p in model.named_parameters()}
    for index in range(count):
        scaled = {name: (p * (1 + index / 100)).to(getattr(torch, dtype)) for name, p in state.items()}
        model.to(getattr(torch, dtype)).load_state_dict(scaled, strict=False)
        model.save_pretrained(Path(folder, f"{dtype}-{index}"))


def main():
    call = json.loads(sys.argv[1])
    torch.set_num_threads(call.pop("threads"))
    repeats, work = call.pop("repeats"), call.pop("work")
    if work == "members":
        return members(**call)
    run, about = {"score": score, "train": train, "merge": merge}[work](**call)
    run()
    for _ in sys.stdin:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": statistics.median(seconds)} | about), flush=True)


if __name__ == "__main__":
    main()
