"""Runs commands on a disk that is full, or fills up while they write. Run as a program: it forks.

    python tests/full_disk.py FOLDER tmpfs|limit    builds a workspace in FOLDER; prints a JSON object a try

tmpfs: the workspace lies on a small file system of its own (needs the right to mount), filled up but for some bytes.
limit: no file may grow beyond some bytes (RLIMIT_FSIZE); needs no rights.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from damage import build, command, in_child  # noqa: E402

DISK = 24 << 20  # bytes
ROOM = (0, 4 << 10, 24 << 10, 100 << 10, 400 << 10)
COMMANDS = {
    "index": ["index", "--run", "x"],
    "index --on-disk": ["index", "--run", "x", "--factory", "IVF2,SQ8", "--search", "nprobe=2", "--on-disk"],
    "evaluate": ["evaluate", "--run", "zero-shot"],
    "evaluate --index": ["evaluate", "--run", "zero-shot", "--index"],
    "evaluate --report": ["evaluate", "--run", "x", "--report"],
    "reindex": ["reindex", "--run", "zero-shot"],
    "train-head": ["train-head", "--head", "xpool", "--epochs", "1", "--batch-size", "8", "--run", "new"],
    "figures": ["figures", "--run", "x"],
}


def state(root: Path) -> dict[str, bytes]:
    """The contents of a workspace's files; locks, stamps and what a command may touch before it writes aside."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name not in (".lock", ".verified")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def leftovers(root: Path, before: dict[str, bytes]) -> list[str]:
    """What should not be there after a command that found no room, and files from before that are gone."""
    from pipeline.commands.verification import verify_workspace
    from pipeline.workspace import Workspace

    after = state(root)
    wrong = [f"temporary {name}" for name in after if ".tmp-" in name or ".evaluate-" in name]
    wrong += [f"lost {name}" for name in before if name not in after]
    wrong += [
        f"damaged {check.name}: {check.found}" for check in verify_workspace(Workspace(root)) if check.status == "fail"
    ]
    for run in (root / "heads" / "shapes").iterdir():
        if not any((run / name).exists() for name in ("config.json", "resume.json")):
            wrong.append(f"a run without a model: {sorted(path.name for path in run.rglob('*'))}")
    return wrong


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, room: int) -> None:
    """Take all space but `room` bytes."""
    free = shutil.disk_usage(place).free
    with open(place / "filler", "wb") as handle:
        handle.write(bytes(max(0, free - room)))


def attempt(arguments: list[str], root: Path, limit: int | None) -> dict[str, Any]:
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        return command(arguments, root)
    finally:
        if limit is not None:  # the answer itself is a file
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def judge(found: dict[str, Any] | str, arguments: list[str]) -> str:
    if isinstance(found, str):
        return found
    if found["code"] == 0:
        return "done"
    errors = [line for line in found["stderr"].splitlines() if line.startswith('{"error"')]
    if found["code"] != 2 or len(errors) != 1 or "Traceback" in found["stderr"] or "Error ---" in found["stderr"]:
        return "traceback"
    message = json.loads(errors[0])["message"]
    helpful = "No space" in message or "no space" in message
    return "one line" if helpful and f"python cli.py {arguments[0]}" in message else f"unclear: {message}"


def run(folder: Path, how: str, names: list[str]) -> None:
    whole = build(folder / "whole")["flat"]
    for name in names:  # in this process: what it imports serves every child
        shutil.rmtree(folder / "warm", ignore_errors=True)
        shutil.copytree(whole, folder / "warm")
        done = command(COMMANDS[name], folder / "warm")
        assert done["code"] == 0, done
        for room in ROOM:
            place = folder / "disk"
            shutil.rmtree(place, ignore_errors=True)
            with small_disk(place) if how == "tmpfs" else _plain(place):
                root = place / "workspace"
                shutil.copytree(whole, root)
                before = state(root)
                if how == "tmpfs":
                    fill(place, room)
                limit = room if how == "limit" else None
                found = in_child(
                    lambda name=name, limit=limit, root=root: attempt(COMMANDS[name], root, limit),  # type: ignore[misc]
                    folder / "answer.json",
                )
                outcome, wrong = judge(found, COMMANDS[name]), []
                if outcome != "done":
                    wrong = leftovers(root, before)
                    (place / "filler").unlink(missing_ok=True)
                    again = in_child(lambda name=name, root=root: command(COMMANDS[name], root), folder / "answer.json")  # type: ignore[misc]
                    wrong += [] if not isinstance(again, str) and again["code"] == 0 else [f"not repeatable: {again}"]
                row = {"command": name, "room": room, "outcome": outcome, "wrong": wrong}
                if outcome not in ("done", "one line"):
                    row["found"] = found if isinstance(found, str) else found["stderr"][-1500:]
                print(json.dumps(row), flush=True)


@contextmanager
def _plain(place: Path) -> Iterator[None]:
    place.mkdir()
    yield


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] or list(COMMANDS))
