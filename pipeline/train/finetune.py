"""CLIP trained with the head, and what follows from CLIP having moved.

A tuned run writes, beside its head, the whole tuned CLIP as a file that plain open_clip loads (`clip.safetensors`), and
a feature store of its own, `features/<dataset>/<encoder>+<run>`. From there on it is a store like any other: its
fingerprint names the tuned weights, so that index, evaluate, search and reindex work as ever and a mixture with the
original encoder is refused.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from dits_head.clip_top import depth
from dits_head.config import HeadConfig
from dits_head.joint import JointModel, layerwise_groups
from pipeline.clip.stored import encoder_of
from pipeline.errors import BadInput
from pipeline.fingerprint import fingerprint
from pipeline.resolve import ResolvedStore, remember_store
from pipeline.stores import checkpoints
from pipeline.stores.atomic import atomic_write
from pipeline.stores.features import FeatureStore
from pipeline.train.batches import PairData, Split, training_features
from pipeline.train.finetune_ways import FromCache, FromVideos, Way
from pipeline.train.joint_batches import JointSource, embed_texts, embed_videos
from pipeline.train.loop import Progress, TrainSettings, Validate, train
from pipeline.train.run import (
    accelerator,
    finished_run,
    loggers,
    new_head,
    preset_of,
    require_devices,
    run_record,
    summary,
    validation_metrics,
)
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class TuneSettings:
    """blocks: how many of the top blocks train, from cached activations; None: all of CLIP, from the video files.
    clip_lr: CLIP's learning rate (the paper's 1e-5). layer_decay: a block's rate over that of the block above it."""

    blocks: int | None
    clip_lr: float = 1e-5
    layer_decay: float = 1.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if (self.blocks is not None and self.blocks < 1) or not self.clip_lr > 0 or not 0 < self.layer_decay <= 1:
            raise BadInput(
                "--train-blocks",
                expected="at least 1 block, --clip-lr > 0, 0 < --layer-decay <= 1",
                got=f"{self.blocks}, {self.clip_lr}, {self.layer_decay}",
            )


def tune_settings(chosen: ResolvedStore, how: int | str, **given: Any) -> TuneSettings:
    """how: so many top blocks, "all" of them, or "end-to-end". `given` comes before the preset's."""
    if how == "all":
        how = depth(encoder_of(chosen.store, device="cpu", to_train=True).model)
    blocks = None if how == "end-to-end" else int(how)
    return TuneSettings(blocks, **preset_of(chosen).get("tune", {}) | given)


def train_with_clip(
    workspace: Workspace,
    chosen: ResolvedStore,
    config: HeadConfig,
    settings: TrainSettings,
    tune: TuneSettings,
    *,
    run: str | None = None,
    start_from: str | None = None,
    for_tables: bool = False,
    devices: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a head and CLIP under it; takes, and returns, what `train_head` does.

    Raises BadInput where the store holds no activations of so many blocks, or its videos are not there.
    """
    identity = {
        "head": config.to_dict(),
        "encoder": chosen.store.settings,
        "settings": asdict(settings),
        "tune": asdict(tune),
        "start_from": start_from,
    }
    what = "end-to-end" if tune.blocks is None else f"top{tune.blocks}"
    run = run or f"{config.head}-{what}-{fingerprint(identity)[:8]}"
    run_dir = workspace.head_dir(chosen.dataset, run)
    if (run_dir / "config.json").exists():
        return finished_run(run_dir, identity)

    require_devices(devices)
    train_split, val_split, selected_on = training_features(chosen.store, settings.seed)
    way: Way = FromVideos(workspace, chosen) if tune.blocks is None else FromCache(chosen, tune.blocks)
    way.towers.set_gradient_checkpointing(tune.gradient_checkpointing)
    head = new_head(workspace, chosen, config, settings.seed, start_from)
    model = JointModel(head, way.towers)
    run_dir.mkdir(parents=True, exist_ok=True)
    fabric = joint_fabric(run_dir, devices)
    fabric.launch()
    model = model.to(fabric.device)
    way.prepare(fabric.device, devices)
    state = train(
        model,
        JointSource(PairData.of(*train_split), way.inputs(*train_split, keep=True), fabric.device),
        layerwise_groups(
            model, way.towers.levels(), settings.lr, tune.clip_lr, tune.layer_decay, settings.weight_decay
        ),
        settings,
        run_dir,
        identity=identity,
        validate=joint_validator(way, val_split, fabric.device),
        fabric=fabric,
        progress=progress,
    )
    record = run_record(identity, run, selected_on, state, for_tables)
    if fabric.is_global_zero:
        path = workspace.features_dir(chosen.dataset, tuned_encoder(chosen.encoder, run))
        way.publish(path, run_dir / "clip.safetensors")
        tuned = FeatureStore.open(path).settings
        checkpoints.save_head(run_dir, head.state_dict(), {**record, "encoder": tuned, "tuned_from": identity})
        checkpoints.clear_resume(run_dir)
    return summary(record)


def joint_fabric(run_dir: Path, devices: int) -> Fabric:
    """bfloat16 autocast on a GPU, float32 on a CPU."""
    return Fabric(
        accelerator=accelerator(),
        devices=devices,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        loggers=loggers(run_dir),
    )


def joint_validator(way: Way, split: Split, device: torch.device) -> Validate:
    """Text-to-video metrics on the validation split, embedded with CLIP as it is then."""
    videos, texts = split
    data, inputs = PairData.of(videos, texts), way.inputs(videos, texts)

    def validate(trained: JointModel) -> dict[str, float]:
        frames = embed_videos(way.towers, inputs, len(videos), device)
        embeds = embed_texts(way.towers, inputs, len(texts), device)
        return validation_metrics(trained.head, embeds, frames, data.frame_mask, data.text_to_video)

    return validate


def tuned_encoder(encoder: str, run: str) -> str:
    """The folder name of a tuned run's own feature store."""
    return f"{encoder}+{run}"


def remember_tuned(workspace: Workspace, chosen: ResolvedStore, run: str) -> None:
    """Let the commands that follow take the tuned run's store."""
    remember_store(workspace, chosen.dataset, tuned_encoder(chosen.encoder, run))


def export_clip(workspace: Workspace, chosen: ResolvedStore, run: str, out: Path) -> None:
    """Copy a tuned run's CLIP to `out`, a file that plain open_clip loads. Raises BadInput for an untuned run."""
    source = workspace.head_dir(chosen.dataset, run) / "clip.safetensors"
    if not source.exists():
        raise BadInput(
            f"{run} did not tune CLIP",
            fix="train it with --train-blocks K or --end-to-end, or use the original weights",
        )
    with atomic_write(out) as temporary:
        temporary.write_bytes(source.read_bytes())
