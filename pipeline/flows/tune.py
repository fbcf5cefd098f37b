"""CLIP trained with the head: the top k blocks from cached activations, and what follows from CLIP having moved.

A tuned run writes, beside its head, the whole tuned CLIP as a file that plain open_clip loads (`clip.safetensors`), and
a feature store of its own, `features/<dataset>/<encoder>+<run>`, embedded from the cached tokens without decoding. From
there on it is a store like any other: its fingerprint names the tuned weights, so that index, evaluate, search and
reindex work as ever and a mixture with the original encoder is refused.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file

from dits_head.clip_top import ClipTop
from dits_head.config import HeadConfig
from dits_head.head import build_head
from dits_head.joint import JointModel, layerwise_groups
from pipeline.config import Workspace, fingerprint
from pipeline.errors import BadInput
from pipeline.extract.encoder import Encoder
from pipeline.extract.weights_loading import ACTIVATION, weights_digest
from pipeline.flows.choose import Chosen, remember_store
from pipeline.flows.extract import encoder_of
from pipeline.flows.train import (
    finished_run,
    free_bytes,
    loggers,
    require_devices,
    run_record,
    summary,
    validation_metrics,
)
from pipeline.stores import checkpoints
from pipeline.stores.atomic import atomic_write, read_json, write_json
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
from pipeline.train.batches import PairData, training_features
from pipeline.train.loop import Progress, TrainSettings, train
from pipeline.train.tokens import TokenCache, TokenSource, embed_texts, embed_videos


@dataclass(frozen=True)
class TuneSettings:
    """blocks: how many of the top blocks train. clip_lr: their learning rate (the paper's 1e-5 for CLIP).
    layer_decay: a block's rate over that of the block above it."""

    blocks: int
    clip_lr: float = 1e-5
    layer_decay: float = 1.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.blocks < 1 or not self.clip_lr > 0 or not 0 < self.layer_decay <= 1:
            raise BadInput(
                "--train-blocks",
                expected="at least 1 block, --clip-lr > 0, 0 < --layer-decay <= 1",
                got=f"{self.blocks}, {self.clip_lr}, {self.layer_decay}",
            )


def train_with_blocks(
    workspace: Workspace,
    chosen: Chosen,
    config: HeadConfig,
    settings: TrainSettings,
    tune: TuneSettings,
    *,
    run: str | None = None,
    devices: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a head and CLIP's top blocks; returns {head, run, selected_on, val, seconds} as `train_head` does.

    Raises BadInput where the store holds no activations of so many blocks.
    """
    cached = int(chosen.store.settings.get("cache_blocks", 0))
    if tune.blocks > cached:
        raise BadInput(
            f"{chosen.store.path} does not hold the activations to train {tune.blocks} blocks",
            expected=f"--train-blocks up to {cached}" if cached else "features extracted with --cache-blocks",
            got=f"--train-blocks {tune.blocks}",
            fix=f"extract with --cache-blocks {tune.blocks}",
        )
    identity = {
        "head": config.to_dict(),
        "encoder": chosen.store.settings,
        "settings": asdict(settings),
        "tune": asdict(tune),
    }
    run = run or f"{config.head}-top{tune.blocks}-{fingerprint(identity)[:8]}"
    run_dir = workspace.head_dir(chosen.dataset, run)
    if (run_dir / "config.json").exists():
        return finished_run(run_dir, identity)

    require_devices(devices)
    (videos, texts), (val_videos, val_texts), selected_on = training_features(chosen.store, settings.seed)
    encoder = encoder_of(chosen.store, device="cpu")
    torch.manual_seed(settings.seed)
    head = build_head(config)
    towers = ClipTop.from_open_clip(encoder.model, tune.blocks)
    towers.set_gradient_checkpointing(tune.gradient_checkpointing)
    model = JointModel(head, towers)
    run_dir.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(
        accelerator="auto",
        devices=devices,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        loggers=loggers(run_dir),
    )
    fabric.launch()
    model = model.to(fabric.device)
    cache = TokenCache(chosen.store, videos, texts, keep_bytes=free_bytes(torch.device("cpu")) // 4)
    val_cache = TokenCache(chosen.store, val_videos, val_texts)
    val = PairData.of(val_videos, val_texts)

    def validate(trained: JointModel) -> dict[str, float]:
        frames = embed_videos(trained.towers, val_cache, len(val_videos))  # type: ignore[arg-type]
        embeds = embed_texts(trained.towers, val_cache, len(val_texts))  # type: ignore[arg-type]
        return validation_metrics(trained.head, embeds, frames, val.frame_mask, val.text_to_video)

    levels = [torch.nn.ModuleList(pair) for pair in zip(towers.image.blocks, towers.text.blocks, strict=True)]
    state = train(
        model,
        TokenSource(PairData.of(videos, texts), cache, fabric.device),
        layerwise_groups(model, levels, settings.lr, tune.clip_lr, tune.layer_decay, settings.weight_decay),
        settings,
        run_dir,
        identity=identity,
        validate=validate,
        fabric=fabric,
        progress=progress,
    )
    record = run_record(identity, run, selected_on, state)
    if fabric.is_global_zero:
        model = model.cpu()
        store = publish_tuned(workspace, chosen, encoder, towers, run, run_dir)
        checkpoints.save_head(run_dir, head.state_dict(), {**record, "encoder": store.settings, "tuned_from": identity})
        checkpoints.clear_resume(run_dir)
    return summary(record)


def publish_tuned(
    workspace: Workspace, chosen: Chosen, encoder: Encoder, towers: ClipTop, run: str, run_dir: Path
) -> FeatureStore:
    """Write the tuned CLIP as a file, and the store of its embeddings, made from the cached tokens."""
    towers.write_back(encoder.model)
    clip_path = run_dir / "clip.safetensors"
    with atomic_write(clip_path) as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in encoder.model.state_dict().items()}
        save_file(tensors, temporary, metadata={"format": "pt", ACTIVATION: chosen.store.settings["activation"]})
    settings = {
        **{name: value for name, value in chosen.store.settings.items() if name not in chosen.store.cache_settings},
        "pretrained": clip_path.name,
        "weights_sha256": weights_digest(encoder.model),
    }
    name = f"{chosen.encoder}+{run}"
    path = workspace.features_dir(chosen.dataset, name)
    store = FeatureStore.create(
        path, settings, shard_format=chosen.store.shard_format, media_root=chosen.store.media_root
    )
    with store.lock():
        if not store.shard_paths("videos"):
            videos, texts = chosen.store.videos(), chosen.store.texts()
            cache = TokenCache(chosen.store, videos, texts)
            store.write_videos(video_columns(videos, embed_videos(towers, cache, len(videos))), inputs=videos.video_ids)
            if len(texts):
                store.write_texts(text_columns(texts, embed_texts(towers, cache, len(texts))))
    about = read_json(chosen.store.path / "encoder.json")
    write_json(path / "encoder.json", {**about, "pretrained": str(clip_path.resolve()), "precision": "float32"})
    remember_store(workspace, chosen.dataset, name)
    return store


def video_columns(videos: VideoFeatures, frame_embeds: np.ndarray) -> dict[str, Any]:
    return {
        "video_id": videos.video_ids,
        "path": videos.paths,
        "split": videos.splits,
        "frame_embeds": frame_embeds,
        "frame_mask": videos.frame_mask,
        "frame_pts": videos.frame_pts,
    }


def text_columns(texts: TextFeatures, text_embeds: np.ndarray) -> dict[str, Any]:
    return {
        "caption_id": texts.caption_ids,
        "video_id": texts.video_ids,
        "split": texts.splits,
        "caption": texts.captions,
        "text_embeds": text_embeds,
    }


def export_clip(workspace: Workspace, chosen: Chosen, run: str, out: Path) -> None:
    """Copy a tuned run's CLIP to `out`, a file that plain open_clip loads. Raises BadInput for an untuned run."""
    source = workspace.head_dir(chosen.dataset, run) / "clip.safetensors"
    if not source.exists():
        raise BadInput(f"{run} did not tune CLIP", fix="train it with --train-blocks K, or use the original weights")
    with atomic_write(out) as temporary:
        temporary.write_bytes(source.read_bytes())
