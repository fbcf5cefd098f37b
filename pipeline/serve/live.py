"""The backend over a workspace: a warm retriever, and what the store knows of its videos."""

from __future__ import annotations

import re
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.frame_size import FrameSize
from pipeline.retrieve.retriever import Retriever
from pipeline.retrieve.search import Wanted
from pipeline.serve.backend import Backend
from pipeline.stores.features import FeatureStore
from pipeline.stores.metadata import read_metadata
from pipeline.stores.shards import read_shard
from pipeline.workspace import Workspace

_CLIP = re.compile(r"#t=[0-9.,]*$")
MAX_CAPTIONS = 20  # of one video that are shown


class LiveBackend(Backend):
    """A retriever as the server asks for it."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._lock = threading.Lock()
        self._notes: tuple[pa.Table, pa.Table | None] | None = None
        retriever.embed_texts(["warm"])  # the encoder loads now, not in the first query

    @classmethod
    def open(cls, workspace: Workspace | Path, index: str | None = None, device: str = "auto") -> LiveBackend:
        """Open an index and load its encoder. Raises MissingData, FingerprintMismatch."""
        return cls(Retriever.open(workspace, index, device))

    @property
    def index(self) -> str:
        return self._retriever.corpus

    @property
    def generation(self) -> str:
        return self._retriever.generation

    @property
    def frame_size(self) -> FrameSize:
        return self._retriever.encoder.frame_size

    def __len__(self) -> int:
        return len(self._retriever)

    def embed(self, texts: list[str]) -> np.ndarray:
        return self._retriever.embed_texts(texts)

    def search_vectors(self, vectors: np.ndarray, weights: np.ndarray, wanted: Wanted) -> list[list[Any]]:
        return self._retriever.search_embeds(vectors, weights=weights, **asdict(wanted))

    def search_image(self, image: np.ndarray, wanted: Wanted) -> list[Any]:
        return self._retriever.search_image(image, **asdict(wanted))

    def similar(self, video_id: str, wanted: Wanted) -> list[Any]:
        return self._retriever.similar(video_id, **asdict(wanted))

    def location(self, video_id: str) -> str | None:
        return self._retriever.location(video_id)

    def captions(self, video_id: str) -> list[str]:
        table = self._read_notes()[0]
        own = table.filter(pc.equal(table["video_id"], video_id))["caption"]
        return own.slice(0, MAX_CAPTIONS).to_pylist()

    def metadata(self, video_id: str) -> dict[str, Any]:
        table = self._read_notes()[1]
        if table is None:
            return {}
        for known in (video_id, _CLIP.sub("", video_id)):  # its own, else its file's
            own = table.filter(pc.equal(table["video_id"], known)).slice(0, 1).drop_columns(["video_id"]).to_pylist()
            if own:
                return dict(own[0])
        return {}

    def columns(self) -> dict[str, str]:
        table = self._read_notes()[1]
        fields = [] if table is None else table.schema
        return {field.name: str(field.type) for field in fields if field.name != "video_id"}

    def refresh(self) -> bool:
        moved = self._retriever.refresh()
        if moved:
            with self._lock:
                self._notes = None  # captions and metadata may have come with the new generation
        return moved

    def close(self) -> None:
        """Let go of the generation, so that it may be pruned."""
        self._retriever.close()

    def _read_notes(self) -> tuple[pa.Table, pa.Table | None]:
        """Captions and metadata of the store, read when first asked for."""
        with self._lock:
            if self._notes is None:
                store = FeatureStore.open(self._retriever.store.path)
                self._notes = _captions(store), read_metadata(store.path)
            return self._notes


def _captions(store: FeatureStore) -> pa.Table:
    """video_id and caption of every caption of a store."""
    names = ["video_id", "caption"]
    parts = [pa.table(dict(read_shard(path, names))) for path in store.shard_paths("texts")]
    schema = pa.schema([(name, pa.string()) for name in names])
    return pa.concat_tables(part.cast(schema) for part in parts) if parts else schema.empty_table()
