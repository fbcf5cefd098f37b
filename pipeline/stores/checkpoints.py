"""Head checkpoints: safetensors for numbers, JSON for the rest. A pickle is never read or written.

config.json        the head's configuration and how it was made, and the sha256 of the weights (written last: without
                   it, no checkpoint)
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

from pipeline import remote
from pipeline.errors import CorruptShard, MissingData
from pipeline.stores.atomic import atomic_write, write_json
from pipeline.stores.integrity import Record, read_json, sha256_file, verify_file

Tensors = dict[str, torch.Tensor]
_ABOUT = dict[str, str | int]


def save_head(run_dir: Path, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write the weights, then `record` (it must hold "head", the HeadConfig as a dict)."""
    about = _save(run_dir / "model.safetensors", weights)
    write_json(run_dir / "config.json", {**record, "files": {"model.safetensors": about}})


def load_head(run_dir: Path) -> tuple[Tensors, dict[str, Any]]:
    """(weights, record). Raises MissingData when no finished head is there."""
    if not (run_dir / "config.json").exists():
        raise MissingData(f"no trained head at {run_dir}", fix="run `python cli.py train-head` first")
    record = read_head_record(run_dir)
    return _load(run_dir / "model.safetensors", record.get("files", {}).get("model.safetensors")), record


def read_head_record(run_dir: Path) -> Record:
    """config.json of a finished head. Raises MissingData, CorruptShard."""
    needs = {"head": dict[str, Any], "encoder": dict[str, Any]}
    may = {"settings": dict[str, Any], "files": dict[str, _ABOUT], "run": str, "val": dict[str, float] | None}
    return read_json(run_dir / "config.json", needs, may)


def save_resume(run_dir: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """One point to go on from. The numbers and their description are two files: each names the other's step, so that
    a kill between the two writes is noticed and the older pair stays in force."""
    step = int(about["step"])
    name = f"resume-{step:08d}.safetensors"
    write_json(run_dir / "resume.json", {**about, "files": {name: _save(run_dir / name, tensors)}})
    for old in run_dir.glob("resume-*.safetensors"):
        if old.name != name:
            remote.remove(old)


def load_resume(run_dir: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """The last point saved, or None when the run has not begun or is finished."""
    if not (run_dir / "resume.json").exists():
        return None
    needs = {"step": int, "seconds": float, "history": list[dict[str, Any]], "best": dict, "identity": dict}
    about = read_json(run_dir / "resume.json", needs, {"files": dict[str, _ABOUT]})
    name = f"resume-{about['step']:08d}.safetensors"
    return _load(run_dir / name, about.get("files", {}).get(name)), about


def clear_resume(run_dir: Path) -> None:
    remote.remove(run_dir / "resume.json")
    for old in run_dir.glob("resume-*.safetensors"):
        remote.remove(old)


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, str | int]:
    """Write the tensors; size and sha256 of the file."""
    with atomic_write(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)
        return {"bytes": temporary.stat().st_size, "sha256": sha256_file(temporary)}


def _load(path: Path, about: Mapping[str, Any] | None) -> Tensors:
    """Tensors of a file that is what `about` says; None, of a head from before: it is not known."""
    if not path.exists():
        raise MissingData(f"{path} is missing", fix="train the head again")
    try:
        remote.need(path)
        if about is not None:
            verify_file(
                path, str(about.get("sha256")), size=about.get("bytes"), always=True, fix="train the head again"
            )
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CorruptShard(f"{path} is damaged ({error})", fix="train the head again") from None
