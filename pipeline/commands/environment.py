"""Check the environment: Python, torch, CUDA, torchvision, open_clip, ffmpeg, PyAV, faiss, disk.

Libraries are loaded inside the functions, by name, as most of what is asked is whether they load at all.
"""

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"
CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "av1")  # what the published data sets and their copies come in
MIN_FREE_GB, ENOUGH_FREE_GB = 1, 20


@dataclass(frozen=True)
class Check:
    """Result of one check: `status` is "ok", "warn" or "fail"; `fix` is the remedy."""

    name: str
    status: str
    found: str
    fix: str = ""

    def line(self) -> str:
        return f"{self.status:4}  {self.name}: {self.found}" + (f"  -> {self.fix}" if self.fix else "")


def worst(checks: Iterable[Check]) -> str:
    """
    >>> worst([Check("a", "ok", ""), Check("b", "warn", "")])
    'warn'
    """
    return max((check.status for check in checks), key=(OK, WARN, FAIL).index, default=OK)


def environment_report(workspace: Path = Path(".")) -> list[Check]:
    """Check Python, torch, CUDA, torchvision, open_clip, ffmpeg, PyAV, faiss, memory and the workspace's disk."""
    return [
        _python(),
        *_torch(),
        _torchvision(),
        _library("open_clip", "pip install open_clip_torch"),
        _ffmpeg(),
        _pyav(),
        _faiss(),
        _disk(workspace),
    ]


def _load(name: str) -> tuple[Any, str]:
    """(module, "") or (None, why it does not load)."""
    try:
        return importlib.import_module(name), ""
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _library(name: str, fix: str) -> Check:
    module, why = _load(name)
    if module is None:
        return Check(name, FAIL, why, fix)
    return Check(name, OK, str(getattr(module, "__version__", "present")))


def _python() -> Check:
    version = platform.python_version()
    new_enough = tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 11)
    return Check("python", OK if new_enough else FAIL, version, "" if new_enough else "use Python 3.11 or newer")


def _torch() -> list[Check]:
    check = _library("torch", "pip install torch, with the versions of constraints.txt")
    if check.status == FAIL:
        return [check]
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return [check, Check("CUDA", OK, f"{torch.version.cuda}: {names}")]
    if torch.version.cuda:
        fix = "check that `nvidia-smi` works and that the driver supports this CUDA version"
        return [check, Check("CUDA", WARN, f"torch is built for CUDA {torch.version.cuda} but sees no GPU", fix)]
    fix = "for a GPU install a CUDA build of torch; without one everything runs, real CLIP models slowly"
    return [check, Check("CUDA", WARN, "a CPU build of torch", fix)]


def _torchvision() -> Check:
    guard = importlib.import_module("pipeline.clip.torchvision_guard")
    try:
        guard.ensure()
    except (ImportError, OSError, RuntimeError) as error:
        fix = "install the torchvision of constraints.txt, made for this torch"
        return Check("torchvision", FAIL, " ".join(str(error).split())[:200], fix)
    version = importlib.import_module("torchvision").__version__
    if guard._library is None:
        return Check("torchvision", OK, f"{version}; `import open_clip` works by itself")
    fix = "in a notebook, `import pipeline` before open_clip; or install a torchvision built for this torch"
    what = "its compiled operators do not load beside this torch, and nothing here needs them"
    return Check("torchvision", OK, f"{version}; {what}: `import open_clip` works after `import pipeline`", fix)


def _ffmpeg() -> Check:
    program = shutil.which("ffmpeg")
    where = "the system's"
    if program is None:
        carried, why = _load("imageio_ffmpeg")
        if carried is None:
            return Check("ffmpeg", FAIL, why, "install ffmpeg, or pip install imageio-ffmpeg, which carries one")
        try:
            program, where = carried.get_ffmpeg_exe(), "imageio-ffmpeg's"
        except RuntimeError as error:
            return Check("ffmpeg", FAIL, str(error), "install the system's ffmpeg")
    try:
        version = _output(program, "-version").split()[2]
        listed = {line.split()[1] for line in _output(program, "-decoders").splitlines() if len(line.split()) > 1}
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return Check("ffmpeg", FAIL, f"{program} does not run: {error}", "reinstall ffmpeg")
    listed |= {"av1"} if {"libdav1d", "libaom-av1"} & listed else set()
    return _with_codecs("ffmpeg", f"{version} ({where})", listed, "install a complete build of ffmpeg")


def _output(*command: str) -> str:
    done = subprocess.run(
        [*command, "-hide_banner"], capture_output=True, text=True, errors="replace", timeout=60, check=True
    )
    return done.stdout


def _pyav() -> Check:
    av, why = _load("av")
    if av is None:
        return Check("PyAV", FAIL, why, "pip install av")
    listed = {codec for codec in av.codecs_available if _decodes(av, codec)}
    listed |= {"av1"} if {"libdav1d", "libaom-av1"} & listed else set()
    return _with_codecs("PyAV", av.__version__, listed, "install PyAV's own wheel: pip install --force-reinstall av")


def _decodes(av: Any, codec: str) -> bool:
    try:
        return bool(av.codec.Codec(codec, "r"))
    except ValueError:  # UnknownCodecError: it can only encode
        return False


def _with_codecs(name: str, version: str, listed: set[str], fix: str) -> Check:
    absent = [codec for codec in CODECS if codec not in listed]
    if absent:
        return Check(name, WARN, f"{version}, cannot decode {', '.join(absent)}", fix)
    return Check(name, OK, f"{version}, decodes {', '.join(CODECS)}")


def _faiss() -> Check:
    installed = [name for name in ("faiss-cpu", "faiss-gpu") if _installed(name)]
    if len(installed) > 1:
        fix = "both own the module faiss: pip uninstall faiss-cpu faiss-gpu, then install one"
        return Check("faiss", FAIL, "faiss-cpu and faiss-gpu are both installed", fix)
    faiss, why = _load("faiss")
    if faiss is None:
        return Check("faiss", FAIL, why, "pip install '.[cpu]' or '.[gpu]'")
    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    return Check("faiss", OK, f"{faiss.__version__}, {f'{gpus} GPUs' if gpus else 'CPU'}")


def _installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def _disk(workspace: Path) -> Check:
    place = workspace.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    found = f"{free:.1f} GB free at {place}"
    if not os.access(place, os.W_OK):
        return Check("disk", FAIL, f"{place} cannot be written", "choose another --workspace")
    if free < ENOUGH_FREE_GB:
        fix = "features take 12 kB a clip (12 frames of 512 numbers), cached activations of ViT-B/32 75 times that"
        return Check("disk", FAIL if free < MIN_FREE_GB else WARN, found, fix)
    return Check("disk", OK, found)
