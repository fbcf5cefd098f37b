"""The decoding process: reads jobs from a pipe, answers each with frames or a failure.

Run by pool.py as `python -c "from pipeline.video.worker import main; main()" FD`, in a session of its own, so that it
can be killed with everything it started, however deep in a decoder it hangs. It imports no torch and starts in a
fraction of a second. Messages are JSON; frames follow their message as raw bytes. Nothing is ever unpickled.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pipeline.fingerprint import SourceFile
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure
from pipeline.video.passes import passes
from pipeline.video.process import die_with_parent


def main() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when we stop
    os.nice(5)  # where encoder and decoders share the cores, a waiting encoder costs more than a waiting decoder
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the driver has gone
        serve(connection)


def serve(connection: Connection) -> None:
    """Answer batches of jobs, the clips of one file in one pass, until the pipe closes."""
    settings = DecodeSettings.from_json(connection.recv_bytes().decode())
    import av

    av.logging.set_level(None)  # what libav has to say about damaged files stands in the failure rows
    _limit_memory(settings.limits.max_memory_bytes)
    connection.send_bytes(b"{}")
    while True:
        for part in passes([Job(**job) for job in json.loads(connection.recv_bytes())], settings):
            for answer, frames in _answers(part, settings):
                connection.send_bytes(json.dumps(answer).encode())
                if frames is not None:
                    connection.send_bytes(frames)


def _answers(jobs: Sequence[Job], settings: DecodeSettings) -> Iterator[tuple[dict[str, Any], Any]]:
    """One answer a job, in their order, while the file is decoded."""
    from pipeline.video.decode import decode, measure

    started = time.perf_counter()
    results = (measure(job, settings) for job in jobs) if settings.measure else decode(jobs, settings)
    for place, job in enumerate(jobs):
        try:
            clip, decoder, source = next(results)
        except MemoryError:
            message = f"needs over {settings.limits.max_memory_bytes} bytes"
            for left in jobs[place:]:
                yield _failed(left, DecodeFailure("decode", "MemoryLimit", message), None), None
            return
        if isinstance(clip, DecodeFailure):
            yield _failed(job, clip, source), None
            continue
        assert source is not None, "what was decoded was there to be read"
        about = {
            "index": job.index,
            "shape": clip.frames.shape,
            "times": clip.times.tolist(),
            "method": clip.method,
            "decoder": decoder,
            "note": clip.note,
            "source": asdict(source),
            "seconds": time.perf_counter() - started,
        }
        yield about, np.ascontiguousarray(clip.frames).reshape(-1).data
        started = time.perf_counter()


def _failed(job: Job, failure: DecodeFailure, source: SourceFile | None) -> dict[str, Any]:
    return {
        "index": job.index,
        "failure": {
            "step": failure.step,
            "kind": failure.kind,
            "message": failure.message,
            **({} if source is None else {"source": asdict(source)}),
        },
    }


def _limit_memory(limit: int) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
