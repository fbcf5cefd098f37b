"""`clean`: the disk use of a workspace, and the removal of what nothing needs."""

from typing import Annotated

import typer

from pipeline import remote
from pipeline.commands.file_lines import printable
from pipeline.commands.options import JsonOption, WorkspaceOption, show
from pipeline.workspace import Workspace


def clean(
    remove: Annotated[bool, typer.Option("--yes", help="Remove it; without this nothing is touched")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what takes space and why it is kept, and remove what no run, index or table needs.

    Index generations older than the one before the live, runs for tables that are not there, and what killed processes
    left a day ago or earlier go; features, trained heads, reports and data sets always stay.

    \b
        python cli.py clean
        python cli.py clean --yes
    """
    place = Workspace.locate(workspace)

    from pipeline.commands.disk_use import KEEP_GENERATIONS, inventory
    from pipeline.stores.generations import GenerationStore

    items = inventory(place)
    held = []
    for item in items if remove else []:
        if item.keep:
            continue
        if item.group == "indexes":  # under the index's lock, and not what a reader holds
            GenerationStore(item.path.parent).prune(KEEP_GENERATIONS)
            held += [item] if item.path.exists() else []
        else:
            remote.remove(item.path)
    needless = sum(item.bytes for item in items if not item.keep)
    listed = [
        {"path": str(item.path.relative_to(place.root)), "group": item.group, "bytes": item.bytes}
        | {"keep": item.keep, "reason": item.reason}
        for item in items
    ]
    lines = [
        f"{'keep' if row['keep'] else 'remove':6} {_size(int(str(row['bytes']))):>9}  {printable(str(row['path']))}  "
        f"({row['reason']})"
        for row in listed
    ]
    in_all = sum(item.bytes for item in items)
    freed = needless - sum(item.bytes for item in held)
    told = f"removed {_size(freed)}" if remove else f"{_size(needless)} can go with --yes"
    lines += [f"{item.path.name} stays: a reader holds it" for item in held]
    lines.append(f"{_size(in_all)} in all; {told}")
    show(
        {"items": listed, "bytes": in_all, "needless": needless, "removed": freed if remove else 0},
        as_json,
        "\n".join(lines),
    )


def _size(count: int) -> str:
    """
    >>> _size(2_500_000), _size(900)
    ('2.5 MB', '0.9 kB')
    """
    return (
        f"{count / 1e9:.1f} GB"
        if count >= 1e9
        else f"{count / 1e6:.1f} MB"
        if count >= 1e6
        else f"{count / 1e3:.1f} kB"
    )
