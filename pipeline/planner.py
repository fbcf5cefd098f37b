"""What a corpus costs: hours, bytes and files of each stage, from rates that were measured on the user's own files.

Pure arithmetic. The formulas of bytes are held to files that were written (tests/test_planner.py); the hours are
proportional to the rates, which `extract --benchmark --save` measures.

Notation: N clips, F frames a clip, D width, M index vectors a clip, B = N * M vectors, m bytes of a PQ code.
"""

import math
import re
from dataclasses import dataclass

from pipeline.errors import BadInput

DTYPE_BYTES = {"float16": 2, "float32": 4}
ROW_BYTES = 120  # of a clip's id, path, split and catalogue row: short names
POINTS_A_LIST = 39  # FAISS asks for 39 training points a list
# Seconds an operation of building, on two cores (benchmarks/planner.py, docs/results/scale.md): a number of a vector
# that is copied; HNSW: times log B; IVF: compared with a centroid; PQ: compared with a codeword.
BUILD_SECONDS = {"Flat": 9.2e-9, "HNSW": 5.35e-8, "IVF": 2.1e-11, "PQ": 9.5e-11}
IVF_ROUNDS, PQ_ROUNDS = 10, 25  # of FAISS's k-means
TRAIN_A_LIST, TRAIN_PQ = 64, 65_536  # training vectors: of `index` a list, and of FAISS for the codes at most
IN_MEMORY = 256e9  # bytes of one large machine
LARGEST_ON_ONE_MACHINE = 2e9  # vectors


@dataclass(frozen=True)
class MeasuredRates:
    """What `extract --benchmark` measured on a sample of clips."""

    clips: int
    frames: int
    decode_seconds: float
    """Wall time with `workers` decoding processes."""
    workers: int
    encode_seconds: float
    """Wall time on one device."""
    file_bytes: int
    """Of all sampled files."""
    device: str
    model: str

    @property
    def frames_per_device_second(self) -> float:
        return self.frames / self.encode_seconds

    @property
    def core_seconds_per_clip(self) -> float:
        return self.decode_seconds * self.workers / self.clips


@dataclass(frozen=True)
class Stage1:
    """Extraction."""

    encode_device_hours: float
    decode_core_hours: float
    bytes_read: float
    feature_bytes: dict[str, float]
    """By dtype."""
    shards: int
    hours: float
    """Wall time with the devices and cores given."""
    bound: str
    """What the wall time is bound by: decoding or encoding."""
    cores_a_device: float
    """Decoding cores that keep one device busy."""


@dataclass(frozen=True)
class IndexChoice:
    """One kind of index over all vectors."""

    factory: str
    bytes: float
    """On disk, and in memory unless its lists are mapped."""
    build_hours: float
    """Roughly, on two cores."""


def plan_extraction(
    videos: float, frames: int, dim: int, rates: MeasuredRates, *, devices: int, cores: int, rows_per_shard: int
) -> Stage1:
    """Plan stage 1 for N = `videos` clips of `frames` frames.

    Decoding is taken to cost what the sampled clips cost, each; encoding is proportional to the frames.

    Args:
        devices: How many encode at once, each as fast as the measured one.
        cores: Decoding cores of all machines together.
        rows_per_shard: Clips of a shard.

    Raises:
        BadInput: A count that is not positive.
    """
    for name, value in (("--videos", videos), ("--frames", frames), ("--gpus", devices), ("--cores", cores)):
        if not value > 0 or not math.isfinite(value):
            raise BadInput(name, expected="more than 0", got=value)
    encode = videos * frames / rates.frames_per_device_second / 3600
    decode = videos * rates.core_seconds_per_clip / 3600
    by_devices, by_cores = encode / devices, decode / cores
    return Stage1(
        encode_device_hours=encode,
        decode_core_hours=decode,
        bytes_read=videos * rates.file_bytes / rates.clips,
        feature_bytes={name: feature_bytes(videos, frames, dim, size) for name, size in DTYPE_BYTES.items()},
        shards=math.ceil(videos / rows_per_shard),
        hours=max(by_devices, by_cores),
        bound="decoding" if by_cores > by_devices else "encoding",
        cores_a_device=decode / encode,
    )


def feature_bytes(videos: float, frames: int, dim: int, dtype_bytes: int = 2) -> float:
    """Bytes of a feature store: embeddings, mask (1 byte a frame), times (8), and each clip's names."""
    return videos * (frames * (dim * dtype_bytes + 1 + 8) + ROW_BYTES)


def index_choices(vectors: float, dim: int) -> list[IndexChoice]:
    """Kinds of index for B = `vectors`, from exact to small."""
    lists = lists_for(vectors)
    code = next(m for m in (64, 48, 32, 16, 8, 4, 2, 1) if dim % m == 0)
    factories = ("Flat", "HNSW32", f"IVF{lists},SQ8", f"IVF{lists},PQ{code}")
    return [IndexChoice(name, index_bytes(name, vectors, dim), build_hours(name, vectors, dim)) for name in factories]


def lists_for(vectors: float) -> int:
    """Inverted lists: the power of two next to 4 sqrt(B), as FAISS's guidelines have it, with points to train them."""
    wanted = min(4 * math.sqrt(vectors), vectors / POINTS_A_LIST)
    return int(2 ** max(0, round(math.log2(max(wanted, 1)))))


def index_bytes(factory: str, vectors: float, dim: int) -> float:
    """Bytes of a FAISS index file of `factory`: Flat, HNSW<n>, IVF<lists>,Flat|SQ8|PQ<m>.

    Raises:
        BadInput: Another factory.
    """
    if factory == "Flat":
        return vectors * 4 * dim
    if found := re.fullmatch(r"HNSW(\d+)", factory):
        links = 2 * int(found[1]) + int(found[1]) / (int(found[1]) - 1)  # level 0, and the levels above it
        return vectors * (4 * dim + 4 * links + 8 + 4)  # and each vector's offset and level
    if found := re.fullmatch(r"IVF(\d+),(Flat|SQ8|PQ(\d+))", factory):
        lists, code = int(found[1]), {"Flat": 4 * dim, "SQ8": dim}.get(found[2]) or int(found[3])
        tables = 2 * 4 * dim if found[2] == "SQ8" else 256 * 4 * dim if found[3] else 0
        return vectors * (code + 8) + lists * (4 * dim + 8) + tables
    raise BadInput(f"no size is known of {factory!r}", expected="Flat, HNSW32, IVF4096,SQ8, IVF4096,PQ64")


def build_hours(factory: str, vectors: float, dim: int) -> float:
    """Hours to train and add on two cores.

    Flat copies; HNSW walks a graph (log B); IVF compares each vector with every centroid, and its training sample as
    often as k-means has rounds; PQ does the same with 256 codewords.
    """
    found = re.match(r"Flat|HNSW|IVF(\d+)", factory)
    assert found is not None  # index_bytes has refused others
    if not found[1]:
        grown = math.log(max(vectors, 2)) if found[0] == "HNSW" else 1.0
        return BUILD_SECONDS[found[0]] * vectors * dim * grown / 3600
    lists = int(found[1])
    compared = lists * (vectors + IVF_ROUNDS * min(vectors, TRAIN_A_LIST * lists))
    seconds = BUILD_SECONDS["IVF"] * compared * dim
    if "PQ" in factory:
        seconds += BUILD_SECONDS["PQ"] * 256 * (vectors + PQ_ROUNDS * min(vectors, TRAIN_PQ)) * dim
    return seconds / 3600


def advice(videos: float, vectors_a_clip: int, dim: int) -> list[str]:
    """Where the defaults stop being wise for a corpus of this size."""
    vectors = videos * vectors_a_clip
    found = []
    if vectors_a_clip > 1 and index_bytes("HNSW32", vectors, dim) > IN_MEMORY:
        pq = [index_bytes(f"IVF{lists_for(b)},PQ{min(64, dim)}", b, dim) / 1e9 for b in (vectors, videos)]
        found.append(
            f"{vectors_a_clip} vectors a clip are {pq[0]:,.0f} GB in PQ codes, one is {pq[1]:,.0f} GB: "
            "train with --set index_vectors=1, or split by time instead"
        )
    if index_bytes("Flat", vectors, dim) > IN_MEMORY:
        found.append("exact search does not fit one machine: take IVF with SQ8 or PQ, lists on disk (--on-disk)")
    if vectors > LARGEST_ON_ONE_MACHINE:
        found.append(
            f"{vectors:,.0f} vectors: hand them to an engine that shards (Milvus with DiskANN, LanceDB, Vespa) by "
            "`index --export parquet`, and keep this project for features, training and evaluation"
        )
    return found
