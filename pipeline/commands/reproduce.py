"""`reproduce`: the paper's tables."""

from typing import Annotated

import typer

from pipeline.commands.options import (
    DatasetOption,
    EncoderOption,
    EpochsOption,
    JsonOption,
    LearningRateOption,
    PairsOption,
    WorkspaceOption,
    pairs,
    show,
)
from pipeline.errors import BadInput
from pipeline.train.head_options import head_settings
from pipeline.workspace import Workspace


def reproduce(
    table: Annotated[
        str,
        typer.Option(
            help="4, 5a, 5b, 6a, 6a-full, 6b, 7, 8, 9, 10, 11, blocks, fixed, joint, joint-top, open, control, "
            "distill, robustness; several with commas; or all that the features allow"
        ),
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of seeds, from 24 on")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One epoch, one seed: does it run at all?")] = False,
    lr: LearningRateOption = None,
    epochs: EpochsOption = None,
    batch_size: PairsOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of every head that does not name its own, name=value")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(help="Train CLIP too with every system that keeps it fixed: a number of top blocks, or all"),
    ] = None,
    lr_sweep: Annotated[
        bool, typer.Option("--lr-sweep", help="Choose each system's learning rates on the validation split first")
    ] = False,
    sweep_epochs: Annotated[
        int, typer.Option(min=1, max=1000, help="Epochs, at most, of the runs that choose learning rates")
    ] = 2,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Parallel runs [default: one a core, one on a GPU]")
    ] = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """The paper's tables on any data set whose features exist; runs what is missing, goes on where it was interrupted.

    \b
        python cli.py reproduce --table 4 --seeds 3
        python cli.py reproduce --table all --quick
        python cli.py reproduce --table joint --lr-sweep --seeds 5
        python cli.py reproduce --table fixed --lr-sweep --sweep-epochs 8 --seeds 5
        python cli.py reproduce --table 4 --tune all
        python cli.py reproduce --table 6a,6b --set blocks=1 --set T_prime=3 --batch-size 32
    """
    from pipeline.experiments.tables import TABLES

    head = head_settings(pairs(set_, "--set"))
    names = [] if table == "all" else table.split(",")
    if unknown := [name for name in names if name not in TABLES]:
        raise BadInput(f"unknown table {unknown[0]!r}", expected=", ".join([*TABLES, "all"]), got=unknown[0])
    if tune is not None and tune not in ("all", "end-to-end") and not (tune.isdigit() and int(tune)):
        raise BadInput("--tune", expected="a number of top blocks, all or end-to-end", got=repr(tune))
    place = Workspace.locate(workspace)

    from pipeline.experiments.reproduce import possible_tables, reproduce
    from pipeline.resolve import resolve_store
    from pipeline.train.recipe import recipe

    chosen = resolve_store(place, dataset, encoder)
    given = {"lr": lr, "epochs": 1 if quick else epochs, "batch_size": batch_size}
    written = reproduce(
        place,
        chosen,
        names or possible_tables(place, chosen),
        recipe(chosen, **given),
        head=head,
        seeds=1 if quick else seeds,
        jobs=jobs,
        tune=int(tune) if tune and tune.isdigit() else tune,
        lr_sweep=lr_sweep,
        sweep_epochs=sweep_epochs,
    )
    show(written, as_json, "\n\n".join(written.values()))
