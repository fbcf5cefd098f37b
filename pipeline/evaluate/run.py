"""Evaluate a head on a feature store of the workspace, exhaustively and through its index; keep figures and report."""

from collections.abc import Callable, Iterator
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

Say = Callable[[str], None]
FIGURES = ("R@1", "R@5", "R@10", "MdR", "MnR")


def evaluate_chosen(
    workspace: Workspace,
    chosen: ResolvedStore,
    head: ResolvedHead,
    options: Options,
    *,
    split: str | None = None,
    through_index: bool = False,
    report: bool = False,
    say: Say,
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
    with indexed_gallery(workspace, chosen, head, videos, say) if through_index else nullcontext() as index:
        evaluation = evaluate(
            head.head,
            videos,
            texts,
            options,
            index=index,
            bank=chosen.store.texts("train") if "train" in splits else None,
            protocol=protocol_card(workspace, chosen, head, split, videos, texts),
            say=say,
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
    workspace: Workspace, chosen: ResolvedStore, head: ResolvedHead, videos: VideoFeatures, say: Say
) -> Iterator[IndexedGallery]:
    """The live index (a new Flat one where there is none), if it is of this head and these features and holds all the
    videos; else one of the same type for this evaluation alone: what `search` finds does not change."""
    require_indexable(head)
    store = generations(workspace, chosen.dataset)
    if store.current() is None:
        say("no index yet: building an exact one (Flat)")
        build_corpus_index(workspace, chosen, head, IndexSpec(), say=say)
    with store.open() as live:
        if not (reason := unfit(live, chosen, head, videos)):
            yield IndexedGallery.of(live, videos, head.head)
            return
        spec = IndexSpec.from_dict(live.info["spec"])
    say(f"the live index {reason}: building another for this evaluation alone")
    with TemporaryDirectory(prefix=".evaluate-", dir=workspace.root) as folder:
        temporary = GenerationStore(Path(folder))
        build_corpus_index(workspace, chosen, head, spec, into=temporary, say=say)
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


def results_table(rows: list[dict[str, Any]]) -> str:
    """Text for people: both directions, the gain over zero-shot with its interval, and search through the index."""
    lines = [f"{'':28}" + "".join(f"{name:>8}" for name in FIGURES)]
    for direction, title in (("t2v", "text to video"), ("v2t", "video to text")):
        lines.append(f"{title} ({rows[0][direction]['queries']} queries, {rows[0][direction]['gallery']} candidates)")
        lines += [f"  {row['system']:26}" + "".join(f"{row[direction][name]:8.1f}" for name in FIGURES) for row in rows]
    gains = [(row["system"], row["R@1 over zero-shot"]) for row in rows if row.get("R@1 over zero-shot")]
    if gains:
        lines.append("R@1 over zero-shot, text to video, with its 95 % interval over videos")
    for system, gain in gains:
        low, high = gain["interval"]
        lines.append(f"  {system:26}{gain['difference']:+8.1f}  [{low:+.1f}, {high:+.1f}]")
    if rows[0]["index"]:
        lines.append("search through the index, its candidates re-ranked exactly")
    for row in rows:
        index = row["index"]
        if not index:
            continue
        lines.append(
            f"  {row['system']:26}R@1 {index['R@1']:.1f} (loss {index['loss']:+.2f}), "
            f"{index['queries_per_second']:.0f} queries/s, {index['bytes'] / 1e6:.1f} MB"
        )
    return "\n".join(lines)
