"""A full disk in every command that writes: one line with the command to repeat, nothing half-written, all else whole.

What runs the commands stands in tests/full_disk.py: with a limit on the size of files, which needs no rights, and on a
small file system of its own where mounting is permitted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tries(folder: Path, how: str, *commands: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "tests" / "full_disk.py"), str(folder), how, *commands]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"command"')]


def require_clean(rows: list[dict[str, Any]]) -> None:
    wrong = [row for row in rows if row["wrong"] or row["outcome"] not in ("done", "one line")]
    assert not wrong, json.dumps(wrong[:5], indent=1)
    refused = {row["command"] for row in rows if row["outcome"] == "one line"}
    assert refused == {row["command"] for row in rows}, "a command never met the full disk"


@pytest.mark.slow
@pytest.mark.slow_sample
def test_no_room_for_an_index_or_an_evaluation(tmp_path):
    require_clean(tries(tmp_path, "limit", "index", "evaluate"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_room_in_any_command(tmp_path):
    require_clean(tries(tmp_path, "limit"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_disk_fills_up(tmp_path):
    (tmp_path / "probe").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "probe")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    subprocess.run(["umount", str(tmp_path / "probe")], check=True)
    require_clean(tries(tmp_path, "tmpfs"))
