"""The PyTorch side of gpu-check: sets up pieces of work on a device and measures them, as lines of JSON on stdin ask.

    {"setup": NAME, "work": ..., ...}   sets the work up and runs it until it is warm; answers {"ready": NAME} or {"error": ...}
    {"measure": NAME}                   runs it once; answers {"seconds": S, "amount": A, "unit": U}
    {"drop": NAME}                      frees it

SIGUSR1 ends the set-up at hand, and those that were asked for since, with an error: for compilations that take too long.

A Llama written with PyTorch's own operators (scaled_dot_product_attention, rms_norm, fused AdamW), so that nothing beside PyTorch
need be installed. Training keeps f32 parameters and moments and computes in bf16, as mixpool does; scoring runs bf16 weights.
"""

import gc
import json
import signal
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

STEPS = 10  # of a training measurement


class Late(Exception):
    """There is no time left for the set-up at hand."""


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
    return x * cos.to(x.dtype) + torch.cat((-right, left), -1) * sin.to(x.dtype)


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
        for block in self.blocks:
            x = block(x, self.cos[: ids.shape[1]], self.sin[: ids.shape[1]])
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Device:
    def __init__(self, kind):
        self.device = torch.device(kind)
        self.on_gpu = self.device.type == "cuda"
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")

    def wait(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self):
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def model(self, call):
        model = Llama(call["config"], call["length"]).to(self.device)
        if not call["compile"]:
            return model, model
        torch._dynamo.config.recompile_limit = 64  # all models share their code
        return model, torch.compile(model, dynamic=False)

    def data(self, c, count, batch, length):
        ids = torch.randint(c["vocabulary"], (count, batch, length + 1), device=self.device)
        return [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in ids]

    def seconds(self, run):
        """Of a second run."""
        run()
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def faster(self, ways):
        """The fastest of several ways to do the same, and what it is called; the others are freed."""
        best, best_seconds = None, None
        for make, said in ways:
            run = make()
            taken = self.seconds(run) if len(ways) > 1 else 0.0
            if best is None or taken < best_seconds:
                best, best_seconds = (run, said), taken
            del run
            self.free()
        return best

    def train(self, call):
        """Optimiser steps whose losses are not looked at, as mixpool's are not; with autocast, or with bf16 weights beside f32 ones."""
        tokens, length = call["tokens"], call["length"]
        data = self.data(call["config"], STEPS, max(tokens // length, 1), length)
        ways = [(lambda: self.training(call, data, False), "bf16 beside f32 parameters")]
        if not call["compile"]:
            ways.append((lambda: self.training(call, data, True), "autocast"))
        run, said = self.faster(ways)
        return run, STEPS * sum(ids.numel() for ids, _ in data[:1]), "tokens", said

    def training(self, call, data, autocast):
        model, loss_of = self.model(call)
        kept = list(model.parameters())
        if not autocast:
            kept = [parameter.detach().clone() for parameter in kept]
            for values in kept:
                values.grad = torch.zeros_like(values)
            model.bfloat16()
        groups = [{"params": [p for p in kept if p.dim() > 1], "weight_decay": 0.1},
                  {"params": [p for p in kept if p.dim() <= 1], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=self.on_gpu)
        computed = list(model.parameters())

        def run():
            for ids, targets in data:
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
                    loss = loss_of(ids, targets)
                loss.backward()
                if not autocast:
                    torch._foreach_copy_([values.grad for values in kept], [p.grad for p in computed])
                nn.utils.clip_grad_norm_(kept, 1.0)
                optimizer.step()
                if not autocast:
                    with torch.no_grad():
                        torch._foreach_copy_(computed, kept)
                model.zero_grad(set_to_none=True)

        return run

    def score(self, call):
        """Forward passes over all tokens, in batches of the size that is found to be fastest here."""
        sizes = [16 << 10, 32 << 10] if self.on_gpu else [4096]
        model, loss_of = self.model(call)
        model.bfloat16().eval()
        ways = [(lambda n=n: self.scoring(call, loss_of, n), f"batches of {n}") for n in sizes[-1 if call["compile"] else 0 :]]
        run, said = self.faster(ways)
        return run, call["tokens"], "tokens", said

    def scoring(self, call, loss_of, together):
        together, length = min(together, call["tokens"]), call["length"]
        data = self.data(call["config"], max(call["tokens"] // together, 1), max(together // length, 1), length)

        @torch.no_grad()
        def run():
            total = torch.zeros((), device=self.device, dtype=torch.float64)
            for ids, targets in data:
                total += loss_of(ids, targets) * targets.numel()
            return total.item()

        return run

    def merge(self, call):
        """Ten averages of bf16 vectors into an f32 one: the usual loop, without temporaries."""
        members = [torch.rand(call["n"], device=self.device).bfloat16() for _ in range(call["count"])]
        out = torch.zeros(call["n"], device=self.device)

        @torch.no_grad()
        def run():
            for _ in range(10):
                out.zero_()
                for member in members:
                    out.add_(member, alpha=1 / len(members))

        return run, 10 * (2 * call["count"] + 4) * call["n"], "bytes", ""

    def copy(self, call):
        """Ten copies of a vector of f32, each value read and written: what the device's memory allows."""
        source, target = torch.rand(call["n"], device=self.device), torch.empty(call["n"], device=self.device)

        def run():
            for _ in range(10):
                target.copy_(source)

        return run, 10 * 8 * call["n"], "bytes", ""

    def upload(self, call):
        """Copies of as many bf16 vectors from pinned memory to the device: what the bus allows."""
        source = torch.empty(call["n"], dtype=torch.bfloat16, pin_memory=self.on_gpu)
        target = torch.empty(call["n"], dtype=torch.bfloat16, device=self.device)

        def run():
            for _ in range(call["count"]):
                target.copy_(source, non_blocking=True)

        return run, call["count"] * 2 * call["n"], "bytes", ""


def main():
    def late(*_):
        nonlocal is_late
        is_late = True
        if setting_up:
            raise Late

    is_late = setting_up = False
    signal.signal(signal.SIGUSR1, late)
    works, device = {}, None
    for line in sys.stdin:
        asked = json.loads(line)
        answer = {}
        try:
            if name := asked.get("setup"):
                setting_up = True
                if is_late:
                    raise Late
                device = device or Device(asked["device"])
                started = time.perf_counter()
                work = getattr(device, asked["work"])(asked)
                work[0]()
                work[0]()
                device.wait()
                setting_up = False
                works[name] = work
                device.free()
                answer = {"ready": name, "how": work[3], "seconds": time.perf_counter() - started}
            elif name := asked.get("measure"):
                run, amount, unit, _ = works[name]
                device.wait()
                start = time.perf_counter()
                run()
                device.wait()
                answer = {"seconds": time.perf_counter() - start, "amount": amount, "unit": unit}
            elif name := asked.get("drop"):
                works.pop(name, None)
                if device:
                    device.free()
                answer = {"dropped": name}
        except Exception as error:  # one work that fails leaves the others
            setting_up = False
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            del error
            if device:
                device.free()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
