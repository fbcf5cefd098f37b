"""`failures`: which videos could not be extracted, why, and the command that tries them again."""

import shlex
from pathlib import Path
from typing import Any

from pipeline.commands.file_lines import printable
from pipeline.commands.options import DatasetOption, EncoderOption, JsonOption, WorkspaceOption, show
from pipeline.workspace import Workspace

EXAMPLES = 5


def failures(
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List failed videos by class, with examples and the command that tries them again.

    \b
        python cli.py failures
        python cli.py failures --dataset my_clips --json
    """
    place = Workspace.locate(workspace)

    from pipeline.resolve import resolve_store

    chosen = resolve_store(place, dataset, encoder)
    found = chosen.store.failures()
    retry = retry_command(place, chosen.dataset, chosen.encoder, workspace)
    classes: dict[str, list[Any]] = {}
    for failure in found:
        classes.setdefault(failure.error_class, []).append(failure)
    listed = [
        {
            "class": name,
            "count": len(rows),
            "examples": [
                {"video_id": row.video_id, "path": row.path, "step": row.step, "message": row.message}
                | {"attempts": row.attempts}
                for row in rows[:EXAMPLES]
            ],
            "retry": f"{retry} --retry-failed {shlex.quote(name)}",
        }
        for name, rows in sorted(classes.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    result = {"dataset": chosen.dataset, "encoder": chosen.encoder, "failed": len(found), "classes": listed}
    show(result, as_json, "\n".join(failure_lines(result)))


def failure_lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = [f"{result['dataset']}/{result['encoder']}: {result['failed']} failed"]
    for row in result["classes"]:
        lines.append(f"{row['class']}: {row['count']}")
        lines += [f"  {printable(example['path'])}: {printable(example['message'])}" for example in row["examples"]]
        if row["count"] > len(row["examples"]):
            lines.append(f"  {row['count'] - len(row['examples'])} more")
        lines.append(f"  retry: {row['retry']}")
    return lines


def retry_command(place: Workspace, dataset: str, encoder: str, workspace: Path | None) -> str:
    """The command that extracts into this store again: of the index made from it, else of the run that made it."""
    from pipeline.retrieve.corpus import generations

    here = f" --workspace {shlex.quote(str(workspace))}" if workspace else ""
    for folder in place.index_dirs():
        with generations(place, folder.name).open() as live:
            origin = live.info["origin"]
        if (origin["dataset"], origin["encoder"]) == (dataset, encoder):
            return f"python cli.py reindex --index {shlex.quote(folder.name)}{here}"
    config = place.features_dir(dataset, encoder) / "extract.yaml"
    if config.exists():
        return f"python cli.py extract --config {shlex.quote(str(config))}{here}"
    return f"python cli.py extract --dataset {shlex.quote(dataset)}{here}"
