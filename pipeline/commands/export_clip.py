"""`export-clip`: a tuned CLIP for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import DatasetOption, EncoderOption, JsonOption, WorkspaceOption, show
from pipeline.workspace import Workspace


def export_clip(
    run: Annotated[str, typer.Argument(help="A run trained with --train-blocks or --end-to-end")],
    out: Annotated[Path, typer.Argument(help="The file to write, .safetensors")],
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a tuned CLIP as a file that plain open_clip loads.

    \b
        python cli.py export-clip dits-top2-1a2b3c4d tuned.safetensors
    """
    place = Workspace.locate(workspace)

    from pipeline.resolve import resolve_store
    from pipeline.train.finetune import export_clip

    export_clip(place, resolve_store(place, dataset, encoder), run, out)
    show({"clip": str(out)}, as_json, f"{out}: load it with open_clip.create_model(NAME, pretrained={str(out)!r})")
