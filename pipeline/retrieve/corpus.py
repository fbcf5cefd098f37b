"""The index of a corpus: built from a feature store with a trained head, and found again by what it was made of."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dits_head.inference import align_texts, pool_videos
from pipeline.errors import BadInput
from pipeline.resolve import ResolvedHead, ResolvedStore, resolve_head
from pipeline.retrieve.autotune import Need, choose
from pipeline.retrieve.index import IndexSpec, require_known
from pipeline.retrieve.scorer import head_fingerprint
from pipeline.retrieve.updates import Maker, Reindexed, build_index
from pipeline.stores.features import FeatureStore
from pipeline.stores.generations import GenerationStore
from pipeline.workspace import Workspace

Say = Callable[[str], None]
VERIFY_WITH = 200  # captions that a new index is verified with


def build_corpus_index(
    workspace: Workspace,
    chosen: ResolvedStore,
    head: ResolvedHead,
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


def choose_spec(chosen: ResolvedStore, head: ResolvedHead, need: Need, *, gpu: bool = False, say: Say) -> IndexSpec:
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


def maker(chosen: ResolvedStore, head: ResolvedHead) -> Maker:
    origin = {"dataset": chosen.dataset, "encoder": chosen.encoder, "run": head.run}
    if head.head_dir:
        origin["head_dir"] = str(head.head_dir)
    return Maker(head_fingerprint(head.head), chosen.store.settings, origin)


def head_of(workspace: Workspace, chosen: ResolvedStore, origin: Mapping[str, str]) -> ResolvedHead:
    """The head that an index was made with, from the index's `origin`: a run, or a folder that the user named."""
    folder = origin.get("head_dir")
    return resolve_head(workspace, chosen, origin["run"], Path(folder) if folder else None)


def require_indexable(head: ResolvedHead) -> None:
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
