"""Stage 3 as commands: index, evaluate, search, reindex, each on the features and the head that the user means."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.commands.extract import embed_queries, folder_name, settings_of, thumbnail
from pipeline.datasets import build_manifest
from pipeline.errors import BadInput, MissingData
from pipeline.evaluate.evaluation import Evaluation, Options, evaluate
from pipeline.evaluate.index_loss import IndexedGallery
from pipeline.evaluate.modality_gap import RelevantPairs
from pipeline.evaluate.report import sample_queries, write_report
from pipeline.extract.driver import extract
from pipeline.resolve import Chosen, ChosenHead, choose_head, choose_store, split_label
from pipeline.retrieve.autotune import Need, choose
from pipeline.retrieve.index import IndexSpec, require_known
from pipeline.retrieve.scorer import head_fingerprint
from pipeline.retrieve.search import Hit, Searcher
from pipeline.retrieve.updates import Maker, Policy, Reindexed, build_index, reindex_vectors
from pipeline.retrieve.vectors import align_texts, pool_videos
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
from pipeline.stores.generations import Generation, GenerationStore
from pipeline.stores.manifest import Manifest, VideoEntry, read_manifest
from pipeline.workspace import Workspace

Say = Callable[[str], None]
VERIFY_WITH = 200  # captions that a new index is verified with
FIGURES = ("R@1", "R@5", "R@10", "MdR", "MnR")


# -- index


def build_corpus_index(
    workspace: Workspace,
    chosen: Chosen,
    head: ChosenHead,
    spec: IndexSpec,
    *,
    into: GenerationStore | None = None,
    gpu: bool = False,
    say: Say,
) -> Reindexed:
    """Index every video of the data set with a head, those aside that were deleted from the index; verified with the
    data set's captions where it has some. `into`: another place than the data set's index."""
    require_indexable(head)
    require_known(spec, chosen.store.dim)
    videos = chosen.store.videos(mmap=True)
    texts = chosen.store.texts()
    sample = np.random.default_rng(0).permutation(len(texts))[:VERIFY_WITH]
    return build_index(
        into or generations(workspace, chosen.dataset),
        videos.video_ids,
        locations(chosen.store, videos.paths),
        pool_videos(head.head, videos),
        spec=spec,
        maker=maker(chosen, head),
        queries=align_texts(head.head, texts.text_embeds[sample]) if len(texts) else None,
        gpu=gpu,
        say=say,
    )


def choose_spec(chosen: Chosen, head: ChosenHead, need: Need, *, gpu: bool = False, say: Say) -> IndexSpec:
    """The index that fits a need, tuned on the data set's own captions; says the trade-off that it found."""
    require_indexable(head)
    vectors = pool_videos(head.head, chosen.store.videos(mmap=True))
    texts = chosen.store.texts("val" if "val" in chosen.store.splits() else None)
    queries = align_texts(head.head, texts.text_embeds) if len(texts) > 1 else None
    owners = np.repeat(np.arange(len(vectors)), 1 if vectors.ndim == 2 else vectors.shape[1])
    choice = choose(vectors.reshape(-1, vectors.shape[-1]), owners, need, queries, gpu=gpu, say=say)
    say(choice.table())
    return choice.spec


def generations(workspace: Workspace, corpus: str) -> GenerationStore:
    return GenerationStore(workspace.index_dir(corpus))


def maker(chosen: Chosen, head: ChosenHead) -> Maker:
    origin = {"dataset": chosen.dataset, "encoder": chosen.encoder, "run": head.run}
    if head.head_dir:
        origin["head_dir"] = str(head.head_dir)
    return Maker(head_fingerprint(head.head), chosen.store.settings, origin)


def head_of(workspace: Workspace, chosen: Chosen, origin: Mapping[str, str]) -> ChosenHead:
    """The head that an index was made with, from the index's `origin`: a run, or a folder that the user named."""
    folder = origin.get("head_dir")
    return choose_head(workspace, chosen, origin["run"], Path(folder) if folder else None)


def require_indexable(head: ChosenHead) -> None:
    """An index holds vectors that need no text; BadInput with the reason where the head's score needs the video."""
    if not head.head.indexable:
        raise BadInput(
            f"{head.run} cannot be indexed: {head.head.config.needs_video}",
            fix="evaluate it without --index, or train another head",
        )


def locations(store: FeatureStore, paths: Sequence[str]) -> list[str]:
    """Where these files lie: absolute paths and URLs as they are, the others under the store's media root."""
    root = store.media_root
    return [path if "://" in path or Path(path).is_absolute() else f"{root.rstrip('/')}/{path}" for path in paths]


# -- evaluate


def evaluate_chosen(
    workspace: Workspace,
    chosen: Chosen,
    head: ChosenHead,
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
    workspace: Workspace, chosen: Chosen, head: ChosenHead, videos: VideoFeatures, say: Say
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


def unfit(live: Generation, chosen: Chosen, head: ChosenHead, videos: VideoFeatures) -> str:
    """Why an index cannot be evaluated with this head on these videos, or nothing."""
    if (live.info["head"], live.info["encoder"]) != (head_fingerprint(head.head), chosen.store.settings):
        return "was made with another head or other features"
    lacking = len(set(videos.video_ids).difference(live.rows().video_ids))
    return f"lacks {lacking} of the {len(videos)} videos" if lacking else ""


def protocol_card(
    workspace: Workspace,
    chosen: Chosen,
    head: ChosenHead,
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


# -- search


def open_searcher(workspace: Workspace, corpus: str | None = None) -> tuple[Searcher, FeatureStore]:
    """A searcher over the live generation of a corpus (unnamed: the last one), with the head that it was made with."""
    corpus = corpus or only_corpus(workspace)
    store = generations(workspace, corpus)
    if store.current() is None:
        raise MissingData(f"no index of {corpus}", fix="run `python cli.py index` first")
    with store.open() as live:
        origin = live.info["origin"]
    chosen = choose_store(workspace, origin["dataset"], origin["encoder"])
    head = head_of(workspace, chosen, origin)
    return Searcher(store, chosen.store.path, head.head), chosen.store


def only_corpus(workspace: Workspace) -> str:
    """The corpus that was indexed last. Raises MissingData when none was."""
    found = [path.name for path in workspace.index_dirs()]
    if not found:
        raise MissingData(f"no index in {workspace.root}", fix="run `python cli.py index` first")
    return found[-1]


def search(
    workspace: Workspace, queries: list[str], *, corpus: str | None = None, top: int = 10, shortlist: int = 50
) -> list[list[Hit]]:
    """The best videos for each sentence."""
    if not all(query.strip() for query in queries):
        raise BadInput("an empty query", fix="describe what the video shows, in quotes")
    searcher, store = open_searcher(workspace, corpus)
    try:
        embeds = embed_queries(store, queries)
        return searcher.search(embeds, top=top, shortlist=shortlist)
    finally:
        searcher.close()


# -- reindex


def reindex(
    workspace: Workspace,
    *,
    corpus: Path | None = None,
    delete: Collection[str] = (),
    name: str | None = None,
    run: str | None = None,
    policy: Policy | None = None,
    progress: bool = True,
    say: Say,
) -> Reindexed:
    """Bring an index up to date: extract the clips of a folder or list that it lacks, delete others, switch over.

    The index is the one named, else the one indexed last. Another head (`run`) or features with other settings force
    a rebuild from what is cached; nothing is decoded twice. What is deleted stays out, though its file still lies in
    a folder that is given again: only a rollback, or a copy in another folder, brings it back.
    """
    files: Mapping[str, VideoEntry] = {}
    name = name or only_corpus(workspace)
    with generations(workspace, name).open() as live:
        origin = live.info["origin"]
    chosen = choose_store(workspace, origin["dataset"], origin["encoder"])
    head = choose_head(workspace, chosen, run) if run else head_of(workspace, chosen, origin)
    require_indexable(head)
    if corpus is not None:
        files = corpus_files(corpus)
        entries = new_entries(files, chosen.store, folder_name(corpus))
        say(f"{len(entries)} of the {len(files)} files in {corpus} are new")
        if entries:
            report = extract(
                Manifest(name, str(corpus), tuple(entries)),
                chosen.store.path,
                settings_of(chosen.store),
                progress=progress,
            )
            say(f"{report.inputs} inputs = {report.done} done + {report.failed} failed + {report.skipped} skipped")
            chosen = replace(chosen, store=FeatureStore.open(chosen.store.path))
    videos, deleted = chosen.store.videos(mmap=True), set(delete)
    row = {video_id: index for index, video_id in enumerate(videos.video_ids)}
    paths = locations(chosen.store, videos.paths)
    add = [v for v, path in zip(videos.video_ids, paths, strict=True) if path in files and v not in deleted]

    def pool(ids: list[str]) -> np.ndarray:
        return pool_videos(head.head, videos.select(np.array([row[video_id] for video_id in ids], dtype=np.int64)))

    return reindex_vectors(
        generations(workspace, name),
        add_ids=add,
        add_paths=[paths[row[video_id]] for video_id in add],
        delete=delete,
        pool=pool,
        maker=maker(chosen, head),
        policy=policy,
        say=say,
    )


def corpus_files(corpus: Path) -> dict[str, VideoEntry]:
    """What a folder holds: the absolute path of each file, links not followed, and its entry."""
    manifest = build_manifest("folder", corpus, None, None, corpus=folder_name(corpus))
    return {os.path.abspath(manifest.resolve(entry)): entry for entry in manifest.entries}


def new_entries(files: Mapping[str, VideoEntry], store: FeatureStore, folder: str) -> list[VideoEntry]:
    """The files that the store has neither extracted nor failed to, under ids that nothing else has.

    A file is known by where it lies; its id is its path inside the folder, preceded by the folder's name, and a number,
    where another video has that id already.
    """
    known = [*store.videos(mmap=True).paths, *(failure.path for failure in store.failures())]
    there, taken = set(locations(store, known)), set(store.covered())
    entries = []
    for path, entry in files.items():
        if path in there:
            continue
        video_id = free_id(entry.video_id, folder, taken)
        taken.add(video_id)
        entries.append(replace(entry, video_id=video_id, path=path))
    return entries


def free_id(video_id: str, folder: str, taken: Collection[str]) -> str:
    """The first of these that is not taken: the id itself, <folder>/<id>, <folder>-2/<id>, <folder>-3/<id>, ...

    >>> free_id("a.mp4", "clips", {"a.mp4", "clips/a.mp4"})
    'clips-2/a.mp4'
    """
    numbered = (f"{folder}-{number}/{video_id}" for number in count(2))
    return next(name for name in chain((video_id, f"{folder}/{video_id}"), numbered) if name not in taken)
