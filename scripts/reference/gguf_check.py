"""Sets transformers' own reading of a GGUF file beside what mixpool made of it.

    gguf_check.py MODEL.gguf FOLDER TEXT [--window N]

FOLDER is an object of a pool made from MODEL.gguf, or an export of its seed. transformers reads the GGUF file with its own
code (names, order of rows, tokenizer). Every tensor must be the same to the bit, and so must the ids of TEXT (documents
separated by a line of U+001E). Then transformers' loss of TEXT in float32, on lm-evaluation-harness's windows, is printed
beside which `mixpool score` of the same text can be set.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import rolling_nll

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("text", type=Path)
parser.add_argument("--window", type=int, default=256, help="most tokens in a window (default 256)")
options = parser.parse_args()

source = {"pretrained_model_name_or_path": options.model.parent, "gguf_file": options.model.name}
model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
theirs, ours = model.state_dict(), load_file(options.folder / "model.safetensors")
if model.config.tie_word_embeddings:
    theirs.pop("lm_head.weight", None)
differing = [name for name in theirs if name not in ours or not torch.equal(theirs[name], ours[name])]
differing += [name for name in ours if name not in theirs]

their_tokenizer = AutoTokenizer.from_pretrained(**source)
our_tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
texts = options.text.read_text().rstrip("\n").split("\n\x1e\n")
documents = [our_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
other_ids = sum(their_tokenizer(text, add_special_tokens=False)["input_ids"] != ids for text, ids in zip(texts, documents))
other_text = sum(our_tokenizer.decode(ids, skip_special_tokens=False) != text for text, ids in zip(texts, documents))

prefix = their_tokenizer.bos_token_id if their_tokenizer.bos_token_id is not None else their_tokenizer.eos_token_id
scored = sum(map(len, documents))
loss = sum(rolling_nll(model, document, options.window, prefix) for document in documents) / scored
print(json.dumps({
    "tensors": len(theirs), "tensors_that_differ": differing, "documents": len(documents), "documents_with_other_ids": other_ids,
    "documents_not_decoded_back": other_text, "hello_world": our_tokenizer.encode("Hello world", add_special_tokens=False).ids,
    "prefix_token": prefix, "tokens": scored, "loss": loss,
}, indent=1))
