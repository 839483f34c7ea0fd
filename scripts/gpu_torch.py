"""The PyTorch side of gpu-check: sets up one piece of work on a device, then measures it once for every line on stdin.

A Llama written with PyTorch's own operators (scaled_dot_product_attention, rms_norm, fused AdamW), so that nothing beside PyTorch
need be installed. Training keeps f32 parameters and computes under autocast to bf16, as mixpool does; scoring runs bf16 weights.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, heads, keys, dim = c["hidden"], c["heads"], c["keys"], c["hidden"] // c["heads"]
        self.heads, self.keys, self.dim = heads, keys, dim
        linear = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
        self.q, self.k, self.v = linear(hidden, heads * dim), linear(hidden, keys * dim), linear(hidden, keys * dim)
        self.o = linear(heads * dim, hidden)
        self.gate, self.up, self.down = linear(hidden, c["ffn"]), linear(hidden, c["ffn"]), linear(c["ffn"], hidden)
        self.before, self.between = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        read = self.before(x)
        split = lambda y, n: y.view(batch, length, n, self.dim).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.q(read), self.heads), split(self.k(read), self.keys), split(self.v(read), self.keys)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.keys != self.heads)
        x = x + self.o(seen.transpose(1, 2).reshape(batch, length, -1))
        read = self.between(x)
        return x + self.down(F.silu(self.gate(read)) * self.up(read))


def rotate(x, cos, sin):
    left, right = x.chunk(2, -1)
    return (x * cos + torch.cat((-right, left), -1) * sin).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, c, length):
        super().__init__()
        self.embedding = nn.Embedding(c["vocabulary"], c["hidden"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["layers"]))
        self.norm = nn.RMSNorm(c["hidden"], eps=1e-5)
        dim = c["hidden"] // c["heads"]
        angles = torch.outer(torch.arange(length), 10000.0 ** -(torch.arange(0, dim, 2) / dim)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, targets):
        x = self.embedding(ids)
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Work:
    def __init__(self, call):
        self.device = torch.device(call["device"])
        self.on_gpu = self.device.type == "cuda"
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = True

    def wait(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def data(self, c, count, batch, length):
        ids = torch.randint(c["vocabulary"], (count, batch, length + 1), device=self.device)
        return [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in ids]

    def train(self, call):
        """Ten optimiser steps, whose losses are not looked at, as mixpool's are not."""
        c, length, steps = call["config"], call["length"], 10
        model = Llama(c, length).to(self.device)
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=self.on_gpu)
        data = self.data(c, steps, max(call["tokens"] // length, 1), length)
        loss_of = torch.compile(model) if call["compile"] else model

        def run():
            for ids, targets in data:
                with torch.autocast(self.device.type, dtype=torch.bfloat16):
                    loss = loss_of(ids, targets)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return run, steps * call["tokens"], "tokens"

    def score(self, call):
        """Forward passes over all tokens, in batches of the size that was found to be fastest here."""
        c, length = call["config"], call["length"]
        model = Llama(c, length).to(self.device).bfloat16().eval()
        loss_of = torch.compile(model) if call["compile"] else model
        best = None
        for together in (16 << 10, 32 << 10) if self.on_gpu else (4096,):
            together = min(together, call["tokens"])
            data = self.data(c, max(call["tokens"] // together, 1), max(together // length, 1), length)

            @torch.inference_mode()
            def run(data=data):
                total = torch.zeros((), device=self.device, dtype=torch.float64)
                for ids, targets in data:
                    total += loss_of(ids, targets) * targets.numel()
                return total.item()

            run()
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if best is None or seconds < best[0]:
                best = (seconds, run)
        return best[1], call["tokens"], "tokens"

    def merge(self, call):
        """Ten averages of bf16 vectors into an f32 one: the usual loop, without temporaries."""
        members = [torch.rand(call["n"], device=self.device).bfloat16() for _ in range(call["count"])]
        out = torch.zeros(call["n"], device=self.device)

        @torch.inference_mode()
        def run():
            for _ in range(10):
                out.zero_()
                for member in members:
                    out.add_(member, alpha=1 / len(members))

        return run, 10 * (2 * call["count"] + 4) * call["n"], "bytes"

    def copy(self, call):
        """Ten copies of a vector of f32: what the device's memory allows."""
        source, target = torch.rand(call["n"], device=self.device), torch.empty(call["n"], device=self.device)

        def run():
            for _ in range(10):
                target.copy_(source)

        return run, 10 * 8 * call["n"], "bytes"

    def upload(self, call):
        """A copy from pinned memory to the device: what the bus allows."""
        source = torch.empty(call["n"], dtype=torch.bfloat16, pin_memory=self.on_gpu)
        target = torch.empty(call["n"], dtype=torch.bfloat16, device=self.device)
        return (lambda: target.copy_(source, non_blocking=True)), 2 * call["n"], "bytes"


def main():
    call = json.loads(sys.argv[1])
    work = Work(call)
    run, amount, unit = getattr(work, call["work"])(call)
    run()
    run()
    work.wait()
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        work.wait()
        print(json.dumps({"seconds": time.perf_counter() - start, "amount": amount, "unit": unit}), flush=True)


if __name__ == "__main__":
    main()
