"""Pins the Llama forward and backward pass: logits, losses and gradients of transformers' LlamaForCausalLM.

Writes model_tied.json and model_untied.json. Keys without a suffix hold float32 for `logits` and `loss`, and
float64 for the rest; `logits_f64` and `loss_f64` are the float64 ones. The float64 model is float64 throughout.
"""

import torch
from torch.nn.functional import cross_entropy

from common import CONFIG, batch, tiny_model, write_golden

SELECTED = [(0, 0), (0, 7), (0, 15), (1, 15)]  # (sequence, position)


def select(logits):
    return [{"sequence": s, "position": p, "values": logits[s, p].tolist()} for s, p in SELECTED]


for tied in (True, False):
    inputs, targets = batch()
    with torch.no_grad():
        logits = tiny_model(tied, float64=False)(inputs).logits

    model = tiny_model(tied, float64=True)
    logits_f64 = model(inputs).logits
    nll = cross_entropy(logits_f64.flatten(0, 1), targets.flatten(), reduction="none")
    nll.mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}

    torch.testing.assert_close(logits.double(), logits_f64, rtol=1e-5, atol=1e-6)
    write_golden(
        "model_tied" if tied else "model_untied",
        ["torch", "transformers"],
        {
            "config": CONFIG | {"tie_word_embeddings": tied},
            "inputs": inputs.tolist(),
            "targets": targets.tolist(),
            "loss": cross_entropy(logits.flatten(0, 1), targets.flatten()).item(),
            "loss_f64": nll.mean().item(),
            "nll": nll.tolist(),
            "gradient_norm": torch.tensor(list(norms.values()), dtype=torch.float64).norm().item(),
            "gradient_norms": norms,
            "gradient_heads": {name: gradient.flatten()[:4].tolist() for name, gradient in gradients.items()},
            "logits": select(logits),
            "logits_f64": select(logits_f64),
        },
    )
