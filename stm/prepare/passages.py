"""Makes rows of passages that have no query yet: each gets a stand-in query, its title or its beginning.

A file of passages goes in, a frame of CANDIDATES comes out. The stage `synthesize` can write real queries for them.
"""

import re
from pathlib import Path

import polars as pl

from stm.errors import DataError
from stm.prepare.files import read_pairs
from stm.progress import track

KINDS = ("jsonl", "csv", "parquet")
MOST_WORDS = 12  # of a stand-in that is no title
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*")


def read_passages(path: Path | str, text: str, title: str = "", separator: str = ",", quote: str = '"') -> pl.DataFrame:
    """A row per passage of a .jsonl, .csv or .parquet file, gzipped or not; raises like `read_pairs`."""
    kind = next((suffix[1:] for suffix in reversed(Path(path).suffixes) if suffix[1:] in KINDS), "")
    if not kind:
        raise DataError(f"{path}: the name of a corpus ends in {', '.join(f'.{name}' for name in KINDS)} or with .gz")
    # The title travels in a column that passages have no use for.
    names = {"anchor": text, "positive": text, **({"concept": title} if title else {})}
    frame = read_pairs(path, kind, names, separator, quote)
    rows = track(frame.select("positive", "concept").iter_rows(), "stand-ins of queries", frame.height)
    stand_ins = [title or stand_in(passage) for passage, title in rows]
    return frame.with_columns(anchor=pl.Series(stand_ins, dtype=pl.String), concept=pl.lit(""))


def stand_in(passage: str) -> str:
    """The first sentence, its first words if it is long, half of it if there is no other."""
    first = SENTENCE.split(passage, maxsplit=1)[0]
    words = first.split()
    if len(words) < 2:  # of a script without spaces
        return first if len(first) < len(passage) else passage[: max(1, len(passage) // 2)]
    most = MOST_WORDS if len(first) < len(passage) else max(1, len(words) // 2)
    return " ".join(words[: min(MOST_WORDS, most)])
