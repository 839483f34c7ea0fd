"""Pins the score of whole documents: the tied tiny model in float64 on lm-evaluation-harness's windows.

Writes rolling_score.json: summed negative log-likelihoods in nats. Token i of document d is
1 + splitmix(0x12345678, 10000 d + i) % 96, so the prefix token 0 never occurs in a document.
"""

from common import CONFIG, rolling_nll, tiny_model, tokens, write_golden

LENGTHS = [1, 2, 5, 16, 63, 64, 65, 127, 128, 129, 300, 700]
WINDOW, PREFIX = 128, 0

model = tiny_model(tied=True, float64=True)
documents = [(1 + tokens(length, 10000 * d, vocab=96)).tolist() for d, length in enumerate(LENGTHS)]
nlls = [rolling_nll(model, document, WINDOW, PREFIX) for document in documents]

write_golden(
    "rolling_score",
    ["torch", "transformers", "lm-eval"],
    {
        "config": CONFIG | {"tie_word_embeddings": True},
        "window": WINDOW,
        "prefix_token": PREFIX,
        "documents": [
            {"length": len(document), "nll": nll, "tokens": document} for document, nll in zip(documents, nlls)
        ],
        "total_nll": sum(nlls),
        "total_tokens": sum(LENGTHS),
    },
)
