"""One run of stage 2, whatever its task: split, model, training, checkpoint, record."""

import logging
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from lightning_fabric.utilities import rank_zero_only

from dits_head.config import HeadConfig
from dits_head.head import RetrievalHead, build_head
from dits_head.schedule import make_schedule, reach
from pipeline.device import resolve_device
from pipeline.errors import BadInput, FingerprintMismatch
from pipeline.fingerprint import describe_difference, fingerprint
from pipeline.resolve import ResolvedStore, open_head
from pipeline.stores import checkpoints
from pipeline.stores.integrity import read_json
from pipeline.train.batches import training_features
from pipeline.train.loop import Progress, TrainSettings, train
from pipeline.train.precision import of_fabric, products, require_tensor_cores
from pipeline.train.tasks import HeadTask, Measure
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How a run is named and started; only `start_from` changes what it learns."""

    run: str | None = None
    """Folder name; by default the head's name and a fingerprint of everything that makes the run what it is."""
    start_from: str | None = None
    """Another run of the same data set whose equally named weights this one begins with."""
    for_tables: bool = False
    """A run of `reproduce`, which no later command takes unless it is named."""
    device: str = "auto"
    """Where it runs, as `resolve_device` takes it; of several devices, their type."""
    devices: int = 1
    """GPUs, or CPU processes, of each machine. They share the batch, so a run's result does not depend on them."""
    num_nodes: int = 1
    """Machines. Each starts the same command, under torchrun or Slurm, which tell a process where it stands."""

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')}", expected="1 or more", got=getattr(self, name))

    @property
    def world(self) -> int:
        """Devices of all machines."""
        return self.devices * self.num_nodes


def train_head(
    workspace: Workspace,
    chosen: ResolvedStore,
    config: HeadConfig,
    settings: TrainSettings,
    task: HeadTask,
    measure: Measure,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a training task, or find it done.

    Args:
        task: What trains: `HeadTask()`, `DistillTask(teacher)` or `FinetuneTask(settings)`. An object serves one run.
        measure: The validation metrics, from sims (T, V) and text_to_video (T,). They must hold "R@1" and "MnR", by
            which the best epoch is chosen; `pipeline.evaluate.metrics.retrieval_metrics` does.

    Returns:
        {head, run, selected_on, val, seconds}; of the finished run, where there is one of the same identity.

    Raises:
        FingerprintMismatch: The run's folder holds a run of other settings.
        BadInput: The store or another run lacks what the task needs, or the devices cannot share a batch equally.
    """
    options = options or RunOptions()
    if settings.batch_size % options.world:
        raise BadInput(
            "--batch-size",
            expected=f"a multiple of the {options.world} devices, which share it",
            got=settings.batch_size,
        )
    identity = {
        "head": config.to_dict(),
        "encoder": chosen.store.settings,
        "settings": asdict(settings),
        **task.identity(),
        "start_from": options.start_from,
    }
    head_name = config.head.rpartition(":")[2]  # of a head from elsewhere, module:Class, the class
    run = options.run or "-".join(filter(None, (head_name, task.label, fingerprint(identity)[:8])))
    run_dir = workspace.head_dir(chosen.dataset, run)
    if (run_dir / "config.json").exists():
        return _finished(run_dir, identity)

    train_split, val_split, selected_on = training_features(chosen.store)
    if warning := unit_warning(config, train_split[1].text_embeds):
        log.warning(warning)
    head = _new_head(workspace, chosen, config, settings.seed, options.start_from)
    model = task.build(workspace, chosen, head)
    device = resolve_device(options.device)
    require_tensor_cores(task.precision, device)
    run_dir.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(
        accelerator=device.type,
        devices=options.devices if device.index is None or options.world > 1 else [device.index],
        num_nodes=options.num_nodes,
        precision=of_fabric(task.precision),
        loggers=_loggers(run_dir),
    )
    fabric.launch()
    if fabric.world_size > 1 and fabric.is_global_zero:
        log.info(_shares(settings.batch_size, fabric.world_size, task))
    model = model.to(fabric.device)
    task.to(fabric.device, options.devices)
    with _no_empty_run(run_dir), task.threads(fabric.device), products(task.precision, fabric.device):
        state = train(
            model,
            task.source(train_split, fabric.device, fabric.global_rank, fabric.world_size),
            task.parameter_groups(model, settings),
            settings,
            run_dir,
            identity=identity,
            validate=task.validator(val_split, measure, fabric.device),
            fabric=fabric,
            progress=progress,
        )
    record = {
        **identity,
        "run": run,
        "selected_on": selected_on,
        "val": state.best,
        "seconds": round(state.seconds, 1),
        "peak_mb": peak_memory_mb(),
        "for_tables": options.for_tables,
    }
    if fabric.is_global_zero:
        if tuned := task.publish(workspace, chosen, run):
            record |= {"encoder": tuned, "tuned_from": identity}
        checkpoints.save_head(run_dir, head.state_dict(), record)
        checkpoints.clear_resume(run_dir)
    return _summary(record)


@contextmanager
def _no_empty_run(run_dir: Path) -> Iterator[None]:
    """Remove the folder of a run that failed, unless it holds a head or a point to go on from."""
    try:
        yield
    except BaseException:
        if not any((run_dir / name).exists() for name in ("config.json", "resume.json")):
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def unit_warning(config: HeadConfig, text_embeds: np.ndarray) -> str:
    """What to say of a sampler whose steps or noise have a fixed unit, and are longer than the texts (T, D); or ""."""
    if config.head != "dits" or config.relative or not config.steps:
        return ""
    steps, noise = reach(make_schedule(config.schedule, config.T), config.steps, config.dim)
    text = 1.0 if config.normalise else float(np.linalg.norm(text_embeds.astype(np.float32), axis=1).mean())
    noise *= bool(config.noise_train)
    if max(steps, noise) <= text:
        return ""
    return (
        f"eq. 8's noise has length {noise:.3g} and its chi sum to {steps:.3g}, where texts have length {text:.3g}: "
        "they may drown them; `relative=true` (the default of --head dits) relates both to it"
    )


def _new_head(
    workspace: Workspace, chosen: ResolvedStore, config: HeadConfig, seed: int, start_from: str | None
) -> RetrievalHead:
    """An untrained head; its equally named weights are those of the run `start_from`."""
    torch.manual_seed(seed)
    head = build_head(config)
    if start_from:
        head.start_from(open_head(workspace.head_dir(chosen.dataset, start_from), chosen.store).head.state_dict())
    return head


def _finished(run_dir: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    record = read_json(run_dir / "config.json")
    made_of = record.get("tuned_from", record)  # a tuned run's own encoder is another than the one it began with
    wanted = {"distilled_from": None, "tune": None, "precision": None, **identity}  # a plain run names none of them
    if difference := describe_difference({name: made_of.get(name) for name in wanted}, wanted):
        raise FingerprintMismatch(
            f"{run_dir} holds a head trained with other settings ({difference})", fix="give --run another name"
        )
    return _summary(record)


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "head": record["head"]["head"],
        "run": record["run"],
        "selected_on": record["selected_on"],
        "val": record["val"],
        "seconds": record["seconds"],
    }


def _shares(batch_size: int, world: int, task: HeadTask) -> str:
    text = f"a step's {batch_size} pairs on {world} devices"
    if task.shares_batch:
        return f"{text}: {batch_size // world} each, every one a negative of all others"
    return f"{text}, all of them on each: a head alone trains no faster on several devices, which are for CLIP"


def _loggers(run_dir: Path) -> TensorBoardLogger:
    return TensorBoardLogger(run_dir, name="events", version="")


def is_first_process() -> bool:
    """Whether this process reports: of those that several devices or machines run, the one of rank 0."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def peak_memory_mb() -> float:
    """Peak memory of this process so far, in MB: of the GPU where one is used, else resident memory."""
    if torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
