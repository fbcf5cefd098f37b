"""Build an index generation from pooled vectors, and update it: add, delete, or rebuild.

The work happens beside the live generation. Readers see the new one only after ``verify``: counts, unique ids, and
recall against exact search on a sample. Vectors come from a function of video ids, so that a rebuild with another head
pools the cached features again; nothing is decoded.

When an update appends (measured by benchmarks/append.py, 1 % new vectors of width 128, 2 shared cores): a graph takes
72 s to build for 3x10^5 vectors and 1.3 s to extend (10^5: 7.6 s and 0.3 s; 10^4: 0.5 s), inverted lists 39 s and
0.3 s. Types that train (IVF, PQ, SQ8) are appended to as long as they hold at most `Policy.max_grown` times what they
were trained on, and only while the new vectors themselves are found as well as the policy asks; else they are rebuilt
from the kept vectors. Lists on disk are always rebuilt: their file belongs to the generation before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.retrieve.exact_search import exact_search, normalised
from pipeline.retrieve.index import IndexSpec, build, needs_training, read
from pipeline.stores.generations import Generation, GenerationStore
from pipeline.stores.rows import Rows, build_rows, compacted, joined, without
from pipeline.stores.strings import Strings, last_of_each, lookup

Pool = Callable[[Strings], NDArray[Any]]  # video ids -> vectors (V, D), or (V, M, D), as `build_index` takes them
Numbers = tuple[Strings, NDArray[np.int64]]  # video ids and their numbers
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provenance:
    """What an index was made with; another head or encoder forces a rebuild."""

    head: str
    """`scorer.head_fingerprint` of the head that pools the videos."""
    encoder: Mapping[str, Any]
    """Settings of the feature store."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Where to find both: `dataset`, `encoder`, `run`, and `head_dir` for a head outside the workspace."""
    last_shard: int | None = None
    """Number of the store's last shard of videos then: what a later one holds was extracted again."""


@dataclass(frozen=True)
class Policy:
    """What a generation must reach, and when deleted vectors are removed."""

    max_dead: float = 0.2
    """Share of deleted vectors that an index may mask before it is rebuilt without them."""
    max_grown: float = 1.5
    """Vectors that a trained index may hold, in terms of those it was trained among, before it is trained anew."""
    min_recall: float = 0.9
    """Least recall@10 against exact search."""
    sample: int = 200
    """Queries that recall is measured on."""
    seed: int = 24
    """Seed of that sample."""


@dataclass(frozen=True)
class Reindexed:
    """The result of a build or an update."""

    generation: str
    added: int
    deleted: int
    total: int
    verified: dict[str, Any]
    how: str
    """"built", "appended", "nothing to do", or "rebuilt: " and the reason."""
    replaced: int = 0
    """Videos whose vectors are new, as their files have changed."""
    files: Mapping[str, Any] | None = None
    """What became of the corpus's files, where an update looked at them."""

    def contract(self) -> dict[str, Any]:
        """The object that `reindex --json` prints. An unverified generation is never published."""
        names = ("generation", "added", "deleted", "total")
        told = {name: getattr(self, name) for name in names} | {"verified": bool(self.verified)}
        if self.files is None and not self.replaced:
            return told
        return told | {"replaced": self.replaced, "files": self.files}


@dataclass(frozen=True)
class _Job:
    """How to make a generation, whatever rows it holds."""

    spec: IndexSpec
    provenance: Provenance
    policy: Policy
    queries: NDArray[Any] | None
    gpu: int | None
    deleted: set[str]
    """Ids deleted from the corpus by this call and all before."""
    next_number: int
    """The first number that no generation has used."""


def build_index(
    generations: GenerationStore,
    video_ids: Sequence[str],
    paths: Sequence[str],
    vectors: NDArray[Any],
    *,
    spec: IndexSpec,
    provenance: Provenance,
    policy: Policy | None = None,
    queries: NDArray[Any] | None = None,
    gpu: int | None = None,
) -> Reindexed:
    """Publish a generation that holds exactly these videos, except those that were deleted from the corpus.

    Videos that the live generation holds keep their numbers.

    Args:
        generations: the corpus; its lock is taken.
        video_ids, paths: V of each.
        vectors: (V, D), or (V, M, D) for M vectors a video: float32 or float64 of any length, or float16, which are
            taken for unit vectors as a generation keeps them (`pooled.pool_to_file`), in memory or mapped.
        spec: index type and search parameters.
        provenance: head and encoder of the vectors.
        queries: (Q, D) aligned texts to measure recall on; the vectors themselves where left out.
        gpu: train and add on this GPU.

    Raises:
        RecallTooLow: the index misses ``policy.min_recall``; the live generation stays.
        BadInput: no video is left.
    """
    with generations.lock():
        deleted = _deleted(generations)
        before, next_number = _known_numbers(generations)
        job = _Job(spec, provenance, policy or Policy(), queries, gpu, deleted, next_number)
        rows = _numbered(build_rows(video_ids, paths, _unit(vectors)), before, next_number)
        rows = compacted(without(rows, _kept_out(rows.video_ids, deleted)))
        name, verified, _ = _publish(generations, rows, job, "built")
    stayed = int(np.count_nonzero(lookup(rows.video_ids, before[0]) >= 0))
    return Reindexed(name, len(rows) - stayed, len(before[0]) - stayed, len(rows), verified, "built")


def update_index(
    generations: GenerationStore,
    *,
    add_ids: Sequence[str] = (),
    add_paths: Sequence[str] = (),
    delete: Collection[str] = (),
    drop: Collection[str] = (),
    places: tuple[Strings, Strings] | None = None,
    pool: Pool,
    provenance: Provenance,
    spec: IndexSpec | None = None,
    policy: Policy | None = None,
    queries: NDArray[Any] | None = None,
    gpu: int | None = None,
) -> Reindexed:
    """Delete videos from the live generation, add others, and publish the result.

    Ids that are indexed already are skipped, unless the same call deletes them (they are then replaced, under a new
    number). Ids that an earlier call deleted stay out. With nothing to do, nothing is written.

    Args:
        add_ids, add_paths: videos to add.
        delete: ids to delete.
        drop: ids to take out that may come back later: files that are gone, and, with ``add_ids``, changed ones.
        places: (ids, paths) of videos, indexed ones too: their folder may have moved.
        pool: gives the vectors of a list of video ids.
        provenance: head and encoder behind ``pool``; where they differ from the live index's, every video is pooled
            again.
        spec: the live index's where left out.
        queries, policy, gpu: as in ``build_index``.

    Raises:
        MissingData: the corpus has no index.
        BadInput: an id in ``delete`` is not indexed, or no video is left.
        RecallTooLow: even a rebuilt index misses ``policy.min_recall``.
    """
    with generations.lock(), generations.open() as live:
        deleted = _deleted(generations)
        held = live.rows()
        rows = _placed(without(held, {*delete, *drop}), places)
        ids, paths = _new(Strings(add_ids), Strings(add_paths), rows.video_ids, _kept_out(add_ids, deleted))
        next_number = _next_number(generations)
        job = _Job(
            spec or _spec_of(live), provenance, policy or Policy(), queries, gpu, deleted | set(delete), next_number
        )  # fmt: skip
        if changed := _changed(live, job):
            every = rows.video_ids + ids
            pooled = build_rows(every, rows.paths + paths, _unit(pool(every)))
            numbered = _numbered(pooled, (rows.video_ids, rows.numbers), next_number)
            merged, how = compacted(numbered), f"rebuilt: {changed}"
        elif not len(ids) and not delete and not drop and rows.paths == held.paths:
            return Reindexed(live.name, 0, 0, len(rows), dict(live.info["verified"]), "nothing to do")
        else:
            added = build_rows(ids, paths, _unit(pool(ids)), first_number=next_number) if len(ids) else None
            merged = rows if added is None else joined(rows, added)
            reason = _why_rebuild(live, merged, job)
            merged, how = (compacted(merged), f"rebuilt: {reason}") if reason else (merged, "appended")
        before = (live, held) if how == "appended" else None
        name, verified, how = _publish(generations, merged, job, how, append_to=before)
    replaced = int(np.count_nonzero(lookup(ids, list(drop)) >= 0))
    deleted_now = len({*delete, *drop}) - replaced
    return Reindexed(name, len(ids) - replaced, deleted_now, len(merged), verified, how, replaced)


def _publish(
    generations: GenerationStore,
    rows: Rows,
    job: _Job,
    how: str,
    append_to: tuple[Generation, Rows] | None = None,
) -> tuple[str, dict[str, Any], str]:
    """Write, verify and switch; an appended index whose recall is too low is rebuilt. Name, verification, and how."""
    if not len(rows):
        raise BadInput("an index needs at least one video", got="none left", fix="delete the corpus's folder instead")
    info = {
        "spec": job.spec.to_dict(),
        "head": job.provenance.head,
        "encoder": dict(job.provenance.encoder),
        "origin": dict(job.provenance.origin),
        "next_number": max(job.next_number, int(rows.numbers.max()) + 1),
        "last_shard": job.provenance.last_shard,
        "deleted": _not_in(job.deleted, rows.video_ids),
        "trained_among": len(rows.owners) if append_to is None else _trained_among(append_to[0]),
        "how": how,
    }
    fresh = 0 if append_to is None else len(rows.owners) - len(append_to[1].owners)
    log.info(f"{how}: {len(rows)} videos, {len(rows.owners)} vectors, {job.spec.factory}")

    def write_index(folder: Path) -> None:
        if append_to is None:
            index = build(rows.vectors, job.spec, rows.owners, gpu=job.gpu, folder=folder)
        else:
            live, held = append_to
            index = read(live.path, held.owners, job.spec, mmap=False)
            index = index.add(rows.vectors[len(held.owners) :], rows.owners)
        index.write(folder)

    def check(folder: Path) -> dict[str, Any]:
        return verify(folder, rows, job.spec, job.policy, job.queries, fresh=fresh)

    try:
        name = generations.write(rows, write_index, info, check)
    except RecallTooLow as error:
        if append_to is None:
            raise
        return _publish(generations, compacted(rows), job, f"rebuilt: {error}")
    generations.switch(name)
    with generations.open(name) as generation:
        return name, dict(generation.info["verified"]), how


class RecallTooLow(BadInput):
    """An index that does not find what exact search finds."""


def verify(
    folder: Path,
    rows: Rows,
    spec: IndexSpec,
    policy: Policy,
    queries: NDArray[Any] | None = None,
    *,
    fresh: int = 0,
) -> dict[str, Any]:
    """Read a written index back and compare it with exact search.

    Args:
        folder: where index.faiss lies.
        rows: what it must hold; ids and counts are checked by ``Rows.check``.
        queries: (Q, D) to draw the sample from; the videos' own vectors where left out.
        fresh: that many of the last vectors were appended: a second sample, of these alone, must be found as well.

    Returns:
        ``{"videos", "ids_unique", "recall@10", "sample"}``, kept in index.json, and ``"recall@10 of the new"``.

    Raises:
        RecallTooLow: recall below ``policy.min_recall``.
    """
    index = read(folder, rows.owners, spec)  # refuses another number of vectors
    generator = np.random.default_rng(policy.seed)
    alive = np.flatnonzero(rows.owners >= 0)

    def drawn(source: Any) -> NDArray[Any]:
        picked = np.sort(generator.choice(len(source), min(policy.sample, len(source)), replace=False))
        return np.asarray(rows.vectors[source[picked]] if source.ndim == 1 else source[picked], np.float32)

    samples = {"": drawn(alive if queries is None else queries)}
    if fresh:
        samples[" of the new"] = drawn(alive[alive >= len(rows.owners) - fresh])
    k = min(10, len(rows))
    sample = np.concatenate(list(samples.values()))
    truth = exact_search(rows.vectors, rows.owners, sample, k)[1]
    found = index.search(sample, k)[1]
    recalls, start = {}, 0
    for name, part in samples.items():
        own = slice(start, start := start + len(part))
        recalls[f"recall@{k}{name}"] = recall = mean_recall(found[own], truth[own])
        if recall < policy.min_recall:
            what, least = f"recall@{k}{name} of {spec.factory} against exact search", f">= {policy.min_recall}"
            fix = "search deeper (nprobe, efSearch, k_factor_rf), or choose by need with `index --recall`"
            raise RecallTooLow(what, expected=least, got=f"{recall:.3f}", fix=fix)
    unknown = set(np.unique(found).tolist()) - set(range(len(rows))) - {-1}
    if unknown:
        raise BadInput("the index returns videos that do not exist", got=str(sorted(unknown)[:5]))
    return {"videos": len(rows), "ids_unique": True, **recalls, "sample": len(samples[""])}


def mean_recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Mean share of each row of ``truth`` (Q, k) that stands in the same row of ``found`` (Q, k')."""
    return float((truth[:, :, None] == found[:, None, :]).any(axis=2).mean())


# -- decisions -------------------------------------------------------------------------------------------------------


def _changed(live: Generation, job: _Job) -> str:
    """Why every video must be pooled again, or nothing."""
    reasons = []
    if live.info["head"] != job.provenance.head:
        reasons.append(f"head {live.info['head']} -> {job.provenance.head}")
    if live.info["encoder"] != dict(job.provenance.encoder):
        reasons.append("the features have other settings")
    if _spec_of(live).to_dict() != job.spec.to_dict():
        reasons.append(f"index type {live.info['spec']['factory']} -> {job.spec.factory}")
    return ", ".join(reasons)


def _why_rebuild(live: Generation, rows: Rows, job: _Job) -> str:
    """Why the live index is not extended to hold these rows, or nothing."""
    if job.spec.on_disk:
        return "lists on disk belong to one generation"
    if needs_training(job.spec.factory, rows.vectors.shape[1]):
        trained = _trained_among(live)
        if len(rows.owners) > job.policy.max_grown * trained:
            return f"{job.spec.factory} was trained among {trained} vectors and would hold {len(rows.owners)}"
    if rows.dead > job.policy.max_dead * len(rows.owners):
        return f"{rows.dead} of {len(rows.owners)} vectors are deleted"
    return ""


def _trained_among(live: Generation) -> int:
    """How many vectors an index was built of; before this was recorded, trained types were never appended to."""
    return int(live.info.get("trained_among", live.info["vectors"]))


def _known_numbers(generations: GenerationStore) -> tuple[Numbers, int]:
    """The live generation's ids and their numbers, and the first number that no generation has used."""
    if generations.current() is None:
        return (Strings([]), np.zeros(0, np.int64)), 0
    with generations.open() as live:
        rows = live.rows()
    return (rows.video_ids, rows.numbers), _next_number(generations)


def _next_number(generations: GenerationStore) -> int:
    return max(int(record["next_number"]) for record in generations.records())


def _deleted(generations: GenerationStore) -> set[str]:
    """Ids that were deleted from the corpus: the live generation's list."""
    if generations.current() is None:
        return set()
    with generations.open() as live:
        return set(live.info.get("deleted", ()))


def _kept_out(video_ids: Sequence[str], deleted: set[str]) -> set[str]:
    """Those of the ids that were deleted earlier; logs how many they are."""
    gone = sorted(deleted)
    found = {gone[row] for row in np.flatnonzero(lookup(gone, video_ids) >= 0)}
    if found:
        log.info(f"{len(found)} of the videos stay out: deleted from the index earlier")
    return found


def _numbered(rows: Rows, before: Numbers, next_number: int) -> Rows:
    """Old videos keep their numbers, new ones get the next."""
    where = lookup(rows.video_ids, before[0])
    fresh = next_number + np.cumsum(where < 0) - 1
    return replace(rows, numbers=np.where(where < 0, fresh, np.append(before[1], 0)[where]))


def _new(ids: Strings, paths: Strings, held: Strings, kept_out: set[str]) -> tuple[Strings, Strings]:
    """Those of the ids to add, once each, that are neither held nor kept out, and the last path given for each."""
    if len(ids) != len(paths):
        raise BadInput("every video to add needs a path", expected=len(ids), got=len(paths))
    unknown = lookup(ids, held) < 0
    if kept_out:
        unknown &= lookup(ids, sorted(kept_out)) < 0
    last = last_of_each(ids.arrow)
    rows = last[unknown[last]]
    return ids.take(rows), paths.take(rows)


def _placed(rows: Rows, places: tuple[Strings, Strings] | None) -> Rows:
    """The rows with the paths that videos have now."""
    if places is None:
        return rows
    where = lookup(rows.video_ids, places[0])
    now = places[1].arrow.take(pa.array(where, mask=where < 0))
    return replace(rows, paths=Strings(pc.if_else(pa.array(where >= 0), now, Strings(rows.paths).arrow)))


def _not_in(names: set[str], held: Strings) -> list[str]:
    ordered = sorted(names)
    return [ordered[row] for row in np.flatnonzero(lookup(ordered, held) < 0)]


def _spec_of(live: Generation) -> IndexSpec:
    return IndexSpec.from_dict(live.info["spec"])


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    """Unit length along the last axis, whatever the shape: (V, D) or (V, M, D). Float16 is so already."""
    if vectors.dtype == np.float16:
        return vectors
    return normalised(vectors.reshape(-1, vectors.shape[-1])).reshape(vectors.shape)
