"""`evaluate`, stage 3, and its results as a table."""

from typing import Annotated, Any

import typer

from pipeline.commands.options import (
    DatasetOption,
    DeviceOption,
    EncoderOption,
    HeadDirOption,
    JsonOption,
    RunOption,
    ShortlistOption,
    Ties,
    WorkspaceOption,
    show,
    size_in_bytes,
)
from pipeline.workspace import Workspace


def evaluate(
    index: Annotated[bool, typer.Option("--index", help="Measure two-stage search through the index as well")] = False,
    split: Annotated[str | None, typer.Option(help="train, val or test [default: test, else everything]")] = None,
    ties: Annotated[Ties, typer.Option(help="How equal scores are ranked")] = "average",
    memory_limit: Annotated[str, typer.Option(help="Bytes of memory, such as 2GB")] = "2GB",
    shortlist: ShortlistOption = 50,
    dual_softmax: Annotated[bool, typer.Option("--dual-softmax", help="Add a row with dual softmax")] = False,
    query_bank: Annotated[bool, typer.Option("--query-bank", help="Add a row with query-bank normalisation")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html: tables, curves, worst queries in pictures")
    ] = False,
    run: RunOption = None,
    head_dir: HeadDirOption = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 3: R@1, R@5, R@10, MdR, MnR on the test split, exact, and what search through the index loses.

    \b
        python cli.py evaluate
        python cli.py evaluate --index --report
        python cli.py evaluate --run zero-shot --memory-limit 500MB
    """
    memory_bytes = size_in_bytes(memory_limit)
    place = Workspace.locate(workspace)

    from pipeline.device import resolve_device
    from pipeline.evaluate.evaluation import Options
    from pipeline.evaluate.run import evaluate_chosen
    from pipeline.resolve import resolve_head, resolve_store

    chosen = resolve_store(place, dataset, encoder)
    head = resolve_head(place, chosen, run, head_dir).to(resolve_device(device))
    post = [name for name, wanted in (("dual-softmax", dual_softmax), ("query-bank", query_bank)) if wanted]
    options = Options(ties=ties, memory_limit=memory_bytes, normalisations=post, shortlist=shortlist)
    evaluation, folder = evaluate_chosen(place, chosen, head, options, split=split, through_index=index, report=report)
    card = evaluation.metrics["protocol"]
    heading = f"{card['dataset']}, split {card['split']}: {card['label'] or 'no published split'}"
    rows = [{"system": head.run, **evaluation.contract()}]
    if beside := evaluation.metrics.get("zero_shot"):
        rows.append({"system": "zero-shot (mean pooling)", "index": None, **beside})
    text = results_table(rows)
    show(evaluation.contract(), as_json, "\n".join([heading, text, *evaluation.lines, f"kept in {folder}"]))


def results_table(rows: list[dict[str, Any]]) -> str:
    """Text for people: both directions, the gain over zero-shot with its interval, and search through the index."""
    from pipeline.evaluate.metrics import FIGURES

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
