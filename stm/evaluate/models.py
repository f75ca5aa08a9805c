"""Dense retrievers as models that mteb runs.

The prompts are passed explicitly, the model's own, and never mteb's per-task prompts. Does not know where a model
comes from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from stm.errors import DataError
from stm.text_encoder import Floats, TextEncoder

Watcher = Callable[[Sequence[str], Floats], None]  # takes ids and vectors [P, D] of passages
ShareCut = Callable[[Sequence[str], str], float]  # of texts behind a prompt
SLICE = 8192  # texts in work at a time: what tokenizing and sorting them takes does not grow with the corpus


def model_meta(name: str, revision: str) -> ModelMeta:
    """Return what mteb wants to know of a model; its name in mteb is `stm/<name>`."""
    return ModelMeta.create_empty({"name": f"stm/{name}", "revision": revision})


class DenseModel:
    """An `mteb` EncoderProtocol around a text encoder and the prompts of its model.

    `prompts` has the keys "query" and "document". A vector that is not finite is a `DataError`, never a low score.
    """

    def __init__(
        self, encoder: TextEncoder, prompts: Mapping[str, str | None], name: str, revision: str,
        share_cut: ShareCut | None = None,
    ) -> None:  # fmt: skip
        self.encoder, self._share_cut = encoder, share_cut
        self.prompts = {key: prompts.get(key) or "" for key in ("query", "document")}
        self._name = name
        self._watcher: Watcher | None = None
        self.mteb_model_meta = model_meta(name, revision)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> Floats:
        """Encode the texts of a data loader in slices large enough for batches of similar length."""
        texts: list[str] = []
        ids: list[str] = []
        for batch in inputs:
            texts += batch["text"]
            ids += batch.get("id", ())
        side = "query" if prompt_type == PromptType.query else "document"
        vectors = self._encode_slice(texts[:SLICE], side, task_metadata.name)
        self._show(side, ids[:SLICE], vectors)
        if len(texts) <= SLICE:
            return vectors
        out = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
        out[:SLICE] = vectors
        for start in range(SLICE, len(texts), SLICE):
            part = slice(start, start + SLICE)
            out[part] = self._encode_slice(texts[part], side, task_metadata.name)
            self._show(side, ids[part], out[part])
        return out

    def share_cut(self, passages: Sequence[str]) -> float | None:
        """The share of passages that are longer than the model takes; None where that is not known."""
        return self._share_cut(passages, self.prompts["document"]) if self._share_cut else None

    @contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Show `watcher` the passages that are encoded meanwhile, a slice at a time, each after its task's queries."""
        self._watcher = watcher
        try:
            yield
        finally:
            self._watcher = None

    def _show(self, side: str, ids: Sequence[str], vectors: Floats) -> None:
        if side == "document" and self._watcher:
            self._watcher(ids, vectors)

    def _encode_slice(self, texts: Sequence[str], side: str, task: str) -> Floats:
        plural = "queries" if side == "query" else "passages"
        vectors = self.encoder.encode(texts, self.prompts[side], f"{task}: {plural}")
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise DataError(
                f"model {self._name!r} gives NaN or infinity for {len(broken)} of {len(texts)} {plural} of "
                f"{task!r}, first for {texts[broken[0]][:60]!r}; its weights are broken"
            )
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosine of unit rows: [N, D] and [M, D] to [N, M]."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosine of unit rows, row by row: [N, D] and [N, D] to [N]."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)
