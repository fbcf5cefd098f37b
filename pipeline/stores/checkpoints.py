"""Head checkpoints: safetensors for numbers, JSON for the rest. A pickle is never read or written.

config.json        the head's configuration and how it was made (written last: without it, no checkpoint)
model.safetensors  the chosen weights
resume.safetensors, resume.json    where an interrupted run goes on
metrics.jsonl      one line a validation
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.errors import CorruptShard, MissingData
from pipeline.stores.atomic import atomic_write, read_json, write_json

Tensors = dict[str, torch.Tensor]


def save_head(run_dir: Path, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write the weights, then `record` (it must hold "head", the HeadConfig as a dict)."""
    _save(run_dir / "model.safetensors", weights)
    write_json(run_dir / "config.json", dict(record))


def load_head(run_dir: Path) -> tuple[Tensors, dict[str, Any]]:
    """(weights, record). Raises MissingData when no finished head is there."""
    if not (run_dir / "config.json").exists():
        raise MissingData(f"no trained head at {run_dir}", fix="run `python cli.py train-head` first")
    record = read_json(run_dir / "config.json", needs=("head", "encoder"))
    return _load(run_dir / "model.safetensors"), record


def save_resume(run_dir: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """One point to go on from. The numbers and their description are two files: each names the other's step, so that
    a kill between the two writes is noticed and the older pair stays in force."""
    step = int(about["step"])
    _save(run_dir / f"resume-{step:08d}.safetensors", tensors)
    write_json(run_dir / "resume.json", dict(about))
    for old in run_dir.glob("resume-*.safetensors"):
        if old.name != f"resume-{step:08d}.safetensors":
            old.unlink()


def load_resume(run_dir: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """The last point saved, or None when the run has not begun or is finished."""
    if not (run_dir / "resume.json").exists():
        return None
    about = read_json(run_dir / "resume.json")
    return _load(run_dir / f"resume-{int(about['step']):08d}.safetensors"), about


def clear_resume(run_dir: Path) -> None:
    (run_dir / "resume.json").unlink(missing_ok=True)
    for old in run_dir.glob("resume-*.safetensors"):
        old.unlink()


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with atomic_write(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)


def _load(path: Path) -> Tensors:
    if not path.exists():
        raise MissingData(f"{path} is missing", fix="train the head again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptShard(f"{path} is damaged ({error})", fix="train the head again") from None
