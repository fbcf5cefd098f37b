"""Build an index generation from pooled vectors, and update it: add, delete, or rebuild.

The work happens beside the live generation. Readers see the new one only after ``verify``: counts, unique ids, and
recall against exact search on a sample. Vectors come from a function of video ids, so that a rebuild with another head
pools the cached features again; nothing is decoded.

When an update appends (measured by benchmarks/append.py, 1 % new vectors of width 128, 2 shared cores): types that need
no training do, because a graph takes 72 s to build for 3x10^5 vectors and 1.3 s to extend (10^5: 7.6 s and 0.3 s; 10^4:
0.5 s). Types that train (IVF, PQ, SQ8) are rebuilt from the kept vectors, 39 s for 3x10^5 and 6 s for 10^5: their lists
always fit what they hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.retrieve.exact_search import exact_search, normalised
from pipeline.retrieve.index import IndexSpec, build, needs_training, read
from pipeline.stores.generations import Generation, GenerationStore
from pipeline.stores.rows import Rows, build_rows, compacted, joined, without

Pool = Callable[[list[str]], NDArray[Any]]  # video ids -> vectors (V, D), or (V, M, D)
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
        names = ("generation", "added", "deleted", "replaced", "total")
        told = {name: getattr(self, name) for name in names} | {"verified": bool(self.verified)}
        return told if self.files is None else told | {"files": dict(self.files)}


@dataclass(frozen=True)
class _Job:
    """How to make a generation, whatever rows it holds."""

    spec: IndexSpec
    provenance: Provenance
    policy: Policy
    queries: NDArray[Any] | None
    gpu: bool
    deleted: set[str]
    """Ids deleted from the corpus by this call and all before."""


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
    gpu: bool = False,
) -> Reindexed:
    """Publish a generation that holds exactly these videos, except those that were deleted from the corpus.

    Videos that the live generation holds keep their numbers.

    Args:
        generations: the corpus; its lock is taken.
        video_ids, paths: V of each.
        vectors: (V, D), or (V, M, D) for M vectors a video; any float type and length.
        spec: index type and search parameters.
        provenance: head and encoder of the vectors.
        queries: (Q, D) aligned texts to measure recall on; the vectors themselves where left out.
        gpu: train and add on the GPU.

    Raises:
        RecallTooLow: the index misses ``policy.min_recall``; the live generation stays.
        BadInput: no video is left.
    """
    with generations.lock():
        deleted = _deleted(generations)
        job = _Job(spec, provenance, policy or Policy(), queries, gpu, deleted)
        before, next_number = _known_numbers(generations)
        rows = _numbered(build_rows(list(video_ids), list(paths), _unit(vectors)), before, next_number)
        rows = compacted(without(rows, _kept_out(video_ids, deleted)))
        name, verified = _publish(generations, rows, job, "built")
    held = set(rows.video_ids)
    return Reindexed(name, len(held - before.keys()), len(before.keys() - held), len(rows), verified, "built")


def update_index(
    generations: GenerationStore,
    *,
    add_ids: Sequence[str] = (),
    add_paths: Sequence[str] = (),
    delete: Collection[str] = (),
    drop: Collection[str] = (),
    places: Mapping[str, str] | None = None,
    pool: Pool,
    provenance: Provenance,
    spec: IndexSpec | None = None,
    policy: Policy | None = None,
    queries: NDArray[Any] | None = None,
    gpu: bool = False,
) -> Reindexed:
    """Delete videos from the live generation, add others, and publish the result.

    Ids that are indexed already are skipped, unless the same call deletes them (they are then replaced, under a new
    number). Ids that an earlier call deleted stay out. With nothing to do, nothing is written.

    Args:
        add_ids, add_paths: videos to add.
        delete: ids to delete.
        drop: ids to take out that may come back later: files that are gone, and, with ``add_ids``, changed ones.
        places: id -> path, of indexed videos too: their folder may have moved.
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
        rows = without(live.rows(), {*delete, *drop})
        before_paths, places = rows.paths, places or {}
        rows = replace(rows, paths=[places.get(v, path) for v, path in zip(rows.video_ids, rows.paths, strict=True)])
        skipped = set(rows.video_ids) | _kept_out(add_ids, deleted)
        new = {v: path for v, path in zip(add_ids, add_paths, strict=True) if v not in skipped}
        ids, paths = list(new), list(new.values())
        job = _Job(
            spec or _spec_of(live), provenance, policy or Policy(), queries, gpu, deleted | set(delete)
        )  # fmt: skip
        next_number = _known_numbers(generations)[1]
        if changed := _changed(live, job):
            every, before = rows.video_ids + ids, dict(zip(rows.video_ids, rows.numbers.tolist(), strict=True))
            pooled = build_rows(every, rows.paths + paths, _unit(pool(every)))
            merged, how = compacted(_numbered(pooled, before, next_number)), f"rebuilt: {changed}"
        elif not ids and not delete and not drop and rows.paths == before_paths:
            return Reindexed(live.name, 0, 0, len(rows), dict(live.info["verified"]), "nothing to do")
        else:
            added = build_rows(ids, paths, _unit(pool(ids)), first_number=next_number) if ids else None
            merged = rows if added is None else joined(rows, added)
            reason = _why_rebuild(merged, job)
            merged, how = (compacted(merged), f"rebuilt: {reason}") if reason else (merged, "appended")
        name, verified = _publish(generations, merged, job, how, append_to=live if how == "appended" else None)
    replaced = len(set(drop) & set(ids))
    deleted_now = len({*delete, *drop}) - replaced
    return Reindexed(name, len(ids) - replaced, deleted_now, len(merged), verified, how, replaced)


def _publish(
    generations: GenerationStore, rows: Rows, job: _Job, how: str, append_to: Generation | None = None
) -> tuple[str, dict[str, Any]]:
    """Write, verify and switch; an appended index whose recall is too low is rebuilt."""
    if not len(rows):
        raise BadInput("an index needs at least one video", got="none left", fix="delete the corpus's folder instead")
    info = {
        "spec": job.spec.to_dict(),
        "head": job.provenance.head,
        "encoder": dict(job.provenance.encoder),
        "origin": dict(job.provenance.origin),
        "next_number": max(_known_numbers(generations)[1], int(rows.numbers.max()) + 1),
        "last_shard": job.provenance.last_shard,
        "deleted": sorted(job.deleted.difference(rows.video_ids)),
        "how": how,
    }
    log.info(f"{how}: {len(rows)} videos, {len(rows.owners)} vectors, {job.spec.factory}")

    def write_index(folder: Path) -> None:
        if append_to is None:
            index = build(rows.vectors, job.spec, rows.owners, gpu=job.gpu, folder=folder)
        else:
            old = append_to.rows().owners
            index = read(append_to.path, old, job.spec, mmap=False).add(rows.vectors[len(old) :], rows.owners)
        index.write(folder)

    def check(folder: Path) -> dict[str, Any]:
        return verify(folder, rows, job.spec, job.policy, job.queries)

    try:
        name = generations.write(rows, write_index, info, check)
    except RecallTooLow as error:
        if append_to is None:
            raise
        return _publish(generations, compacted(rows), job, f"rebuilt: {error}")
    generations.switch(name)
    with generations.open(name) as generation:
        return name, dict(generation.info["verified"])


class RecallTooLow(BadInput):
    """An index that does not find what exact search finds."""


def verify(
    folder: Path, rows: Rows, spec: IndexSpec, policy: Policy, queries: NDArray[Any] | None = None
) -> dict[str, Any]:
    """Read a written index back and compare it with exact search.

    Args:
        folder: where index.faiss lies.
        rows: what it must hold; ids and counts are checked by ``Rows.check``.
        queries: (Q, D) to draw the sample from; the videos' own vectors where left out.

    Returns:
        ``{"videos", "ids_unique", "recall@10", "sample"}``, kept in index.json.

    Raises:
        RecallTooLow: recall below ``policy.min_recall``.
    """
    index = read(folder, rows.owners, spec)  # refuses another number of vectors
    generator = np.random.default_rng(policy.seed)
    source = rows.vectors[np.flatnonzero(rows.owners >= 0)] if queries is None else queries
    sample = source[np.sort(generator.choice(len(source), min(policy.sample, len(source)), replace=False))]
    k = min(10, len(rows))
    truth = exact_search(rows.vectors, rows.owners, sample, k)[1]
    found = index.search(sample, k)[1]
    recall = mean_recall(found, truth)
    if recall < policy.min_recall:
        what, least = f"recall@{k} of {spec.factory} against exact search", f">= {policy.min_recall}"
        fix = "search deeper (nprobe, efSearch, k_factor_rf), or choose by need with `index --recall`"
        raise RecallTooLow(what, expected=least, got=f"{recall:.3f}", fix=fix)
    unknown = set(np.unique(found).tolist()) - set(range(len(rows))) - {-1}
    if unknown:
        raise BadInput("the index returns videos that do not exist", got=str(sorted(unknown)[:5]))
    return {"videos": len(rows), "ids_unique": True, f"recall@{k}": recall, "sample": len(sample)}


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


def _why_rebuild(rows: Rows, job: _Job) -> str:
    """Why the live index is not extended to hold these rows, or nothing."""
    if needs_training(job.spec.factory, rows.vectors.shape[1]):
        return f"{job.spec.factory} is trained on what it holds"
    if rows.dead > job.policy.max_dead * len(rows.owners):
        return f"{rows.dead} of {len(rows.owners)} vectors are deleted"
    return ""


def _known_numbers(generations: GenerationStore) -> tuple[dict[str, int], int]:
    """video_id -> number in the live generation, and the first number that no generation has used."""
    if generations.current() is None:
        return {}, 0
    with generations.open() as live:
        rows = live.rows()
    used = [int(record["next_number"]) for record in generations.records()]
    return dict(zip(rows.video_ids, rows.numbers.tolist(), strict=True)), max(used)


def _deleted(generations: GenerationStore) -> set[str]:
    """Ids that were deleted from the corpus: the live generation's list."""
    if generations.current() is None:
        return set()
    with generations.open() as live:
        return set(live.info.get("deleted", ()))


def _kept_out(video_ids: Sequence[str], deleted: set[str]) -> set[str]:
    """Those of the ids that were deleted earlier; logs how many they are."""
    found = deleted.intersection(video_ids)
    if found:
        log.info(f"{len(found)} of the videos stay out: deleted from the index earlier")
    return found


def _numbered(rows: Rows, before: Mapping[str, int], next_number: int) -> Rows:
    """Old videos keep their numbers, new ones get the next."""
    fresh = iter(range(next_number, next_number + len(rows)))
    numbers = [before[v] if v in before else next(fresh) for v in rows.video_ids]
    return replace(rows, numbers=np.array(numbers, dtype=np.int64))


def _spec_of(live: Generation) -> IndexSpec:
    return IndexSpec.from_dict(live.info["spec"])


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Unit length along the last axis, whatever the shape: (V, D) or (V, M, D)."""
    return normalised(vectors.reshape(-1, vectors.shape[-1])).reshape(vectors.shape)
