"""From pooled vectors to a new, verified, live generation: build, append, delete, or rebuild when appending would not
do.

The work happens beside the live generation; readers see the new one only after its verification (``verify``): counts,
unique ids, and recall against exact search on a sample. Vectors come from a function of video ids, so that a rebuild
(another head, drift) pools all cached features again and nothing is decoded.
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
class Maker:
    """What an index was made with; a change of either forces a rebuild. ``head``: `head_fingerprint`; ``encoder``: the
    feature store's settings. ``origin``: where to find both again (names, and the folder of a head that lies
    elsewhere)."""

    head: str
    encoder: Mapping[str, Any]
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """When appending is not good enough, and what a generation must reach.

    ``max_dead``: share of deleted vectors. ``max_growth``: vectors held over vectors trained on, for types that train.
    ``max_drift``: distance of the new vectors' mean from the trained ones', in standard deviations of these; ditto.
    ``min_recall``: recall@10 against exact search, on ``sample`` queries.
    """

    max_dead: float = 0.2
    max_growth: float = 4.0
    max_drift: float = 0.5
    min_recall: float = 0.9
    sample: int = 200
    seed: int = 24


@dataclass(frozen=True)
class Reindexed:
    """What came of it; ``how`` says whether vectors were appended, and why not if not."""

    generation: str
    added: int
    deleted: int
    total: int
    verified: dict[str, Any]
    how: str

    def contract(self) -> dict[str, Any]:
        """What `reindex --json` prints; a generation that fails its verification never comes to be."""
        names = ("generation", "added", "deleted", "total")
        return {name: getattr(self, name) for name in names} | {"verified": bool(self.verified)}


@dataclass(frozen=True)
class _Job:
    """One generation to be made."""

    spec: IndexSpec
    maker: Maker
    policy: Policy
    queries: NDArray[Any] | None
    gpu: bool
    deleted: set[str]  # by this call and by all before


def build_index(
    generations: GenerationStore,
    video_ids: Sequence[str],
    paths: Sequence[str],
    vectors: NDArray[Any],
    *,
    spec: IndexSpec,
    maker: Maker,
    policy: Policy | None = None,
    queries: NDArray[Any] | None = None,
    gpu: bool = False,
) -> Reindexed:
    """A new live generation that holds exactly these videos, those aside that were deleted from the corpus. Videos that
    the corpus has held keep their numbers.

    ``queries`` (Q, D): aligned texts to verify recall with; a sample of the vectors where left out.
    """
    with generations.lock():
        deleted = _deleted(generations)
        job = _Job(spec, maker, policy or Policy(), queries, gpu, deleted)
        before, next_number = _known_numbers(generations)
        rows = _numbered(build_rows(list(video_ids), list(paths), _unit(vectors)), before, next_number)
        rows = compacted(without(rows, _kept_out(video_ids, deleted)))
        name, verified = _publish(generations, rows, job, "built")
    held = set(rows.video_ids)
    return Reindexed(name, len(held - before.keys()), len(before.keys() - held), len(rows), verified, "built")


def reindex_vectors(
    generations: GenerationStore,
    *,
    add_ids: Sequence[str] = (),
    add_paths: Sequence[str] = (),
    delete: Collection[str] = (),
    pool: Pool,
    maker: Maker,
    spec: IndexSpec | None = None,
    policy: Policy | None = None,
    queries: NDArray[Any] | None = None,
    gpu: bool = False,
) -> Reindexed:
    """Delete videos from the live generation, add others, and switch to the result.

    Ids in ``add_ids`` that are there already are left alone, unless they are deleted in the same call (then they are
    replaced, under a new number); those that an earlier call deleted stay out. ``spec=None`` keeps the live index's
    type. With nothing to do, nothing is written.
    Raises BadInput for an unknown id in ``delete``, and when even a rebuilt index misses ``policy.min_recall``.
    """
    policy = policy or Policy()
    with generations.lock():
        deleted = _deleted(generations)
        if generations.current() is None:
            live, rows = None, None
            ids, locations = list(add_ids), list(add_paths)
            if delete:
                raise BadInput("cannot delete from a corpus without an index", fix="run `python cli.py index`")
        else:
            live = generations.open()
            rows = without(live.rows(), set(delete))
            there = set(rows.video_ids) | _kept_out(add_ids, deleted)
            new = [(v, p) for v, p in zip(add_ids, add_paths, strict=True) if v not in there]
            ids, locations = [v for v, _ in new], [p for _, p in new]
        try:
            job = _Job(spec or _spec_of(live), maker, policy, queries, gpu, deleted | set(delete))
            return _update(generations, live, rows, ids, locations, len(delete), pool, job)
        finally:
            if live is not None:
                live.close()


def _update(
    generations: GenerationStore,
    live: Generation | None,
    rows: Rows | None,
    ids: list[str],
    locations: list[str],
    deleted: int,
    pool: Pool,
    job: _Job,
) -> Reindexed:
    _, next_number = _known_numbers(generations)
    if live is None or rows is None:
        merged = build_rows(ids, locations, _unit(pool(ids)))
        how = "built"
    elif changed := _changed(live, job):
        kept = compacted(rows)
        ids_all = kept.video_ids + ids
        numbers = np.concatenate([kept.numbers, np.arange(next_number, next_number + len(ids))])
        merged = build_rows(ids_all, kept.paths + locations, _unit(pool(ids_all)))
        merged, how = replace(merged, numbers=numbers), f"rebuilt: {changed}"
    elif not ids and not deleted:
        return Reindexed(live.name, 0, 0, len(rows), dict(live.info["verified"]), "nothing to do")
    else:
        new = build_rows(ids, locations, _unit(pool(ids)), first_number=next_number) if ids else None
        merged = rows if new is None else joined(rows, new)
        if reason := _why_not_append(live, rows, new, merged, job):
            merged, how = compacted(merged), f"rebuilt: {reason}"
        else:
            how = "appended"
    name, verified = _publish(generations, merged, job, how, appended_to=live if how == "appended" else None)
    return Reindexed(name, len(ids), deleted, len(merged), verified, how)


def _publish(
    generations: GenerationStore, rows: Rows, job: _Job, how: str, appended_to: Generation | None = None
) -> tuple[str, dict[str, Any]]:
    """Write, verify and switch; an appended index whose recall is too low is rebuilt."""
    if not len(rows):
        raise BadInput("an index needs at least one video", got="none left", fix="delete the corpus's folder instead")
    trained = int(appended_to.info["trained_on"]) if appended_to else len(rows.owners)
    _, next_number = _known_numbers(generations)
    info = {
        "spec": job.spec.to_dict(),
        "head": job.maker.head,
        "encoder": dict(job.maker.encoder),
        "origin": dict(job.maker.origin),
        "trained_on": trained,
        "next_number": max(next_number, int(rows.numbers.max()) + 1 if len(rows) else 0),
        "deleted": sorted(job.deleted.difference(rows.video_ids)),
        "how": how,
    }
    log.info(f"{how}: {len(rows)} videos, {len(rows.owners)} vectors, {job.spec.factory}")

    def write_index(folder: Path) -> None:
        if appended_to is None:
            index = build(rows.vectors, job.spec, rows.owners, gpu=job.gpu, folder=folder)
        else:
            old = appended_to.rows()
            index = read(appended_to.path, old.owners, job.spec, mmap=False)
            index = index.add(rows.vectors[len(old.owners) :], rows.owners[len(old.owners) :])
        index.write(folder)

    def check(folder: Path) -> dict[str, Any]:
        return verify(folder, rows, job.spec, job.policy, job.queries)

    try:
        name = generations.write(rows, write_index, info, check)
    except RecallTooLow as error:
        if appended_to is None:
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
    """Read a written index back and compare it with exact search; RecallTooLow if it misses too much.

    Recall@10 on a sample of ``queries``, or of the videos' own vectors. Ids and counts were checked by ``Rows.check``.
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
    """Why every vector must be made anew, or nothing."""
    reasons = []
    if live.info["head"] != job.maker.head:
        reasons.append(f"head {live.info['head']} -> {job.maker.head}")
    if live.info["encoder"] != dict(job.maker.encoder):
        reasons.append("the features have other settings")
    if _spec_of(live).to_dict() != job.spec.to_dict():
        reasons.append(f"index type {live.info['spec']['factory']} -> {job.spec.factory}")
    return ", ".join(reasons)


def _why_not_append(live: Generation, rows: Rows, new: Rows | None, merged: Rows, job: _Job) -> str:
    """Why the old index cannot serve as the start of the new one, or nothing."""
    policy = job.policy
    if job.spec.on_disk:
        return "lists on disk are written once"
    if merged.dead > policy.max_dead * len(merged.owners):
        return f"{merged.dead} of {len(merged.owners)} vectors are deleted"
    if merged.dead and not read(live.path, live.rows().owners, job.spec).can_mask():
        return f"{job.spec.factory} cannot leave deleted vectors out"
    if new is None or not needs_training(job.spec.factory, merged.vectors.shape[1]):
        return ""
    trained = int(live.info["trained_on"])
    if len(merged.owners) > policy.max_growth * trained:
        return f"{len(merged.owners)} vectors on a training of {trained}"
    if (drifted := drift(rows.vectors[:trained], new.vectors)) > policy.max_drift:
        return f"new vectors drift by {drifted:.2f} standard deviations"
    return ""


def drift(old: NDArray[Any], new: NDArray[Any]) -> float:
    """Distance between the means of two sets of unit vectors (R, D), (R', D), over the old set's standard deviation."""
    a, b = np.asarray(old, np.float32), np.asarray(new, np.float32)
    spread = float(np.sqrt(a.var(axis=0).sum()))
    return float(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0))) / max(spread, 1e-6)


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


def _spec_of(live: Generation | None) -> IndexSpec:
    return IndexSpec() if live is None else IndexSpec.from_dict(live.info["spec"])


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Unit length along the last axis, whatever the shape: (V, D) or (V, M, D)."""
    return normalised(vectors.reshape(-1, vectors.shape[-1])).reshape(vectors.shape)
