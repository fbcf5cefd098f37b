"""The index of a corpus: building it from a feature store with a trained head, and reading back what made it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dits_head.inference import align_texts
from pipeline.errors import BadInput
from pipeline.resolve import ResolvedHead, ResolvedStore, resolve_head
from pipeline.retrieve.autotune import Requirements, autotune
from pipeline.retrieve.index import IndexSpec, building_bytes, require_known
from pipeline.retrieve.pooled import pool_to_file
from pipeline.retrieve.scorer import head_fingerprint
from pipeline.retrieve.updates import Provenance, Reindexed, build_index
from pipeline.stores.features import FeatureStore
from pipeline.stores.generations import Generation, GenerationStore
from pipeline.stores.strings import Strings, as_arrow
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)
VERIFY_WITH = 200  # captions that a new index is verified with


def build_corpus_index(
    workspace: Workspace,
    chosen: ResolvedStore,
    head: ResolvedHead,
    spec: IndexSpec,
    *,
    into: GenerationStore | None = None,
    gpu: int | None = None,
) -> Reindexed:
    """Index every video of a feature store, except those that were deleted from the index.

    The new generation is verified with a sample of the data set's captions, where it has any, then goes live.

    Args:
        chosen: the feature store.
        head: pools the videos, and aligns the captions that verify the index.
        spec: index type and search parameters.
        into: where generations are kept; the data set's own index by default.
        gpu: train and fill the index on this GPU.

    Raises:
        BadInput: the head cannot be indexed, or FAISS does not know the spec.
        RecallTooLow: the index does not find what exact search finds.
    """
    require_indexable(head)
    require_known(spec, chosen.store.dim)
    place = into or generations(workspace, chosen.dataset)
    videos, texts = chosen.store.videos(mmap=True), chosen.store.texts(mmap=True)
    sample = np.random.default_rng(0).permutation(len(texts))[:VERIFY_WITH]
    vectors = pool_to_file(head.head, videos, place.root)
    count = int(np.prod(vectors.shape[:-1]))
    most = building_bytes(spec, count, vectors.shape[-1])
    log.info(f"{spec.factory} of {count} vectors: at most {most / 1e6:.0f} MB to build, beside the program")
    return build_index(
        place,
        videos.video_ids,
        locations(chosen.store, videos.paths),
        vectors,
        spec=spec,
        provenance=provenance(chosen, head),
        queries=align_texts(head.head, texts.text_embeds[sample]) if len(texts) else None,
        gpu=gpu,
    )


def autotune_spec(
    workspace: Workspace,
    chosen: ResolvedStore,
    head: ResolvedHead,
    requirements: Requirements,
    *,
    gpu: int | None = None,
) -> IndexSpec:
    """The index type and search parameters that meet the requirements on a feature store's videos.

    Tuned on the captions of the validation split, or on all where there is none; says the operating points measured.
    """
    require_indexable(head)
    place = generations(workspace, chosen.dataset).root
    vectors = pool_to_file(head.head, chosen.store.videos(mmap=True), place)
    texts = chosen.store.texts("val" if "val" in chosen.store.splits() else None)
    queries = align_texts(head.head, texts.text_embeds) if len(texts) > 1 else None
    owners = np.repeat(np.arange(len(vectors)), 1 if vectors.ndim == 2 else vectors.shape[1])
    tuned = autotune(vectors.reshape(-1, vectors.shape[-1]), owners, requirements, queries, gpu=gpu)
    log.info(tuned.table())
    return tuned.spec


def generations(workspace: Workspace, corpus: str) -> GenerationStore:
    """The generations of a corpus's index."""
    return GenerationStore(workspace.index_dir(corpus))


def provenance(chosen: ResolvedStore, head: ResolvedHead) -> Provenance:
    """What an index of this store, made with this head, records about both."""
    origin = {"dataset": chosen.dataset, "encoder": chosen.encoder, "run": head.run}
    if head.head_dir:
        origin["head_dir"] = str(head.head_dir)
    return Provenance(head_fingerprint(head.head), chosen.store.settings, origin, chosen.store.last_video_shard())


def outdated(live: Generation, store: FeatureStore) -> list[str]:
    """Ids of a generation whose features were extracted again since it was made, because their files had changed."""
    last = live.info.get("last_shard")  # older generations do not know it
    return [] if last is None else store.written_after(live.rows().video_ids, last)


def index_head(workspace: Workspace, chosen: ResolvedStore, origin: Mapping[str, str]) -> ResolvedHead:
    """The head that an index was made with, found by the index's `origin`: a run, or a folder outside the workspace."""
    folder = origin.get("head_dir")
    return resolve_head(workspace, chosen, origin["run"], Path(folder) if folder else None)


def require_indexable(head: ResolvedHead) -> None:
    """BadInput, with the reason, for a head that compares a text which depends on the video: no index can hold it."""
    if not head.head.indexable:
        raise BadInput(
            f"{head.run} cannot be indexed: {head.head.config.needs_video}",
            fix="evaluate it without --index, or train another head",
        )


def locations(store: FeatureStore, paths: Sequence[str]) -> Strings:
    """Resolve paths of a store: relative ones against its media root; absolute paths and URLs stay as they are."""
    given, root = as_arrow(paths), store.media_root.rstrip("/")
    whole = pc.or_(pc.match_substring(given, "://"), pc.starts_with(given, "/"))
    slash = pa.scalar("/", pa.large_string())
    return Strings(
        pc.if_else(whole, given, pc.binary_join_element_wise(pa.scalar(root, pa.large_string()), given, slash))
    )
