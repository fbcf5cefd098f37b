"""Every file of a workspace, damaged at random: the same result, or one line with exit code 2. The mutations and what
runs them stand in tests/damage.py; docs/results/failure-tests.md has the counts of a whole run."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def damaged(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """One row a mutation; the driver forks, and so runs in a process without threads."""
    command = [sys.executable, str(ROOT / "tests" / "damage.py"), str(folder), str(count), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"file"')]


def require_noticed(rows: list[dict[str, Any]], count: int) -> None:
    assert len(rows) == count
    # A value of a file that looks as if it was made before checksums can be another value and give another result:
    # not without a warning. A report of that kind is refused.
    wrong = [
        row
        for row in rows
        if row["outcome"] not in ("same", "refused")
        and (row["how"], row["outcome"]) != ("edited JSON as of an old version", "warned")
    ]
    wrong += [row for row in rows if row["outcome"] == "warned" and "/reports/" in row["file"]]
    assert not wrong, json.dumps(wrong[:5], indent=1)
    outcomes = Counter(row["outcome"] for row in rows)
    # a damaged catalogue is made again from the shards: the same result, though the damage was noticed
    assert outcomes["refused"] > count / 4, f"hardly any damage reached a file that was read: {outcomes}"


@pytest.mark.slow
@pytest.mark.slow_sample
def test_forty_damaged_files(tmp_path):
    require_noticed(damaged(tmp_path, 40, seed=5), 40)


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", [11, 12])
def test_a_thousand_damaged_files(tmp_path, seed):
    require_noticed(damaged(tmp_path, 560, seed), 560)
