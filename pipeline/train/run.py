"""Stage 2 as a command: choose the data, train, validate on the held-out split, keep the checkpoint."""

import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger

from dits_head.config import HeadConfig
from dits_head.distill import Student
from dits_head.head import RetrievalHead, build_head
from dits_head.inference import align_texts
from pipeline.errors import BadInput, FingerprintMismatch
from pipeline.evaluate.metrics import retrieval_metrics
from pipeline.fingerprint import describe_difference, fingerprint
from pipeline.presets import PRESETS
from pipeline.resolve import ResolvedStore, open_head
from pipeline.stores import checkpoints
from pipeline.stores.atomic import read_json
from pipeline.train.batches import BatchSource, PairData, training_features
from pipeline.train.distill import TeacherSource
from pipeline.train.loop import Progress, RunState, Source, TrainSettings, parameter_groups, train
from pipeline.workspace import Workspace

NARROW = 256  # width of a head below which threads do not pay


@dataclass(frozen=True)
class Distillation:
    """run: the teacher. contrast: weight of the contrastive loss beside the distance to the teacher's texts."""

    run: str
    contrast: float = 0.0

    def __post_init__(self) -> None:
        if not self.contrast >= 0:
            raise BadInput("--distill-contrast", expected="0 or more", got=self.contrast)


def train_head(
    workspace: Workspace,
    chosen: ResolvedStore,
    config: HeadConfig,
    settings: TrainSettings,
    *,
    run: str | None = None,
    start_from: str | None = None,
    distill: Distillation | None = None,
    for_tables: bool = False,
    devices: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one head and return {head, run, selected_on, val, seconds}; a run that is finished is returned as it is.

    run: folder name; by default the head's name and a fingerprint of everything that makes the run what it is.
    start_from: another run of the same data set whose equally named weights this one begins with.
    for_tables: a run of `reproduce`, which no later command takes unless it is named.
    distill: the head learns another run's aligned texts. Raises BadInput where one of the two aligns no text by itself.
    """
    identity = {
        "head": config.to_dict(),
        "encoder": chosen.store.settings,
        "settings": asdict(settings),
        "start_from": start_from,
    }
    if distill:
        identity["distilled_from"] = asdict(distill)
    run = run or f"{config.head}-{fingerprint(identity)[:8]}"
    run_dir = workspace.head_dir(chosen.dataset, run)
    if (run_dir / "config.json").exists():
        return finished_run(run_dir, identity)

    require_devices(devices)
    train_split, val_split, selected_on = training_features(chosen.store, settings.seed)
    train_data, val_data = PairData.of(*train_split), PairData.of(*val_split)
    head = new_head(workspace, chosen, config, settings.seed, start_from)
    teacher = open_teacher(workspace, chosen, distill, head) if distill else None
    run_dir.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(accelerator=accelerator(), devices=devices, loggers=loggers(run_dir))
    fabric.launch()
    head = head.to(fabric.device)
    features = BatchSource(train_data, fabric.device, free_bytes(fabric.device))
    model: torch.nn.Module = head
    source: Source = features
    if distill and teacher:
        model = Student(head, distill.contrast)
        source = TeacherSource(features, align_texts(teacher.to(fabric.device), train_data.text_embeds))
    validate = validator(val_data)
    with sensible_threads(config.dim, fabric.device):
        state = train(
            model,
            source,
            parameter_groups(model, settings.weight_decay),
            settings,
            run_dir,
            identity=identity,
            validate=lambda _: validate(head),
            fabric=fabric,
            progress=progress,
        )
    record = run_record(identity, run, selected_on, state, for_tables)
    if fabric.is_global_zero:
        checkpoints.save_head(run_dir, head.state_dict(), record)
        checkpoints.clear_resume(run_dir)
    return summary(record)


def new_head(
    workspace: Workspace, chosen: ResolvedStore, config: HeadConfig, seed: int, start_from: str | None
) -> RetrievalHead:
    """An untrained head; its equally named weights are those of the run `start_from`."""
    torch.manual_seed(seed)
    head = build_head(config)
    if start_from:
        head.start_from(open_head(workspace.head_dir(chosen.dataset, start_from), chosen.store).head.state_dict())
    return head


def open_teacher(
    workspace: Workspace, chosen: ResolvedStore, distill: Distillation, student: RetrievalHead
) -> RetrievalHead:
    """The trained head of `distill.run`; the student takes its equally named weights, pooling and temperature above
    all. Raises BadInput where one of the two aligns no text by itself."""
    teacher = open_head(workspace.head_dir(chosen.dataset, distill.run), chosen.store).head
    for who, config in (("teacher", teacher.config), ("student", student.config)):
        if reason := config.needs_video or ("" if config.aligns_text else "it leaves texts as they are"):
            raise BadInput(
                f"--distill: the {who} ({config.head}) aligns no text by itself: {reason}",
                fix="distil a dits, mlp, diffusion or fixed-prior run into a head of these",
            )
    student.start_from(teacher.state_dict())
    return teacher


def run_record(
    identity: Mapping[str, Any], run: str, selected_on: str, state: RunState, for_tables: bool
) -> dict[str, Any]:
    """What a finished run's config.json says, beside what it was made of."""
    return {
        **identity,
        "run": run,
        "selected_on": selected_on,
        "val": state.best,
        "seconds": round(state.seconds, 1),
        "peak_mb": peak_memory_mb(),
        "for_tables": for_tables,
    }


def validator(data: PairData) -> Callable[[RetrievalHead], Mapping[str, float]]:
    """Text-to-video metrics of a head on the validation split, all of it at once."""
    return lambda head: validation_metrics(
        head, data.text_embeds, data.frame_embeds[:], data.frame_mask, data.text_to_video
    )


def validation_metrics(
    head: RetrievalHead,
    text_embeds: np.ndarray,
    frame_embeds: np.ndarray,
    frame_mask: np.ndarray,
    text_to_video: np.ndarray,
) -> dict[str, float]:
    device = next(head.parameters()).device
    frames = torch.from_numpy(frame_embeds).to(device, torch.float32)
    sims = head.score(torch.from_numpy(text_embeds).to(device), frames, torch.from_numpy(frame_mask).to(device))
    return retrieval_metrics(sims.cpu().numpy(), text_to_video)


def loggers(run_dir: Path) -> TensorBoardLogger:
    return TensorBoardLogger(run_dir, name="events", version="")


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_memory_mb() -> float:
    """Peak memory of this process so far, in MB: of the GPU where one is used, else resident memory."""
    if torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def accelerator() -> str:
    """A GPU of CUDA where there is one, else the CPU, as in stage 1: Apple's lacks the float64 of the schedule."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_devices(devices: int) -> None:
    if devices < 1:
        raise BadInput("--devices", expected="1 or more", got=devices)


@contextmanager
def sensible_threads(dim: int, device: torch.device) -> Iterator[None]:
    """One thread for narrow heads on a CPU: sharing such small matrices takes longer than multiplying them (a DITS step
    at D = 128, batch 128, took 0.24 s with one thread and 0.33 to 0.5 s with two)."""
    before = torch.get_num_threads()
    if device.type == "cpu" and dim < NARROW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finished_run(run_dir: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    record = read_json(run_dir / "config.json")
    made_of = record.get("tuned_from", record)  # a tuned run's own encoder is another than the one it began with
    wanted = {"distilled_from": None, "tune": None, **identity}  # a plain run names neither
    if difference := describe_difference({name: made_of.get(name) for name in wanted}, wanted):
        raise FingerprintMismatch(
            f"{run_dir} holds a head trained with other settings ({difference})", fix="give --run another name"
        )
    return summary(record)


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "head": record["head"]["head"],
        "run": record["run"],
        "selected_on": record["selected_on"],
        "val": record["val"],
        "seconds": record["seconds"],
    }


def recipe(chosen: ResolvedStore, **given: Any) -> dict[str, Any]:
    """The preset of the data set and backbone, or the defaults, without a seed; what is `given` comes first."""
    values = asdict(TrainSettings()) | preset_of(chosen).get("train", {})
    del values["seed"]
    return values | {name: value for name, value in given.items() if value is not None}


def preset_of(chosen: ResolvedStore) -> dict[str, Any]:
    """{"head": ..., "train": ..., "tune": ...} of the preset for this data set and model; empty where there is none."""
    for preset in PRESETS.values():
        if (preset.dataset, preset.model) == (chosen.dataset, chosen.store.settings["model"]):
            return {"head": dict(preset.head), "train": dict(preset.train), "tune": dict(preset.tune)}
    return {}


def preset_head(chosen: ResolvedStore, head: str) -> dict[str, Any]:
    """The preset's settings for this head: all of them if it is the preset's own, else those that every head shares.
    T-MASS learns a radius from the frames, so its size is that of the features."""
    preset = preset_of(chosen).get("head", {})
    shared = set(preset) - {"head"} if preset.get("head") == head else {"dropout", "init_logit_scale"} & set(preset)
    of_features = {"num_frames": chosen.store.num_frames} if head == "tmass" else {}
    return of_features | {
        name: preset[name] for name in sorted(shared) if not (head == "mean-pool" and name == "dropout")
    }


def head_config(
    chosen: ResolvedStore, head: str, options: Mapping[str, str], *, paper_literal: bool = False
) -> HeadConfig:
    """A HeadConfig from the preset and the command line's `--set name=value` pairs, which come first.

    Raises BadInput naming the field and the fix.
    """
    if paper_literal and head != "dits":
        raise BadInput("--paper-literal is a reading of DITS", expected="--head dits", got=f"--head {head}")
    dim = chosen.store.dim
    typed = preset_head(chosen, head) | head_settings(options)
    try:
        if paper_literal:
            return HeadConfig.paper_literal(dim, **typed)
        return HeadConfig(head=head, dim=dim, **typed)
    except ValueError as error:
        raise BadInput(f"this head cannot be built: {error}") from None


def head_settings(options: Mapping[str, str]) -> dict[str, Any]:
    """`--set name=value` pairs, with the types of HeadConfig's fields. Raises BadInput for one that cannot be read."""
    known = HeadConfig().to_dict()
    for name in options:
        if name not in known or name in ("head", "dim"):
            raise BadInput(f"--set {name}", expected=", ".join(sorted({*known} - {"head", "dim"})), got=name)
    return {name: _typed(name, text, known[name]) for name, text in options.items()}


def _typed(name: str, text: str, example: Any) -> Any:
    try:
        if isinstance(example, bool):
            return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[text.lower()]
        return type(example)(text)
    except (KeyError, ValueError):
        raise BadInput(f"--set {name}", expected=f"a {type(example).__name__}", got=repr(text)) from None
