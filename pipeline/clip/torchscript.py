"""The tensors of a TorchScript archive, read as data: no code of the archive is run.

torch.jit.load compiles the archive's methods and calls each module's ``__setstate__``, which may write files. Here the
archive (a zip) is opened as what it is: data.pkl, a pickle of the modules' attributes, and data/0, data/1, ..., the
bytes of their tensors. The pickle is read by an Unpickler that knows tensors, containers and ``__torch__.*`` classes;
the latter become inert holders of their attributes. Anything else in the pickle is refused.
"""

import io
import math
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import BadInput

MAX_PICKLE = 64 << 20  # bytes of data.pkl; that of OpenAI's ViT-L/14 holds 0.1 MB
MAX_NAMES = 200_000  # tensors by name: modules that share others could multiply without end
MAX_DEPTH = 64  # modules in modules
# What torch's C++ pickler writes, and nothing that calls for more trust (EXT, INST, OBJ, DUP, persistent ids as text).
_OPCODES = {
    "PROTO", "GLOBAL", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MARK", "STOP", "NONE", "NEWTRUE",
    "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT",
    "SETITEM", "SETITEMS", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


class _Unreadable(Exception):
    """Why an archive is refused."""


def is_archive(path: str) -> bool:
    """Whether a weights file is a TorchScript archive: a zip with constants.pkl in its folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(member).name == "constants.pkl" for member in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def read_tensors(path: str, wanted: Collection[str]) -> dict[str, Any]:
    """Read tensors of the scripted module in an archive, without running anything of it.

    Args:
        path: a file that torch.jit.save wrote.
        wanted: names as in the module's state dict; others are not read from the disk.

    Returns:
        Name -> torch.Tensor on the CPU, in the archive's dtype; names that the archive lacks are absent.

    Raises:
        BadInput: the archive is damaged, or holds anything but modules and dense tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reader = _Archive(archive)
            return {name: reader.tensor(ref) for name, ref in _named_tensors(reader.root()) if name in wanted}
    except (
        _Unreadable, pickle.UnpicklingError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError,
        ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError, OverflowError,
    ) as error:  # what a damaged pickle or zip makes the standard library raise  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(
            f"{path} is no TorchScript archive of plain weights ({reason})",
            fix="get the file again, or give the weights as .safetensors",
        ) from None


@dataclass(frozen=True)
class _Storage:
    """Numbers of one dtype in a member of the archive, named by a persistent id of the pickle."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _TensorRef:
    """A dense tensor over a storage; nothing is read or checked before it is wanted."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Archive:
    """The members of an archive: one folder, whatever its name."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise _Unreadable("a member of the zip stands in it twice")
        folder = next((name for name in names if PurePosixPath(name).name == "constants.pkl"), "constants.pkl")
        self._zip, self._folder = archive, folder.removesuffix("constants.pkl")
        self._length = sum(member.compress_size for member in archive.infolist())
        self._storages: dict[str, Any] = {}
        if f"{self._folder}byteorder" in names:
            order = self._read("byteorder", 16).decode("ascii", "replace")
            if order != sys.byteorder:
                raise _Unreadable(f"its numbers are {order}-endian")

    def root(self) -> Any:
        """The object that data.pkl holds."""
        data = self._read("data.pkl", MAX_PICKLE)
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                raise _Unreadable(f"its pickle has the instruction {opcode.name}")
            if opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > len(data):
                raise _Unreadable("its pickle has a memo without bounds")  # the memo is an array of that length
        return _Unpickler(data).load()

    def tensor(self, ref: _TensorRef) -> Any:
        """The tensor; shape and strides must stay inside the storage, and may not repeat its numbers."""
        numbers = self._storage(ref.storage)
        parts = (ref.offset, *ref.shape, *ref.strides)
        if len(ref.shape) != len(ref.strides) or any(type(part) is not int or part < 0 for part in parts):
            raise _Unreadable("a tensor has no valid shape and strides")
        pairs = list(zip(ref.shape, ref.strides, strict=True))
        last = ref.offset + sum((size - 1) * stride for size, stride in pairs)
        count = math.prod(ref.shape)
        if count and (last >= len(numbers) or count > len(numbers)):
            raise _Unreadable(f"a tensor of shape {ref.shape} leaves its storage of {len(numbers)} numbers")
        if not count:
            return numbers[:0].reshape(ref.shape)
        return numbers.as_strided(ref.shape, ref.strides, ref.offset)

    def _storage(self, storage: _Storage) -> Any:
        import torch

        dtype = getattr(torch, storage.dtype)
        if storage.key not in self._storages:
            member = self._zip.getinfo(f"{self._folder}data/{storage.key}")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > self._length:
                raise _Unreadable(f"{member.filename} is compressed")  # torch never does; it could unfold to anything
            self._storages[storage.key] = bytearray(self._zip.read(member))
        data = self._storages[storage.key]
        if len(data) != storage.count * dtype.itemsize:
            raise _Unreadable(f"data/{storage.key} has {len(data)} bytes, not {storage.count} of {storage.dtype}")
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

    def _read(self, name: str, limit: int) -> bytes:
        with self._zip.open(self._folder + name) as member:
            data = member.read(limit + 1)
        if len(data) > limit:
            raise _Unreadable(f"{name} is larger than {limit} bytes")
        return data


class _Unpickler(pickle.Unpickler):
    """Knows tensors, containers and scripted classes. What it hands out is made anew for each file, so that a pickle
    which alters it alters nothing that outlives the reading."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

        class Holder:
            """An object of a scripted class: its attributes, without its code."""

            def __init__(self, *_: Any) -> None:
                self.attributes: dict[str, Any] = {}

            def __new__(cls, *_: Any) -> Any:
                made = object.__new__(cls)
                made.attributes = {}
                return made

            def __setstate__(self, state: Any) -> None:
                self.attributes = state if type(state) is dict else {}  # else: made by the code of a __getstate__

        def rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _TensorRef:
            if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
                raise pickle.UnpicklingError("a tensor without storage, shape or strides")
            return _TensorRef(storage, offset, shape, strides)

        def same(value: Any, *_: Any) -> Any:
            return value

        self._holder: Any = Holder
        self._known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): rebuild,
            ("collections", "OrderedDict"): dict,
            ("torch", "device"): same,
            **{("torch", name): dtype for name, dtype in _STORAGES.items()},
            **{
                ("torch.jit._pickle", name): same
                for name in ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist",
                             "build_tensorlist")
            },
        }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if module == "__torch__" or module.startswith("__torch__."):
            return self._holder
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        if type(pid) is not tuple or [type(part) for part in pid] != [str, str, str, str, int] or pid[0] != "storage":
            raise pickle.UnpicklingError("its pickle refers to something other than a storage")
        if pid[1] not in _STORAGES.values():
            raise pickle.UnpicklingError("its pickle has a storage of unknown numbers")
        return _Storage(pid[2], pid[1], pid[4])


def _named_tensors(root: Any) -> Iterator[tuple[str, _TensorRef]]:
    """(dotted name, tensor) of all attributes of a scripted module, those of the modules in it included."""
    waiting, found = [("", root, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        attributes = getattr(module, "attributes", None)
        if attributes is None or depth > MAX_DEPTH:
            raise _Unreadable("it holds no module" if not depth else "its modules stand in one another without end")
        for name, value in attributes.items():
            found += 1
            if found > MAX_NAMES or type(name) is not str:
                raise _Unreadable(f"it names more than {MAX_NAMES} things, or names them by what is no text")
            if type(value) is _TensorRef:
                yield f"{prefix}{name}", value
            elif hasattr(value, "attributes"):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
