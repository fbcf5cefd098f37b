"""Load on `serve`: queries per second and latency while a reindex switches generations. No request may fail.

    python benchmarks/serve_load.py                                 100,000 clips of 512-d; Flat and HNSW32
    python benchmarks/serve_load.py --clips 5000 --seconds 5 --types Flat --clients 1 8

A workspace of synthetic clips is made once in `--folder`: a ViT-B/32 with untrained weights embeds the sentences, a
DITS head with untrained weights scores them, so that every query costs what it costs in use. The server is `cli.py
serve` in its own process; clients are threads of this one, each with one connection, asking one sentence after the
other. Another process appends clips to the index again and again meanwhile, as `reindex` does.

"new" sentences are never asked twice; "kept" ones come from 200, whose vectors the server still has.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
DIM, FRAMES, KEPT = 512, 4, 200
MODEL = "ViT-B-32"
WORDS = [
    *("a", "the", "red", "blue", "green", "small", "large", "dog", "cat", "man", "woman", "child", "ring", "star"),
    *("street", "snow", "river", "house", "plays", "runs", "jumps", "sleeps", "moves", "left", "right", "slowly"),
    *("quickly", "under", "over", "near", "with", "without", "three", "old", "young", "happy", "square", "two"),
]


def make_workspace(folder: Path, clips: int, spare: int) -> None:
    """A store of `clips + spare` synthetic clips with its encoder, and a head."""
    import torch
    from safetensors.torch import save_file

    from dits_head.config import HeadConfig
    from dits_head.head import build_head
    from pipeline.clip.encoder import load_encoder
    from pipeline.resolve import remember_store
    from pipeline.stores.checkpoints import save_head
    from pipeline.stores.encoder_record import write_encoder_record
    from pipeline.stores.features import FeatureStore, VideoFeatures

    workspace = Workspace(folder)
    weights = folder / "untrained.safetensors"
    folder.mkdir(parents=True)
    encoder = load_encoder(MODEL, random_seed=0, precision="float32")
    save_file({name: tensor.contiguous() for name, tensor in encoder.model.state_dict().items()}, weights)
    encoder = load_encoder(MODEL, str(weights), precision="float32", quick_gelu=False)
    settings = {**encoder.settings, "num_frames": FRAMES, "decoder": "none"}
    store = FeatureStore.create(workspace.features_dir("load", "encoder"), settings)
    write_encoder_record(store.path, model=MODEL, pretrained=str(weights), precision="float32")
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((2000, 1, DIM), np.float32)
    times = np.arange(FRAMES) * 2.5
    for first in range(0, clips + spare, 20_000):
        count = min(20_000, clips + spare - first)
        frames = centres[generator.integers(0, len(centres), count)]
        frames = frames + 0.8 * generator.standard_normal((count, FRAMES, DIM), np.float32)
        ids = [f"file{n // 100:05d}.mp4#t={n % 100 * 10},{n % 100 * 10 + 10}" for n in range(first, first + count)]
        paths = [f"/videos/{name.partition('#')[0]}" for name in ids]
        pts = np.array([[n % 100 * 10] for n in range(first, first + count)]) + times
        mask = np.ones((count, FRAMES), bool)
        store.write_videos(
            VideoFeatures(ids, paths, ["test"] * count, frames.astype(np.float16), mask, pts), inputs=ids
        )
    torch.manual_seed(0)
    config = HeadConfig(head="dits", dim=DIM, index_vectors=1)
    record = {"head": config.to_dict(), "encoder": store.settings, "selected_on": None}
    save_head(workspace.head_dir("load", "untrained"), build_head(config).state_dict(), record)
    remember_store(workspace, "load", "encoder")


def build(folder: Path, factory: str, clips: int) -> None:
    """Index the first `clips` clips as the corpus `factory`."""
    from dits_head.inference import pool_videos
    from pipeline.resolve import resolve_head, resolve_store
    from pipeline.retrieve.corpus import generations, provenance
    from pipeline.retrieve.index import IndexSpec
    from pipeline.retrieve.updates import build_index

    workspace = Workspace(folder)
    chosen = resolve_store(workspace)
    head = resolve_head(workspace, chosen)
    videos = chosen.store.videos(mmap=True).select(np.arange(clips))
    spec = IndexSpec(factory, {"efSearch": 128} if "HNSW" in factory else {})
    vectors = pool_videos(head.head, videos)
    into = generations(workspace, factory)
    build_index(into, videos.video_ids, videos.paths, vectors, spec=spec, provenance=provenance(chosen, head))


def append(folder: Path, factory: str, clips: int, step: int) -> None:
    """Append `step` clips again and again until stdin ends; says each generation."""
    from dits_head.inference import pool_videos
    from pipeline.resolve import resolve_head, resolve_store
    from pipeline.retrieve.corpus import generations, provenance
    from pipeline.retrieve.updates import update_index

    workspace = Workspace(folder)
    chosen = resolve_store(workspace)
    head = resolve_head(workspace, chosen)
    videos = chosen.store.videos(mmap=True)
    row = {video_id: i for i, video_id in enumerate(videos.video_ids)}
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    into = generations(workspace, factory)
    with into.open() as live:
        held = len(live.rows())
    for first in range(held, len(videos) - step, step):
        ids = videos.video_ids[first : first + step]
        made = update_index(
            into,
            add_ids=ids,
            add_paths=videos.paths[first : first + step],
            pool=lambda wanted: pool_videos(head.head, videos.select(np.array([row[v] for v in wanted]))),
            provenance=provenance(chosen, head),
        )
        into.prune(keep=2)
        print(made.generation, made.how, made.total, flush=True)
        if ended.wait(1):
            return


class Client(threading.Thread):
    """Asks one sentence after the other until told to stop."""

    def __init__(self, port: int, sentences: itertools.chain[str] | itertools.cycle[str], end: float) -> None:
        super().__init__()
        self._port, self._sentences, self._end = port, sentences, end
        self.seconds: list[float] = []
        self.generations: set[str] = set()
        self.failed: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while time.perf_counter() < self._end:
            started = time.perf_counter()
            connection.request("GET", f"/api/search?top=24&q={quote(next(self._sentences))}")
            answer = connection.getresponse()
            body = answer.read()
            self.seconds.append(time.perf_counter() - started)
            if answer.status != 200 or len(json.loads(body)["hits"]) != 24:
                self.failed.append(f"{answer.status} {body[:200]!r}")
            else:
                self.generations.add(json.loads(body)["generation"])
        connection.close()


def sentences(seed: str) -> itertools.chain[str]:
    generator = random.Random(seed)
    return itertools.chain.from_iterable(
        [f"{' '.join(generator.choices(WORDS, k=9))} {number}"] for number in itertools.count()
    )


def load(port: int, clients: int, seconds: float, kept: bool) -> dict[str, object]:
    end = time.perf_counter() + seconds
    known = list(itertools.islice(sentences("kept"), KEPT))
    threads = []
    for number in range(clients):
        seed = f"{clients} {number} {time.time()}"
        asked = itertools.cycle(random.Random(seed).sample(known, KEPT)) if kept else sentences(seed)
        threads.append(Client(port, asked, end))
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - started
    times = np.array([second for thread in threads for second in thread.seconds])
    return {
        "requests": len(times),
        "failed": sum(len(thread.failed) for thread in threads),
        "per_second": len(times) / spent,
        "p50_ms": 1000 * float(np.percentile(times, 50)),
        "p99_ms": 1000 * float(np.percentile(times, 99)),
        "generations": len(set().union(*(thread.generations for thread in threads))),
    }


def measure(folder: Path, factory: str, arguments: argparse.Namespace) -> int:
    """Prints a row for each number of clients; the number of failed requests."""
    serve = [sys.executable, "cli.py", "serve", "--workspace", str(folder), "--index", factory]
    server = subprocess.Popen([*serve, "--port", str(arguments.port)], cwd=ROOT)
    me = [sys.executable, __file__, "--folder", str(folder), "--clips", str(arguments.clips), "--append", factory]
    failed = 0
    try:
        wait_for(arguments.port, server)
        load(arguments.port, 1, 2.0, kept=False)  # warm
        load(arguments.port, 8, 2.0, kept=True)
        worker = subprocess.Popen(me, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for kept, clients in itertools.product((True, False), arguments.clients):
            row = load(arguments.port, clients, arguments.seconds, kept)
            failed += int(str(row["failed"]))
            print(
                f"| {factory} | {'kept' if kept else 'new'} | {clients} | {row['per_second']:.1f} | "
                f"{row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {row['requests']} | {row['failed']} | "
                f"{row['generations']} |",
                flush=True,
            )
        made = worker.communicate(b"")[0].decode().splitlines()
        print(f"{factory}: {len(made)} generations made meanwhile; load average {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        server.terminate()
        server.wait()
    return failed


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    while True:
        if server.poll() is not None:
            raise SystemExit("the server ended")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("workspace-load"), help="made once, about 2 GB")
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--types", nargs="+", default=["Flat", "HNSW32"])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each row")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--only-build", action="store_true")
    parser.add_argument("--append", metavar="TYPE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    step = max(1, arguments.clips // 500)
    if arguments.append:
        append(arguments.folder, arguments.append, arguments.clips, step)
        return
    if not (arguments.folder / "last.json").exists():
        make_workspace(arguments.folder, arguments.clips, 100 * step)
    for factory in arguments.types:
        if not (arguments.folder / "indexes" / factory / "CURRENT").exists():
            started = time.perf_counter()
            build(arguments.folder, factory, arguments.clips)
            print(f"{factory} of {arguments.clips} built in {time.perf_counter() - started:.0f} s", flush=True)
    if arguments.only_build:
        return
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        "| index | sentences | clients | queries/s | p50 ms | p99 ms | requests | failed | generations that answered |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    if sum(measure(arguments.folder, factory, arguments) for factory in arguments.types):
        raise SystemExit("requests failed")


if __name__ == "__main__":
    main()
