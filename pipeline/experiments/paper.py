"""Where this project's figures may stand beside the paper's: the same data, backbone, weights and recipe."""

from collections.abc import Mapping
from typing import Any

from pipeline.datasets.msrvtt import TEST_1KA, TRAIN_9K
from pipeline.experiments.tables import SYSTEMS, Row
from pipeline.presets import get_preset
from pipeline.resolve import ResolvedStore, split_label
from pipeline.workspace import Workspace

PRESET = get_preset("msrvtt-b32")  # of the paper's ablation tables: MSR-VTT 1k-A with ViT-B/32


def differences(
    workspace: Workspace,
    chosen: ResolvedStore,
    recipe: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
) -> list[str]:
    """What keeps figures of this store from being compared with the paper's, in words; empty: nothing.

    Args:
        workspace: Holds the data set's manifest, which knows what was published.
        chosen: The feature store.
        recipe: Settings of training, by name; None: not a matter of training.
        head: Settings that every head was given on the command line.
    """
    found = _of_the_data(workspace, chosen) or _of_the_encoder(chosen.store.settings)
    if chosen.store.num_frames != PRESET.num_frames:
        found.append(f"{chosen.store.num_frames} frames a video, not {PRESET.num_frames}")
    for name, value in (recipe or {}).items():
        if PRESET.train.get(name, value) != value:
            found.append(f"{name} {value:g}, not {PRESET.train[name]:g}")
    if head:
        found.append("heads with " + ", ".join(f"{name} {value}" for name, value in head.items()))
    return found


def same_regime(row: Row) -> bool:
    """Whether CLIP was trained with the head, all of it, or fixed, as it was for the paper's figures of this row."""
    return (SYSTEMS[row.system].tune == "end-to-end") == row.joint


def _of_the_data(workspace: Workspace, chosen: ResolvedStore) -> list[str]:
    if chosen.dataset != PRESET.dataset:
        return [f"data set {chosen.dataset}, not {PRESET.dataset}"]
    videos = chosen.store.videos(mmap=True)
    of_split = {
        TRAIN_9K.name: ("train", ("train", "val")),  # validation is held out of the training videos
        TEST_1KA.name: ("test", ("test",)),
    }
    found = []
    for name, (split, parts) in of_split.items():
        ids = [video_id for video_id, of in zip(videos.video_ids, videos.splits, strict=True) if of in parts]
        label = split_label(workspace, chosen, split, ids)
        if label != name:
            found.append(f"{split} split: {label or 'unknown'}, not {name}")
    return found


def _of_the_encoder(settings: Mapping[str, Any]) -> list[str]:
    model, weights = str(settings["model"]), settings.get("pretrained")
    if model.removesuffix("-quickgelu") != PRESET.model or weights != PRESET.pretrained:
        return [f"encoder {model} with weights {weights}, not {PRESET.model} with {PRESET.pretrained}"]
    published = published_digest()
    if settings.get("weights_sha256") != published:
        digest = str(settings.get("weights_sha256"))[:12]
        return [f"weights of digest {digest}, not the published ones ({(published or 'not at hand')[:12]})"]
    return []


def published_digest() -> str | None:
    """Digest of the paper's CLIP weights, loaded by their published tag; None where they cannot be had."""
    from pipeline.clip.encoder import load_encoder
    from pipeline.errors import UserError

    try:
        encoder = load_encoder(PRESET.model, PRESET.pretrained, device="cpu", precision="float32")
    except UserError:
        return None
    return str(encoder.settings["weights_sha256"])
