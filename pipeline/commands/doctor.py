"""`doctor`: what is wrong with this machine, or with this copy of a data set, and how to mend it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.environment import FAIL, environment_report, worst
from pipeline.commands.options import DatasetOptions, JsonOption, WorkspaceOption, pairs, show
from pipeline.errors import BadInput
from pipeline.workspace import Workspace


def doctor(
    dataset: Annotated[str | None, typer.Option(help="Check a data set's files too")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of its videos; without --dataset: of your own")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of its annotation files; the captions file of your own videos")
    ] = None,
    option: DatasetOptions = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file of the workspace that has a checksum and compare")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Decode a frame of every video")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the environment, the files of a data set or folder, or the workspace against its checksums, with remedies.

    \b
        python cli.py doctor
        python cli.py doctor --verify
        python cli.py doctor --videos my_clips/ --annotations captions.csv --deep
        python cli.py doctor --dataset msrvtt --videos /data/msrvtt --annotations /data/msrvtt_csv --deep
    """
    from dataclasses import asdict

    if dataset is None and (annotations or option) and not videos:
        raise BadInput("--annotations and --option belong to videos", fix="give --dataset NAME or --videos DIR too")
    place = Workspace.locate(workspace)
    dataset = dataset or ("folder" if videos else None)
    if verify:
        from pipeline.commands.verification import verify_workspace

        checks = verify_workspace(place)
        show([asdict(check) for check in checks], as_json, "\n".join(check.line() for check in checks))
    elif dataset is None:
        checks = list(environment_report(place.root))
        show([asdict(check) for check in checks], as_json, "\n".join(check.line() for check in checks))
    else:
        from pipeline.commands.dataset_report import dataset_report

        options: dict[str, Any] = dict(pairs(option, "--option"))
        report = dataset_report(dataset, videos, annotations, place.dataset_dir(dataset), deep=deep, **options)
        checks = list(report.checks)
        claim = f"results on the test split may be called: {report.claim or 'nothing'}"
        show(report.to_json(), as_json, "\n".join([*(check.line() for check in checks), claim]))
    if worst(checks) == FAIL:
        raise typer.Exit(1)
