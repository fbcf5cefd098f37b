"""Vector indexes: the only module that calls FAISS.

Vectors are unit length and compared by inner product (cosine). A FAISS index numbers its vectors 0, 1, 2, ... in the
order of adding; ``owners`` says which video each belongs to (-1: deleted). So several vectors a video need no extra
structure (a video's score is its best vector's), and deleting is a mask.

Notation: R vectors, D width, Q queries, k videos wanted.

    index = build(vectors, IndexSpec("HNSW32", {"efSearch": 128}))
    scores, videos = index.search(queries, k=50)              # (Q, 50), (Q, 50)
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk
from numpy.typing import NDArray

from pipeline.errors import BadInput, CorruptShard
from pipeline.retrieve.c_output import logged_output
from pipeline.retrieve.exact_search import best_per_video, normalised
from pipeline.stores.integrity import fits

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
swig: Any = faiss  # the stubs of FAISS do not know the constructors that its Python layer adds
_INDEX_FILE = "index.faiss"
_LISTS_FILE = "index.ivfdata"
_SAID = ("IO_FLAG_ONDISK_SAME_DIR: ", "resizing ")  # what FAISS prints about lists on disk
_GPU_DEEPEST = 2048  # neighbours, and lists probed, that FAISS finds on a GPU


@dataclass(frozen=True)
class IndexSpec:
    """What to build and how to search it."""

    factory: str = "Flat"
    """FAISS factory string: "Flat", "HNSW32", "IVF1024,SQ8", "IVF256,PQ64,Refine(SQ8)", "RaBitQ", ..."""
    search: Mapping[str, float] = field(default_factory=dict)
    """FAISS search parameters: "nprobe", "efSearch", "k_factor_rf", ..."""
    train_rows: int = 0
    """Vectors sampled for training; 0: enough for the type (`training_rows`)."""
    block: int = 65536
    """Vectors added at a time."""
    on_disk: bool = False
    """Keep inverted lists in a memory-mapped file of their own (IVF types only)."""
    seed: int = 24
    """Seed of the training sample."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"search": dict(self.search)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IndexSpec:
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise BadInput(
                "unknown index settings", expected=", ".join(cls.__dataclass_fields__), got=", ".join(unknown)
            )
        kinds = {
            "factory": str,
            "search": dict[str, float],
            "train_rows": int,
            "block": int,
            "on_disk": bool,
            "seed": int,
        }
        if wrong := [name for name, value in values.items() if not fits(value, kinds[name])]:
            raise BadInput(f"index setting {wrong[0]}", expected=kinds[wrong[0]], got=repr(values[wrong[0]])[:100])
        return cls(**values)


class VectorIndex:
    """A FAISS index and the videos that its vectors belong to. Searching changes nothing: threads may share it."""

    def __init__(
        self, index: Any, owners: NDArray[np.int64], spec: IndexSpec, known: Mapping[str, Any] | None = None
    ) -> None:
        """`known`: what a generation recorded of its `owners`, "dead" and "per_video", which else are counted."""
        self.index, self.owners, self.spec = index, owners, spec  # no downcast: it would not own the C++ object
        self._known = known or {}
        self._on_gpu: Any = None
        self._gpu_lock = Lock()  # FAISS's GPU indexes serve one thread at a time
        if index.ntotal != len(owners):
            raise CorruptShard("index and owners differ in length", expected=len(owners), got=index.ntotal)
        _set_parameters(self.index, spec.search)

    @cached_property
    def _alive(self) -> NDArray[np.bool_]:
        return self.owners >= 0

    @cached_property
    def _all_alive(self) -> bool:
        return self._known["dead"] == 0 if "dead" in self._known else bool(self._alive.all())

    @cached_property
    def _several(self) -> int:
        """The most vectors that one video has."""
        if "per_video" in self._known:
            return int(self._known["per_video"])
        alive = self.owners if self._all_alive else self.owners[self._alive]
        return int(np.bincount(alive).max()) if len(alive) else 1

    @property
    def dim(self) -> int:
        return int(self.index.d)

    def search(
        self, queries: NDArray[Any], k: int, *, only: NDArray[np.bool_] | None = None, effort: float = 1.0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k nearest videos of each query. A video with several vectors counts once, by its best.

        Args:
            queries: (Q, D), any length.
            k: videos a query.
            only: (V,) restricts the search to some videos. Graphs and lists are then walked as without it, and what is
                met outside is dropped.
            effort: multiplies efSearch and nprobe of a restricted search.

        Returns:
            Cosines (Q, k) float32, descending, and videos (Q, k) int64; -inf and -1 where fewer than k are found.
        """
        fetch = min(k * self._several, len(self.owners))
        queries = normalised(queries)
        if queries.shape[1] != self.dim:
            raise BadInput("queries and index differ in width", expected=self.dim, got=queries.shape[1])
        if only is None and self._all_alive:
            if self._on_gpu is not None and fetch <= _GPU_DEEPEST:
                with self._gpu_lock:
                    scores, rows = self._on_gpu.search(queries, fetch)
            else:
                scores, rows = self.index.search(queries, fetch)
        else:
            wanted = self._alive if only is None else self._alive & only[np.maximum(self.owners, 0)]
            selector = swig.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))
            scores, rows = self.index.search(queries, fetch, params=_masked(self.index, selector, effort))
        videos = np.where(rows >= 0, self.owners[np.maximum(rows, 0)], -1)
        return best_per_video(scores, videos, k)

    def keep_on_gpu(self, gpu: int) -> bool:
        """Search on a GPU from now on, in a copy that stays there; says whether it could be had.

        Filtered searches, those of an index with deleted vectors, and those deeper than a GPU goes stay on the CPU.
        """
        if self.spec.on_disk or self.spec.search.get("nprobe", 0) > _GPU_DEEPEST:
            log.warning(f"{self.spec.factory} is searched on the CPU: lists on disk, or too many to probe")
            return False
        try:
            self._on_gpu = _to_gpu(self.index, gpu)
        except RuntimeError as error:
            log.warning(f"{self.spec.factory} is searched on the CPU: the GPU refuses it ({_first_line(error)})")
            return False
        return True

    def add(self, vectors: NDArray[Any], owners: NDArray[np.int64]) -> VectorIndex:
        """Append vectors (R', D); ``owners`` (R + R',) of all. The FAISS object is shared: the old index is spent."""
        _add_blocks(self.index, vectors, self.spec.block)
        return VectorIndex(self.index, owners, self.spec)

    def write(self, folder: Path) -> None:
        """index.faiss into a folder (and index.ivfdata beside it where the lists live on disk)."""
        if self.spec.on_disk and not (folder / _LISTS_FILE).exists():
            raise BadInput("an index with lists on disk is written while it is built", fix="build(..., folder=FOLDER)")
        # Through Python's file: FAISS's own does not notice that a full disk refused its last block.
        with open(folder / _INDEX_FILE, "wb") as file:
            faiss.write_index(self.index, swig.PyCallbackIOWriter(file.write))


def read(
    folder: Path,
    owners: NDArray[np.int64],
    spec: IndexSpec,
    *,
    mmap: bool = True,
    known: Mapping[str, Any] | None = None,
) -> VectorIndex:
    """An index from its folder; with ``mmap`` its bytes are paged in as they are used. CorruptShard if unreadable.

    The caller has verified the files (opening a generation does): on damaged ones FAISS can crash the process.
    ``known``: as in ``VectorIndex``.
    """
    flags = (faiss.IO_FLAG_MMAP_IFC if mmap and not spec.on_disk else 0) | faiss.IO_FLAG_ONDISK_SAME_DIR
    try:
        with logged_output(_SAID) if spec.on_disk else nullcontext():
            index = faiss.read_index(str(folder / _INDEX_FILE), flags)
    except RuntimeError as error:
        raise CorruptShard(
            f"{folder / _INDEX_FILE} cannot be read", got=_first_line(error), fix="build it again"
        ) from error
    return VectorIndex(index, owners, spec, known)


def build(
    vectors: NDArray[Any],
    spec: IndexSpec,
    owners: NDArray[np.int64] | None = None,
    *,
    gpu: int | None = None,
    folder: Path | None = None,
) -> VectorIndex:
    """Train on a sample of the vectors, then add them block by block.

    Args:
        vectors: (R, D), any float type, in memory or mapped.
        spec: index type and search parameters.
        owners: (R,) the video of each vector, -1 if deleted; one video a vector where left out.
        gpu: train and add on this one; what it refuses (a type that FAISS has on CPUs only, too many vectors for its
            memory) is done on the CPU, with a warning. The result is an index of the CPU either way.
        folder: where an ``on_disk`` index puts its lists.

    Raises:
        BadInput: a bad factory string, too few vectors, or a vector of length zero.
    """
    owners = np.arange(len(vectors), dtype=np.int64) if owners is None else owners
    index = new_index(spec.factory, vectors.shape[1])
    if not index.is_trained:
        sample = _training_sample(vectors, spec)
        log.info(f"training {spec.factory} on {len(sample)} of {len(vectors)} vectors")
        untrained = index
        index = _call_faiss(lambda: _after(untrained, lambda it: it.train(sample), gpu, spec.factory), spec.factory)
    if spec.on_disk:
        index = _fill_on_disk(index, vectors, spec, folder)
    else:
        index = _after(index, lambda it: _add_blocks(it, vectors, spec.block), gpu, spec.factory)
    return VectorIndex(index, owners, spec)


def new_index(factory: str, dim: int) -> Any:
    """An empty FAISS index of a factory string, by inner product. BadInput if FAISS does not know it."""
    index = _call_faiss(lambda: faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT), factory)
    for part in _nested(index):
        if hasattr(part, "do_polysemous_training"):  # minutes a training, for a filter that is never switched on here
            part.do_polysemous_training = False
    return index


def require_known(spec: IndexSpec, dim: int) -> None:
    """BadInput where FAISS does not know the factory string or one of the search parameters, before any work."""
    _set_parameters(new_index(spec.factory, dim), spec.search)


def needs_training(factory: str, dim: int) -> bool:
    """Whether this type learns from a sample (IVF, PQ, SQ8) or not (Flat, HNSW)."""
    return not new_index(factory, dim).is_trained


def memory_bytes(index: VectorIndex) -> int:
    """Bytes of the serialised index: what a search keeps in memory, near enough. No second copy of it is made."""
    written = 0

    def count(data: bytes) -> int:
        nonlocal written
        written += len(data)
        return len(data)

    faiss.write_index(index.index, swig.PyCallbackIOWriter(count))
    return written


def vector_bytes(factory: str, dim: int) -> float:
    """Bytes that one more vector takes in an index of this type, without the centroids and codebooks that all share."""
    index = new_index(factory, dim)  # held: its parts do not own it
    return sum(_own_bytes(part) for part in _nested(index))


def building_bytes(spec: IndexSpec, count: int, dim: int) -> int:
    """The most memory that building an index of `count` vectors takes, beside the program and mapped files.

    The index (a growing array is copied into one of twice the room: inverted lists one at a time, the array of other
    types whole), the training sample with FAISS's copy of it, centroids, and blocks of vectors on their way: float16,
    float32, and what FAISS makes of them. Measured by tests/retrieve/test_out_of_core.py.
    """
    lists = re.search(r"IVF(\d+)", spec.factory)
    centroids = int(lists[1]) * dim * 4 if lists else 0
    trained = min(spec.train_rows or training_rows(spec.factory), count) if needs_training(spec.factory, dim) else 0
    rows = min(spec.block, count) if spec.on_disk else count  # lists on disk leave memory shard by shard
    held = (1.3 if lists else 2) * vector_bytes(spec.factory, dim) * rows
    return int(held + 2 * centroids + 3 * trained * dim * 4 + 4 * min(spec.block, count) * dim * 4) + 16 * count


def fitting_block(memory: int, dim: int) -> int:
    """Vectors to add at a time, so that they take at most an eighth of `memory` bytes: 1024 to 65536."""
    return int(np.clip(memory // (8 * 4 * 4 * dim), 1024, 65536))


def gpu_count() -> int:
    """GPUs that this FAISS can use (0 with faiss-cpu)."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def asked_gpu(name: str, device: torch.device) -> int | None:
    """The GPU for FAISS where `--device` names one: `auto`, and this build of FAISS having none, leave it on the CPU.

    Args:
        name: what was given, "auto", "cpu", "cuda", "cuda:1", ...
        device: what it was resolved to.
    """
    if name == "auto" or device.type != "cuda":
        return None
    if gpu_count() == 0:
        log.warning(f"--device {name}: FAISS stays on the CPU, this build of it has no GPU; make install EXTRA=gpu")
        return None
    return device.index or 0


def required_gpu(device: torch.device) -> int:
    """The GPU for FAISS where it must have one. Raises BadInput."""
    if gpu_count() == 0:
        raise BadInput(
            "no GPU for FAISS", expected="faiss-gpu and a GPU", got="faiss-cpu or none", fix="leave --gpu out"
        )
    return (device.index or 0) if device.type == "cuda" else 0


# -- parts -----------------------------------------------------------------------------------------------------------


def training_rows(factory: str) -> int:
    """Vectors to train on: 64 a list for IVF, and at least 65 a centroid of a PQ (256 centroids)."""
    lists = re.search(r"IVF(\d+)", factory)
    return max(64 * int(lists[1]) if lists else 0, 65 * 256)


def _training_sample(vectors: NDArray[Any], spec: IndexSpec) -> NDArray[np.float32]:
    lists = re.search(r"IVF(\d+)", spec.factory)
    if lists and len(vectors) < int(lists[1]):
        raise BadInput(
            f"{spec.factory} needs at least {lists[1]} vectors", got=len(vectors), fix="use fewer lists, or Flat"
        )
    wanted = min(spec.train_rows or training_rows(spec.factory), len(vectors))
    rows = np.random.default_rng(spec.seed).choice(len(vectors), wanted, replace=False)
    return normalised(vectors[np.sort(rows)])


def _add_blocks(index: Any, vectors: NDArray[Any], block: int) -> None:
    for start in range(0, len(vectors), block):
        index.add(normalised(vectors[start : start + block]))


def _fill_on_disk(trained: Any, vectors: NDArray[Any], spec: IndexSpec, folder: Path | None) -> Any:
    """Fill shards of ``block`` vectors one after the other, then merge their lists into one mapped file."""
    if folder is None or not _ivf(trained):
        raise BadInput("lists on disk need an IVF type and a folder", got=f"{spec.factory}, folder {folder}")
    shards = []
    for start in range(0, len(vectors), spec.block):
        shard = faiss.clone_index(trained)
        block = normalised(vectors[start : start + spec.block])
        shard.add_with_ids(block, np.arange(start, start + len(block), dtype=np.int64))
        shards.append(str(folder / f"part-{start}.faiss"))
        faiss.write_index(shard, shards[-1])
    # FAISS fills the merged lists through a memory map: on a full disk that is a SIGBUS, not an error.
    wanted, free = sum(Path(shard_path).stat().st_size for shard_path in shards), shutil.disk_usage(folder).free
    if free < wanted:
        raise OSError(errno.ENOSPC, f"No space left for {wanted} bytes of inverted lists", str(folder / _LISTS_FILE))
    with logged_output(_SAID):
        merge_ondisk(trained, shards, str(folder / _LISTS_FILE))
    for shard_path in shards:
        Path(shard_path).unlink()
    return trained


def _masked(index: Any, selector: Any, effort: float = 1.0) -> Any:
    """Search parameters that leave vectors out, and keep what was set on the index; nested as the index is."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return swig.SearchParametersPreTransform(index_params=_masked(index.index, selector, effort))
    if isinstance(index, faiss.IndexRefine):
        inner = _masked(index.base_index, selector, effort)
        return swig.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        return swig.SearchParametersIVF(sel=selector, nprobe=min(index.nlist, ceil(index.nprobe * effort)))
    if isinstance(index, faiss.IndexHNSW):
        return swig.SearchParametersHNSW(sel=selector, efSearch=ceil(index.hnsw.efSearch * effort))
    return swig.SearchParameters(sel=selector)


def _set_parameters(index: Any, search: Mapping[str, float]) -> None:
    for name, value in search.items():
        _call_faiss(lambda name=name, value=value: faiss.ParameterSpace().set_index_parameter(index, name, value), name)  # type: ignore[misc]


def _nested(index: Any) -> Iterator[Any]:
    """The index and those inside it (of a refinement, of a transform), as their own types."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("base_index", "index"):
        if isinstance(index, (faiss.IndexRefine, faiss.IndexPreTransform)) and hasattr(index, name):
            yield from _nested(getattr(index, name))


def _ivf(index: Any) -> bool:
    return isinstance(faiss.downcast_index(index), faiss.IndexIVF)


def _own_bytes(part: Any) -> float:
    """Bytes a vector in this layer of an index, without the layers inside it."""
    if isinstance(part, (faiss.IndexPreTransform, faiss.IndexRefine)):
        # the refining index is no layer of `_nested`; the other is
        return (
            float(faiss.downcast_index(part.refine_index).sa_code_size()) if isinstance(part, faiss.IndexRefine) else 0
        )
    if isinstance(part, faiss.IndexHNSW):
        graph: Any = part.hnsw  # the stubs lack its methods
        links = graph.nb_neighbors(0) * 1.07 * 4  # higher levels hold a geometric series more
        return float(faiss.downcast_index(part.storage).sa_code_size() + links + 12)
    return float(part.code_size + 8) if isinstance(part, faiss.IndexIVF) else float(part.sa_code_size())


def _to_gpu(index: Any, gpu: int) -> Any:
    """A copy on a GPU. The copy keeps the memory pool that it was made with."""
    return swig.index_cpu_to_gpu(swig.StandardGpuResources(), gpu, index)


def _after(index: Any, work: Callable[[Any], None], gpu: int | None, what: str) -> Any:
    """The index after some work on it, done on the GPU where that can do it: an index of the CPU."""
    if gpu is not None:
        try:
            there = _to_gpu(index, gpu)
            work(there)
            return swig.index_gpu_to_cpu(there)
        except RuntimeError as error:  # the index here is as it was
            log.warning(f"{what} is built on the CPU: the GPU refuses ({_first_line(error)})")
    work(index)
    return index


def _call_faiss(action: Callable[[], Any], what: str) -> Any:
    """Run an action; turn FAISS's RuntimeError of several lines into a BadInput of one."""
    try:
        return action()
    except RuntimeError as error:
        raise BadInput(
            f"FAISS refuses {what!r}", got=_first_line(error), fix="see the FAISS wiki, 'The index factory'"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rsplit(".cpp:", 1)[-1].split(": ", 1)[-1][:200]
