"""Evaluate a head on a feature store of a workspace, exhaustively and through an index; save metrics and report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import BadInput, MissingData
from pipeline.evaluate.evaluation import Evaluation, Options, both_directions, evaluate
from pipeline.evaluate.index_loss import IndexedGallery
from pipeline.evaluate.modality_gap import RelevantPairs
from pipeline.evaluate.report import sample_queries, write_report
from pipeline.resolve import ZERO_SHOT, ResolvedHead, ResolvedStore, resolve_head, split_label
from pipeline.retrieve.corpus import build_corpus_index, generations, locations, outdated, require_indexable
from pipeline.retrieve.index import IndexSpec
from pipeline.retrieve.scorer import head_fingerprint
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
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
    """Evaluate a head on a split and save the result in the workspace's reports.

    Args:
        chosen: the feature store.
        head: the head to evaluate.
        options: tie rule, memory limit, bootstrap, normalisations, shortlist.
        split: test by default; everything that has captions where there is no test split.
        through_index: also measure what two-stage search loses.
        report: write report.html too.

    Returns:
        The evaluation, and the folder that holds it.

    Raises:
        BadInput: an unknown split.
        MissingData: the split has no captions.
    """
    store, splits = chosen.store, chosen.store.splits()
    split = split or ("test" if "test" in splits else None)
    if split is not None and split not in splits:
        raise BadInput(f"no split {split!r} in {store.path}", expected=", ".join(splits), got=split)
    videos, texts = store.videos(split, mmap=True), store.texts(split)
    if not len(texts):
        raise MissingData(
            f"{chosen.dataset} has no captions to evaluate with", fix="extract it with --captions FILE, or use search"
        )
    with gallery_index(workspace, chosen, head, videos) if through_index else nullcontext() as index:
        evaluation = evaluate(
            head.head,
            videos,
            texts,
            options,
            index=index,
            bank=store.texts("train") if "train" in splits else None,
            protocol=protocol_card(workspace, chosen, head, split, videos, texts),
        )
    if head.run != ZERO_SHOT:
        evaluation.metrics["zero_shot"] = zero_shot_row(workspace, chosen, split, options)
    folder = workspace.report_dir(chosen.dataset, head.run)
    evaluation.save(folder)
    if report:
        save_report(folder / "report.html", evaluation, chosen, head, videos, texts)
    return evaluation, folder


def zero_shot_row(
    workspace: Workspace, chosen: ResolvedStore, split: str | None, options: Options
) -> dict[str, Any] | None:
    """Both directions of mean pooling on the backbone's raw features, which a head must beat to be worth its training.

    A tuned run's own features are no backbone's: those that it started from are taken; None where these are gone.
    """
    store = chosen.store
    backbone = chosen.encoder.partition("+")[0]
    if backbone != chosen.encoder:
        path = workspace.features_dir(chosen.dataset, backbone)
        if not (path / "store.json").exists():
            return None
        store = FeatureStore.open(path)
    head = resolve_head(workspace, replace(chosen, encoder=backbone, store=store), ZERO_SHOT).head
    return both_directions(head, store.videos(split, mmap=True), store.texts(split), options)


def save_report(
    path: Path,
    evaluation: Evaluation,
    chosen: ResolvedStore,
    head: ResolvedHead,
    videos: VideoFeatures,
    texts: TextFeatures,
) -> None:
    """Write report.html: stills of the sampled queries' videos, and the modality gap of a head that aligns text."""
    files = dict(zip(videos.video_ids, locations(chosen.store, videos.paths), strict=True))
    aligns = head.head.indexable and head.head.config.aligns_text
    write_report(
        path,
        evaluation,
        title=f"{chosen.dataset}: {head.run}",
        samples=sample_queries(head.head, evaluation, videos, texts),
        picture=lambda video_id, _: thumbnail(files[video_id]),
        gaps=RelevantPairs.of(head.head, videos, texts).histograms() if aligns else None,
    )


@contextmanager
def gallery_index(
    workspace: Workspace, chosen: ResolvedStore, head: ResolvedHead, videos: VideoFeatures
) -> Iterator[IndexedGallery]:
    """Open an index of the gallery for this head.

    That is the live index (a new Flat one where there is none) if it was made with this head and these features and
    holds every video of the gallery. Otherwise a temporary one of the same type is built, and the live one stays as
    it is, so that `search` finds what it found before.
    """
    require_indexable(head)
    store = generations(workspace, chosen.dataset)
    if store.current() is None:
        log.info("no index yet: building an exact one (Flat)")
        build_corpus_index(workspace, chosen, head, IndexSpec())
    with store.open() as live:
        if not (reason := index_mismatch(live, chosen, head, videos)):
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


def index_mismatch(live: Generation, chosen: ResolvedStore, head: ResolvedHead, videos: VideoFeatures) -> str:
    """Why an index cannot serve this head on this gallery; empty if it can."""
    if (live.info["head"], live.info["encoder"]) != (head_fingerprint(head.head), chosen.store.settings):
        return "was made with another head or other features"
    lacking = len(set(videos.video_ids).difference(live.rows().video_ids))
    if lacking:
        return f"lacks {lacking} of the {len(videos)} videos"
    old = len(outdated(live, chosen.store))
    return f"holds {old} videos as they were before their files changed" if old else ""


def protocol_card(
    workspace: Workspace,
    chosen: ResolvedStore,
    head: ResolvedHead,
    split: str | None,
    videos: VideoFeatures,
    texts: TextFeatures,
) -> dict[str, Any]:
    """The protocol of an evaluation, what makes its numbers comparable: data, split, selection, seed, fingerprints."""
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
