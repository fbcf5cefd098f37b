"""Tiny stand-ins of every published data set: annotation files in the published form, with small real videos.

    videos, annotations = make_standin("lsmdc", tmp_path)

The captions are made up; ids have the published form, dots, bare dots and missing extensions included.
"""

import csv
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import av
import numpy as np

Ids = Mapping[str, Sequence[str]]
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "grey")
SHAPES = ("square", "bar", "block", "stripe")


def standin_ids(name: str, train: int = 8, val: int = 2, test: int = 4) -> dict[str, list[str]]:
    """Ids in the data set's own form; data sets without a validation split get none."""
    make: dict[str, Callable[[int], str]] = {
        "msrvtt": lambda n: f"video{n * 37}",
        "msvd": lambda n: f"-4ws_uPCj{n:02d}_{n}_{n + 9}",
        "lsmdc": lambda n: f"{1000 + n % 3}_Some_Movie_00.0{n % 10}.16.{n:03d}-00.0{n % 10}.21.941",
        "didemo": lambda n: f"2629{n:04d}@N04_{n:03d}_265c3c8051",
        "vatex": lambda n: f"Ptf_2VRj-{n:02d}_{n:06d}_{n + 10:06d}",
        "charades": lambda n: f"YS{n:03d}",
        "activitynet": lambda n: f"v_uqiMw7t-{n:03d}",
    }
    ids = [make[name](number) for number in range(train + val + test)]
    split = {"train": ids[:train], "val": ids[train : train + val], "test": ids[train + val :]}
    if name in {"msrvtt", "charades", "activitynet"}:
        split["train"] += split.pop("val")
    return split


def make_standin(name: str, folder: Path, ids: Ids | None = None) -> tuple[Path, Path]:
    """Write `folder`/videos and `folder`/annotations; `ids` maps split -> ids (default: `standin_ids(name)`)."""
    ids = ids or standin_ids(name)
    videos, annotations = folder / "videos", folder / "annotations"
    videos.mkdir(parents=True)
    annotations.mkdir()
    _WRITERS[name](annotations, ids)
    for number, video_id in enumerate(video_id for split in ids.values() for video_id in split):
        path = videos / file_name(name, video_id, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, seed=video_id)
    return videos, annotations


def file_name(name: str, video_id: str, number: int) -> str:
    """Where a copy of the data set has this video; the forms that occur take turns."""
    if name == "lsmdc":
        return f"{video_id.rsplit('_', 1)[0]}/{video_id}.avi"
    if name == "didemo":
        return video_id + (".mov", ".", "", ".mov.mp4")[number % 4]
    return video_id + {"msvd": ".avi", "activitynet": (".mkv", ".mp4")[number % 2]}.get(name, ".mp4")


def caption(video_id: str, number: int = 0) -> str:
    pick = random.Random(f"{video_id}/{number}")
    return f"a {pick.choice(COLOURS)} {pick.choice(SHAPES)} moves, take {number}"


def write_video(path: Path, seed: str, frames: int = 16, size: int = 64) -> None:
    """A bright square on a dark ground at 8 frames a second; place and colour follow from `seed`."""
    digest = hashlib.sha256(seed.encode()).digest()
    kind = {".avi": "avi", ".mkv": "matroska"}.get(path.suffix, "mp4")
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for step in range(frames):
            image = np.full((size, size, 3), 24, np.uint8)
            left, top = (digest[0] + 2 * step) % (size - 24), digest[1] % (size - 24)
            image[top : top + 24, left : left + 24] = np.frombuffer(digest[2:5], np.uint8) | 96
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_table(path: Path, rows: Sequence[Sequence[object]], lineterminator: str = "\n") -> None:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, lineterminator=lineterminator).writerows(rows)


def write_list(path: Path, ids: Sequence[str]) -> None:
    path.write_text("".join(f"{video_id}\n" for video_id in ids), encoding="utf-8")


def _msrvtt(folder: Path, ids: Ids) -> None:
    write_table(folder / "MSRVTT_train.9k.csv", [["video_id"], *([video_id] for video_id in ids["train"])])
    write_table(folder / "MSRVTT_train.7k.csv", [["video_id"], *([video_id] for video_id in ids["train"][:-1])])
    write_list(folder / "train_list_miech.txt", ids["train"])
    write_list(folder / "test_list_miech.txt", ids["test"])
    pairs = [[f"ret{n}", f"msr{n}", video_id, caption(video_id)] for n, video_id in enumerate(ids["test"])]
    write_table(folder / "MSRVTT_JSFUSION_test.csv", [["key", "vid_key", "video_id", "sentence"], *pairs])
    parts = {"train": ids["train"][:-1], "validate": ids["train"][-1:], "test": ids["test"]}
    data = {
        "videos": [{"video_id": v, "id": n, "split": s} for s, part in parts.items() for n, v in enumerate(part)],
        "sentences": [
            {"caption": caption(v, n), "video_id": v, "sen_id": n}
            for part in parts.values()
            for v in part
            for n in range(20)
        ],
    }
    (folder / "MSRVTT_data.json").write_text(json.dumps(data))


def _msvd(folder: Path, ids: Ids) -> None:
    for split, listed in ids.items():
        write_list(folder / f"{split}_list.txt", listed)
    captions = {v: [caption(v, n) for n in range(3 + len(v) % 3)] for listed in ids.values() for v in listed}
    (folder / "captions_msvd.json").write_text(json.dumps(captions))


def _lsmdc(folder: Path, ids: Ids) -> None:
    files = ("LSMDC16_annos_training.csv", "LSMDC16_annos_val.csv", "LSMDC16_challenge_1000_publictect.csv")
    for split, name in zip(("train", "val", "test"), files, strict=True):
        rows = [[v, "00.05.16.065", "00.05.21.941", "00.05.16.065", "00.05.21.941", caption(v)] for v in ids[split]]
        if split == "train":
            rows.append([*rows[0][:5], 'SOMEONE says "wait", and goes.'])
        (folder / name).write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def _didemo(folder: Path, ids: Ids) -> None:
    header = ["success", "video_path", "starts", "ends", "text", "formatted_data"]
    for split, listed in ids.items():
        rows = [
            ["True", f"/home/someone/videos/{v}{('.mov', '.')[n % 2]}", "tensor([[0]])", "tensor([[31]])",
             f"{caption(v)}. \n{caption(v, 1)}", f"/home/someone/{n}.pth"]
            for n, v in enumerate(listed)
        ]  # fmt: skip
        write_table(folder / f"didemo_{split}_label.csv", [header, *rows])


def _vatex(folder: Path, ids: Ids) -> None:
    def records(listed: Sequence[str]) -> str:
        return json.dumps([{"videoID": v, "enCap": [caption(v, n) for n in range(10)], "chCap": []} for v in listed])

    for split, listed in ids.items():
        write_list(folder / f"{split}_list.txt", listed)
    (folder / "vatex_training_v1.0.json").write_text(records(ids["train"]))
    (folder / "vatex_validation_v1.0.json").write_text(records([*ids["test"], *ids["val"]]))


def _charades(folder: Path, ids: Ids) -> None:
    header = ["id", "subject", "scene", "quality", "relevance", "verified", "script", "objects", "descriptions"]
    header += ["actions", "length"]
    for split, listed in ids.items():
        rows = [
            [v, "HR43", "Kitchen", 6, 7, "Yes", f"{caption(v)}, then stops.", "food",
             f"{caption(v, 1)};{caption(v, 2)}", "c092 11.90 21.20", "2.00"]
            for v in listed
        ]  # fmt: skip
        write_table(folder / f"Charades_v1_{split}.csv", [header, *rows], lineterminator="\r\n")


def _activitynet(folder: Path, ids: Ids) -> None:
    for split, name in (("train", "train"), ("test", "val_1")):
        records = {
            v: {"duration": 2.0, "timestamps": [[0, 1.2], [1.0, 2.4]], "sentences": [caption(v), f"  {caption(v, 1)}."]}
            for v in ids[split]
        }
        (folder / f"{name}.json").write_text(json.dumps(records))
    (folder / "val_ids.json").write_text(json.dumps([*ids["test"], "v_withoutsent"]))


_WRITERS: dict[str, Callable[[Path, Ids], None]] = {
    "msrvtt": _msrvtt,
    "msvd": _msvd,
    "lsmdc": _lsmdc,
    "didemo": _didemo,
    "vatex": _vatex,
    "charades": _charades,
    "activitynet": _activitynet,
}
