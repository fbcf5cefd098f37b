"""`import-features`: a feature store of features that another program made."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import JsonOption, WorkspaceOption, show
from pipeline.errors import BadInput
from pipeline.workspace import Workspace


def import_features(
    source: Annotated[Path, typer.Argument(help="An .npz of a corpus, or a folder or .tar with one .npy a video")],
    dataset: Annotated[str, typer.Option("--dataset", help="The name that the data set gets here")],
    captions: Annotated[
        Path | None, typer.Option(help="Captions instead of the source's own: .csv, .parquet or .jsonl")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The open_clip model that made the features")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Its open_clip tag, or a local weights file")] = None,
    num_frames: Annotated[int, typer.Option(min=1, max=4096, help="Frames kept of a video")] = 12,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 1 without videos: make a feature store of features that another program extracted.

    Captions may come with vectors of their own; without, and to search by text later, name the encoder.

    \b
        python cli.py import-features features.npz --dataset charades-b32
        python cli.py import-features embeddings/ --dataset mine --model ViT-B-32 --pretrained openai
        python cli.py import-features 00000.tar --dataset mine --captions captions.csv --model ViT-L-14
    """
    if pretrained and not model:
        raise BadInput("--pretrained names weights of a model", fix="give --model too")
    place = Workspace.locate(workspace)

    from pipeline.clip.embedders import load_embedder
    from pipeline.datasets.folder import read_captions
    from pipeline.datasets.readers import Repairs
    from pipeline.extract.imported import import_features
    from pipeline.resolve import encoder_name, remember_store
    from pipeline.stores.encoder_record import write_encoder_record

    name = encoder_name(model, pretrained) if model else "imported"
    given: dict[str, list[str]] = {}
    for row in read_captions(captions, Repairs()) if captions else []:
        given.setdefault(row["video_id"], []).append(row["caption"])
    report = import_features(
        source,
        place.features_dir(dataset, name),
        num_frames=num_frames,
        captions=given if captions else None,
        encoder=load_embedder(model, pretrained) if model else None,
    )
    if model:
        write_encoder_record(Path(report.store), model=model, pretrained=pretrained, precision="auto")
    remember_store(place, dataset, name)
    result = {"videos": report.videos, "captions": report.captions, "store": report.store}
    show(result, as_json, f"{report.videos} videos, {report.captions} captions\nfeatures: {report.store}")
