"""Reads what `mixpool` wrote with pandas and pyarrow, and compares every number: CSV, JSON, JSON Lines, Parquet, long and wide.

    python tables_check.py MIXPOOL POOL     (a pool that `rank` and `validate` have been asked about)
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

mixpool, pool = sys.argv[1:]
FORMATS = {
    "csv": lambda path: pd.read_csv(path, keep_default_na=False, na_values=[""]),
    "json": lambda path: pd.read_json(path, precise_float=True),
    "jsonl": lambda path: pd.read_json(path, lines=True, precise_float=True),
    "parquet": pd.read_parquet,
}


def run(*arguments):
    subprocess.run([mixpool, "--quiet", "--pool", pool, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def compare(name, frames):
    reference, compared = frames["csv"], 0
    for kind, frame in frames.items():
        assert list(frame.columns) == list(reference.columns) and len(frame) == len(reference), (name, kind)
        for column in frame:
            expected, got = reference[column], frame[column]
            if pd.api.types.is_numeric_dtype(expected):
                exact = kind in ("csv", "parquet")  # pandas' own JSON reader may be off by one in the last place
                tolerance = 0 if exact else 4e-16
                expected, got = expected.astype(float), got.astype(float)
                assert np.allclose(expected, got, rtol=tolerance, atol=0, equal_nan=True), (name, kind, column)
            else:
                expected, got = ([None if pd.isna(cell) else cell for cell in cells] for cells in (expected, got))
                assert expected == got, (name, kind, column)
            compared += len(got)
    print(f"{name}: {len(reference)} rows, {len(reference.columns)} columns, {compared} values the same in {', '.join(frames)}")


with tempfile.TemporaryDirectory() as folder:
    for name, command in {
        "ranking": ["export", "ranking"],
        "ranking-wide": ["export", "ranking", "--wide"],
        "scores": ["export", "scores"],
        "scores-wide": ["export", "scores", "--wide"],
        "compare": ["compare", "--all"],
    }.items():
        frames = {}
        for kind, read in FORMATS.items():
            path = Path(folder) / f"{name}.{kind}"
            run(*command, "--out", path)
            frames[kind] = read(path)
        compare(name, frames)
    print(pq.read_schema(Path(folder) / "ranking.parquet"))
    long, wide = pd.read_parquet(Path(folder) / "ranking.parquet"), pd.read_parquet(Path(folder) / "ranking-wide.parquet")
    pivoted = long.pivot(index="mixture", columns="eval_set", values="loss")
    wide = wide.set_index("mixture")
    for eval_set in pivoted:
        assert (wide[f"{eval_set}.loss"].loc[pivoted.index] == pivoted[eval_set]).all(), eval_set
    print(f"wide = pandas' pivot of long: {pivoted.size} losses the same")
    for neighbour, mixtures, losses, key in [("olmix", "ratios.csv", "metrics.csv", "run"), ("regmix", "mixture.csv", "loss.csv", "index")]:
        out = Path(folder) / neighbour
        run("export", neighbour, "--out", out)
        joined = pd.read_csv(out / mixtures).merge(pd.read_csv(out / losses), on=key)
        weights = [c for c in pd.read_csv(out / mixtures) if c not in ("run", "name", "index")]
        assert len(joined) == len(pivoted) and np.allclose(joined[weights].sum(axis=1), 1, atol=1e-6)
        print(f"{neighbour}: {len(joined)} rows joined on {key}")
