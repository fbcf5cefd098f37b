"""Train and test one of the paper's systems, in a process of its own: what `reproduce` and the figures are made of.

A process a run, so that peak memory is that of the run and several can go on at once. Everything is kept on disk under
the run's name, so that what is done is never done again and what was interrupted goes on.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Workspace
from pipeline.flows.tables import SYSTEMS
from pipeline.stores.atomic import read_json, write_json


@dataclass(frozen=True)
class RunSpec:
    """One run: a system of `SYSTEMS`, a seed, and the recipe (TrainSettings without the seed)."""

    workspace: str
    dataset: str
    encoder: str
    system: str
    seed: int
    recipe: dict[str, Any]
    threads: int = 0  # torch's; 0 leaves its default


@dataclass(frozen=True)
class Tested:
    """What a run reached on the test split: ranks (T,) of every caption, its video's row (T,), seconds and memory."""

    run: str
    metrics: dict[str, float]
    ranks: np.ndarray
    clusters: np.ndarray
    train_seconds: float
    train_mb: float
    test_seconds: float
    test_mb: float


def prepare_runs(specs: Iterable[RunSpec], jobs: int, progress: Callable[[int, int, str], None]) -> None:
    """Train and test whatever of `specs` is missing, `jobs` at a time; a system's ancestors come first."""
    wanted = _with_ancestors(specs)
    done = 0
    for depth in range(1 + max((_depth(spec.system) for spec in wanted), default=0)):
        level = [spec for spec in wanted if _depth(spec.system) == depth]
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            for stage in (_train_task, _test_task):
                waiting = {pool.submit(stage, spec): spec for spec in level if stage is _test_task or not trained(spec)}
                for future in as_completed(waiting):
                    future.result()
                    spec = waiting[future]
                    done += stage is _test_task
                    progress(done, len(wanted), f"{spec.system} seed {spec.seed}")


def run_name(spec: RunSpec) -> str:
    """The folder of a run: the system, the seed, and a fingerprint of the recipe's settings that matter."""
    from pipeline.config import fingerprint

    return f"{spec.system}-s{spec.seed}-{fingerprint({'head': SYSTEMS[spec.system].head, **spec.recipe})[:6]}"


def trained(spec: RunSpec) -> bool:
    return (Workspace(Path(spec.workspace)).head_dir(spec.dataset, run_name(spec)) / "config.json").exists()


def tested(spec: RunSpec) -> Tested:
    """The kept result of a run that `prepare_runs` has made."""
    workspace = Workspace(Path(spec.workspace))
    record = read_json(workspace.head_dir(spec.dataset, run_name(spec)) / "config.json")
    kept = read_json(workspace.report_dir(spec.dataset, run_name(spec)) / "test.json")
    return Tested(
        kept["run"],
        kept["metrics"],
        np.array(kept["ranks"]),
        np.array(kept["clusters"]),
        record["seconds"],
        record["peak_mb"],
        kept["seconds"],
        kept["peak_mb"],
    )


def _with_ancestors(specs: Iterable[RunSpec]) -> list[RunSpec]:
    found: dict[str, RunSpec] = {}
    for spec in specs:
        while True:
            found[run_name(spec)] = spec
            parent = SYSTEMS[spec.system].start_from
            if parent is None:
                break
            spec = RunSpec(**{**asdict(spec), "system": parent})
    return list(found.values())


def _depth(system: str) -> int:
    parent = SYSTEMS[system].start_from
    return 0 if parent is None else 1 + _depth(parent)


def _open(spec: RunSpec) -> Any:
    import torch

    from pipeline.flows.choose import choose_store

    if spec.threads:
        torch.set_num_threads(spec.threads)
    return choose_store(Workspace(Path(spec.workspace)), spec.dataset, spec.encoder)


def system_settings(chosen: Any, system: str) -> dict[str, Any]:
    """HeadConfig's settings of a table's row: the system's, and under them the preset's, but for T': the rows name it,
    and a preset with another (DiDeMo's 5) would stand under the wrong label."""
    from pipeline.flows.train import preset_head

    own = SYSTEMS[system].head
    preset = {name: value for name, value in preset_head(chosen, own["head"]).items() if name != "T_prime"}
    return {"dim": chosen.store.dim, **preset, **own}


def _train_task(spec: RunSpec) -> None:
    from dits_head.config import HeadConfig
    from pipeline.flows.train import train_head
    from pipeline.train.loop import TrainSettings

    chosen = _open(spec)
    system = SYSTEMS[spec.system]
    parent = RunSpec(**{**asdict(spec), "system": system.start_from}) if system.start_from else None
    train_head(
        Workspace(Path(spec.workspace)),
        chosen,
        HeadConfig(**system_settings(chosen, spec.system)),
        TrainSettings(**spec.recipe, seed=spec.seed),
        run=run_name(spec),
        start_from=run_name(parent) if parent else None,
    )


def _test_task(spec: RunSpec) -> None:
    from pipeline.flows.choose import choose_head
    from pipeline.flows.train import peak_memory_mb
    from pipeline.retrieve.metrics import query_ranks, summarise
    from pipeline.retrieve.scoring import Scorer
    from pipeline.retrieve.streaming import count_grid
    from pipeline.stores.features import text_to_video

    workspace = Workspace(Path(spec.workspace))
    out = workspace.report_dir(spec.dataset, run_name(spec)) / "test.json"
    if out.exists():
        return
    chosen = _open(spec)
    chosen_head = choose_head(workspace, chosen, run_name(spec))
    videos, texts = chosen.store.videos("test"), chosen.store.texts("test")
    began = time.perf_counter()
    own = text_to_video(texts, videos)
    order = np.argsort(own, kind="stable")
    counts = count_grid(Scorer(chosen_head.head, videos).grid(texts.text_embeds[order], own[order]))
    seconds = time.perf_counter() - began
    result = {
        "run": chosen_head.run,
        "metrics": summarise(counts.t2v, len(videos)),
        "ranks": query_ranks(counts.t2v).tolist(),
        "clusters": own[order].tolist(),
        "seconds": round(seconds, 3),
        "peak_mb": peak_memory_mb(),
    }
    write_json(out, result)


def sensible_jobs() -> tuple[int, int]:
    """(runs at once, torch threads of each) for this machine: one a core on a CPU, one at a time on a GPU."""
    import torch

    if torch.cuda.is_available():
        return 1, 0
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1), 1
