"""What lies in a workspace: the size of each part, and why it is kept or not."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.stores.generations import GenerationStore
from pipeline.stores.integrity import read_json
from pipeline.workspace import Workspace

IN_USE_SECONDS = 24 * 3600  # a temporary file or folder younger than this may belong to a process that runs
KEEP_GENERATIONS = 2  # the live one, and the one before for a rollback


@dataclass(frozen=True)
class Item:
    """A part of a workspace."""

    group: str
    """features, heads, indexes, reports, datasets, caches, or temporary."""
    path: Path
    bytes: int
    keep: bool
    reason: str


def inventory(workspace: Workspace) -> list[Item]:
    """Every part of a workspace, group by group. A part that cannot be understood is kept."""
    temporary = list(_temporary(workspace.root))
    return [*_features(workspace), *_heads(workspace), *_indexes(workspace), *_results(workspace), *temporary]


def size_of(path: Path, besides: str | None = None) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed. `besides`: a subfolder left out."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(
        entry.lstat().st_size
        for entry in path.rglob("*")
        if (entry.is_symlink() or entry.is_file()) and entry.relative_to(path).parts[0] != besides
    )


def _features(workspace: Workspace) -> Iterator[Item]:
    for folder in workspace.feature_dirs():
        reason = "a feature store; heads, indexes and reports are made from it"
        yield Item("features", folder, size_of(folder, besides="catalogue"), True, reason)
        if (folder / "catalogue").is_dir():
            cache = folder / "catalogue"
            yield Item("caches", cache, size_of(cache), True, "read in place of every shard; made again where missing")


def _heads(workspace: Workspace) -> Iterator[Item]:
    used = _heads_of_indexes(workspace)
    folders = sorted(path for path in workspace.root.glob("heads/*/*") if path.is_dir())
    needed_by_runs = {name for folder in folders for name in _parents(folder)}
    for folder in folders:
        dataset, run = folder.parent.name, folder.name
        keep, reason = True, "a trained head"
        if (dataset, run) in used:
            reason = f"index {used[dataset, run]} is made with it"
        elif (dataset, run) in needed_by_runs:
            reason = "another run started from it"
        elif not (folder / "config.json").exists():
            unfinished = (folder / "resume.json").exists() or _is_young(folder)
            keep, reason = unfinished, "unfinished: the same command goes on with it"
            if not unfinished:
                reason = "a run that ended before anything was saved"
        elif _for_tables(folder):
            keep = (workspace.root / "reports" / dataset / "tables").is_dir()
            reason = "a table of `reproduce` holds it" if keep else "trained for a table that is not there"
        yield Item("heads", folder, size_of(folder), keep, reason)


def _heads_of_indexes(workspace: Workspace) -> dict[tuple[str, str], str]:
    """(data set, run) -> an index whose generations, live or not, name it."""
    used: dict[tuple[str, str], str] = {}
    for info in workspace.root.glob("indexes/*/gen-*/index.json"):
        try:
            origin = read_json(info, needs=("origin",))["origin"]
            used[origin["dataset"], origin["run"]] = info.parent.parent.name
        except (UserError, KeyError, TypeError):
            continue  # a damaged generation needs no head; `doctor` tells of it
    return used


def _parents(folder: Path) -> list[tuple[str, str]]:
    """The runs that a run started from, or was distilled from."""
    record = _record(folder)
    distilled = record.get("distilled_from")
    names = [record.get("start_from"), distilled.get("run") if isinstance(distilled, dict) else None]
    return [(folder.parent.name, name) for name in names if isinstance(name, str)]


def _for_tables(folder: Path) -> bool:
    return bool(_record(folder).get("for_tables"))


def _record(folder: Path) -> dict[str, object]:
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _indexes(workspace: Workspace) -> Iterator[Item]:
    for folder in workspace.index_dirs():
        store = GenerationStore(folder)
        names, live = store.names(), store.current()
        older = [name for name in names if live in names and names.index(name) < names.index(str(live))]
        kept = older[-(KEEP_GENERATIONS - 1) :]
        for name in names:
            reason = "the live generation" if name == live else "newer than the live generation"
            if name in older:
                reason = (
                    "the generation before, for a rollback" if name in kept else "older than the one before the live"
                )
            path = folder / name
            yield Item("indexes", path, size_of(path), name not in older or name in kept, reason)


def _results(workspace: Workspace) -> Iterator[Item]:
    for group, pattern, reason in (
        ("reports", "reports/*/*", "results of evaluate, reproduce or figures"),
        ("datasets", "datasets/*", "a manifest, and files of the data set"),
    ):
        for path in sorted(workspace.root.glob(pattern)):
            yield Item(group, path, size_of(path), True, reason)


def _temporary(root: Path) -> Iterator[Item]:
    """What killed processes left: files and folders that are renamed or removed at the end otherwise."""
    for path in sorted([*root.glob(".evaluate-*"), *root.rglob(".tmp-*")]):
        if any(part.startswith((".tmp-", ".evaluate-")) for part in path.relative_to(root).parts[:-1]):
            continue
        young = _is_young(path)
        reason = "may belong to a running process: younger than a day" if young else "left by a killed process"
        yield Item("temporary", path, size_of(path), young, reason)


def _is_young(path: Path) -> bool:
    newest = max((entry.lstat().st_mtime for entry in (path, *path.rglob("*"))), default=0.0)
    return time.time() - newest < IN_USE_SECONDS
