"""Scores an exported model folder with transformers, to set beside mixpool's own score of the same folder.

    export_check.py FOLDER TOKENS.json [--window N] [--prefix-token ID]

TOKENS.json is a list of documents, each a list of token ids or {"text": ..., "tokens": [...]}. The model runs in
float32 on lm-evaluation-harness's windows. Prints JSON with the mean loss in nats per token. Where FOLDER has a
tokenizer.json, the texts are also encoded with it and compared with their ids.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from common import rolling_nll

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("tokens", type=Path)
parser.add_argument("--window", type=int, help="most tokens in a window (default: the model's context)")
parser.add_argument("--prefix-token", type=int, help="id before a document (default: the model's BOS, else EOS)")
options = parser.parse_args()

model, loading = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32, output_loading_info=True)
assert not any(loading.values()), loading  # no tensor missing, unexpected or of a wrong shape
model.eval()

window = options.window or model.config.max_position_embeddings
candidates = (options.prefix_token, model.config.bos_token_id, model.config.eos_token_id)
prefix = next((token for token in candidates if token is not None), None)
if prefix is None:
    parser.error("the model names no BOS or EOS: give --prefix-token")

entries = json.loads(options.tokens.read_text())
documents = [entry["tokens"] if isinstance(entry, dict) else entry for entry in entries]
nlls = [rolling_nll(model, document, window, prefix) for document in documents]
scored = sum(map(len, documents))
report = {
    "documents": len(documents),
    "tokens": scored,
    "window": window,
    "prefix_token": prefix,
    "total_nll": sum(nlls),
    "mean_loss": sum(nlls) / scored,
    "nll": nlls,
}

tokenizer_file = options.folder / "tokenizer.json"
texts = [entry for entry in entries if isinstance(entry, dict)]
if tokenizer_file.exists():
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    encoded = [tokenizer.encode(entry["text"], add_special_tokens=False) for entry in texts]
    report["texts_compared"] = len(texts)
    report["texts_differing"] = sum(ids != entry["tokens"] for ids, entry in zip(encoded, texts))

print(json.dumps(report, indent=2))
