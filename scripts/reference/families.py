"""Pins every family of models: logits, losses, gradients, the loss of a merge and what linear layers read, of transformers' own classes.

Writes families.json. Each case holds the config.json that transformers writes for it, so reading that is pinned too.
Everything is float64 throughout; frequencies of scaled rotary positions come from transformers' functions, run in
float64.
"""

import json

import torch
from torch.nn import Linear
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from common import tensor, tokens, values, write_golden

VOCAB = 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# With four frequencies a head, one is fast, one between and two are slow.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "llama_linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "llama_biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "smollm": {
        "model_type": "llama",
        "hidden_size": 36,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 16, "head_dim": 12},
    "qwen2": {
        "model_type": "qwen2",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2", "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "gpt2": {"model_type": "gpt2"},
    "gpt2_untied": {
        "model_type": "gpt2",
        "n_inner": 40,
        "n_head": 2,
        "activation_function": "gelu",
        "tie_word_embeddings": False,
    },
    "pythia": {"model_type": "gpt_neox"},
    "gpt_neox_serial": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu_fast",
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
    },
    "gpt_neox_linear": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu_new",
        "rope_parameters": {
            "rope_type": "linear",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "factor": 2.0,
        },
    },
}
# Sizes of families that do without some of the others' or call them otherwise.
OWN_SIZES = {
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24},
    "gpt_neox": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SHARES = (0.3, 0.7)


def sizes(options):
    own = OWN_SIZES.get(options["model_type"])
    return SIZES | options if own is None else own | NO_IDS | options


def named(made):
    """The parameters of a model, by their names in files."""
    neox = made.config.model_type == "gpt_neox"
    for name, parameter in made.named_parameters():
        yield ("embed_out.weight" if neox and name == "lm_head.weight" else name), parameter


def weight(name, shape):
    """The weight called `name`: a gain around 1, or anything else around 0."""
    if name.endswith(".bias"):
        return values(name, shape[0])
    return tensor(name, shape)


def model(options):
    """transformers' model of a family, float64 throughout, with hash-made weights."""
    options = sizes(options)
    config = AutoConfig.for_model(options.pop("model_type"), **options, attn_implementation="sdpa")
    made = AutoModelForCausalLM.from_config(config).eval()  # without dropout
    with torch.no_grad():
        for name, parameter in named(made):
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return in_float64(made)


def in_float64(made):
    """`made.double()`, with the parts swapped out that transformers computes in float32 whatever the type."""
    if not hasattr(made.base_model, "rotary_emb"):
        return made.double()
    old = made.base_model.rotary_emb
    single, torch.float = torch.float, torch.float64  # their functions say torch.float where they mean precision
    try:
        rotary = ROPE_INIT_FUNCTIONS.get(old.rope_type, old.compute_default_rope_parameters)
        frequencies, factor = rotary(made.config)
    finally:
        torch.float = single
    assert frequencies.dtype == torch.float64 and factor == 1.0
    torch.testing.assert_close(frequencies.float(), old.inv_freq)

    class Rotary(torch.nn.Module):
        def forward(self, _, position_ids):
            angles = (position_ids[..., None] * frequencies).repeat(1, 1, 2)
            return angles.cos(), angles.sin()

    made.base_model.rotary_emb = Rotary()
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return made.double()


def loss(made, inputs, targets):
    logits = made(inputs).logits
    return logits, cross_entropy(logits.flatten(0, 1), targets.flatten())


def watch(made):
    """The inputs of every linear layer, by the name of its weight in files, filled by the next forward pass."""
    inputs = {}
    for name, parameter in named(made):
        owners = [m for m in made.modules() if getattr(m, "weight", None) is parameter and isinstance(m, (Linear, Conv1D))]
        for owner in owners:
            owner.register_forward_hook(
                lambda _, args, __, name=name: inputs.__setitem__(name, args[0].detach().flatten(0, 1))
            )
    return inputs


def gram(x):
    """Some entries of the mean of x x^T and its trace."""
    mean = x.T @ x / len(x)
    return digits([*mean[0, :4].tolist(), mean.trace().item()])


def digits(numbers):
    return [float(f"{number:.9g}") for number in numbers]


def case(options):
    rows = torch.from_numpy(tokens(34, vocab=VOCAB)).reshape(2, 17)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    made = model(options)
    read = watch(made)
    logits, mean = loss(made, inputs, targets)
    mean.backward()
    gradients = {name: parameter.grad.flatten() for name, parameter in named(made)}
    directions = {name: torch.from_numpy(values("way " + name, len(g))).double() for name, g in gradients.items()}

    second = model(options)
    with torch.no_grad():
        for (name, parameter), other in zip(named(second), made.parameters()):
            moved = other + torch.from_numpy(values("expert " + name, other.numel())).reshape(other.shape).double()
            parameter.copy_(SHARES[0] * other + SHARES[1] * moved.float().double())
        merged = loss(second, inputs, targets)[1].item()
    return {
        "config": json.loads(made.config.to_json_string()),
        "logits": digits(logits[1, 15].tolist()),
        "loss": mean.item(),
        "merged_loss": merged,
        "grams": {name: gram(x) for name, x in read.items()},
        "gradient_norms": dict(zip(gradients, digits(g.norm().item() for g in gradients.values()))),
        "gradient_ways": dict(zip(gradients, digits((g @ directions[name]).item() for name, g in gradients.items()))),
    }


if __name__ == "__main__":
    cases = {name: case(options) for name, options in FAMILIES.items()}
    write_golden("families", ["torch", "transformers"], {"shares": SHARES, "cases": cases})
