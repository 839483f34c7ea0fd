"""Writes the corpora of tests/golden/formats: the same documents in every format that pyarrow, NumPy and datasets write.

Beside them expected.json: the texts, their ids by the tokenizer beside it, and which rows of the flawed files are good.
"""

import json
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from common import GOLDEN, write_golden

FOLDER = GOLDEN / "formats"
END = "<|endoftext|>"

shutil.rmtree(FOLDER, ignore_errors=True)
FOLDER.mkdir()
WORDS = "the river town école naïve 数字 und größer 🦀 of stone".split()
TEXTS = [" ".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(1, 9)) + f" no. {i}" for i in range(24)]
N = len(TEXTS)


def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.save(str(FOLDER / "tokenizer.json"), pretty=False)
    return made


def table(text_type=pa.string()):
    """The texts behind columns of other kinds, each of which has another number of buffers."""
    return pa.table(
        {
            "id": pa.array(range(N), pa.int64()),
            "none": pa.nulls(N),
            "flag": pa.array([i % 3 == 0 for i in range(N)]),
            "fixed": pa.array([b"abcd"] * N, pa.binary(4)),
            "label": pa.array(["x", "y"] * (N // 2)).dictionary_encode(),
            "tags": pa.array([["a"] * (i % 3) for i in range(N)], pa.list_(pa.string())),
            "pair": pa.array([[i, i] for i in range(N)], pa.list_(pa.int32(), 2)),
            "map": pa.array([[("k", i)] for i in range(N)], pa.map_(pa.string(), pa.int32())),
            "other": pa.array([{"text": "wrong", "n": i} for i in range(N)]),
            "text": pa.array(TEXTS, text_type),
            "page": pa.array([{"lang": "en", "body": text} for text in TEXTS]),
            "last": pa.array([1.5] * N),
        }
    )


def stream(name, data, rows, **options):
    with ipc.new_stream(FOLDER / name, data.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(data, max_chunksize=rows)


def parquets(data):
    pq.write_table(data, FOLDER / "snappy.parquet", row_group_size=10, compression="snappy")
    for codec in ["zstd", "gzip", "lz4", "none"]:
        pq.write_table(
            data.select(["text"]), FOLDER / f"{codec}.parquet", compression=codec, use_dictionary=codec == "gzip",
            data_page_version="2.0" if codec == "zstd" else "1.0", data_page_size=256, row_group_size=13,
        )
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.large_string())}), FOLDER / "large.parquet")
    brotli = pa.table({"text": TEXTS[:2]})
    pq.write_table(brotli, FOLDER / "brotli.parquet", compression="brotli")
    listed = pa.table({"text": [["a", "b"], ["c"]], "number": [1, 2]})
    pq.write_table(listed, FOLDER / "listed.parquet")


def arrows(data):
    views = data.add_column(0, "view", pa.array([text * 2 for text in TEXTS], pa.string_view()))
    views = views.add_column(1, "views", pa.array([{"v": text * 2} for text in TEXTS], pa.struct([("v", pa.binary_view())])))
    stream("stream.arrow", views, 10)
    with ipc.new_file(FOLDER / "file.arrow", data.schema) as writer:
        writer.write_table(data, max_chunksize=7)
    small = data.select(["id", "text"])
    feather.write_feather(small, FOLDER / "lz4.feather", compression="lz4", chunksize=9)
    feather.write_feather(small, FOLDER / "zstd.feather", compression="zstd", chunksize=9)
    large = table(pa.large_string()).select(["flag", "text"])
    stream("large.arrow", large, 24)
    stream("sliced.arrow", large.slice(5, 6), 4)


def flawed():
    """Every fourth row null, and one that is not UTF-8; structs that are null with what they hold."""
    values = [None if i % 4 == 1 else text.encode() for i, text in enumerate(TEXTS)]
    values[6] = b"ab\xff\xfecd"
    data = pa.array(values, pa.binary())
    text = pa.Array.from_buffers(pa.string(), N, data.buffers())
    page = pa.StructArray.from_arrays([text], ["body"], mask=pa.array([i % 5 == 2 for i in range(N)]))
    flaws = pa.table({"text": text, "page": page, "bytes": data})
    pq.write_table(flaws, FOLDER / "flawed.parquet", row_group_size=9)
    stream("flawed.arrow", flaws, 9)
    good = [i for i in range(N) if i % 4 != 1 and i != 6]
    return {"text": good, "page.body": [i for i in good if i % 5 != 2], "bytes": good}


def token_files(ids):
    ended = [id for document in ids for id in [*document, 0]]
    np.array(ended, "<u2").tofile(FOLDER / "memmap.bin")
    np.array([0, *ended[:-1]], "<u4").tofile(FOLDER / "headerless.npy")  # begins with EOS, ends without
    for kind in ["u2", "u4", "u8", "i2", "i4", "i8"]:
        np.save(FOLDER / f"flat-{kind}.npy", np.array(ended, f"<{kind}"))
    width = max(map(len, ids)) + 1
    rows = np.zeros((N, width), "<i8")
    for row, document in zip(rows, ids):
        row[: len(document)] = document
    np.save(FOLDER / "rows.npy", rows)
    np.save(FOLDER / "big-endian.npy", np.array(ended, ">u2"))
    np.save(FOLDER / "floats.npy", np.array(ended, "<f4"))
    np.save(FOLDER / "columns.npy", np.asfortranarray(rows[:3]))


made = tokenizer()
ids = [made.encode(text).ids for text in TEXTS]
assert [made.decode(document) for document in ids] == TEXTS
data = table()
parquets(data)
arrows(data)
good = flawed()
token_files(ids)
datasets.disable_progress_bars()
saved = datasets.Dataset.from_dict({"id": list(range(N)), "text": TEXTS})
saved.save_to_disk(FOLDER / "saved", num_shards=3)
datasets.DatasetDict({"train": saved.select(range(2)), "test": saved.select([2])}).save_to_disk(FOLDER / "splits")
for state in FOLDER.glob("**/state.json"):  # drops a random fingerprint
    state.write_text(json.dumps({"_data_files": json.loads(state.read_text())["_data_files"]}) + "\n")
write_golden("formats/expected", ["pyarrow", "numpy", "datasets", "tokenizers"], {"texts": TEXTS, "ids": ids, "good": good})
