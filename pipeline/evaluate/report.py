"""report.html: one evaluation on one page that opens offline, with its tables, figures and worst failures.

    samples = sample_queries(head, evaluation, videos, texts)
    write_report(folder / "report.html", evaluation, samples=samples, picture=decode_a_still)

``picture(video_id, path)`` returns an encoded still (PNG or JPEG) or None; the decoder belongs to stage 1, so it is
passed in.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.metrics import FIGURES, Counts, query_ranks
from pipeline.evaluate.plots import COLOURS, LINES, dress, histograms, panels
from pipeline.retrieve.autotune import OperatingPoint
from pipeline.retrieve.scorer import RetrievalHead, Scorer
from pipeline.stores.atomic import atomic_write
from pipeline.stores.features import TextFeatures, VideoFeatures

Picture = Callable[[str, str], bytes | None]


@dataclass(frozen=True)
class Shown:
    """A video beside a query."""

    video_id: str
    path: str
    score: float
    right: bool


@dataclass(frozen=True)
class Sample:
    """A query and its best videos."""

    caption_id: str
    caption: str
    rank: float
    """Of the right video, averaged over ties."""
    hits: list[Shown]
    """The best videos, and the right one last if it is not among them."""


@dataclass(frozen=True)
class Chart:
    id: str
    caption: str
    svg: Markup


def sample_queries(
    head: RetrievalHead,
    evaluation: Evaluation,
    videos: VideoFeatures,
    texts: TextFeatures,
    *,
    count: int = 24,
    top: int = 5,
    seed: int = 24,
) -> list[Sample]:
    """The worst half and a random half of ``count`` queries, worst rank first, each scored against the whole
    gallery."""
    ranks = query_ranks(evaluation.t2v_counts)
    worst = np.argsort(-ranks, kind="stable")
    few = min(count // 2, len(ranks))
    rest = np.random.default_rng(seed).permutation(worst[few:])[: count - few]
    chosen = np.concatenate([worst[:few], rest[np.argsort(-ranks[rest], kind="stable")]])
    row = {caption_id: i for i, caption_id in enumerate(texts.caption_ids)}
    picked = texts.select(np.array([row[evaluation.caption_ids[q]] for q in chosen], dtype=np.int64))
    scores = Scorer(head, videos).full(picked.text_embeds)
    places = {video_id: i for i, video_id in enumerate(videos.video_ids)}
    samples = []
    for q, caption_id, caption, own, line in zip(
        chosen, picked.caption_ids, picked.captions, picked.video_ids, scores, strict=True
    ):
        best = np.argsort(-line, kind="stable")[:top].tolist()
        right = places[own]
        shown = best if right in best else [*best, right]
        hits = [Shown(videos.video_ids[i], videos.paths[i], float(line[i]), i == right) for i in shown]
        samples.append(Sample(caption_id, caption, float(ranks[q]), hits))
    return samples


def write_report(
    path: Path,
    evaluation: Evaluation,
    *,
    title: str | None = None,
    samples: Sequence[Sample] = (),
    picture: Picture = lambda _id, _path: None,
    trade_off: Sequence[OperatingPoint] = (),
    gaps: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
) -> Path:
    """Write the page (atomically) and return its path.

    Args:
        samples: queries to show, from `sample_queries`.
        picture: (video_id, path) -> an encoded still (PNG or JPEG), or None.
        trade_off: operating points of `autotune`.
        gaps: {measure: {"before": values (N,), "after": values}}, drawn as histograms (`modality_gap.gap`).
    """
    metrics, protocol = evaluation.metrics, evaluation.metrics["protocol"]
    page = _template().render(
        title=title or f"{protocol.get('dataset', 'evaluation')}: {protocol.get('run', protocol['head']['head'])}",
        subtitle=_subtitle(protocol),
        lines=evaluation.lines,
        figures=FIGURES,
        plain=_plain_rows(metrics),
        normalised=[_row(name, row) for name, row in metrics.get("normalised", {}).items()],
        by_tie_rule=[_row(name, row) for name, row in metrics["by_tie_rule"].items()],
        level=f"{100 * protocol['bootstrap']['level']:g}",
        tie_rule=protocol["tie_rule"],
        index=_index_rows(metrics),
        charts=_charts(evaluation, trade_off, gaps or {}),
        samples=[_with_pictures(sample, picture) for sample in samples],
        protocol=json.dumps(protocol, indent=2, ensure_ascii=False, default=str),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


# -- tables ----------------------------------------------------------------------------------------------------------


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("report.html.j2")


def _subtitle(protocol: Mapping[str, Any]) -> str:
    parts = [
        f"{protocol['queries']['t2v']} texts, {protocol['videos']} videos",
        f"split {protocol['split']}" if protocol.get("split") else "",
        f"checkpoint selected on {protocol['selected_on']}" if protocol.get("selected_on") else "",
        str(protocol["label"]) if protocol.get("label") else "",
        str(protocol["caption_rule"]),
    ]
    return " · ".join(part for part in parts if part)


def _plain_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = {"t2v": "text to video", "v2t": "video to text", "v2t_group_max": "video to text, best of each group"}
    return [_row(name, metrics[key], metrics["intervals"].get(key)) for key, name in names.items() if key in metrics]


def _row(name: str, metrics: Mapping[str, Any], intervals: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "metrics": metrics, "intervals": intervals}


def _index_rows(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    if metrics["index"] is None:
        return None
    part, details = metrics["index"], metrics["index_details"]
    return {
        "shortlist": details["shortlist"],
        "factory": details.get("spec", {}).get("factory", "in memory"),
        "lengths": sorted(part["shortlist_recall"], key=int),
        "kept": part["shortlist_recall"],
        "right": details["shortlist_holds_right_video"],
        "r1": part["R@1"],
        "loss": part["loss"],
        "qps": part["queries_per_second"],
        "latency": details["latency_ms_one_by_one"],
        "megabytes": f"{part['bytes'] / 1e6:.1f}",
    }


def _with_pictures(sample: Sample, picture: Picture) -> dict[str, Any]:
    hits = [vars(hit) | {"image": _data_uri(picture(hit.video_id, hit.path))} for hit in sample.hits]
    return vars(sample) | {"hits": hits}


def _data_uri(image: bytes | None) -> str | None:
    if image is None:
        return None
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


# -- figures ---------------------------------------------------------------------------------------------------------


def _charts(
    evaluation: Evaluation, trade_off: Sequence[OperatingPoint], gaps: Mapping[str, Mapping[str, NDArray[Any]]]
) -> list[Chart]:
    charts = [_recall_curves({"text to video": evaluation.t2v_counts, "video to text": evaluation.v2t_counts})]
    if evaluation.metrics["index"] is not None:
        charts.append(_shortlist_curve(evaluation.metrics))
    if trade_off:
        charts.append(_trade_off(trade_off))
    return charts + [_gap(name, values) for name, values in gaps.items()]


def _recall_curves(counts: Mapping[str, Counts]) -> Chart:
    figure, axes = _axes("K", "R@K, %")
    for colour, line, (name, of) in zip(COLOURS, LINES, counts.items(), strict=False):
        ranks = np.sort(query_ranks(of))
        ks = np.unique(np.geomspace(1, max(2, min(1000, ranks[-1])), 60).astype(int))
        axes.plot(ks, 100 * np.searchsorted(ranks, ks, side="right") / len(ranks), line, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, loc="lower right")
    return _chart(figure, "recall-curves", "Share of queries whose right item is among the first K.")


def _shortlist_curve(metrics: Mapping[str, Any]) -> Chart:
    figure, axes = _axes("shortlist", "%")
    curves = {
        "keeps the exhaustive best": metrics["index"]["shortlist_recall"],
        "holds the right video": metrics["index_details"]["shortlist_holds_right_video"],
        "R@1 after re-ranking": metrics["index_details"]["R@1_by_shortlist"],
    }
    for colour, line, (name, values) in zip(COLOURS, LINES, curves.items(), strict=False):
        ks = sorted(values, key=int)
        axes.plot([int(k) for k in ks], [values[k] for k in ks], f"o{line}", color=colour, label=name, markersize=4)
    axes.axhline(metrics["t2v"]["R@1"], color="#5d6678", linestyle=":", label="R@1, exhaustive")
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    return _chart(figure, "shortlist", "What a shortlist from the index keeps of the exhaustive result.")


def _trade_off(points: Sequence[OperatingPoint]) -> Chart:
    figure, axes = _axes("recall against exact search", "queries a second, in batches")
    largest = max(point.bytes for point in points)
    for point in points:
        colour, area = COLOURS[1] if point.misses else COLOURS[0], 20 + 300 * point.bytes / largest
        axes.scatter(point.recall, point.queries_per_second, s=area, color=colour, alpha=0.5)
        axes.annotate(
            point.spec.factory,
            (point.recall, point.queries_per_second),
            fontsize=7,
            xytext=(4, 4),
            textcoords="offset points",
        )
    axes.set_yscale("log")
    axes.margins(0.15)
    return _chart(figure, "trade-off", "Index types: area is size; orange ones miss what was asked for.")


def _gap(name: str, values: Mapping[str, NDArray[Any]]) -> Chart:
    figure, (axes,) = panels()
    histograms(axes, name, values)
    return _chart(figure, "gap-" + "-".join(name.lower().split()), f"{name} over relevant pairs.")


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure, (axes,) = panels()
    dress(axes, x, y)
    return figure, axes


def _chart(figure: Figure, name: str, caption: str) -> Chart:
    """The figure as inline SVG; the same data give the same bytes."""
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return Chart(name, caption, Markup(text[text.index("<svg") :]))  # matplotlib escapes what it draws
