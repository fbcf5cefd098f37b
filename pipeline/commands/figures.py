"""`figures`: the paper's figures."""

from typing import Annotated

import typer

from pipeline.commands.options import DatasetOption, DeviceOption, EncoderOption, JsonOption, WorkspaceOption, show
from pipeline.workspace import Workspace


def figures(
    run: Annotated[list[str] | None, typer.Option(help="A run's name; repeatable [default: the last]")] = None,
    against: Annotated[str | None, typer.Option(help="Draw the change in cosine against this run too")] = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """The paper's figures, PNG and SVG: the gap of texts to their videos before and after, R@1 against T'.

    \b
        python cli.py figures
        python cli.py figures --run dits-1a2b3c4d --against xpool-1a2b3c4d
    """
    place = Workspace.locate(workspace)

    from pipeline.device import resolve_device
    from pipeline.experiments.figures import draw_figures
    from pipeline.resolve import resolve_head, resolve_store

    chosen = resolve_store(place, dataset, encoder)
    where = resolve_device(device)
    heads = [resolve_head(place, chosen, name).to(where) for name in run or (None,)]
    base = resolve_head(place, chosen, against).to(where) if against else None
    drawn = draw_figures(place, chosen, heads, base)
    files = [str(path) for path in drawn.files]
    show({"gaps": drawn.means, "files": files}, as_json, "\n".join([drawn.table, *files]))
