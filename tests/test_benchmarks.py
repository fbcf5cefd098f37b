"""The benchmark of the GPU runs here with tiny sizes, so that it is ready when there is one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_gpu_benchmark_runs_on_a_cpu():
    command = [sys.executable, "benchmarks/bench_gpu.py", "--device", "cpu", "--tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=280)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert set(rows) == {"stage", "---", "encode", "extract", "train a head", "train jointly", "score", "index"}
    assert "Left out" not in done.stdout
