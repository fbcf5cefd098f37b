"""What some tables ask of a trained run beside its ranks: the gap, the time of an alignment, R@1 under damage.

A measure is a function of a run opened on its store; `runs` keeps what it returns in
reports/<dataset>/<run>/<name>.json.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dits_head.inference import align_texts
from pipeline.clip.stored import embed_queries
from pipeline.evaluate.corruption import DAMAGE, damage_captions, keep_frames
from pipeline.evaluate.metrics import summarise
from pipeline.evaluate.modality_gap import RelevantPairs
from pipeline.evaluate.rank_counts import counts_of
from pipeline.experiments.cost import cost
from pipeline.experiments.tables import FRAMES_LEFT, WORDS_PERCENT
from pipeline.fingerprint import fingerprint
from pipeline.resolve import ResolvedHead, ResolvedStore
from pipeline.stores.atomic import atomic_write
from pipeline.stores.features import TextFeatures, VideoFeatures, text_to_video
from pipeline.workspace import Workspace

SEED = 24  # of the damage: one for all runs, so that they meet the same
TEXTS, REPEATS = 1000, 5  # of an alignment that is timed

Measure = Callable[[Workspace, ResolvedStore, ResolvedHead], dict[str, float]]


def gap(workspace: Workspace, chosen: ResolvedStore, head: ResolvedHead) -> dict[str, float]:
    """{"L1 unit before": mean over the relevant pairs of the test split, ...}; see `pipeline.evaluate.modality_gap`."""
    pairs = RelevantPairs.of(head.head, chosen.store.videos("test", mmap=True), chosen.store.texts("test"))
    return {f"{name} {when}": mean for name, means in pairs.means().items() for when, mean in means.items()}


def align(workspace: Workspace, chosen: ResolvedStore, head: ResolvedHead) -> dict[str, float]:
    """{"ms": milliseconds to align 1000 texts}, the fastest of a few times: what disturbs a process only adds."""
    embeds = np.resize(chosen.store.texts("test").text_embeds, (TEXTS, chosen.store.dim))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        align_texts(head.head, embeds)
        seconds.append(time.perf_counter() - began)
    return {"ms": round(1000 * min(seconds), 3)}


def robustness(workspace: Workspace, chosen: ResolvedStore, head: ResolvedHead) -> dict[str, float]:
    """R@1 on the test split by damage: {"dropped 10": ..., "swapped 50": ..., "even 6": ..., "random 1": ...}.

    Captions are damaged and encoded anew; frames are removed by the mask. Percent of words, or frames left.
    """
    videos, texts = chosen.store.videos("test"), chosen.store.texts("test")
    own = text_to_video(texts, videos)

    def r1(gallery: VideoFeatures, embeds: np.ndarray) -> float:
        return summarise(counts_of(head.head, gallery, embeds, own)[0].t2v, len(videos))["R@1"]

    folder = workspace.report_dir(chosen.dataset, "damaged-captions")
    found = {
        f"{kind} {percent}": r1(videos, damaged_embeds(folder, chosen, texts, kind, percent / 100))
        for kind in DAMAGE
        for percent in WORDS_PERCENT
    }
    for count in FRAMES_LEFT:
        for rule, seed in (("even", None), ("random", SEED)):
            gallery = replace(videos, frame_mask=keep_frames(videos.frame_mask, count, seed))
            found[f"{rule} {count}"] = r1(gallery, texts.text_embeds)
    return found


def damaged_embeds(folder: Path, chosen: ResolvedStore, texts: TextFeatures, kind: str, share: float) -> np.ndarray:
    """Embeddings (T, D) of damaged captions; every run of a store asks for the same ones, so they are kept."""
    damaged = damage_captions(texts.captions, texts.caption_ids, kind, share, SEED)
    said = hashlib.sha256("\n".join(damaged).encode()).hexdigest()
    path = folder / f"{fingerprint({'store': chosen.store.fingerprint, 'captions': said})}.npy"
    if not path.exists():
        with atomic_write(path) as temporary:
            np.save(temporary, embed_queries(chosen.store, damaged))
    return np.load(path)


MEASURES: dict[str, Measure] = {"gap": gap, "align": align, "robustness": robustness, "cost": cost}
