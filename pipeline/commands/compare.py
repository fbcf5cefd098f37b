"""`compare`: two evaluations of the same queries."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import JsonOption, show


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of an evaluation (reports/<dataset>/<run>)")],
    b: Annotated[Path, typer.Argument(help="Folder of another one on the same queries")],
    as_json: JsonOption = False,
) -> None:
    """The paired difference b - a of two evaluations, with its 95 % bootstrap interval over videos.

    \b
        python cli.py compare workspace/reports/shapes/zero-shot workspace/reports/shapes/dits-1a2b3c4d
    """
    from pipeline.evaluate.evaluation import compare

    result = compare(a, b)
    lines = [
        f"{direction} {name:4}  {row['a']:7.2f} -> {row['b']:7.2f}  {row['difference']:+.2f} "
        f"[{row['interval'][0]:+.2f}, {row['interval'][1]:+.2f}]"
        for direction in ("t2v", "v2t")
        for name, row in result[direction].items()
    ]
    show(result, as_json, "\n".join(lines))
