"""Collect the wheels that a machine without network needs for `make test-gpu` and `make bench-gpu`.

    python scripts/wheelhouse.py wheels/                        # beside torch, timm, safetensors and h5py
    python scripts/wheelhouse.py wheels/ --for all              # and FAISS, PyAV, pyarrow: all of the benchmark
    python scripts/wheelhouse.py wheels/ --have torch,numpy     # a machine that has less
    there: pip install --no-index --no-deps --find-links wheels/ wheels/*.whl
           python -m pytest -p no:cacheprovider tests/gpu -k cuda -rs; python benchmarks/bench_gpu.py

Versions are those of constraints.txt; what the machine has already (`--have`) is left out. Wheels are those of the
target's platform and Python, so they can be collected on any other machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("ftfy", "hypothesis", "iniconfig", "lightning-fabric", "lightning-utilities", "open_clip_torch", "pluggy",
         "pytest", "pytest-timeout", "regex", "sortedcontainers", "tqdm", "typer", "wcwidth")  # fmt: skip
MORE = ("av", "faiss-gpu", "ffmpeg-python", "filelock", "fsspec", "jinja2", "markupsafe", "pillow", "psutil", "pyarrow")
HAVE = ("torch", "torchvision", "timm", "safetensors", "h5py", "numpy", "huggingface-hub", "pyyaml", "packaging")


def pinned(names: list[str]) -> list[str]:
    """name==version of constraints.txt; a name that is not pinned stays as it is."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = {canonical(line.split("==")[0]): line for line in lines if "==" in line}
    return [versions.get(canonical(name), name) for name in names]


def canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--for", dest="purpose", choices=["tests", "all"], default="tests")
    parser.add_argument("--have", default=",".join(HAVE), help="what the machine has, with commas")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64")
    parser.add_argument("--python", default="3.11")
    args = parser.parse_args()
    have = {canonical(name) for name in args.have.split(",")}
    wanted = [name for name in (*TESTS, *(MORE if args.purpose == "all" else ())) if canonical(name) not in have]
    args.out.mkdir(parents=True, exist_ok=True)
    older = [f"--platform={args.platform}", "--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *older,
               f"--python-version={args.python}", "--dest", str(args.out), *pinned(wanted)]  # fmt: skip
    if failed := subprocess.run(command, check=False).returncode:
        raise SystemExit(failed)
    files = sorted(args.out.glob("*.whl"))
    total = sum(path.stat().st_size for path in files)
    print(f"{len(files)} wheels, {total / 2**20:.1f} MiB in {args.out}")


if __name__ == "__main__":
    main()
