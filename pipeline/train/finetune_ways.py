"""The two ways to train CLIP with a head: its top blocks from cached activations, or all of it from the video files.

A way says what the towers are, what enters them, and, once they are trained, makes the feature store of the tuned CLIP.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from torch import nn

from dits_head.clip_top import ClipTop, LowerBlocks
from pipeline.clip.encoder import Encoder
from pipeline.clip.loading import ACTIVATION, weights_digest
from pipeline.clip.stored import encoder_of, remember_tuned_encoder
from pipeline.clip.whole_clip import WholeClip
from pipeline.errors import BadInput, UserError
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings, encoder_for, settings_of
from pipeline.resolve import ResolvedStore
from pipeline.stores.atomic import atomic_write
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
from pipeline.stores.manifest import Manifest, VideoEntry, read_manifest
from pipeline.train.cached_inputs import TokenCache
from pipeline.train.decoded_inputs import DecodedInputs, require_files
from pipeline.train.joint_batches import Inputs, embed_texts, embed_videos
from pipeline.video.job import Job
from pipeline.workspace import Workspace


class Way(Protocol):
    """How CLIP trains. towers: dits_head.joint.Towers, with `levels` (bottom to top) and gradient checkpointing."""

    towers: Any

    def prepare(self, device: torch.device, devices: int) -> None:
        """Towers and what belongs to them go to the device; one of so many that work on this machine."""

    def inputs(self, videos: VideoFeatures, texts: TextFeatures, *, keep: bool = False) -> Inputs:
        """What enters the towers; keep: it will be read in every epoch."""

    def publish(self, path: Path, clip: Path) -> None:
        """Write the tuned CLIP to `clip`, and to `path` the feature store of every video and caption."""


class FromCache:
    """The top k blocks, started from the activations of the store's top K. Raises BadInput where k > K."""

    def __init__(self, chosen: ResolvedStore, k: int):
        cached = require_cached(chosen, k)
        self._store = chosen.store
        self._encoder = encoder_of(chosen.store, device="cpu", to_train=True)
        self.towers = ClipTop.from_open_clip(self._encoder.model, k)
        self._lower = LowerBlocks.from_open_clip(self._encoder.model, cached, k)
        self._device = torch.device("cpu")

    def prepare(self, device: torch.device, devices: int) -> None:
        self._device = device
        self._lower.to(device)

    def inputs(self, videos: VideoFeatures, texts: TextFeatures, *, keep: bool = False) -> TokenCache:
        # of all memory, not of what is free now: a resumed run must not decide otherwise
        keep_bytes = psutil.virtual_memory().total // 4 if keep else 0
        return TokenCache(self._store, videos, texts, self._lower, keep_bytes)

    def publish(self, path: Path, clip: Path) -> None:
        self.towers.write_back(self._encoder.model)
        write_clip(self._encoder.model, clip, self._store.settings["activation"])
        kept = {name: value for name, value in self._store.settings.items() if name not in self._store.cache_settings}
        digest = weights_digest(self._encoder.model)
        settings = {**kept, "pretrained": clip.name, "weights_sha256": digest, "dtype": "float32"}
        store = FeatureStore.create(
            path, settings, shard_format=self._store.shard_format, media_root=self._store.media_root
        )
        with store.lock():
            self._embed_into(store)
        remember_tuned_encoder(path, self._store, clip)

    def _embed_into(self, store: FeatureStore) -> None:
        """Whatever of the two an interrupted run has not written."""
        videos, texts = self._store.videos(), self._store.texts()
        inputs = self.inputs(videos, texts)
        if not store.shard_paths("videos"):
            frames = embed_videos(self.towers, inputs, len(videos), self._device)
            store.write_videos(_video_columns(videos, frames), inputs=videos.video_ids)
        if len(texts) and not store.shard_paths("texts"):
            store.write_texts(_text_columns(texts, embed_texts(self.towers, inputs, len(texts), self._device)))


class FromVideos:
    """All of CLIP, from the store's videos, decoded from their files in every epoch.

    Raises BadInput for a file that is not there, and for a store whose captions were embedded in windows.
    """

    def __init__(self, workspace: Workspace, chosen: ResolvedStore):
        store = chosen.store
        self._store, self._manifest = store, require_clips(workspace, chosen)
        self._jobs = {
            entry.video_id: Job(row, self._manifest.resolve(entry), entry.start, entry.end)
            for row, entry in enumerate(self._manifest.entries)
        }
        self._encoder: Encoder = encoder_of(store, device="cpu", to_train=True)
        self.towers = WholeClip(self._encoder)
        self._workers = ExtractSettings().worker_count

    def prepare(self, device: torch.device, devices: int) -> None:
        self._workers = max(1, self._workers // devices)

    def inputs(self, videos: VideoFeatures, texts: TextFeatures, *, keep: bool = False) -> DecodedInputs:
        decoding = settings_of(self._store).decoding(self._encoder.frame_size)
        jobs = [self._jobs[video_id] for video_id in videos.video_ids]
        return DecodedInputs(jobs, videos.frame_mask, texts.captions, self._encoder, decoding, self._workers)

    def publish(self, path: Path, clip: Path) -> None:
        write_clip(self._encoder.model, clip, self._store.settings["activation"])
        settings = replace(
            settings_of(self._store), pretrained=str(clip), precision="float32", cache_blocks=0, retry_failed="all"
        )
        report = extract(self._manifest, path, settings, encoder=encoder_for(settings), progress=False)
        if report.failed:
            raise UserError(
                f"{report.failed} videos could not be embedded with the tuned CLIP ({report.failure_classes})",
                fix=f"see {path}/failures.parquet, mend the files, and run the same command again",
            )
        remember_tuned_encoder(path, self._store, clip)


def require_cached(chosen: ResolvedStore, k: int) -> int:
    """K, the depth of the store's activations. Raises BadInput where these do not reach the top k blocks."""
    cached = int(chosen.store.settings.get("cache_blocks", 0))
    if k > cached:
        raise BadInput(
            f"{chosen.store.path} does not hold the activations to train {k} blocks",
            expected=f"--train-blocks up to {cached}" if cached else "features extracted with --cache-blocks",
            got=f"--train-blocks {k}",
            fix=f"extract with --cache-blocks {k}",
        )
    return cached


def require_clips(workspace: Workspace, chosen: ResolvedStore) -> Manifest:
    """The store's clips, for training end to end. Raises BadInput for a file that is not there, and for captions that
    were embedded in windows."""
    if "long_captions" in chosen.store.settings:
        raise BadInput(
            f"{chosen.store.path}: --end-to-end trains on one text a caption, and these were embedded in windows",
            fix="extract with --long-captions cut",
        )
    manifest = clips_of(workspace, chosen)
    require_files([manifest.resolve(entry) for entry in manifest.entries])
    return manifest


def clips_of(workspace: Workspace, chosen: ResolvedStore) -> Manifest:
    """The manifest's clips that the store holds: where their files are, from when to when. Raises BadInput."""
    manifest = read_manifest(workspace.manifest_path(chosen.dataset))
    known: Mapping[str, VideoEntry] = {entry.video_id: entry for entry in manifest.entries}
    video_ids = chosen.store.videos(mmap=True).video_ids
    for video_id in video_ids:
        if video_id not in known:
            raise BadInput(
                f"{chosen.store.path} holds a video that the manifest of {chosen.dataset} does not have",
                got=repr(video_id),
                fix="run `extract` again with the options that these features were made with",
            )
    return Manifest(manifest.name, manifest.root, tuple(known[video_id] for video_id in video_ids))


def write_clip(model: nn.Module, path: Path, activation: str) -> None:
    """The whole CLIP as a file that open_clip loads alone."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", ACTIVATION: activation})


def _video_columns(videos: VideoFeatures, frame_embeds: np.ndarray) -> dict[str, Any]:
    return {
        "video_id": videos.video_ids,
        "path": videos.paths,
        "split": videos.splits,
        "frame_embeds": frame_embeds,
        "frame_mask": videos.frame_mask,
        "frame_pts": videos.frame_pts,
    }


def _text_columns(texts: TextFeatures, text_embeds: np.ndarray) -> dict[str, Any]:
    return {
        "caption_id": texts.caption_ids,
        "video_id": texts.video_ids,
        "split": texts.splits,
        "caption": texts.captions,
        "text_embeds": text_embeds,
    }
