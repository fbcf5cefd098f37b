"""CLIP as something that trains: its top blocks from cached activations, or all of it from the video files.

A `TrainableClip` has the towers that train and what enters them and, once trained, publishes the feature store of the
tuned CLIP.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import nn

from dits_head.clip_top import ClipTop, LowerBlocks
from pipeline.clip.encoder import Encoder
from pipeline.clip.loading import ACTIVATION, weights_digest
from pipeline.clip.preprocessing import KEY, preprocessing_metadata
from pipeline.clip.stored import encoder_of
from pipeline.clip.whole_clip import WholeClip
from pipeline.errors import BadInput
from pipeline.resolve import ResolvedStore
from pipeline.stores.atomic import atomic_write
from pipeline.stores.encoder_record import read_encoder_record, write_encoder_record
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
from pipeline.stores.manifest import Manifest, VideoEntry, read_manifest
from pipeline.train.cached_inputs import CachedInputs
from pipeline.train.decoded_inputs import DecodedInputs, require_files
from pipeline.train.joint_batches import TEXT_BATCH, VIDEO_BATCH, Inputs, blocks_of, embed_texts, embed_videos
from pipeline.video.job import Job
from pipeline.video.pool import available_cores
from pipeline.video.stored import decode_settings_of, decoder_version
from pipeline.workspace import Workspace

# Rows of a published shard, held in memory at once; whole batches, so that shards do not change what is embedded.
VIDEO_SHARD, TEXT_SHARD = 64 * VIDEO_BATCH, 16 * TEXT_BATCH


class TrainableClip(ABC):
    """The CLIP of a store, in float32. `towers` is a `dits_head.joint.Towers` with `levels` (blocks, bottom to top)."""

    towers: Any

    def __init__(self, store: FeatureStore):
        self.store = store
        self.encoder: Encoder = encoder_of(store, device="cpu", to_train=True)
        self.device = torch.device("cpu")

    def to(self, device: torch.device, devices: int) -> None:
        """Work on `device`, one of `devices` that share this machine. The towers themselves move with the model."""
        self.device = device

    @abstractmethod
    def inputs(self, videos: VideoFeatures, texts: TextFeatures, *, keep: bool = False) -> Inputs:
        """What enters the towers for these videos and captions; keep: it is read in every epoch."""

    def publish(self, path: Path, clip: Path) -> None:
        """Write the tuned CLIP to `clip`, and the feature store of every video and caption to `path`.

        Called again after an interruption, it embeds only what `path` does not hold yet.
        """
        model = self.tuned_model()
        write_clip(model, clip, self.store.settings["activation"])
        kept = {name: value for name, value in self.store.settings.items() if name not in self.store.cache_settings}
        tuned = {"pretrained": clip.name, "weights_sha256": weights_digest(model), "dtype": "float32"}
        store = FeatureStore.create(
            path,
            {**kept, **self.decoding_settings(), **tuned},
            shard_format=self.store.shard_format,
            media_root=self.store.media_root,
        )
        with store.lock():
            self._embed_into(store)
        record = {**read_encoder_record(self.store.path), "pretrained": str(clip), "precision": "float32"}
        write_encoder_record(path, **record)

    def tuned_model(self) -> nn.Module:
        """The whole open_clip model with the trained weights."""
        return self.encoder.model

    def decoding_settings(self) -> dict[str, Any]:
        """What the published fingerprint says of decoding where it differs from that of the store trained on."""
        return {}

    def _embed_into(self, store: FeatureStore) -> None:
        videos, texts = self.store.videos(mmap=True), self.store.texts()
        inputs = self.inputs(videos, texts)
        self.towers.eval()
        done = store.covered()
        for rows in blocks_of(len(videos), VIDEO_SHARD):
            block = videos.select(rows)
            if block.video_ids[0] not in done:
                frame_embeds = embed_videos(self.towers, inputs, rows, self.device)
                store.write_videos(replace(block, frame_embeds=frame_embeds), inputs=block.video_ids)
        written = len(store.shard_paths("texts"))
        for rows in blocks_of(len(texts), TEXT_SHARD)[written:]:
            text_embeds = embed_texts(self.towers, inputs, rows, self.device)
            store.write_texts(replace(texts.select(rows), text_embeds=text_embeds))


class CachedTopBlocks(TrainableClip):
    """The top k blocks, from the activations that enter the store's top K. Raises BadInput where k > K."""

    def __init__(self, chosen: ResolvedStore, k: int):
        cached = require_cached(chosen, k)
        super().__init__(chosen.store)
        self.towers = ClipTop.from_open_clip(self.encoder.model, k)
        self._lower = LowerBlocks.from_open_clip(self.encoder.model, cached, k)

    def to(self, device: torch.device, devices: int) -> None:
        super().to(device, devices)
        self._lower.to(device)

    def inputs(self, videos: VideoFeatures, texts: TextFeatures, *, keep: bool = False) -> CachedInputs:
        # of all memory, not of what is free now: a resumed run must not decide otherwise
        keep_bytes = psutil.virtual_memory().total // 4 if keep else 0
        return CachedInputs(self.store, videos, texts, self._lower, keep_bytes)

    def tuned_model(self) -> nn.Module:
        self.towers.write_back(self.encoder.model)
        return self.encoder.model


class DecodedWholeClip(TrainableClip):
    """All of CLIP, from the store's clips, decoded from their files in every epoch.

    Raises BadInput for a file that is not there, and for a store whose captions were embedded in windows.
    """

    def __init__(self, workspace: Workspace, chosen: ResolvedStore):
        manifest = require_clips(workspace, chosen)
        super().__init__(chosen.store)
        self.towers = WholeClip(self.encoder)
        self._jobs = {
            entry.video_id: Job(row, manifest.resolve(entry), entry.start, entry.end)
            for row, entry in enumerate(manifest.entries)
        }
        self._workers = available_cores()

    def to(self, device: torch.device, devices: int) -> None:
        super().to(device, devices)
        self._workers = max(1, self._workers // devices)

    def inputs(self, videos: VideoFeatures, texts: TextFeatures, *, keep: bool = False) -> DecodedInputs:
        decoding = decode_settings_of(self.store, self.encoder.frame_size)
        jobs = [self._jobs[video_id] for video_id in videos.video_ids]
        return DecodedInputs(jobs, videos.frame_mask, texts.captions, self.encoder, decoding, self._workers)

    def decoding_settings(self) -> dict[str, Any]:
        return {"decoder_version": decoder_version(self.store.settings["decoder"])}


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
    """Save a whole CLIP as a file that open_clip loads alone."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    stated = {ACTIVATION: activation, KEY: preprocessing_metadata(model.visual.preprocess_cfg)}  # type: ignore[union-attr, arg-type]
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **stated})
