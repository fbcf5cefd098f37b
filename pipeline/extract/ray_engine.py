"""Stage 1 on a Ray cluster: shard specs travel, never frames. Each actor holds one encoder and its decoding processes,
reads the videos itself and writes its shards to the store: a folder that every node sees, or one in a workspace on
object storage, of which each node has its own copy.

An actor whose process or node died is replaced, on any node that has room: by the driver, not by Ray's own restarts,
which do not say at which shard an actor died and fail calls while it restarts. Shards go out a few at a time, so that
decoding runs ahead over their borders; when an actor dies at such a group, its shards go out one by one, and one at
which `_ATTEMPTS` actors died ends as failures of class `WorkerDied`. What an actor finished before it died stays done:
a shard that has its marker is passed over. A driver that is killed is started again with the same command.
"""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from pipeline import remote
from pipeline.clip.protocol import Embedder
from pipeline.errors import BadInput, UserError
from pipeline.extract.array_job import finish, require_plannable, write_shards
from pipeline.extract.driver import ExtractReport, full_disk_is_an_error, open_store, write_failed_shard
from pipeline.extract.settings import ExtractSettings, encoder_for
from pipeline.extract.shard_plan import ShardSpec, outstanding, plan
from pipeline.progress import progress
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest
from pipeline.video.limits import DecodeFailure

_ATTEMPTS = 3  # actors that may die at one shard in a row, or at loading the encoder
_GROUP = 8  # shards an actor gets at a time, at most
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayOptions:
    """What an actor takes of the cluster, and how many there are.

    `address`: of the cluster ("auto": the one that this machine belongs to); None: $RAY_ADDRESS, else one on this
    machine alone, for this run. `actors` 0: as many as fit into the cluster when the run starts; a larger number makes
    an autoscaling cluster grow. `cpus_per_worker`: also the number of decoding processes, unless `workers` is set.
    """

    address: str | None = None
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0
    actors: int = 0


class ShardWriter:
    """What runs in an actor."""

    def __init__(
        self,
        manifest: Manifest,
        store_path: Path,
        settings: ExtractSettings,
        make_encoder: Callable[[ExtractSettings], Embedder],
        folder: str,
        origin: tuple[str, str] | None,
    ):
        if os.path.isdir(folder):  # relative paths of videos and weights start where the driver runs
            os.chdir(folder)
        self._manifest, self._store_path, self._settings, self._make = manifest, store_path, settings, make_encoder
        self._origin = origin
        self._loaded: tuple[FeatureStore, Embedder] | None = None

    def prepare(self) -> None:
        """Load the encoder and open the store; not in __init__, where Ray hides what is wrong."""
        self._ready()

    def write(self, specs: Sequence[ShardSpec]) -> None:
        """Write those of the shards that an actor before this one has not written."""
        store, encoder = self._ready()
        with full_disk_is_an_error(store):
            left = [spec for spec in specs if not store.has_shard(str(spec.stem))]
            write_shards(left, store, self._settings, encoder)

    def give_up(self, spec: ShardSpec) -> None:
        """Write a shard whose clips have all failed."""
        store, encoder = self._ready()
        message = f"{_ATTEMPTS} workers died at the shard of this clip; extract --retry-failed WorkerDied tries again"
        write_failed_shard(spec, DecodeFailure("encode", "WorkerDied", message), store, self._settings, encoder)

    def _ready(self) -> tuple[FeatureStore, Embedder]:
        if self._loaded is None:
            if self._origin:  # on another node it has its own copy
                self._store_path = remote.attach(self._origin[0]) / self._origin[1]
            encoder = self._make(self._settings)
            self._loaded = open_store(self._manifest, self._store_path, self._settings, encoder), encoder
        return self._loaded


def extract_with_ray(
    manifest: Manifest,
    store_path: Path,
    settings: ExtractSettings,
    *,
    options: RayOptions,
    make_encoder: Callable[[ExtractSettings], Embedder] = encoder_for,
) -> ExtractReport:
    """Extract what the store lacks of `manifest` on a Ray cluster; the result is that of `driver.extract`.

    Args:
        manifest: its paths, or its media root, must lead to the same files on every node.
        store_path: a folder that every node sees under this path, or one that mirrors objects (`pipeline.remote`).
        settings: as `driver.extract` takes; `retry_failed` is for runs by one process.
        options: the cluster and the actors.
        make_encoder: called once in each actor.

    Raises:
        UserError: as `driver.extract`; or a shard of captions killed its actors.
    """
    started = time.perf_counter()
    require_plannable(manifest, settings)
    store_path = Path(store_path).resolve()
    settings = replace(settings, workers=settings.workers or max(1, int(options.cpus_per_worker)))
    with _cluster(options.address):
        wanted = options.actors or _fitting(options)
        # All that an actor needs of the manifest besides its shards: the size of a cache follows from the clips.
        head = replace(manifest, entries=manifest.entries if settings.cache_blocks else (), protocol={})
        actor: Any = ray.remote(ShardWriter)  # Ray's types know no methods of a class
        actor = actor.options(num_gpus=options.gpus_per_worker, num_cpus=options.cpus_per_worker)
        origin = remote.origin(store_path)
        first = actor.remote(head, store_path, settings, make_encoder, os.getcwd(), origin)
        try:
            _get(first.prepare.remote())
        except RayActorError as error:
            raise _cannot_start(error) from None
        remote.refresh(store_path)
        store = FeatureStore.open(store_path)
        specs = outstanding(plan(manifest, settings), store)
        size = max(1, min(_GROUP, len(specs) // (4 * wanted)))
        groups = [specs[start : start + size] for start in range(0, len(specs), size)]
        accepted = replace(settings, accept_size=True)  # the first one has compared the size with what is free
        with _Pool(partial(actor.remote, head, store_path, accepted, make_encoder, os.getcwd(), origin), first) as pool:
            lost = pool.run(groups, min(wanted, len(groups)))
    if lost:
        raise UserError(
            f"workers died {_ATTEMPTS} times at {', '.join(str(spec.stem) for spec in lost)}; the others are done",
            fix="give the workers more memory, and run the same command again",
        )
    report = finish(manifest, store_path, settings)
    videos, captions = sum(len(spec.clips.entries) for spec in specs), sum(len(spec.captions) for spec in specs)
    return replace(report, new_videos=videos, new_captions=captions, seconds=time.perf_counter() - started)


class _Pool:
    """Actors at work, each on one call at a time; leaving the context ends them."""

    def __init__(self, start: Callable[[], Any], first: Any):
        self._start = start
        self._idle = [first]
        self._pending: dict[Any, tuple[Any, Sequence[ShardSpec]]] = {}  # call -> the actor, and the shards it is at

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for one in [*self._idle, *(one for one, _ in self._pending.values())]:
            ray.kill(one)

    def _add(self) -> None:
        one = self._start()
        self._pending[one.prepare.remote()] = one, ()

    def run(self, groups: Sequence[Sequence[ShardSpec]], actors: int) -> list[ShardSpec]:
        """Have all shards written by so many actors, each at work as soon as it is ready.

        Returns:
            Those that cannot be written: text shards at which actors died, which have no rows for failures.

        Raises:
            UserError: an actor raised it, or actors die while they load the encoder.
        """
        waiting: deque[Sequence[ShardSpec]] = deque(groups)
        deaths: Counter[str | None] = Counter()  # by shard; None: at the start, since one last started
        lost: list[ShardSpec] = []
        total, done = sum(spec.inputs for group in groups for spec in group), 0
        for _ in range(actors - 1):
            self._add()
        with progress("clips and captions") as step:
            while waiting or any(group for _, group in self._pending.values()):
                while waiting and self._idle:
                    one, group = self._idle.pop(), waiting.popleft()
                    given_up = len(group) == 1 and deaths[group[0].stem] >= _ATTEMPTS
                    self._pending[one.give_up.remote(group[0]) if given_up else one.write.remote(group)] = one, group
                (ready,), _ = ray.wait(list(self._pending))
                one, group = self._pending.pop(ready)
                try:
                    _get(ready)
                except RayActorError as error:
                    ray.kill(one)  # if it is only out of reach, it must not come back
                    log.warning(f"a worker died at {', '.join(str(spec.stem) for spec in group) or 'its start'}")
                    if len(group) < 2:
                        deaths[group[0].stem if group else None] += 1
                    if deaths[None] >= _ATTEMPTS:
                        raise _cannot_start(error) from None
                    self._add()
                    if len(group) == 1 and deaths[group[0].stem] >= _ATTEMPTS + (group[0].kind == "videos"):
                        lost.append(group[0])  # a text shard, or one that even its failures cannot be written of
                    else:
                        waiting.extendleft([spec] for spec in reversed(group))
                else:
                    if not group:
                        deaths[None] = 0
                    done += sum(spec.inputs for spec in group)
                    step(done, total)
                    self._idle.append(one)
        return lost


def _cannot_start(error: RayActorError) -> UserError:
    return UserError(
        f"workers die while they load the encoder ({error})", fix="give fewer --actors, or workers with more memory"
    )


def _get(reference: Any) -> None:
    """Wait for a call. Raises the UserError that it raised as it is."""
    try:
        ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _fitting(options: RayOptions) -> int:
    """How many actors the cluster has room for now; at least one, which waits until there is room."""
    there = ray.cluster_resources()
    needs = {"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker}
    fits = min((int(there.get(name, 0) // need) for name, need in needs.items() if need), default=1)
    if not fits:
        got = {name: there.get(name, 0) for name in needs}
        log.warning(f"the cluster has no room for a worker now: it needs {needs}, and there is {got}; waiting")
    return max(1, fits)


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster; one that the caller is connected to already is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    try:
        # What the nodes log goes to Ray's own files: stdout is for the result.
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise BadInput(
            f"no Ray cluster at {address} ({error})", fix="start one with `ray start --head`, or leave --address out"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
