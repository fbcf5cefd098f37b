"""Evaluation of a head: exhaustive, exact, within a stated memory; and what two-stage search through an index loses.

    evaluation = evaluate(head, videos, texts, memory_limit=2_000_000_000)
    evaluation.contract()     # {"t2v": {...}, "v2t": {...}, "index": None or {...}, "protocol": {...}}
    evaluation.save(folder)   # metrics.json, and the counts of every query for `compare`

``videos`` and ``texts`` are one split of a feature store. Ranks are those of the full score matrix, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput, MissingData
from pipeline.evaluate.bootstrap import intervals, paired_difference
from pipeline.evaluate.index_loss import IndexedGallery, evaluate_index
from pipeline.evaluate.metrics import TIES, Counts, Ties, query_ranks, summarise, tie_line, tie_rule
from pipeline.evaluate.rank_counts import RankCounts, ScoreGrid, count_ranks, score_grid
from pipeline.evaluate.score_normalisation import dual_softmax, query_bank
from pipeline.retrieve.scorer import DEFAULT_MEMORY, MB, RetrievalHead, Scorer, bytes_beside, head_fingerprint
from pipeline.stores.atomic import write_json, write_together
from pipeline.stores.features import TextFeatures, VideoFeatures
from pipeline.stores.integrity import read_json
from pipeline.stores.shards import marker_path, read_shard, write_shard

log = logging.getLogger(__name__)
CAPTION_RULE = "t2v: every caption is a query; v2t: the best of a video's own captions, against all captions"


@dataclass(frozen=True)
class Options:
    """How to evaluate."""

    ties: Ties = "average"
    """Rank of a query that ties with wrong items, see `metrics.query_ranks`."""
    memory_limit: int = DEFAULT_MEMORY
    """Bytes that scoring may take."""
    resamples: int = 2000
    """Bootstrap resamples of the videos."""
    level: float = 0.95
    """Nominal coverage of the intervals."""
    seed: int = 0
    """Seed of the resampling."""
    normalisations: Sequence[str] = ()
    """Rows of normalised scores to add: "dual-softmax", "query-bank" (needs texts of the training split)."""
    shortlist: int = 50
    """Candidates that the index hands to exact re-ranking."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ties", tie_rule(self.ties))  # resolves the alias
        if self.shortlist < 1:
            raise BadInput("--shortlist", expected="1 or more", got=self.shortlist)
        if unknown := set(self.normalisations) - {"dual-softmax", "query-bank"}:
            raise BadInput("unknown normalisation", expected="dual-softmax | query-bank", got=", ".join(unknown))


@dataclass(frozen=True)
class Evaluation:
    """The metrics, and the counts of every query that they were made from."""

    metrics: dict[str, Any]
    t2v_counts: Counts
    v2t_counts: Counts
    caption_ids: list[str]
    """(T,) the queries of ``t2v_counts``."""
    own_video: list[str]
    """(T,) their videos."""
    captioned: list[str]
    """The queries of ``v2t_counts``, video ids."""
    lines: list[str] = field(default_factory=list)
    """Notes for the reader: how many queries tie."""

    def contract(self) -> dict[str, Any]:
        """What `evaluate --json` prints."""
        return {key: self.metrics[key] for key in ("t2v", "v2t", "index", "protocol")}

    def save(self, folder: Path) -> None:
        """metrics.json, t2v.parquet and v2t.parquet (counts of every query)."""
        t2v = {"caption_id": self.caption_ids, "video_id": self.own_video}
        with write_together(folder) as new:
            write_shard(new / "t2v.parquet", t2v | _columns(self.t2v_counts), marker={})
            write_shard(new / "v2t.parquet", {"video_id": self.captioned} | _columns(self.v2t_counts), marker={})
            write_json(new / "metrics.json", self.metrics)


def evaluate(
    head: RetrievalHead,
    videos: VideoFeatures,
    texts: TextFeatures,
    options: Options | None = None,
    *,
    index: IndexedGallery | None = None,
    bank: TextFeatures | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score every text with every video and summarise the ranks, within a memory limit.

    Args:
        head: the model.
        videos: the gallery, V of them.
        texts: the queries, T of them; each one's video must be in the gallery.
        index: measures two-stage search through it as well.
        bank: texts of the training split, for query-bank normalisation.
        protocol: what else the protocol says (split, label, selected_on, encoder fingerprint, ...).

    Raises:
        BadInput: nothing to evaluate, or the memory limit is too small.
        MissingData: a text's video is not in the gallery.
    """
    options = options or Options()
    order, own = order_by_video(texts, videos)
    texts = texts.select(order)
    beside = bytes_beside(len(texts), len(videos), head.config.dim)
    scorer = Scorer(head, videos, memory_limit=options.memory_limit - beside)
    needed = scorer.bytes_needed + beside
    log.info(f"exhaustive: {len(texts)} texts x {len(videos)} videos, needs {needed / MB:.0f} MB of memory")
    grid = score_grid(scorer, texts.text_embeds, own)
    if options.normalisations:  # later passes read the scores again
        grid = grid.kept(options.memory_limit - needed)
    counts = count_ranks(grid)
    lines = [line for line in (tie_line(counts.t2v, "t2v"), tie_line(counts.v2t, "v2t")) if line]
    metrics = _plain_rows(counts, own, options)
    if options.normalisations:
        normalised = _normalised_rows(scorer, grid, counts, bank, options)
        metrics["normalised"] = {name: row | {"ties": options.ties} for name, row in normalised.items()}
    metrics["index"] = None
    if index is not None:
        measured = evaluate_index(scorer, index, texts.text_embeds, own, counts.top, shortlist=options.shortlist)
        loss = metrics["t2v"]["R@1"] - measured.rerank_r1
        metrics["index"] = measured.contract(loss)
        metrics["index_details"] = measured.details()
    metrics["protocol"] = {
        "queries": {"t2v": len(texts), "v2t": len(counts.captioned)},
        "videos": len(videos),
        "caption_rule": CAPTION_RULE,
        "tie_rule": options.ties,
        "ties": lines,
        "bootstrap": {"resamples": options.resamples, "level": options.level, "unit": "video", "seed": options.seed},
        "head": head.config.to_dict(),
        "head_fingerprint": head_fingerprint(head),
        "memory_bytes": {"needed": needed, "limit": options.memory_limit},
        **(protocol or {}),
    }
    ids = np.array(videos.video_ids, dtype=object)
    return Evaluation(
        metrics,
        counts.t2v,
        counts.v2t,
        list(texts.caption_ids),
        list(texts.video_ids),
        ids[counts.captioned].tolist(),
        lines,
    )


def both_directions(
    head: RetrievalHead, videos: VideoFeatures, texts: TextFeatures, options: Options
) -> dict[str, Any]:
    """`t2v` and `v2t` of a head alone: no intervals, no index. Arguments and errors as of `evaluate`."""
    order, own = order_by_video(texts, videos)
    texts = texts.select(order)
    beside = bytes_beside(len(texts), len(videos), head.config.dim)
    scorer = Scorer(head, videos, memory_limit=options.memory_limit - beside)
    counts = count_ranks(score_grid(scorer, texts.text_embeds, own))
    return {
        "t2v": summarise(counts.t2v, counts.videos, options.ties),
        "v2t": summarise(counts.v2t, counts.texts, options.ties),
    }


def order_by_video(texts: TextFeatures, videos: VideoFeatures) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order that sorts texts by their video's row (T,), and those rows in that order (T,)."""
    if not len(texts) or not len(videos):
        raise BadInput("nothing to evaluate", expected="texts and videos", got=f"{len(texts)} and {len(videos)}")
    row = {video_id: i for i, video_id in enumerate(videos.video_ids)}
    absent = sorted(set(texts.video_ids) - row.keys())
    if absent:
        raise MissingData(f"{len(absent)} texts' videos are not in the gallery", got=f"no {absent[0]!r}")
    own = np.array([row[v] for v in texts.video_ids], dtype=np.int64)
    order = np.argsort(own, kind="stable")
    return order, own[order]


def _plain_rows(counts: RankCounts, own: NDArray[np.int64], options: Options) -> dict[str, Any]:
    """Both directions, their intervals, every other tie rule, and the other caption rule where it makes a
    difference."""
    rows: dict[str, Any] = {
        "t2v": summarise(counts.t2v, counts.videos, options.ties),
        "v2t": summarise(counts.v2t, counts.texts, options.ties),
    }
    if counts.texts > len(counts.captioned):
        rows["v2t_group_max"] = summarise(counts.v2t_group_max, len(counts.captioned), options.ties)
    sampling = {"resamples": options.resamples, "level": options.level, "seed": options.seed}
    rule: Ties = "average" if options.ties == "clip4clip" else options.ties  # clip4clip has no rank a query
    rows["intervals"] = {
        "t2v": intervals(query_ranks(counts.t2v, rule), own, **sampling),  # type: ignore[arg-type]
        "v2t": intervals(query_ranks(counts.v2t, rule), counts.captioned, **sampling),  # type: ignore[arg-type]
    }
    rows["by_tie_rule"] = {rule: summarise(counts.t2v, counts.videos, rule) for rule in TIES}
    return rows


def _normalised_rows(
    scorer: Scorer, grid: ScoreGrid, counts: RankCounts, bank: TextFeatures | None, options: Options
) -> dict[str, dict[str, Any]]:
    rows = {}
    if "dual-softmax" in options.normalisations:
        t2v, v2t = count_ranks(dual_softmax(grid, "texts")).t2v, count_ranks(dual_softmax(grid, "videos")).v2t
        rows["t2v dual softmax (all test queries at once)"] = summarise(t2v, counts.videos, options.ties)
        rows["v2t dual softmax (all test videos at once)"] = summarise(v2t, counts.texts, options.ties)
    if "query-bank" in options.normalisations:
        if bank is None or not len(bank):
            raise BadInput("query-bank normalisation needs texts of the training split", got="none")
        bank_grid = score_grid(scorer, bank.text_embeds, np.zeros(len(bank), np.int64))
        t2v = count_ranks(query_bank(grid, bank_grid, counts.top)).t2v
        name = f"t2v query-bank normalisation (bank of {len(bank)} training texts)"
        rows[name] = summarise(t2v, counts.videos, options.ties)
    return rows


def compare(a: Path, b: Path, *, ties: Ties = "average", resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Paired differences b - a of two saved evaluations, with 95 % intervals over videos.

    Args:
        a, b: folders that `Evaluation.save` wrote; the same queries, in whatever order.

    Returns:
        ``{"t2v" | "v2t": {figure: {"a", "b", "difference", "interval"}}, "protocol"}``.

    Raises:
        BadInput: other queries, or a tie rule without a single rank a query.
        MissingData: no evaluation in a folder.
        CorruptShard: a damaged one, or one without checksums.
    """
    ties = tie_rule(ties)
    if ties == "clip4clip":
        raise BadInput("clip4clip has no single rank a query", expected="another tie rule", got=ties)
    out: dict[str, Any] = {}
    for direction, key in (("t2v", "caption_id"), ("v2t", "video_id")):
        (ids_a, videos, counts_a), (ids_b, _, counts_b) = (_read_counts(folder, direction, key) for folder in (a, b))
        if sorted(ids_a) != sorted(ids_b):
            only = sorted(set(ids_a) ^ set(ids_b))
            raise BadInput(f"{a} and {b} measured other queries ({direction})", got=f"{only[0]!r} in one of them only")
        place = {name: i for i, name in enumerate(ids_b)}
        counts_b = counts_b.take(np.array([place[name] for name in ids_a]))
        ranks_a, ranks_b = query_ranks(counts_a, ties), query_ranks(counts_b, ties)
        out[direction] = paired_difference(ranks_a, ranks_b, np.array(videos), resamples=resamples, seed=seed)
    cards = [_read_sealed(folder / "metrics.json", {"protocol": dict})["protocol"] for folder in (a, b)]
    out["protocol"] = {"a": cards[0], "b": cards[1], "tie_rule": ties, "resamples": resamples, "seed": seed}
    return out


def _read_sealed(path: Path, needs: Mapping[str, Any] | None = None) -> Any:
    """JSON of an evaluation. It is made again in minutes, so what carries no checksum is not believed."""
    return read_json(path, needs or {}, unsealed="run `python cli.py evaluate` again")


def _columns(counts: Counts) -> dict[str, Any]:
    return {"better": counts.better, "tied": counts.tied, "tied_before": counts.tied_before}


def _read_counts(folder: Path, direction: str, key: str) -> tuple[list[str], list[str], Counts]:
    path = folder / f"{direction}.parquet"
    if not path.exists():
        raise MissingData(f"no evaluation in {folder}", expected=path.name, fix="run `python cli.py evaluate`")
    _read_sealed(marker_path(path))
    shard: dict[str, Any] = read_shard(path)
    return shard[key], shard["video_id"], Counts(shard["better"], shard["tied"], shard["tied_before"])
