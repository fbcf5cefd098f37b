"""Train, validate and test one of the paper's systems, each run in a process of its own.

A process a run, so that peak memory is that of the run and several can run at once. Everything is kept on disk under
the run's name: finished work is never repeated, interrupted work resumes.
"""

import multiprocessing
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import remote
from pipeline.device import resolve_device
from pipeline.evaluate.rank_counts import counts_of
from pipeline.experiments.tables import SYSTEMS
from pipeline.stores.atomic import write_json
from pipeline.stores.integrity import read_json
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class RunSpec:
    """Everything that makes a run what it is."""

    workspace: str
    dataset: str
    encoder: str
    features: str
    """Identity of the features that the run is made from (`features_id`)."""
    system: str
    """A name of SYSTEMS."""
    seed: int
    recipe: dict[str, Any]
    """TrainSettings without the seed."""
    head: dict[str, Any] = field(default_factory=dict)
    """HeadConfig's settings where the system names none of its own."""
    tune: dict[str, Any] = field(default_factory=dict)
    """TuneSettings that come before the preset's, such as `clip_lr`."""
    threads: int = 0
    """Torch's threads; 0 leaves its default."""


@dataclass(frozen=True)
class Tested:
    """What a run reached on the test split."""

    run: str
    metrics: dict[str, float]
    ranks: np.ndarray
    """(T,) of every caption's own video."""
    clusters: np.ndarray
    """(T,) the row of that video."""
    train_seconds: float
    train_mb: float
    test_seconds: float
    test_mb: float
    measured: dict[str, dict[str, float]]
    """By the name of a measure, what it gave."""


def prepare_runs(
    specs: Collection[RunSpec],
    jobs: int,
    progress: Callable[[int, int, str], None],
    measures: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Train and test whatever of `specs` is missing, a system's ancestors first.

    Args:
        specs: The runs.
        jobs: How many run at once.
        progress: Called with (done, total, what).
        measures: By system, the names of `measures.MEASURES` to take besides.
    """
    wanted = _with_ancestors(specs)
    more = [
        (spec, name)
        for spec in specs
        for name in (measures or {}).get(spec.system, ())
        if not _kept(spec, name).exists()
    ]
    done, total = sum(map(has_result, wanted)), len(wanted) + len(more)
    for depth in range(1 + max((_depth(spec.system) for spec in wanted), default=0)):
        level = [spec for spec in wanted if _depth(spec.system) == depth]
        for stage, is_done in ((_train_task, trained), (_test_task, has_result)):
            for (spec,) in _in_processes(jobs, stage, [(spec,) for spec in level if not is_done(spec)]):
                done += stage is _test_task
                progress(done, total, f"{spec.system} seed {spec.seed}")
    for spec, name in _in_processes(jobs, _measure_task, more):
        done += 1
        progress(done, total, f"{spec.system} seed {spec.seed}: {name}")


def validate_runs(specs: Collection[RunSpec], jobs: int, progress: Callable[[int, int, str], None]) -> None:
    """Train whatever of `specs` was not, keep its score on the validation split, and nothing else of it.

    The test split is not looked at. A system's ancestors are trained first, and stay.
    """
    names = {run_name(spec) for spec in specs}
    ancestors = [spec for spec in _with_ancestors(specs) if run_name(spec) not in names]
    for depth in range(1 + max((_depth(spec.system) for spec in ancestors), default=-1)):
        level = [(spec,) for spec in ancestors if _depth(spec.system) == depth and not trained(spec)]
        for (spec,) in _in_processes(jobs, _train_task, level):
            progress(0, len(specs), f"{spec.system} seed {spec.seed}")
    missing = [(spec,) for spec in specs if not _kept(spec, "val").exists()]
    for number, (spec,) in enumerate(_in_processes(jobs, _validate_task, missing), 1):
        progress(len(specs) - len(missing) + number, len(specs), f"{spec.system}: {rates_in_words(spec)}")


def validated(spec: RunSpec) -> dict[str, float]:
    """{"R@1", "MnR", ...} on the validation split of a run that `validate_runs` has made."""
    score: dict[str, float] = read_json(_kept(spec, "val"))
    return score


def rates_in_words(spec: RunSpec) -> str:
    """ "head 0.003, CLIP 0.001" """
    clip = f", CLIP {spec.tune['clip_lr']:g}" if SYSTEMS[spec.system].tune and "clip_lr" in spec.tune else ""
    return f"head {spec.recipe['lr']:g}{clip}"


def _in_processes(jobs: int, task: Callable[..., None], calls: Collection[tuple[Any, ...]]) -> Iterator[Any]:
    """Call `task` with each of `calls` in a process of its own, `jobs` at a time, and yield them as they finish.

    When one of them fails, those that wait are cancelled.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(task, *call): call for call in calls}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def features_id(chosen: Any) -> str:
    """Identity of the features and of the preset that they bring.

    A run of other videos, splits, captions, another encoder or another preset of the head must not be taken for this.
    """
    from pipeline.fingerprint import fingerprint
    from pipeline.train.recipe import preset_of

    videos, texts = chosen.store.videos(mmap=True), chosen.store.texts()
    about = {
        "encoder": chosen.encoder,
        "settings": chosen.store.settings,
        "videos": [list(videos.video_ids), list(videos.splits)],
        "captions": [list(texts.caption_ids), list(texts.splits), list(texts.captions)],
        "preset": preset_of(chosen).get("head", {}),
    }
    return fingerprint(about)


def run_name(spec: RunSpec) -> str:
    """A run's folder: system, seed, and a fingerprint of the features and of all settings, defaults included."""
    from dits_head.config import HeadConfig
    from pipeline.fingerprint import fingerprint

    system = SYSTEMS[spec.system]
    head = HeadConfig(dim=1, **{**spec.head, **system.head}).to_dict()
    about = {"features": spec.features, "head": head, "tune": system.tune, **spec.recipe}
    about |= spec.tune if system.tune else {}
    return f"{spec.system}-s{spec.seed}-{fingerprint(about)[:6]}"


def trained(spec: RunSpec) -> bool:
    return (Workspace(Path(spec.workspace)).head_dir(spec.dataset, run_name(spec)) / "config.json").exists()


def has_result(spec: RunSpec) -> bool:
    return _kept(spec, "test").exists()


def _kept(spec: RunSpec, name: str) -> Path:
    """The file of a run's test, or of a measure."""
    return Workspace(Path(spec.workspace)).report_dir(spec.dataset, run_name(spec)) / f"{name}.json"


def tested(spec: RunSpec, measures: Collection[str]) -> Tested:
    """The kept result of a run that `prepare_runs` has made, and of these measures."""
    workspace = Workspace(Path(spec.workspace))
    record = read_json(workspace.head_dir(spec.dataset, run_name(spec)) / "config.json")
    kept = read_json(_kept(spec, "test"))
    return Tested(
        kept["run"],
        kept["metrics"],
        np.array(kept["ranks"]),
        np.array(kept["clusters"]),
        record["seconds"],
        record["peak_mb"],
        kept["seconds"],
        kept["peak_mb"],
        {name: read_json(_kept(spec, name)) for name in measures},
    )


def _with_ancestors(specs: Iterable[RunSpec]) -> list[RunSpec]:
    found: dict[str, RunSpec] = {}
    for spec in specs:
        while True:
            found[run_name(spec)] = spec
            parent = SYSTEMS[spec.system].parent
            if parent is None:
                break
            spec = RunSpec(**{**asdict(spec), "system": parent})
    return list(found.values())


def _depth(system: str) -> int:
    parent = SYSTEMS[system].parent
    return 0 if parent is None else 1 + _depth(parent)


def _open(spec: RunSpec, *, to_train: bool = False) -> Any:
    """The features that a run starts from, or, once it is trained, those of the CLIP that it left."""
    import torch

    from pipeline.resolve import resolve_store

    if spec.threads:
        torch.set_num_threads(spec.threads)
    encoder = spec.encoder
    if SYSTEMS[spec.system].tune and not to_train:
        from pipeline.train.finetune import tuned_encoder

        encoder = tuned_encoder(spec.encoder, run_name(spec))
    return resolve_store(Workspace(Path(spec.workspace)), spec.dataset, encoder)


def system_settings(chosen: Any, system: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """HeadConfig's settings of a table's row: the system's own before `head`, and those before the preset's.

    The preset's T' is left out: rows name it, and DiDeMo's 5 would stand under the wrong label.
    """
    from pipeline.train.recipe import preset_head

    own = SYSTEMS[system].head
    preset = {name: value for name, value in preset_head(chosen, own["head"]).items() if name != "T_prime"}
    return {"dim": chosen.store.dim, **preset, **head, **own}


def clip_rate(chosen: Any) -> float:
    """The learning rate of CLIP that the preset of these features brings, or the default."""
    from pipeline.train.finetune import tune_settings

    return tune_settings(chosen, 1).clip_lr


def require_trainable(workspace: Workspace, chosen: Any, system: str) -> None:
    """Raises BadInput where a system that trains CLIP needs activations or video files that are not there."""
    from pipeline.train.finetune import tune_settings
    from pipeline.train.trainable_clip import require_cached, require_clips

    how = SYSTEMS[system].tune
    if how is None:
        return
    blocks = tune_settings(chosen, how).blocks
    if blocks is None:
        require_clips(workspace, chosen)
    else:
        require_cached(chosen, blocks)


def _train_task(spec: RunSpec) -> None:
    from dits_head.config import HeadConfig
    from pipeline.evaluate.metrics import retrieval_metrics
    from pipeline.train.finetune import FinetuneTask, tune_settings
    from pipeline.train.loop import TrainSettings
    from pipeline.train.run import RunOptions, train_head
    from pipeline.train.tasks import DistillTask, HeadTask

    chosen = _open(spec, to_train=True)
    system = SYSTEMS[spec.system]
    parent = run_name(RunSpec(**{**asdict(spec), "system": system.parent})) if system.parent else None
    task = DistillTask(parent) if parent and system.distilled_from else HeadTask()
    if system.tune:
        task = FinetuneTask(tune_settings(chosen, system.tune, **spec.tune))
    train_head(
        Workspace(Path(spec.workspace)),
        chosen,
        HeadConfig(**system_settings(chosen, spec.system, spec.head)),
        TrainSettings(**spec.recipe, seed=spec.seed),
        task,
        retrieval_metrics,
        RunOptions(run_name(spec), parent if system.start_from else None, for_tables=True),
    )


def _validate_task(spec: RunSpec) -> None:
    """A run that was there before stays; one that is trained for this is removed, with the CLIP and store it leaves."""
    workspace = Workspace(Path(spec.workspace))
    head_dir, was_there = workspace.head_dir(spec.dataset, run_name(spec)), trained(spec)
    try:
        if not was_there:
            _train_task(spec)
        score = read_json(head_dir / "config.json")["val"]
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        score = {"R@1": 0.0, "MnR": 1e9}  # the rate is too high: training diverged
    write_json(_kept(spec, "val"), score)
    if not was_there:
        from pipeline.train.finetune import tuned_encoder

        tuned_store = workspace.features_dir(spec.dataset, tuned_encoder(spec.encoder, run_name(spec)))
        for folder in (tuned_store, head_dir):
            if folder.is_dir():
                remote.remove(folder)


def _test_task(spec: RunSpec) -> None:
    from pipeline.evaluate.metrics import query_ranks, summarise
    from pipeline.resolve import resolve_head
    from pipeline.stores.features import text_to_video
    from pipeline.train.run import peak_memory_mb

    workspace = Workspace(Path(spec.workspace))
    chosen = _open(spec)
    chosen_head = resolve_head(workspace, chosen, run_name(spec)).to(resolve_device())
    videos, texts = chosen.store.videos("test"), chosen.store.texts("test")
    began = time.perf_counter()
    counts, clusters = counts_of(chosen_head.head, videos, texts.text_embeds, text_to_video(texts, videos))
    seconds = time.perf_counter() - began
    result = {
        "run": chosen_head.run,
        "metrics": summarise(counts.t2v, len(videos)),
        "ranks": query_ranks(counts.t2v).tolist(),
        "clusters": clusters.tolist(),
        "seconds": round(seconds, 3),
        "peak_mb": peak_memory_mb(),
    }
    write_json(_kept(spec, "test"), result)


def _measure_task(spec: RunSpec, name: str) -> None:
    from pipeline.experiments.measures import MEASURES
    from pipeline.resolve import resolve_head

    workspace = Workspace(Path(spec.workspace))
    chosen = _open(spec)
    head = resolve_head(workspace, chosen, run_name(spec)).to(resolve_device())
    write_json(_kept(spec, name), MEASURES[name](workspace, chosen, head))


def sensible_jobs() -> tuple[int, int]:
    """(runs at once, torch threads of each) for this machine: one a core on a CPU, one at a time on a GPU."""
    import torch

    from pipeline.video.pool import available_cores

    if torch.cuda.is_available():
        return 1, 0
    return available_cores(), 1
