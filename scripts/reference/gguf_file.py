"""Pins what is read from GGUF files: values of every type, models of every architecture, both kinds of tokenizers.

Writes gguf.json and the files of tests/golden/gguf, all of them by the package `gguf` (gguf-py):

* types.gguf: blocks of random bytes of every type, each beside what gguf-py makes of them;
* a model of every architecture with the weights of `families.py`, quantised by gguf-py; transformers runs in float64 on
  what gguf-py reads back. Names are gguf-py's own, and rows of queries and keys are interleaved as llama.cpp's converter does;
* llama.gguf also holds a byte-level tokenizer. Its reference splits with llama.cpp's own patterns and merges naively;
* sentencepiece.gguf holds a tokenizer that sentencepiece trained on the lines below; sentencepiece is its reference.
"""

import io
import unicodedata

import gguf
import numpy as np
import regex
import sentencepiece
import torch
from common import GOLDEN, fnv1a64, splitmix, tokens, write_golden
from gguf import GGMLQuantizationType as Type
from gguf import quants

import families

FOLDER = GOLDEN / "gguf"
# Where the half-precision numbers of a block lie, and how many values are pinned.
TYPES = {
    Type.F32: ([], 64), Type.F16: ([], 64), Type.BF16: ([], 64),
    Type.Q4_0: ([0], 256), Type.Q4_1: ([0, 2], 256), Type.Q5_0: ([0], 256), Type.Q5_1: ([0, 2], 256), Type.Q8_0: ([0], 256),
    Type.Q2_K: ([80, 82], 512), Type.Q3_K: ([108], 512), Type.Q4_K: ([0, 2], 512), Type.Q5_K: ([0, 2], 512),
    Type.Q6_K: ([208], 512),
}
HALVES = [0.0123, -3.5, 6.1e-5, -5.96e-8, 0.75, 1.0, 2048.0, -0.0]  # two of them subnormal or nearly so

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": families.VOCAB}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
MODELS = {  # name: (type of the matrices, type of the embedding, options)
    "llama": (Type.Q4_1, Type.Q8_0, {
        "model_type": "llama", **SMALL, "num_hidden_layers": 2, "vocab_size": 300, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}),
    "llama3": (Type.Q8_0, Type.F16, {
        "model_type": "llama", **SMALL, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_parameters": LLAMA3, "max_position_embeddings": 131072}),
    "llama_linear_biases": (Type.Q5_0, Type.BF16, {
        "model_type": "llama", **SMALL, "attention_bias": True, "mlp_bias": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen2": (Type.Q4_0, Type.Q8_0, {
        "model_type": "qwen2", **SMALL, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    "qwen3": (Type.Q5_1, Type.Q8_0, {
        "model_type": "qwen3", **SMALL, "head_dim": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}),
    "olmo2": (Type.Q8_0, Type.Q8_0, {
        "model_type": "olmo2", **SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
}

TEXT = """The quick brown fox jumps over the lazy dog, and the dog's owner isn't pleased. She'll say so.
In 1987 there were 12345 of them; by 2024, only 7 were left. Prices rose by 3.5% (or 42 cents).
    def add(self, other):  # four spaces before
        return self.total + other.total

Grüße aus Köln! Ça va? 東京は大きい。 Привет, мир. naïve café, 100½ ² ۳ 😀 end of line
"""
SAMPLES = ["Hello world", "the dog's  owner\tisn't   here\n\n  She'LL see 12345 ½ things!!", "  leading and trailing  ",
           "\r\nline one\r\n\r\nline two", "東京 Привет 😀 naïve cafe\u0301 ۳۴۵", "a<|end|>b <s> <unk>", "return self.total+1", ""]
# llama.cpp's patterns by the name of the tokenizer; each splits further what the ones before it left.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
WORDS = (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPLITS = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "llama-bpe": [WORDS % r"\p{N}{1,3}"], "dbrx": [WORDS % r"\p{N}{1,3}"],
          "qwen2": [WORDS % r"\p{N}"]}


def types(path):
    writer = gguf.GGUFWriter(path, "types")
    for kind, (halves, count) in TYPES.items():
        per_block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = (splitmix(fnv1a64(kind.name), np.arange(count // per_block * size)) >> np.uint64(40)).astype(np.uint8)
        blocks = blocks.reshape(-1, size)
        if kind == Type.F32:
            blocks = np.linspace(-3, 3, count, dtype=np.float32).view(np.uint8).reshape(-1, size)
        if kind in (Type.F16, Type.BF16):  # no infinities
            high = blocks[:, 1]
            high[(high & 0x7C) == 0x7C] &= 0xBF
        for block in range(len(blocks)):
            for number, at in enumerate(halves):
                half = np.float16(HALVES[(block + 3 * number + len(kind.name)) % len(HALVES)])
                blocks[block, at:at + 2] = np.frombuffer(half.tobytes(), np.uint8)
        expected = quants.dequantize(blocks.reshape(1, -1), kind).astype(np.float32)
        assert expected.size == count and np.isfinite(expected).all()
        raw = blocks.reshape(1, -1)
        raw = raw.view({Type.F32: np.float32, Type.F16: np.float16}.get(kind, np.uint8))
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.expected", expected)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(weight, heads):
    """llama.cpp's order of the rows of queries and keys."""
    half = weight.shape[0] // heads // 2
    return np.ascontiguousarray(weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape))


def separate(weight, heads):
    half = weight.shape[0] // heads // 2
    return np.ascontiguousarray(weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape))


def llama3_factors(head_dim, rope):
    """What frequencies are divided by, as llama.cpp's converter works it out: by wavelengths."""
    factors, context = [], rope["original_max_position_embeddings"]
    for frequency in rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < context / rope["high_freq_factor"]:
            factors.append(1)
        elif wavelength > context / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (context / wavelength - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def model(name, path, vocabulary):
    kind, embedding_kind, options = MODELS[name]
    made = families.model(options)
    config, family = made.config, options["model_type"]
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
                    "olmo2": gguf.MODEL_ARCH.OLMO2}[family]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, family)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if family == "llama":
        writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(head_dim, rope))
    if vocabulary:
        add_byte_level(writer, *vocabulary)
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if parameter_name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            weight = families.weight(parameter_name, tuple(parameter.shape))
            part = parameter_name.split(".")[-2]
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part)
            heads = heads if family == "llama" else None
            its_kind = Type.F32 if weight.ndim == 1 else embedding_kind if "embed" in parameter_name else kind
            stored = quants.quantize(interleave(weight, heads) if heads else weight, its_kind)
            read = quants.dequantize(stored, its_kind).astype(np.float32).reshape(weight.shape)
            read = separate(read, heads) if heads else read
            parameter.copy_(torch.from_numpy(read.copy()).double())
            its_name = names.get_name(parameter_name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(its_name, stored, raw_dtype=its_kind)
    finish(writer)
    rows = torch.from_numpy(tokens(34, vocab=config.vocab_size)).reshape(2, 17)
    logits, mean = families.loss(made, rows[:, :-1], rows[:, 1:])
    return {"config": families.json.loads(config.to_json_string()), "logits": families.digits(logits[1, 15].tolist()),
            "loss": mean.item()}


# ------------------------------------------------------------------------------- byte-level BPE

def letters():
    """GPT-2's letters for bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + number) for number, byte in enumerate(rest)}


LETTERS = letters()


def split(text, patterns):
    parts = [text]
    for pattern in patterns:
        further = []
        for part in parts:
            at = 0
            for match in regex.finditer(pattern, part):
                further += [part[at:match.start()], match[0]]
                at = match.end()
            further.append(part[at:])
        parts = [part for part in further if part]
    return parts


def spell(word):
    return "".join(LETTERS[byte] for byte in word.encode())


def train_merges(count):
    words = [list(spell(word)) for word in split(TEXT, [GPT2])]
    merges = []
    for _ in range(count):
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [merged(word, best) for word in words]
    return merges


def merged(word, pair):
    out, at = [], 0
    while at < len(word):
        if tuple(word[at:at + 2]) == pair:
            out.append(word[at] + word[at + 1])
            at += 2
        else:
            out.append(word[at])
            at += 1
    return out


def byte_level_vocabulary():
    merges = train_merges(40)
    whole = "Ġworld"  # a word that no merge makes
    vocabulary = ["<|end|>", "<|begin|>", *LETTERS.values(), *("".join(pair) for pair in merges), whole]
    kinds = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(vocabulary) - 2)
    vocabulary.append("<tool>")
    kinds.append(gguf.TokenType.USER_DEFINED)
    assert len(vocabulary) == 300
    return vocabulary, kinds, merges


def add_byte_level(writer, vocabulary, kinds, merges):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)


def encode_byte_level(text, name, vocabulary, kinds, merges):
    ids = {token: number for number, token in enumerate(vocabulary)}
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    special = [token for token, kind in zip(vocabulary, kinds) if kind != gguf.TokenType.NORMAL]
    out = []
    for part in regex.split("(" + "|".join(map(regex.escape, special)) + ")", text):
        if part in special:
            out.append(ids[part])
            continue
        part = unicodedata.normalize("NFC", part) if name == "qwen2" else part
        for word in split(part, SPLITS[name]):
            pieces = list(spell(word))
            if name == "llama-bpe" and spell(word) in ids:
                pieces = [spell(word)]
            while pairs := [pair for pair in zip(pieces, pieces[1:]) if pair in ranks]:
                pieces = merged(pieces, min(pairs, key=ranks.get))
            out += [ids[piece] for piece in pieces]
    return out


# ------------------------------------------------------------------------------- sentencepiece

def sentence_piece(path):
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 3), model_writer=trained, model_type="bpe", vocab_size=380,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.98, hard_vocab_limit=False, minloglevel=2)
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = range(processor.vocab_size())
    kinds = [gguf.TokenType.UNKNOWN if processor.is_unknown(i) else gguf.TokenType.CONTROL if processor.is_control(i) else
             gguf.TokenType.BYTE if processor.is_byte(i) else gguf.TokenType.NORMAL for i in pieces]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([processor.id_to_piece(i) for i in pieces])
    writer.add_token_scores([processor.get_score(i) for i in pieces])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    finish(writer)
    plain = [text for text in SAMPLES if "<" not in text]  # where control tokens are found in text, each has its own ways
    return [{"text": text, "ids": processor.encode(text)} for text in plain]


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    types(FOLDER / "types.gguf")
    byte_level = byte_level_vocabulary()
    models = {name: model(name, FOLDER / f"{name}.gguf", byte_level if name == "llama" else None) for name in MODELS}
    encoded = {name: [{"text": text, "ids": encode_byte_level(text, name, *byte_level)} for text in [*SAMPLES, TEXT]]
               for name in SPLITS}
    write_golden("gguf", ["gguf", "torch", "transformers", "sentencepiece", "regex"], {
        "models": models, "byte_level": encoded, "sentence_piece": sentence_piece(FOLDER / "sentencepiece.gguf")})
    for path in sorted(FOLDER.glob("*.gguf")):
        print(f"{path.name}: {path.stat().st_size} bytes")
