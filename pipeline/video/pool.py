"""Run decoding in worker processes with limits on time and memory; failures become results.

Jobs go out in small batches, but all consecutive clips of one file go to one process, which reads the file once;
answers come back in the order of the jobs. At most `max_clips` clips are under way or waiting, so memory grows neither
with the corpus nor with the length of a file: a process whose clips are not needed yet waits before it decodes further.
A process that gives no answer within the time limit is killed (with its children) and replaced; the clip it was at
becomes a failure, the rest of its batch goes to another process.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.fingerprint import SourceFile
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure

_BUFFER_BYTES = 96 << 20
_BATCH_BYTES = 4 << 20
_MAX_BATCH = 32
_MAX_KILLS = 3  # processes lost in a row at clips of one file, before the rest of its clips are given up
_START_SECONDS = 120.0  # for a process to import its libraries on a busy machine


def available_cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Decoded:
    """frames (n, height, width, 3) uint8; times (n,) float64 seconds; seconds: what decoding took."""

    frames: np.ndarray
    times: np.ndarray
    decoder: str
    method: str
    note: str
    seconds: float
    source: SourceFile


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    batch: deque[Job] = field(default_factory=deque)
    deadline: float = 0.0
    ready: bool = False

    def kill(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        return self.process.wait()


class DecodePool:
    """Iterate for (job, Decoded or DecodeFailure), in the order of `jobs`, whose indices are 0, 1, ... Leaving the
    context ends the processes."""

    def __init__(self, jobs: Sequence[Job], settings: DecodeSettings, workers: int):
        self._jobs, self._settings = jobs, settings
        self._waiting = deque(jobs)
        self._count = max(1, min(workers, len(jobs)))
        self._batch = max(1, min(_MAX_BATCH, _BATCH_BYTES // settings.clip_bytes, len(jobs) // (4 * self._count)))
        self._max_clips = max(2 * self._count * self._batch, _BUFFER_BYTES // settings.clip_bytes)
        self._workers: list[_Worker] = []
        self._results: dict[int, Decoded | DecodeFailure] = {}
        self._next = 0  # the clip that the consumer takes next
        self._handed_out = 0  # clips that were handed out, at least once
        self._kills: Counter[str] = Counter()  # by source, since its last answer
        self._changed = threading.Condition()
        self._woken, self._wake = Pipe(duplex=False)
        self._stopping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._collect, name="decode-pool", daemon=True)

    def __enter__(self) -> "DecodePool":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._wake_collector()
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[Job, Decoded | DecodeFailure]]:
        for job in self._jobs:
            with self._changed:
                while job.index not in self._results and self._error is None:
                    self._changed.wait()
                if self._error is not None:
                    raise self._error
                result = self._results.pop(job.index)
                self._next = job.index + 1
            self._wake_collector()
            yield job, result

    def _wake_collector(self) -> None:
        if self._thread.is_alive():  # else nobody reads, and a full pipe would block
            self._wake.send_bytes(b".")

    # -- the collecting thread

    def _collect(self) -> None:
        try:
            while not self._stopping and self._has_work():
                self._hand_out()
                heard = [self._woken, *(w.connection for w in self._workers if self._is_heard(w))]
                for ready in wait(heard, timeout=self._patience()):
                    if ready is self._woken:
                        self._woken.recv_bytes()
                    else:
                        self._receive(next(w for w in self._workers if w.connection is ready))
                self._kill_late()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            for worker in self._workers:
                worker.kill()

    def _has_work(self) -> bool:
        return bool(self._waiting) or any(worker.batch for worker in self._workers)

    def _hand_out(self) -> None:
        # What a killed process gave back comes whatever else waits: the consumer needs it before it takes anything.
        while self._waiting and (self._under_way() < self._max_clips or self._waiting[0].index < self._handed_out):
            idle = next((worker for worker in self._workers if not worker.batch), None)
            if idle is None and len(self._workers) < self._count:
                idle = self._start()
            if idle is None:
                return
            while self._waiting and (len(idle.batch) < self._batch or self._waiting[0].source == idle.batch[-1].source):
                idle.batch.append(self._waiting.popleft())
            self._handed_out = max(self._handed_out, idle.batch[-1].index + 1)
            idle.deadline = time.monotonic() + self._limit(idle)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: receiving will tell
                idle.connection.send_bytes(json.dumps([asdict(job) for job in idle.batch]).encode())

    def _under_way(self) -> int:
        """Clips that the consumer has not taken: those here, and what processes may be at."""
        return len(self._results) + sum(min(self._batch, len(worker.batch)) for worker in self._workers)

    def _is_heard(self, worker: _Worker) -> bool:
        """Are a process's answers taken now? Only while there is room, but always what the consumer waits for. The
        time of one that is made to wait does not run."""
        if not worker.ready or len(self._results) < self._max_clips:
            return True
        if worker.batch and worker.batch[0].index <= self._next:
            return True
        worker.deadline = time.monotonic() + self._limit(worker)
        return False

    def _limit(self, worker: _Worker) -> float:
        return self._settings.limits.max_seconds + (0.0 if worker.ready else _START_SECONDS)

    def _patience(self) -> float:
        soonest = min((worker.deadline for worker in self._workers if worker.batch), default=time.monotonic() + 1.0)
        return min(1.0, max(0.0, soonest - time.monotonic()))

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            root = str(Path(__file__).resolve().parents[2])
            paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
            environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-c", "from pipeline.video.worker import main; main()", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment,
            )
        worker = _Worker(process, Connection(ours.detach()))
        self._workers.append(worker)
        worker.connection.send_bytes(self._settings.to_json().encode())
        return worker

    def _receive(self, worker: _Worker) -> None:
        try:
            answer = json.loads(worker.connection.recv_bytes())
            frames = worker.connection.recv_bytes() if "shape" in answer else b""
        except (EOFError, OSError):
            self._replace(worker, "DecoderCrash", "the decoding process ended")
            return
        if not answer:
            worker.ready = True
            worker.deadline = time.monotonic() + self._limit(worker)
            return
        job = worker.batch.popleft()
        assert job.index == answer["index"], "a worker answers in order"
        worker.deadline = time.monotonic() + self._limit(worker)
        self._kills.pop(job.source, None)
        self._settle(job, _result(answer, frames))

    def _kill_late(self) -> None:
        for worker in [w for w in self._workers if w.batch and time.monotonic() > w.deadline]:
            limit = self._settings.limits.max_seconds
            self._replace(worker, "TimeLimit", f"no frames after {limit:g} s; the process was killed")

    def _replace(self, worker: _Worker, kind: str, message: str) -> None:
        """Blame the clip it was at, give the rest of its batch back, and let a new process start when needed."""
        status = worker.kill()
        self._workers.remove(worker)
        if not worker.ready:
            raise RuntimeError(f"a decoding process could not start (exit status {status}); its message stands above")
        if not worker.batch:
            return
        blamed = [worker.batch.popleft()]
        source = blamed[0].source
        self._kills[source] += 1
        while self._kills[source] >= _MAX_KILLS and worker.batch and worker.batch[0].source == source:
            blamed.append(worker.batch.popleft())
        self._waiting.extendleft(reversed(worker.batch))
        how = f", killed by {signal.Signals(-status).name}" if status < 0 and kind == "DecoderCrash" else ""
        for job in blamed:
            self._settle(job, DecodeFailure("decode", kind, message + how))

    def _settle(self, job: Job, result: Decoded | DecodeFailure) -> None:
        with self._changed:
            self._results[job.index] = result
            self._changed.notify_all()


def _result(answer: dict[str, Any], frames: bytes) -> Decoded | DecodeFailure:
    if "failure" in answer:
        said = answer["failure"]
        return DecodeFailure(**{**said, "source": SourceFile(**said["source"]) if "source" in said else None})
    pixels = np.frombuffer(frames, np.uint8).reshape(answer["shape"])
    about = {name: answer[name] for name in ("decoder", "method", "note", "seconds")}
    return Decoded(pixels, np.array(answer["times"], np.float64), **about, source=SourceFile(**answer["source"]))
