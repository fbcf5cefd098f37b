"""Search over a workspace: the live index of a corpus, the head and features that made it, and the encoder, warm.

    from pipeline import Retriever

    with Retriever.open("workspace") as retriever:
        for hit in retriever.search(["a red ring moves left"])[0]:
            print(f"{hit.score:.3f}  {hit.path}  at {hit.moment:.1f} s")

The command line, the page and notebooks use this object.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from pipeline.clip.advice import warn_of_test_model
from pipeline.clip.protocol import Embedder
from pipeline.clip.stored import embedder_of
from pipeline.device import resolve_device
from pipeline.errors import BadInput, MissingData
from pipeline.resolve import ResolvedStore, resolve_store
from pipeline.retrieve.corpus import generations, index_head
from pipeline.retrieve.hits import Hit
from pipeline.retrieve.index import asked_gpu
from pipeline.retrieve.search import Searcher
from pipeline.stores.features import FeatureStore
from pipeline.workspace import Workspace

AGAINST = 0.5  # weight of the texts that a query is to be unlike


class Retriever:
    """Find videos by sentences, a picture, or another video. Threads may share it.

    Keyword arguments of every search (`wanted`): `top`, the hits wanted (10); `shortlist`, candidates that the index
    hands to exact scoring (50); `merge`, neighbouring clips of one file become one hit; `per_file`, the most hits of
    one file.
    """

    def __init__(self, searcher: Searcher, chosen: ResolvedStore, corpus: str, device: str) -> None:
        self._searcher, self._chosen, self._device = searcher, chosen, device
        self.corpus = corpus
        self._encoder: Embedder | None = None
        self._lock = Lock()

    @classmethod
    def open(
        cls, workspace: Workspace | Path | str | None = None, index: str | None = None, device: str = "auto"
    ) -> Retriever:
        """Open the live generation of an index. The encoder is loaded by the first query that needs it.

        Args:
            workspace: its folder; $DITS_WORKSPACE or ./workspace where left out.
            index: the index's name; the one built last where left out.
            device: of the encoder and the head: "auto", "cpu", "cuda", ...; a GPU that is named keeps the index too,
                where FAISS has one.

        Raises:
            MissingData: there is no such index, or what it was made from is gone.
            FingerprintMismatch: head or features are others than those that made the index.
        """
        place = (
            workspace
            if isinstance(workspace, Workspace)
            else Workspace.locate(None if workspace is None else Path(workspace))
        )
        corpus = index or latest_corpus(place)
        store = generations(place, corpus)
        if store.current() is None:
            raise MissingData(f"no index of {corpus}", fix="run `python cli.py index` first")
        with store.open() as live:
            origin = live.info["origin"]
        chosen = resolve_store(place, origin["dataset"], origin["encoder"])
        warn_of_test_model(chosen.store.settings.get("model"), chosen.dataset)
        where = resolve_device(device)
        head = index_head(place, chosen, origin).head.to(where)
        searcher = Searcher(store, chosen.store.path, head, asked_gpu(device, where))
        return cls(searcher, chosen, corpus, str(where))

    # -- searching

    def search(
        self,
        texts: Sequence[str],
        top: int = 10,
        where: str | None = None,
        *,
        against: Sequence[str] = (),
        average: bool = False,
        **wanted: Any,
    ) -> list[list[Hit]]:
        """The best hits of each of N sentences, best first; of their average, one list, with `average`.

        A score is the head's exact cosine of sentence and video; of an average, the mean of the sentences' scores. Less
        half the mean score with the sentences in `against`, if there are some. A sentence alone is aligned alone: its
        scores may differ in the last bits from those it gets beside others.

        Args:
            texts: N sentences.
            top: hits wanted.
            where: SQL over the videos' metadata that every hit meets (`filters.py`).
            against: sentences that hits are to be unlike.
            average: make the sentences one query.
            wanted: see the class.

        Raises:
            BadInput: an empty sentence, a filter that cannot be, or a setting out of range.
        """
        embeds = self.embed_texts([*texts, *against])
        return self._searcher.search(embeds, mixture(len(texts), len(against), average), top=top, where=where, **wanted)

    def search_image(
        self, image: str | Path | bytes | np.ndarray, top: int = 10, where: str | None = None, **wanted: Any
    ) -> list[Hit]:
        """The best hits of a picture: a file, its bytes, or (H, W, 3) uint8 RGB.

        Compares raw CLIP embeddings: the score is the cosine of the picture and the frame most like it, which is also
        the hit's moment. The head's text side does not apply. Raises BadInput for what is no picture, or too large.
        """
        return self._searcher.search_image(self.embed_image(image), top=top, where=where, **wanted)

    def similar(self, video: str | Path, top: int = 10, where: str | None = None, **wanted: Any) -> list[Hit]:
        """The best hits of a video: the id of an indexed one (left out of the answer), or a file.

        Compares raw CLIP embeddings: the score is the cosine of the means of both videos' unit frames. Raises
        MissingData for what is neither, BadInput for a file that cannot be decoded.
        """
        if isinstance(video, str) and self.location(video) is not None:
            return self._searcher.similar(video, top=top, where=where, **wanted)
        return self._searcher.similar_to(self.embed_video(video), top=top, where=where, **wanted)

    def refresh(self) -> bool:
        """Follow the index to its live generation; says whether it had moved. Searches under way end on the old one."""
        with self._lock:
            return self._searcher.refresh()

    def search_embeds(self, text_embeds: np.ndarray, top: int = 10, **wanted: Any) -> list[list[Hit]]:
        """The best hits of each of N sentences, given what `embed_texts` made of them, (N, D).

        With `weights` (Q, N): of each weighted sum of them (`mixture`).
        """
        return self._searcher.search(text_embeds, top=top, **wanted)

    # -- what the index holds

    @property
    def store(self) -> FeatureStore:
        """The feature store that the index was made from."""
        return self._chosen.store

    @property
    def generation(self) -> str:
        """Name of the generation that is searched."""
        return self._searcher.generation

    @property
    def head(self) -> Any:
        """The head that made the index, a `dits_head.head.RetrievalHead`."""
        return self._searcher.head

    def __len__(self) -> int:
        """Videos in the index."""
        return len(self._searcher)

    def location(self, video_id: str) -> str | None:
        """The path or URL of an indexed video; None if the index does not hold it."""
        return self._searcher.location(video_id)

    def close(self) -> None:
        """Let go of the generation, so that it may be pruned."""
        self._searcher.close()

    def __enter__(self) -> Retriever:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- embeddings

    @property
    def encoder(self) -> Embedder:
        """The encoder of the corpus, loaded once."""
        with self._lock:
            if self._encoder is None:
                self._encoder = embedder_of(self._chosen.store, self._device)
            return self._encoder

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """N sentences -> (N, D) float32, as CLIP gives them. Raises BadInput for an empty one."""
        if isinstance(texts, str):
            raise BadInput("texts must be a list of sentences", got=repr(texts[:80]), fix="give [text]")
        if not all(text.strip() for text in texts):
            raise BadInput("an empty query", fix="describe what the video shows, in quotes")
        rule = self._chosen.store.settings.get("long_captions", "cut")
        return self.encoder.embed_texts(texts, long_captions=rule).numpy()

    def embed_image(self, image: str | Path | bytes | np.ndarray) -> np.ndarray:
        """A picture -> (D,) float32, as CLIP gives it."""
        from pipeline.video.frames import fit
        from pipeline.video.image import read_image

        size = self.encoder.frame_size
        frame = fit(image, size) if isinstance(image, np.ndarray) else read_image(image, size)
        return self.encoder.embed_frames(frame[None])[0].numpy()

    def embed_video(self, path: str | Path) -> np.ndarray:
        """A file's frames, sampled and decoded as the corpus's were, -> (F, D) float32, as CLIP gives them."""
        from pipeline.video.decode import decode
        from pipeline.video.job import Job
        from pipeline.video.limits import DecodeFailure
        from pipeline.video.stored import decode_settings_of

        if not Path(path).is_file():
            raise MissingData(f"{path} is neither an indexed video nor a file", fix="give an id that a search printed")
        settings = decode_settings_of(self._chosen.store, self.encoder.frame_size)
        clip, _, _ = next(iter(decode([Job(0, str(path))], settings)))
        if isinstance(clip, DecodeFailure):
            raise BadInput(f"{path} cannot be decoded ({clip.kind}: {clip.message})")
        return self.encoder.embed_frames(clip.frames).numpy()


def mixture(texts: int, against: int, average: bool) -> np.ndarray:
    """Weights (Q, texts + against) of queries: a text each, or all averaged, less AGAINST times the others' mean.

    >>> mixture(2, 1, False).tolist()
    [[1.0, 0.0, -0.5], [0.0, 1.0, -0.5]]
    """
    if not texts:
        raise BadInput("no query", fix="describe what the video shows, in quotes")
    wanted = np.full((1, texts), 1 / texts) if average else np.eye(texts)
    return np.hstack([wanted, np.full((len(wanted), against), -AGAINST / max(1, against))])


def latest_corpus(workspace: Workspace) -> str:
    """The corpus that was indexed last. MissingData when there is none."""
    found = [path.name for path in workspace.index_dirs()]
    if not found:
        raise MissingData(f"no index in {workspace.root}", fix="run `python cli.py index` first")
    return found[-1]
