"""Train CLIP with the head, and what follows from CLIP having moved.

A tuned run writes, beside its head, the whole tuned CLIP as a file that plain open_clip loads (`clip.safetensors`), and
a feature store of its own, `features/<dataset>/<encoder>+<run>`. From there on it is a store like any other: its
fingerprint names the tuned weights, so that index, evaluate, search and reindex work as ever and a mixture with the
original encoder is refused.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dits_head.clip_top import depth
from dits_head.head import RetrievalHead
from dits_head.joint import JointModel, layerwise_groups
from dits_head.towers import Uncacheable
from pipeline.clip.stored import encoder_of
from pipeline.errors import BadInput
from pipeline.resolve import ResolvedStore, remember_store
from pipeline.stores.atomic import atomic_write
from pipeline.stores.features import FeatureStore
from pipeline.train.batches import PairData, Split
from pipeline.train.joint_batches import Inputs, JointSource, embed_texts, embed_videos
from pipeline.train.loop import Source, TrainSettings, Validate
from pipeline.train.recipe import preset_of
from pipeline.train.tasks import HeadTask, Measure, fit_closed_form, score_split
from pipeline.train.trainable_clip import CachedTopBlocks, DecodedWholeClip, TrainableClip
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class TuneSettings:
    """How CLIP trains under the head."""

    blocks: int | None
    """Top blocks that train, from cached activations; None: all of CLIP, from the video files."""
    clip_lr: float = 1e-5
    """CLIP's learning rate (default: the paper's)."""
    layer_decay: float = 1.0
    """A block's rate over that of the block above it."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, less memory."""

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
        try:
            how = depth(encoder_of(chosen.store, device="cpu", to_train=True).model)
        except Uncacheable as reason:
            raise BadInput(f"--train-blocks all: {reason}", fix="train with --end-to-end, or a head alone") from None
    blocks = None if how == "end-to-end" else int(how)
    return TuneSettings(blocks, **preset_of(chosen).get("tune", {}) | given)


class FinetuneTask(HeadTask):
    """Train CLIP, or its top blocks, with the head.

    `build` raises BadInput where the store holds no activations of so many blocks, or its videos are not there.
    """

    clip: TrainableClip
    shares_batch = True

    def __init__(self, tune: TuneSettings, precision: str | None = None):
        self.own_precision = "bfloat16" if torch.cuda.is_available() else "float32"
        super().__init__(precision)
        self.tune = tune
        self.label = "end-to-end" if tune.blocks is None else f"top{tune.blocks}"

    def identity(self) -> dict[str, Any]:
        return {"tune": asdict(self.tune), **super().identity()}

    def build(self, workspace: Workspace, chosen: ResolvedStore, head: RetrievalHead) -> nn.Module:
        super().build(workspace, chosen, head)
        blocks = self.tune.blocks
        self.clip = DecodedWholeClip(workspace, chosen) if blocks is None else CachedTopBlocks(chosen, blocks)
        self.clip.towers.set_gradient_checkpointing(self.tune.gradient_checkpointing)
        return JointModel(head, self.clip.towers)

    def to(self, device: torch.device, devices: int) -> None:
        self.clip.to(device, devices)

    def source(self, split: Split, device: torch.device, rank: int, world: int) -> Source:
        self._training = split, self.clip.inputs(*split, keep=True)
        fit_closed_form(self.head, PairData.of(*split))
        return JointSource(PairData.of(*split), self._training[1], device, rank, world)

    def parameter_groups(self, model: Any, settings: TrainSettings) -> Sequence[dict[str, Any]]:
        levels, tune = self.clip.towers.levels(), self.tune
        return layerwise_groups(model, levels, settings.lr, tune.clip_lr, tune.layer_decay, settings.weight_decay)

    def validator(self, split: Split, measure: Measure, device: torch.device) -> Validate:
        """On the validation split embedded with CLIP as it is then."""
        inputs = self.clip.inputs(*split)

        def now(of: Split, through: Inputs) -> PairData:
            videos, texts = (np.arange(len(rows)) for rows in of)
            frame_embeds = embed_videos(self.clip.towers, through, videos, device)
            text_embeds = embed_texts(self.clip.towers, through, texts, device)
            return replace(PairData.of(*of), frame_embeds=frame_embeds, text_embeds=text_embeds)

        def validate(_: Any) -> Mapping[str, float]:
            if self.head.closed_form:  # CLIP has moved
                fit_closed_form(self.head, now(*self._training))
            return score_split(self.head, now(split, inputs), measure)

        return validate

    def threads(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    def publish(self, workspace: Workspace, chosen: ResolvedStore, run: str) -> dict[str, Any] | None:
        path = workspace.features_dir(chosen.dataset, tuned_encoder(chosen.encoder, run))
        self.clip.publish(path, tuned_clip(workspace, chosen, run))
        return FeatureStore.open(path).settings


def tuned_clip(workspace: Workspace, chosen: ResolvedStore, run: str) -> Path:
    """The file of a tuned run's CLIP."""
    return workspace.head_dir(chosen.dataset, run) / "clip.safetensors"


def tuned_encoder(encoder: str, run: str) -> str:
    """The folder name of a tuned run's own feature store."""
    return f"{encoder}+{run}"


def remember_tuned(workspace: Workspace, chosen: ResolvedStore, run: str) -> None:
    """Let the commands that follow take the tuned run's store."""
    remember_store(workspace, chosen.dataset, tuned_encoder(chosen.encoder, run))


def export_clip(workspace: Workspace, chosen: ResolvedStore, run: str, out: Path) -> None:
    """Copy a tuned run's CLIP to `out`, a file that plain open_clip loads. Raises BadInput for an untuned run."""
    source = tuned_clip(workspace, chosen, run)
    if not source.exists():
        raise BadInput(
            f"{run} did not tune CLIP",
            fix="train it with --train-blocks K or --end-to-end, or use the original weights",
        )
    with atomic_write(out) as temporary:
        temporary.write_bytes(source.read_bytes())
