"""Features that another program made: read as arrays, one video at a time or whole.

Three forms: one .npz with the arrays of `FeatureArchive`; a folder (or a .tar, as WebDataset writers make) with one
.npy or .npz a video, named by its id, a caption beside it in .txt or in the `caption` of .json. The latter is what
clip-video-encode and video2dataset write. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pipeline.errors import BadInput, MissingData

EMBEDDINGS = ("frame_embeds", "embeddings", "features", "arr_0")  # names of the frames' array in a video's own .npz
SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class ForeignVideo:
    """One video of a folder or tar."""

    video_id: str
    """Path below the folder, without its suffix."""
    frame_embeds: np.ndarray
    """(F, D), any float type; F may differ between videos."""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureArchive:
    """One .npz with the features of a whole corpus. T captions, V videos, F frames, width D."""

    video_ids: list[str]
    splits: list[str] | None
    frame_embeds: np.ndarray
    """(V, F, D), any float type."""
    frame_mask: np.ndarray
    """(V, F) bool."""
    frame_pts: np.ndarray
    """(V, F) float64, seconds; NaN where unknown."""
    captions: list[str]
    caption_video: np.ndarray
    """(T,) int64: the row of each caption's video."""
    text_embeds: np.ndarray | None
    """(T, D), or None where the archive holds captions alone."""


def read_archive(path: Path) -> FeatureArchive:
    """Read a corpus from one .npz.

    Args:
        path: arrays video_id (V,), frame_embeds (V, F, D); optionally split (V,), frame_mask (V, F), frame_pts (V, F),
            caption (T,), caption_video (T,) rows of videos, text_embeds (T, D).

    Raises:
        MissingData: there is no such file.
        BadInput: an array is missing, of the wrong shape or type, or holds NaN; the line names it.
    """
    arrays = _load(path.read_bytes() if path.is_file() else None, str(path))
    if not isinstance(arrays, dict):
        raise BadInput(f"{path} is no archive of arrays", expected="an .npz", fix="give an .npz, or a folder of .npy")
    need = {"video_id", "frame_embeds"} | ({"caption_video"} if "caption" in arrays else set())
    if missing := sorted(need - arrays.keys()):
        raise BadInput(f"{path} lacks {', '.join(missing)}", got=", ".join(sorted(arrays)), fix="see docs/reference")
    embeds = _checked(arrays["frame_embeds"], 3, f"{path}: frame_embeds")
    videos, frames, width = embeds.shape
    captions = [str(caption) for caption in arrays.get("caption", ())]
    caption_video = np.asarray(arrays.get("caption_video", np.zeros(0)), np.int64)
    texts = arrays.get("text_embeds")
    expected: dict[str, tuple[int, ...]] = {
        "video_id": (videos,),
        "split": (videos,),
        "frame_mask": (videos, frames),
        "frame_pts": (videos, frames),
        "caption_video": (len(captions),),
        "text_embeds": (len(captions), width),
    }
    for name, shape in expected.items():
        if name in arrays and arrays[name].shape != shape:
            raise BadInput(f"{path}: {name}", expected=f"shape {shape}", got=f"shape {arrays[name].shape}")
    if len(captions) and (caption_video.min() < 0 or caption_video.max() >= videos):
        raise BadInput(f"{path}: caption_video", expected=f"rows 0 to {videos - 1}", got=f"{caption_video.max()}")
    return FeatureArchive(
        [str(name) for name in arrays["video_id"]],
        [str(split) for split in arrays["split"]] if "split" in arrays else None,
        embeds,
        np.asarray(arrays.get("frame_mask", np.ones((videos, frames))), bool),
        np.asarray(arrays.get("frame_pts", np.full((videos, frames), np.nan)), np.float64),
        captions,
        caption_video,
        None if texts is None else _checked(texts, 2, f"{path}: text_embeds"),
    )


def read_videos(path: Path) -> Iterator[ForeignVideo]:
    """Read a folder, or a .tar, with one .npy or .npz a video, in the order of their names.

    Raises:
        MissingData: the folder holds no such file.
        BadInput: a file is no array of floats (F, D); the line names it.
    """
    members = _tar_members(path) if path.suffix == ".tar" else _folder_members(path)
    found = False
    for name, read, beside in members:
        found = True
        arrays = _load(read(), f"{path}/{name}")
        if isinstance(arrays, dict):
            own = next((arrays[key] for key in EMBEDDINGS if key in arrays), None)
            if own is None:
                raise BadInput(f"{path}/{name}", expected=f"an array called {' or '.join(EMBEDDINGS)}", got=[*arrays])
            arrays = own
        yield ForeignVideo(name.rsplit(".", 1)[0], _checked(arrays, 2, f"{path}/{name}"), _captions(beside, name))
    if not found:
        raise MissingData(f"no .npy or .npz in {path}", fix="give the folder that holds one file a video")


def _folder_members(folder: Path) -> Iterator[tuple[str, Any, dict[str, bytes]]]:
    """(name, how to read it, the files beside it by suffix) of each array below a folder."""
    if not folder.is_dir():
        raise MissingData(f"no folder {folder}", fix="give an .npz, a .tar, or a folder of .npy files")
    for path in sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file()):
        beside = {s: path.with_name(path.stem + s) for s in (".txt", ".json")}
        texts = {suffix: file.read_bytes() for suffix, file in beside.items() if file.is_file()}
        yield path.relative_to(folder).as_posix(), path.read_bytes, texts


def _tar_members(path: Path) -> Iterator[tuple[str, Any, dict[str, bytes]]]:
    """The same of a tar: members that share a name up to the suffix belong together."""
    try:
        with tarfile.open(path) as archive:
            members = {member.name: member for member in archive if member.isfile()}

            def read(name: str) -> bytes:
                file = archive.extractfile(members[name])
                return file.read() if file else b""

            for name in sorted(name for name in members if name.endswith(SUFFIXES)):
                stem = name.rsplit(".", 1)[0]
                texts = {s: read(stem + s) for s in (".txt", ".json") if stem + s in members}
                yield name, lambda name=name: read(name), texts
    except FileNotFoundError:
        raise MissingData(f"no file {path}") from None
    except (tarfile.TarError, OSError) as error:
        raise BadInput(f"{path} is not a readable tar ({error})") from None


def _captions(beside: dict[str, bytes], name: str) -> tuple[str, ...]:
    try:
        if ".txt" in beside:
            texts: Any = [beside[".txt"].decode()]
        else:
            about = json.loads(beside.get(".json", b"{}"))
            said = about.get("caption") or about.get("captions") or [] if isinstance(about, dict) else []
            texts = [said] if isinstance(said, str) else said
        return tuple(text.strip() for text in texts if text.strip())
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError) as error:
        raise BadInput(f"the caption beside {name} cannot be read ({error})", fix="mend or remove that file") from None


def _load(data: bytes | None, name: str) -> Any:
    """An array, or a dict of arrays, from the bytes of an .npy or .npz."""
    if data is None:
        raise MissingData(f"no file {name}")
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        return dict(loaded) if hasattr(loaded, "files") else loaded
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise BadInput(f"{name} holds no arrays that can be read ({error})", expected="an .npy or .npz") from None


def _checked(array: np.ndarray, ndim: int, name: str) -> np.ndarray:
    """The array, if it is of finite floats, not empty, and of so many axes."""
    if array.ndim != ndim or not np.issubdtype(array.dtype, np.floating) or 0 in array.shape:
        raise BadInput(
            name, expected=f"floats with {ndim} axes, none of them empty", got=f"{array.dtype} {array.shape}"
        )
    if not np.isfinite(array).all():
        raise BadInput(name, expected="finite numbers", got="NaN or infinity")
    return array
