"""What a way of training costs: seconds an epoch, memory, and bytes that must lie on the disk."""

from pathlib import Path
from typing import Any

from pipeline.resolve import ResolvedHead, ResolvedStore
from pipeline.stores.features import FeatureStore
from pipeline.train.finetune import tuned_encoder
from pipeline.train.trainable_clip import clips_of
from pipeline.workspace import Workspace


def cost(workspace: Workspace, chosen: ResolvedStore, head: ResolvedHead) -> dict[str, float]:
    """{"epoch s": validation included, "training MB": peak, "disk MB": what must lie there, all splits}."""
    record = head.record
    base = chosen.encoder.removesuffix(tuned_encoder("", head.run))
    store = FeatureStore.open(workspace.features_dir(chosen.dataset, base))
    return {
        "epoch s": round(record["seconds"] / record["settings"]["epochs"], 2),
        "training MB": record["peak_mb"],
        "disk MB": round(bytes_read(workspace, ResolvedStore(chosen.dataset, base, store), record) / 1e6, 2),
    }


def bytes_read(workspace: Workspace, chosen: ResolvedStore, record: dict[str, Any]) -> int:
    """The features; with CLIP's top blocks the activations that enter them too; end to end the video files alone.

    The activations' bytes do not depend on how many blocks train: each depth has as many tokens of the same width.
    """
    tune = record.get("tuned_from", {}).get("tune")
    if tune and tune["blocks"] is None:
        manifest = clips_of(workspace, chosen)
        return sum(Path(path).stat().st_size for path in {manifest.resolve(entry) for entry in manifest.entries})
    videos, texts = chosen.store.videos(mmap=True), chosen.store.texts()
    columns: list[Any] = [videos.frame_embeds, texts.text_embeds]
    if tune:
        columns += chosen.store.frame_tokens(videos.video_ids).values()
        columns += chosen.store.text_tokens(texts.caption_ids).values()
    return sum(int(column.nbytes) for column in columns)
