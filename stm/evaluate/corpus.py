"""A corpus on disk: passages in a memory-mapped Arrow file, of which only the ids are held.

Passages go in as a stream; what comes out is a mapping like any corpus, and the data set that mteb runs on. The file
lies in the system's folder for temporary files (TMPDIR) and is removed with the object.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter

from stm.tasks import Passage

COLUMNS = ("id", "title", "text")
BLOCK = 512  # passages read at once


class DiskCorpus(Mapping[str, Passage]):
    """Passages by id in the order given; a task reads itself into one by `read_task(..., hold=DiskCorpus)`."""

    def __init__(self, passages: Iterable[tuple[str, Passage]]) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="stm-corpus-")
        path = Path(self._scratch.name) / "corpus.arrow"
        self._positions: dict[str, int] = {}
        stream = iter(passages)
        with ArrowWriter(path=str(path), features=Features({name: Value("string") for name in COLUMNS})) as writer:
            while rows := list(islice(stream, BLOCK)):
                columns = ([key for key, _ in rows], [p.title for _, p in rows], [p.text for _, p in rows])
                writer.write_batch(dict(zip(COLUMNS, columns, strict=True)))
                for key, _ in rows:
                    self._positions[key] = len(self._positions)
            writer.finalize()
        self.dataset = Dataset.from_file(str(path)) if self._positions else Dataset.from_dict({c: [] for c in COLUMNS})
        self._block: list[Passage] = []
        self._first = -1  # position of the block

    def __getitem__(self, key: str) -> Passage:
        position = self._positions[key]
        first = position - position % BLOCK
        if first != self._first:
            rows = self.dataset[first : first + BLOCK]
            self._block = [Passage(title, text) for title, text in zip(rows["title"], rows["text"], strict=True)]
            self._first = first
        return self._block[position - first]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, key: object) -> bool:
        return key in self._positions
