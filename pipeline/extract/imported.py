"""Import features made by another program into a feature store.

The store's fingerprint says that it was imported, from what and with which encoder as far as that was said, so that it
is never mixed with features of this project's own making.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
from pipeline.stores.foreign import FeatureArchive, read_archive, read_videos
from pipeline.stores.manifest import SPLITS
from pipeline.video.sampling import middle_indices

SHARD = 1024  # videos a shard
HELD_OUT = {"val": 0.1, "test": 0.2}  # shares of the videos where no split is given, by a hash of the id


@dataclass(frozen=True)
class Imported:
    """Result of an import."""

    videos: int
    captions: int
    store: str


def import_features(
    source: Path,
    store_path: Path,
    *,
    num_frames: int = 12,
    captions: Mapping[str, Sequence[str]] | None = None,
    encoder: Any = None,
) -> Imported:
    """Write a feature store of features that another program made.

    Args:
        source: an .npz of a corpus, or a folder or .tar with one .npy or .npz a video (`pipeline.stores.foreign`).
        store_path: the store's folder; it must not hold a store yet.
        num_frames: frames kept of a video, the middles of as many equal intervals; fewer are masked.
        captions: video id -> captions; they come before those that the source holds.
        encoder: embeds captions that come without vectors (`pipeline.clip.encoder.Encoder`); None: none can be named.

    Raises:
        BadInput: captions without vectors where no encoder is named, another width than the encoder's, captions of
            unknown videos, a store that is there already.
    """
    if (store_path / "store.json").exists():
        raise BadInput(f"{store_path} holds a feature store already", fix="give --dataset another name, or remove it")
    archive = read_archive(source) if source.suffix == ".npz" else _gathered(source, num_frames)
    videos = _video_features(archive, num_frames)
    texts = _text_features(archive, videos, captions, encoder)
    width = int(archive.frame_embeds.shape[2])
    if encoder is not None and encoder.dim != width:
        raise BadInput(
            "the encoder is of another width than the features", expected=f"{width}-d", got=f"{encoder.dim}-d"
        )
    unnamed = {"model": "unknown", "activation": None, "dtype": "unknown"}
    about = {
        **(unnamed if encoder is None else encoder.settings),
        "imported_from": source.name,
        "imported_sha256": _digest(archive),
        "embed_dim": width,
        "num_frames": num_frames,
        "sampling": "imported",
        "decoder": "none",
    }
    store = FeatureStore.create(store_path, about)
    with store.lock():
        for start in range(0, len(videos), SHARD):
            part = videos.select(np.arange(start, min(start + SHARD, len(videos))))
            store.write_videos(part, inputs=part.video_ids)
        if len(texts):
            store.write_texts(texts)
    return Imported(len(videos), len(texts), str(store_path))


def _gathered(source: Path, num_frames: int) -> FeatureArchive:
    """One file a video -> the arrays of a corpus, sampled while they are read so that memory holds the result alone."""
    ids: list[str] = []
    embeds: list[np.ndarray] = []
    captions: list[str] = []
    owners: list[int] = []
    for video in read_videos(source):
        if embeds and video.frame_embeds.shape[1] != embeds[0].shape[1]:
            raise BadInput(
                f"{source}/{video.video_id}: width", expected=embeds[0].shape[1], got=video.frame_embeds.shape[1]
            )
        owners += [len(ids)] * len(video.captions)
        captions += video.captions
        ids.append(video.video_id)
        embeds.append(video.frame_embeds[middle_indices(len(video.frame_embeds), num_frames)].astype(np.float16))
    frames = np.zeros((len(ids), num_frames, embeds[0].shape[1]), np.float16)
    mask = np.zeros((len(ids), num_frames), bool)
    for row, own in enumerate(embeds):
        frames[row, : len(own)], mask[row, : len(own)] = own, True
    pts = np.full(mask.shape, np.nan)
    return FeatureArchive(ids, None, frames, mask, pts, captions, np.array(owners, np.int64), None)


def _video_features(archive: FeatureArchive, num_frames: int) -> VideoFeatures:
    videos, _, width = archive.frame_embeds.shape
    if len(set(archive.video_ids)) < videos:
        raise BadInput("video ids repeat", expected=f"{videos} different ones", got=len(set(archive.video_ids)))
    if not archive.frame_mask.any(axis=1).all():
        bare = archive.video_ids[int(np.argmin(archive.frame_mask.any(axis=1)))]
        raise BadInput(f"video {bare!r} has no frame", expected="at least one True in its row of frame_mask")
    splits = archive.splits or list(map(split_of, archive.video_ids))
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise BadInput("unknown split", expected=", ".join(SPLITS), got=", ".join(unknown))
    embeds = np.zeros((videos, num_frames, width), np.float16)
    mask, pts = np.zeros((videos, num_frames), bool), np.full((videos, num_frames), np.nan)
    for row in range(videos):
        there = np.flatnonzero(archive.frame_mask[row])
        kept = there[middle_indices(len(there), num_frames)]
        embeds[row, : len(kept)] = archive.frame_embeds[row, kept]
        pts[row, : len(kept)] = archive.frame_pts[row, kept]
        mask[row, : len(kept)] = True
    return VideoFeatures(archive.video_ids, archive.video_ids, splits, embeds, mask, pts)


def _text_features(
    archive: FeatureArchive, videos: VideoFeatures, given: Mapping[str, Sequence[str]] | None, encoder: Any
) -> TextFeatures:
    row = {video_id: number for number, video_id in enumerate(videos.video_ids)}
    if given is None:
        captions, owners, vectors = archive.captions, archive.caption_video.tolist(), archive.text_embeds
    else:
        if unknown := sorted(given.keys() - row.keys()):
            raise BadInput(f"captions of {len(unknown)} videos that have no features", got=f"{unknown[0]!r}, ...")
        pairs = [(caption, row[video_id]) for video_id, texts in given.items() for caption in texts]
        captions, owners, vectors = [text for text, _ in pairs], [owner for _, owner in pairs], None
    if captions and vectors is None:
        if encoder is None:
            raise BadInput(
                f"{len(captions)} captions without vectors, and no encoder to embed them",
                fix="name the encoder that made the features: --model NAME --pretrained TAG|FILE",
            )
        vectors = encoder.embed_texts(captions).numpy()
    seen = dict.fromkeys(owners, 0)
    ids = []
    for owner in owners:
        ids.append(f"{videos.video_ids[owner]}#{seen[owner]}")
        seen[owner] += 1
    return TextFeatures(
        ids,
        [videos.video_ids[owner] for owner in owners],
        [videos.splits[owner] for owner in owners],
        list(captions),
        np.asarray(vectors if vectors is not None else np.zeros((0, videos.frame_embeds.shape[2])), np.float32),
    )


def split_of(video_id: str) -> str:
    """The split of a video where none is given: train, val or test, by a hash of its id alone."""
    share = int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:4], "big") / 2**32
    for split, part in HELD_OUT.items():
        if share < part:
            return split
        share -= part
    return "train"


def _digest(archive: FeatureArchive) -> str:
    """sha256 over ids, embeddings, masks, captions and their vectors."""
    digest = hashlib.sha256()
    for part in _parts(archive):
        digest.update(part)
    return digest.hexdigest()


def _parts(archive: FeatureArchive) -> Iterator[bytes]:
    yield "\0".join([*archive.video_ids, "", *archive.captions]).encode()
    for array in (archive.frame_embeds, archive.frame_mask, archive.caption_video, archive.text_embeds):
        if array is not None:
            yield np.ascontiguousarray(array).tobytes()
