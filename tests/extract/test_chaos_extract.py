"""Runs killed with SIGKILL at random moments, or at a chosen system call of a write, and resumed until they finish."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_extract import contents, corpus, encoder, undisturbed  # noqa: F401

from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import write_manifest

# The child kills itself just before or after the n-th call of a function that publishes a file: rename, fsync.
FAULT = """
import os, signal, sys
from pathlib import Path
name, moment, remaining = sys.argv[3], sys.argv[4], int(sys.argv[5])

def deadly(real):
    def call(*arguments, **options):
        global remaining
        remaining -= 1
        if remaining == 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

if name:
    setattr(os, name, deadly(getattr(os, name)))
"""
_CHILD = f"""{FAULT}
from clip_maker import PlainEncoder
from test_extract import SETTINGS
from pipeline.extract.driver import extract
from pipeline.stores.manifest import read_manifest
extract(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), SETTINGS, encoder=PlainEncoder())
"""


def start(
    manifest_path: Path, store: Path, fault: tuple[str, str, int] = ("", "", 0), *more: int, child: str = _CHILD
) -> subprocess.Popen:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}{os.pathsep}{Path(__file__).parent}"}
    command = [sys.executable, "-c", child, str(manifest_path), str(store), *map(str, fault), *map(str, more)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def draw_fault(rng: random.Random) -> tuple[str, str, int]:
    return rng.choice(["replace", "fsync"]), rng.choice(["before", "after"]), rng.randint(1, 12)


def disturb(manifest_path: Path, store: Path, rng: random.Random) -> int:
    """Run until a run ends by itself; returns how many were killed."""
    kills = 0
    while True:
        if rng.random() < 0.5:
            child = start(manifest_path, store, draw_fault(rng))
        else:
            child = start(manifest_path, store)
            time.sleep(rng.uniform(0.3, 3.0))
            child.send_signal(signal.SIGKILL)
        if child.wait(120) == 0:
            return kills
        assert child.returncode == -signal.SIGKILL
        kills += 1


def chaos(manifest, expected, folder: Path, enough: int, seed: int) -> tuple[int, int]:
    rng, kills, stores = random.Random(seed), 0, 0
    manifest_path = folder / "manifest.parquet"
    write_manifest(manifest, manifest_path)
    while kills < enough:
        store = folder / f"store{stores}"
        kills += disturb(manifest_path, store, rng)
        stores += 1
        survivor = FeatureStore.open(store)
        survivor.verify()
        assert contents(survivor) == expected
    return kills, stores


def test_killed_and_resumed_runs_end_with_the_undisturbed_store(corpus, undisturbed, tmp_path):  # noqa: F811
    kills, _ = chaos(corpus, contents(undisturbed), tmp_path, 2, seed=1)
    assert kills >= 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_killed_runs(corpus, undisturbed, tmp_path, capsys):  # noqa: F811
    kills, stores = chaos(corpus, contents(undisturbed), tmp_path, 100, seed=2)
    with capsys.disabled():
        print(f"\n{kills} runs killed over {stores} stores, each equal to the undisturbed one, row for row")
