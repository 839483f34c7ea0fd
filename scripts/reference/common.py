"""Shared by the reference programs: hash-made weights and tokens, the tiny Llama, rolling scores, golden files.

Weights and tokens come from an integer hash, so Rust and Python make them bit for bit equal without a weight file.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
GAMMA = 0x9E3779B97F4A7C15
MASK = 0xFFFFFFFFFFFFFFFF

VOCAB = 97
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
}


def fnv1a64(name):
    """FNV-1a over the UTF-8 bytes of `name`."""
    digest = 0xCBF29CE484222325
    for byte in name.encode():
        digest = (digest ^ byte) * 0x100000001B3 & MASK
    return digest


def splitmix(seed, index):
    """The `index`-th output of SplitMix64 started at `seed`; `index` is an array."""
    z = np.uint64(seed) + (np.asarray(index, np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def values(name, count, scale=0.2):
    """float32 values uniform in [-scale/2, scale/2): `value(name, i)` for i in 0..count."""
    unit = (splitmix(fnv1a64(name), np.arange(count)) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    return (unit - np.float32(0.5)) * np.float32(scale)


def tensor(name, shape):
    """The float32 weight called `name`: a matrix around 0, or a norm's gain around 1."""
    flat = values(name, int(np.prod(shape)))
    return (flat if len(shape) == 2 else np.float32(1) + flat).reshape(shape)


def tokens(count, start=0, vocab=VOCAB):
    """`token(start + i)` for i in 0..count."""
    return (splitmix(0x12345678, np.arange(start, start + count)) % np.uint64(vocab)).astype(np.int64)


def batch(start=0):
    """Inputs and targets, each 2 x 16, of the 34 tokens from `start`."""
    import torch

    rows = torch.from_numpy(tokens(34, start)).reshape(2, 17)
    return rows[:, :-1], rows[:, 1:]


def tiny_model(tied, float64):
    """transformers' LlamaForCausalLM with hash-made weights, in float32 or in float64 throughout."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    attention = "sdpa" if float64 else "eager"  # the eager one takes its softmax in float32
    config = LlamaConfig(**CONFIG, tie_word_embeddings=tied, attn_implementation=attention)
    assert config.rope_parameters["rope_theta"] == CONFIG["rope_theta"]
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(tensor(name, parameter.shape)))
    return in_float64(model) if float64 else model


def in_float64(model):
    """`model.double()`, with the parts swapped out that transformers computes in float32 whatever the type."""
    import torch

    class Rotary(torch.nn.Module):
        def forward(self, _, position_ids):
            size = CONFIG["head_dim"]
            frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
            angles = (position_ids[..., None] * frequencies).repeat(1, 1, 2)
            return angles.cos(), angles.sin()

    def norm(old):
        new = torch.nn.RMSNorm(old.weight.shape, eps=old.variance_epsilon)
        new.weight = old.weight
        return new

    model.model.rotary_emb = Rotary()
    model.model.norm = norm(model.model.norm)
    for layer in model.model.layers:
        layer.input_layernorm = norm(layer.input_layernorm)
        layer.post_attention_layernorm = norm(layer.post_attention_layernorm)
    return model.double()


def rolling_windows(document, window, prefix):
    """lm-evaluation-harness's windows: pairs of model input and scored tokens, the last of the input's targets."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for pair in get_rolling_token_windows(document, prefix_token=prefix, max_seq_len=window, context_len=1):
        context, continuation = make_disjoint_window(pair)
        yield context + continuation[:-1], continuation


def rolling_nll(model, document, window, prefix):
    """Summed negative log-likelihood of a list of token ids, every token scored once."""
    import torch

    total = 0.0
    with torch.no_grad():
        for inputs, scored in rolling_windows(document, window, prefix):
            logits = model(torch.tensor([inputs])).logits[0, -len(scored) :]
            total += torch.nn.functional.cross_entropy(logits.double(), torch.tensor(scored), reduction="sum").item()
    return total


def write_word_tokenizer(folder, vocab):
    """A tokenizer of the words `<s>` (id 0), w1, w2, ..."""
    vocabulary = {"<s>": 0} | {f"w{i}": i for i in range(1, vocab)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<s>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_golden(name, packages, content):
    """Write tests/golden/NAME.json, with the versions of Python and of the `packages` that made it."""
    versions = {"python": platform.python_version()} | {package: version(package) for package in packages}
    GOLDEN.mkdir(parents=True, exist_ok=True)
    path = GOLDEN / f"{name}.json"
    path.write_text(pretty({"versions": versions} | content) + "\n")
    print(f"{path.relative_to(GOLDEN.parents[1])}: {path.stat().st_size} bytes")


def pretty(value, indent=""):
    """JSON with an entry a line, but lists without objects in them on one line."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        entries = [f"{inner}{json.dumps(key)}: {pretty(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(inner + pretty(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
