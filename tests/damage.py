"""Damages files of a small workspace and watches what the commands make of it. Run as a program: it forks.

    python tests/damage.py FOLDER COUNT SEED    builds three workspaces in FOLDER; prints a JSON object a mutation

Each mutation is made in a copy of a workspace, and a command is run on the copy in a child process with a time limit.
Outcomes: "same" result, "refused" (one line, exit code 2), "warned" (another result, with a warning that names the
file's folder), "other" result, "traceback", "hang", "crash".
"""

import copy
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

LIMIT = 150  # seconds a command; on an idle core it takes less than two
QUERY = "a red ring moves left"
WHERE = "shelf >= 2 AND place = 'north'"
UNTIMED = {"queries_per_second", "latency_ms_one_by_one"}


# -- mutations ---------------------------------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def zero_sector(data: bytes, rng: random.Random) -> bytes:
    start = 512 * rng.randrange((len(data) + 511) // 512)
    return data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A stretch of random bytes, as of another file."""
    start = rng.randrange(len(data))
    length = min(rng.choice((4, 64, 512)), len(data) - start)
    return data[:start] + rng.randbytes(length) + data[start + length :]


def edit_json(data: bytes, rng: random.Random, without: Collection[str] = ()) -> bytes:
    """One value of a JSON file becomes another, or is gone; then the keys `without` are taken out."""
    value = json.loads(data)
    places = list(_places(value))
    if not places:
        return b"{}"
    holder, key = rng.choice(places)
    others: list[Any] = [
        None,
        -1,
        2**70,
        1e999,
        "",
        "x" * 300,
        [],
        {},
        True,
        [[[[]]]],
        {"a": None},
        "\ud800",
        "\x1b[2J",
    ]
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice([*others, json.loads("[" * 300 + "]" * 300), _near(holder[key])])
    for name in without:
        value.pop(name, None)
    return json.dumps(value).encode()


def _near(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else f"{value}x" if isinstance(value, str) else None


def _places(value: Any):
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            if key not in ("checksum", "sealed"):
                yield value, key
                yield from _places(value[key])


def not_a_file(path: Path, kind: str) -> None:
    """Something else in a file's place."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "circle of links":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with open(path, "wb") as handle:
            handle.truncate(20 << 30)
    elif kind == "binary":
        path.write_bytes(bytes(range(256)))
    else:
        path.touch()


CONTENTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bit": flip,
    "truncated": truncate,
    "zeroed sector": zero_sector,
    "random bytes": splice,
}
EDITS: dict[str, tuple[str, ...]] = {  # what is taken out of an edited JSON file
    "edited JSON": (),
    "edited JSON without checksum": ("checksum",),
    "edited JSON as of an old version": ("checksum", "sealed"),
}
IN_PLACE = ("folder", "circle of links", "pipe", "huge", "binary", "empty")


# -- the workspaces ----------------------------------------------------------------------------------------------------


def build(folder: Path) -> dict[str, Path]:
    """Workspaces over the same features: HDF5 and Flat in two generations, Parquet and HNSW, HDF5 and IVF on disk."""
    import torch

    from dits_head.config import HeadConfig
    from dits_head.head import build_head
    from pipeline.datasets.manifests import dataset_manifest
    from pipeline.extract.corpus import extract_manifest
    from pipeline.extract.settings import ExtractSettings
    from pipeline.resolve import resolve_store
    from pipeline.stores.checkpoints import save_head
    from pipeline.stores.features import FeatureStore
    from pipeline.stores.metadata import write_metadata
    from pipeline.workspace import Workspace

    first = folder / "flat"
    place = Workspace(first)
    manifest = dataset_manifest(place, "shapes", None, None, None, {"train": 6, "val": 2, "test": 8})
    extract_manifest(place, manifest, ExtractSettings(precision="float32", workers=1))
    chosen = resolve_store(place)
    store = chosen.store
    videos = store.videos()
    splits = dict(zip(videos.video_ids, videos.splits, strict=True))
    captions = dict(zip(store.texts().caption_ids, store.texts().splits, strict=True))
    withdrawn = next(name for name, split in captions.items() if split == "train")
    store.amend(splits, {name: split for name, split in captions.items() if name != withdrawn})
    shelves = {name: {"shelf": row % 4, "place": ("north", "south")[row % 2]} for row, name in enumerate(splits)}
    write_metadata(store.path, dict(list(shelves.items())[:3]))
    write_metadata(store.path, shelves)
    torch.manual_seed(3)
    config = HeadConfig(head="xpool", dim=store.dim)
    record = {
        "head": config.to_dict(),
        "encoder": store.settings,
        "run": "x",
        "selected_on": "val",
        "settings": {"seed": 3},
    }
    save_head(place.head_dir("shapes", "x"), build_head(config).state_dict(), record)
    for path in (first / "datasets" / "shapes").iterdir():
        if path.name != "manifest.parquet":
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    second, third = folder / "hnsw", folder / "ivf"
    shutil.copytree(first, second)
    shutil.copytree(first, third)
    features = second / "features" / "shapes" / chosen.encoder
    for path in features.glob("*-0*"):
        path.unlink()
    about = json.loads((features / "store.json").read_text())
    (features / "store.json").unlink()
    parquet = FeatureStore.create(features, about["settings"], shard_format="parquet", media_root=about["media_root"])
    parquet.write_videos(videos, inputs=videos.video_ids)
    parquet.write_texts(store.texts())
    for root, options in (
        (first, ["--factory", "Flat"]),
        (first, ["--factory", "Flat"]),
        (second, ["--factory", "HNSW32"]),
        (third, ["--factory", "IVF2,SQ8", "--search", "nprobe=2", "--on-disk"]),
    ):
        command(["index", *options, "--run", "x"], root)
        command(["evaluate", "--run", "x"], root)
    return {"flat": first, "hnsw": second, "ivf": third}


def command(arguments: list[str], root: Path) -> dict[str, Any]:
    """Run a command in this process: exit code, what it printed, and whether that is a traceback."""
    if arguments[0] == "serve":
        return serve(root)
    from typer.testing import CliRunner

    import cli

    place = [] if arguments[0] == "compare" else ["--workspace", str(root)]
    result = CliRunner().invoke(cli.app, [*arguments, *place, "--json"])
    return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}


def serve(root: Path) -> dict[str, Any]:
    """What the server answers to a search with a filter and to a question for a clip; its refusals as a command's."""
    from fastapi.testclient import TestClient

    from pipeline.errors import UserError
    from pipeline.serve.app import create_app
    from pipeline.serve.live import LiveBackend
    from pipeline.serve.settings import ServeSettings

    answers: list[Any] = []
    search = {"q": QUERY, "where": WHERE}
    try:
        app = create_app(LiveBackend.open(root), ServeSettings(cache_dir=root.parent / "films"))
        with TestClient(app, base_url="http://127.0.0.1:8000") as client:  # raises what the server would log
            answers.append(client.get("/api/search", params=search).raise_for_status().json())
            for url in (answers[0]["hits"][0]["clip"], "/api/info"):
                answers.append(client.get(url).raise_for_status().json())
    except UserError as error:
        return {"code": 2, "stdout": "", "stderr": json.dumps({"error": str(error), "exit_code": 2})}
    return {"code": 0, "stdout": json.dumps(answers), "stderr": ""}


def commands_for(path: Path, root: Path) -> list[list[str]]:
    """Those that read this file."""
    room = path.relative_to(root).parts[0]
    evaluate, search = ["evaluate", "--run", "x", "--index"], ["search", QUERY, "--top", "5"]
    where, server = [*search, "--where", WHERE], ["serve"]
    if path.name.startswith("metadata."):
        return [where, server]
    if room == "reports":
        return [["compare", str(path.parent), str(path.parent)]]
    if room == "features":
        return [evaluate, search, where, server, ["failures"]]
    return {"indexes": [search, evaluate, server], "last.json": [search, server], "datasets": [evaluate]}.get(
        room, [evaluate, search]
    )


# -- one mutation ------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], dict[str, Any]], answer: Path) -> dict[str, Any] | str:
    """What `work` returns in a forked child; "hang" or "crash" if it does not return."""
    child = os.fork()
    if child == 0:
        try:
            with open(answer.with_suffix(".log"), "wb") as log:
                os.dup2(log.fileno(), 2)
            answer.write_text(json.dumps(work()))
        except BaseException as error:  # a child never goes on with the parent's work
            answer.write_text(json.dumps({"code": -1, "stdout": "", "stderr": f"Traceback {error!r}"}))
        finally:
            os._exit(0)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status or not answer.exists():
                return "crash"
            return json.loads(answer.read_text()) | {"log": answer.with_suffix(".log").read_text(errors="replace")}
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang"


def comparable(stdout: str, root: Path) -> Any:
    def untimed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: untimed(item) for key, item in value.items() if key not in UNTIMED}
        return [untimed(item) for item in value] if isinstance(value, list) else value

    return untimed(json.loads(stdout.replace(str(root), "ROOT")))


def judge(found: dict[str, Any] | str, expected: Any, root: Path, damaged: Path) -> str:
    if isinstance(found, str):
        return found
    if "Traceback" in found["stderr"] or found["code"] not in (0, 2):
        return "traceback"
    if found["code"] == 0:
        if comparable(found["stdout"], root) == expected:
            return "same"
        return "warned" if f"{damaged} has no checksum" in found["log"] + found["stderr"] else "other"
    errors = [line for line in found["stderr"].splitlines() if line.startswith('{"error"')]
    one = len(errors) == 1 and json.loads(errors[0])["exit_code"] == 2 and not found["stdout"]
    return "refused" if one else "not one line"


def run(folder: Path, count: int, seed: int) -> None:
    import pipeline.clip.stored

    # The encoder is loaded once for all children: the weights are the package's own and are not damaged here.
    pipeline.clip.stored.load_encoder = functools.cache(pipeline.clip.stored.load_encoder)  # type: ignore[assignment]
    rng = random.Random(seed)
    workspaces = build(folder / "whole")
    files = sorted(
        (name, path)
        for name, root in workspaces.items()
        for path in root.rglob("*")
        if path.is_file() and path.stat().st_size and path.name not in (".lock", ".verified")
    )
    expected: dict[tuple[str, str], Any] = {}
    scratch = folder / "scratch"
    for number in range(count):
        name, path = files[number % len(files)] if number < len(files) else rng.choice(files)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(workspaces[name], scratch)
        target = scratch / path.relative_to(workspaces[name])
        arguments = rng.choice(commands_for(target, scratch))
        key = (name, " ".join(arguments))
        if key not in expected:
            whole = command(arguments, scratch)  # in this process: what it imports serves every child
            assert whole["code"] == 0, whole
            expected[key] = comparable(whole["stdout"], scratch)
            shutil.rmtree(scratch)
            shutil.copytree(workspaces[name], scratch)
        how = mutate(target, rng)
        found = in_child(lambda arguments=arguments: command(arguments, scratch), folder / "answer.json")  # type: ignore[misc]
        outcome = judge(found, copy.deepcopy(expected[key]), scratch, target)
        row: dict[str, Any] = {
            "file": f"{name}/{path.relative_to(workspaces[name])}",
            "how": how,
            "command": arguments[0],
            "outcome": outcome,
        }
        if outcome not in ("same", "refused", "warned"):
            row["found"] = found if isinstance(found, str) else {**found, "stdout": found["stdout"][:2000]}
        print(json.dumps(row), flush=True)
        (folder / "answer.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "whole")


def mutate(path: Path, rng: random.Random) -> str:
    """Damage a file; says how."""
    data = path.read_bytes()
    is_json = path.suffix == ".json"
    draw = rng.random()
    if draw < 0.1:
        how = rng.choice(IN_PLACE)
        not_a_file(path, how)
    elif is_json and draw < 0.55:
        how = rng.choice(list(EDITS))
        path.write_bytes(edit_json(data, rng, EDITS[how]))
    else:
        how = rng.choice(list(CONTENTS))
        path.write_bytes(CONTENTS[how](data, rng))
    return how


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
