"""Evaluate a head on a feature store of the workspace, exhaustively and through its index; keep figures and report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import BadInput, MissingData
from pipeline.evaluate.evaluation import Evaluation, Options, evaluate
from pipeline.evaluate.index_loss import IndexedGallery
from pipeline.evaluate.modality_gap import RelevantPairs
from pipeline.evaluate.report import sample_queries, write_report
from pipeline.resolve import ResolvedHead, ResolvedStore, split_label
from pipeline.retrieve.corpus import build_corpus_index, generations, locations, require_indexable
from pipeline.retrieve.index import IndexSpec
from pipeline.retrieve.scorer import head_fingerprint
from pipeline.stores.features import TextFeatures, VideoFeatures
from pipeline.stores.generations import Generation, GenerationStore
from pipeline.stores.manifest import read_manifest
from pipeline.video.thumbnail import thumbnail
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)


def evaluate_chosen(
    workspace: Workspace,
    chosen: ResolvedStore,
    head: ResolvedHead,
    options: Options,
    *,
    split: str | None = None,
    through_index: bool = False,
    report: bool = False,
) -> tuple[Evaluation, Path]:
    """(what was measured, the folder it is kept in). Without a split: test, else everything that has captions."""
    splits = chosen.store.splits()
    split = split or ("test" if "test" in splits else None)
    if split is not None and split not in splits:
        raise BadInput(f"no split {split!r} in {chosen.store.path}", expected=", ".join(splits), got=split)
    videos, texts = chosen.store.videos(split, mmap=True), chosen.store.texts(split)
    if not len(texts):
        raise MissingData(
            f"{chosen.dataset} has no captions to evaluate with", fix="extract it with --captions FILE, or use search"
        )
    with indexed_gallery(workspace, chosen, head, videos) if through_index else nullcontext() as index:
        evaluation = evaluate(
            head.head,
            videos,
            texts,
            options,
            index=index,
            bank=chosen.store.texts("train") if "train" in splits else None,
            protocol=protocol_card(workspace, chosen, head, split, videos, texts),
        )
    folder = workspace.report_dir(chosen.dataset, head.run)
    evaluation.save(folder)
    if report:
        samples = sample_queries(head.head, evaluation, videos, texts)
        found = dict(zip(videos.video_ids, locations(chosen.store, videos.paths), strict=True))
        aligns = head.head.indexable and head.head.config.aligns_text
        gaps = RelevantPairs.of(head.head, videos, texts).histograms() if aligns else None
        write_report(
            folder / "report.html",
            evaluation,
            title=f"{chosen.dataset}: {head.run}",
            samples=samples,
            picture=lambda video_id, _: thumbnail(found[video_id]),
            gaps=gaps,
        )
    return evaluation, folder


@contextmanager
def indexed_gallery(
    workspace: Workspace, chosen: ResolvedStore, head: ResolvedHead, videos: VideoFeatures
) -> Iterator[IndexedGallery]:
    """The live index (a new Flat one where there is none), if it is of this head and these features and holds all the
    videos; else one of the same type for this evaluation alone: what `search` finds does not change."""
    require_indexable(head)
    store = generations(workspace, chosen.dataset)
    if store.current() is None:
        log.info("no index yet: building an exact one (Flat)")
        build_corpus_index(workspace, chosen, head, IndexSpec())
    with store.open() as live:
        if not (reason := unfit(live, chosen, head, videos)):
            yield IndexedGallery.of(live, videos, head.head)
            return
        spec = IndexSpec.from_dict(live.info["spec"])
    log.info(f"the live index {reason}: building another for this evaluation alone")
    with TemporaryDirectory(prefix=".evaluate-", dir=workspace.root) as folder:
        temporary = GenerationStore(Path(folder))
        build_corpus_index(workspace, chosen, head, spec, into=temporary)
        with temporary.open() as built:
            gallery = IndexedGallery.of(built, videos, head.head)
            yield replace(gallery, about=gallery.about | {"generation": "none: built for this evaluation alone"})


def unfit(live: Generation, chosen: ResolvedStore, head: ResolvedHead, videos: VideoFeatures) -> str:
    """Why an index cannot be evaluated with this head on these videos, or nothing."""
    if (live.info["head"], live.info["encoder"]) != (head_fingerprint(head.head), chosen.store.settings):
        return "was made with another head or other features"
    lacking = len(set(videos.video_ids).difference(live.rows().video_ids))
    return f"lacks {lacking} of the {len(videos)} videos" if lacking else ""


def protocol_card(
    workspace: Workspace,
    chosen: ResolvedStore,
    head: ResolvedHead,
    split: str | None,
    videos: VideoFeatures,
    texts: TextFeatures,
) -> dict[str, Any]:
    """What a reader must know to compare the numbers: data, split, selection, seed, fingerprints."""
    path = workspace.manifest_path(chosen.dataset)
    data = read_manifest(path).protocol if path.exists() else {}
    return {
        "dataset": chosen.dataset,
        "label": split_label(workspace, chosen, split, videos.video_ids),
        "data_caption_rule": data.get("caption_rule"),
        "split": split or "all",
        "run": head.run,
        "selected_on": head.record.get("selected_on"),
        "seed": head.record.get("settings", {}).get("seed"),
        "encoder": chosen.store.settings,
        "encoder_fingerprint": chosen.store.fingerprint,
        "distinct_captions": len(set(texts.captions)),
    }
