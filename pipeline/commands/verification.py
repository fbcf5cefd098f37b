"""`doctor --verify`: every file of a workspace against the checksum that it was written with, whatever its stamp."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.commands.environment import FAIL, OK, WARN, Check
from pipeline.errors import UserError
from pipeline.workspace import Workspace


def verify_workspace(workspace: Workspace) -> list[Check]:
    """One check a manifest, feature store, head, index generation and report. A damaged one does not end the rest."""
    found = [_checked(name, path, verify) for name, path, verify in _parts(workspace)]
    return found or [Check("workspace", WARN, f"nothing to verify in {workspace.root}", "give --workspace")]


def _checked(name: str, path: Path, verify: Callable[[Path], str]) -> Check:
    try:
        return Check(name, OK, verify(path))
    except UserError as error:
        problem, _, fix = str(error).partition(". Fix: ")
        return Check(name, FAIL, problem, fix)


def _parts(workspace: Workspace) -> Iterator[tuple[str, Path, Callable[[Path], str]]]:
    root = workspace.root
    for pattern, verify in (
        ("last.json", _json),
        ("datasets/*/manifest.parquet", _manifest),
        ("features/*/*/store.json", _store),
        ("heads/*/*/config.json", _head),
        ("indexes/*/CURRENT", _live),
        ("indexes/*/gen-*", _generation),
        ("reports/*/*/metrics.json", _report),
    ):
        for path in sorted(root.glob(pattern)):
            shown = path if path.parent == root or path.is_dir() or path.name == "CURRENT" else path.parent
            yield str(shown.relative_to(root)), path, verify


def _json(path: Path) -> str:
    from pipeline.stores.integrity import read_json

    read_json(path)
    return "whole"


def _manifest(path: Path) -> str:
    from pipeline.stores.manifest import read_manifest

    return f"{len(read_manifest(path).entries)} videos"


def _store(path: Path) -> str:
    from pipeline.stores.features import FeatureStore
    from pipeline.stores.integrity import read_json

    store = FeatureStore.open(path.parent)
    for name in ("encoder.json", "amendments.json"):
        if (path.parent / name).exists():
            read_json(path.parent / name)
    store.verify()
    return f"{sum(len(store.shard_paths(kind)) for kind in ('videos', 'texts'))} shards"


def _head(path: Path) -> str:
    from pipeline.stores.checkpoints import load_head

    weights, record = load_head(path.parent)
    known = "" if "files" in record else " (written before weights had a checksum)"
    return f"{len(weights)} tensors{known}"


def _live(path: Path) -> str:
    from pipeline.stores.generations import GenerationStore

    return f"names {GenerationStore(path.parent).current()}"


def _generation(path: Path) -> str:
    from pipeline.stores.generations import GenerationStore

    with GenerationStore(path.parent).open(path.name) as generation:
        generation.verify_files()
        return f"{generation.info['videos']} videos"


def _report(path: Path) -> str:
    from pipeline.stores.integrity import read_json
    from pipeline.stores.shards import verify_shard

    read_json(path, unsealed="run `python cli.py evaluate` again")
    shards = sorted(path.parent.glob("*2*.parquet"))
    for shard in shards:
        verify_shard(shard)
    return f"{len(shards)} tables of ranks"
