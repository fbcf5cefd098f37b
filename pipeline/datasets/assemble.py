"""Assemble annotated clips into a manifest: file lookup, held-out validation, counts, published split names.

The protocol of a manifest (JSON) has
    dataset, options, caption_rule, validation, source
    splits      per split: name, published, unit, annotated, found, captions, claim, ids_sha256 (for `claim`)
    label       what results on the test split may be called (`claim`)
    missing, uncaptioned, extra_files     {count, ids per split | examples}: never in the entries, never forgotten
    repairs     {kind: {count, examples}}
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.datasets.readers import EXAMPLES, Repairs
from pipeline.datasets.videos import VideoIndex
from pipeline.errors import BadInput, MissingData
from pipeline.stores.manifest import SPLITS, Manifest, VideoEntry

HOLD_OUT = 0.05  # share of the training videos that becomes validation where a data set has none
HOLD_OUT_SEED = 24


@dataclass(frozen=True)
class Clip:
    """One annotated video. `names`: possible file names, the most likely first (default: its id)."""

    video_id: str
    split: str
    captions: tuple[str, ...]
    names: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class PublishedSplit:
    """A split as published: its name, its size, and `ids_digest` of its ids where these are known for certain."""

    name: str
    count: int
    ids_sha256: str | None = None
    unit: str = "videos"  # or "captions": LSMDC counts its training rows, in which a clip's name may repeat


@dataclass(frozen=True)
class Annotated:
    """Content of a data set's annotation files; `origin` is the name of the official source."""

    clips: tuple[Clip, ...]
    published: Mapping[str, PublishedSplit]
    caption_rule: str
    origin: str


def ids_digest(ids: Iterable[str]) -> str:
    """sha256 over the sorted ids, one a line: a published split can be recognised without shipping its list."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def claim(split: Mapping[str, Any], ids: Collection[str]) -> str:
    """Label of results on these videos: the split's name only if the ids are exactly the published ones.

    `split` is an entry of a manifest's `protocol["splits"]`: a report asks again with the ids that it really used.
    A split that nobody published (held out, or one's own data) keeps its name if all its videos are there.

    >>> split = {"name": "Toy", "published": 2, "ids_sha256": ids_digest(["a", "b"])}
    >>> claim(split, ["b", "a"]), claim(split, ["a"]), claim(split, ["a", "c"])
    ('Toy', 'subset (1 of 2)', 'other ids (2; published 2)')
    """
    whole = split["annotated"] if split["published"] is None else split["published"]
    if split["ids_sha256"] == ids_digest(ids) or (split["published"] is None and len(ids) == whole):
        return str(split["name"])
    if len(ids) < whole:
        return f"subset ({len(ids)} of {whole})"
    return f"other ids ({len(ids)}; published {whole})"


def hold_out(clips: tuple[Clip, ...], share: float = HOLD_OUT, seed: int = HOLD_OUT_SEED) -> tuple[Clip, ...]:
    """Move a share of the training clips (at least one of two) to validation, chosen by a hash of seed and id.

    The choice depends on the ids alone, not on their order or on which videos could be downloaded.
    """
    train = [clip.video_id for clip in clips if clip.split == "train"]
    count = max(1, round(share * len(train))) if len(train) > 1 else 0
    ranked = sorted(train, key=lambda video_id: hashlib.sha256(f"{seed}:{video_id}".encode()).digest())
    chosen = set(ranked[:count])
    return tuple(replace(clip, split="val") if clip.video_id in chosen else clip for clip in clips)


def check_clips(dataset: str, clips: tuple[Clip, ...]) -> None:
    """An id in two splits would leak training videos into the test; an id twice in one would lose captions."""
    counts = Counter(clip.video_id for clip in clips)
    repeated = [video_id for video_id, count in counts.items() if count > 1]
    if repeated:
        where = sorted({clip.split for clip in clips if clip.video_id == repeated[0]})
        raise BadInput(
            f"{dataset}: {len(repeated)} video ids stand more than once, {repeated[0]!r} in {' and '.join(where)}",
            expected="disjoint splits",
            fix="use the original split files",
        )


def assemble(
    dataset: str, annotated: Annotated, videos: Path, repairs: Repairs, options: Mapping[str, Any]
) -> Manifest:
    """Look up every clip's file and account for each clip as an entry, missing or uncaptioned."""
    check_clips(dataset, annotated.clips)
    wanted = options["splits"]
    held_out = "val" not in annotated.published and "val" in wanted
    # A training split that is read only so that validation can be held out of it is not asked for itself.
    clips = tuple(clip for clip in (hold_out(annotated.clips) if held_out else annotated.clips) if clip.split in wanted)
    for split in annotated.published:
        if split in wanted and not any(clip.split == split for clip in clips):
            raise BadInput(f"{dataset}: the {split} split has no videos", fix="look at its annotation file")
    index = VideoIndex(videos, repairs)
    entries: list[VideoEntry] = []
    missing: dict[str, list[str]] = {}
    uncaptioned: dict[str, list[str]] = {}
    for clip in clips:
        path = index.find(clip.names or (clip.video_id,), repairs)
        if not clip.captions:
            uncaptioned.setdefault(clip.split, []).append(clip.video_id)
        elif path is None:
            missing.setdefault(clip.split, []).append(clip.video_id)
        else:
            entries.append(VideoEntry(clip.video_id, path, clip.split, clip.captions, clip.start, clip.end))
    if not entries:
        _nothing_found(dataset, clips, missing, index)
    used = {entry.path for entry in entries}
    extra = [path for path in index.files if path not in used]
    splits = {split: account(split, clips, entries, annotated, held_out) for split in SPLITS if split in wanted}
    protocol = {
        "dataset": dataset,
        "options": {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()},
        "caption_rule": annotated.caption_rule,
        "validation": _validation_rule(held_out, wanted),
        "source": annotated.origin,
        "label": splits["test"]["claim"] if "test" in splits else None,
        "splits": splits,
        "missing": {"count": sum(map(len, missing.values())), "ids": missing},
        "uncaptioned": {"count": sum(map(len, uncaptioned.values())), "ids": uncaptioned},
        "extra_files": {"count": len(extra), "examples": extra[:EXAMPLES]},
        "repairs": repairs.to_json(),
    }
    return Manifest(dataset, str(videos.resolve()), tuple(entries), protocol)


def account_generated(manifest: Manifest, sizes: Mapping[str, int]) -> Manifest:
    """The same accounts for a generated data set, whose standard form has `sizes` videos a split."""
    title = f"{manifest.name} (seed {manifest.protocol['seed']})"
    clips = tuple(Clip(entry.video_id, entry.split, entry.captions) for entry in manifest.entries)
    published = {split: PublishedSplit(f"{title} {split}", size) for split, size in sizes.items()}
    published["test"] = PublishedSplit(title, sizes["test"])
    annotated = Annotated(clips, published, manifest.protocol["captions"], "the generator of this project")
    splits = {split: account(split, clips, list(manifest.entries), annotated, False) for split in SPLITS}
    accounts = {
        "dataset": manifest.name,
        "caption_rule": annotated.caption_rule,
        "validation": "generated beside the training split",
        "source": annotated.origin,
        "label": splits["test"]["claim"],
        "splits": splits,
        "repairs": {},
    }
    return replace(manifest, protocol={**manifest.protocol, **accounts})


def _nothing_found(dataset: str, clips: tuple[Clip, ...], missing: Mapping[str, list[str]], index: VideoIndex) -> None:
    wanted = next((ids[0] for ids in missing.values()), None)
    if wanted is None:
        raise BadInput(
            f"{dataset}: none of its {len(clips)} annotated videos has a caption", fix="check the caption file"
        )
    shown = ", ".join(index.files[:3]) or "an empty folder"
    raise MissingData(
        f"{dataset}: none of the {sum(map(len, missing.values()))} annotated videos is in {index.root}",
        expected=f"files named by id, such as {wanted}.mp4 (any folder depth, any container)",
        got=f"{len(index.files)} files ({shown})",
        fix="name the folder of the videos with --videos",
    )


def _validation_rule(held_out: bool, wanted: Collection[str]) -> str | None:
    if "val" not in wanted:
        return None
    if held_out:
        return f"held out: {HOLD_OUT:.0%} of the training videos, by hash of seed {HOLD_OUT_SEED} and id"
    return "the published validation split"


def account(
    split: str, clips: tuple[Clip, ...], entries: list[VideoEntry], annotated: Annotated, held_out: bool
) -> dict[str, Any]:
    """The counts of one split; a training split is counted before validation is held out of it."""
    published = annotated.published.get(split)
    parts = ("train", "val") if held_out and split == "train" else (split,)
    ids = [clip.video_id for clip in clips if clip.split in parts]
    found = [entry for entry in entries if entry.split in parts]
    account: dict[str, Any] = {
        "name": published.name if published else f"held out of {annotated.published['train'].name}",
        "published": published.count if published else None,
        "unit": published.unit if published else "videos",
        "annotated": len(ids),
        "found": len(found),
        "captions": sum(len(entry.captions) for entry in found),
        "ids_sha256": _known_digest(published, clips, ids) if published else None,
    }
    account["claim"] = claim(account, [entry.video_id for entry in found])
    return account


def _known_digest(published: PublishedSplit, clips: tuple[Clip, ...], ids: list[str]) -> str | None:
    """The published digest; where it is unknown, that of the annotated ids if they are as many as published."""
    if published.ids_sha256:
        return published.ids_sha256
    chosen = set(ids)
    counted = len(ids)
    if published.unit == "captions":
        counted = sum(len(clip.captions) for clip in clips if clip.video_id in chosen)
    return ids_digest(ids) if counted == published.count else None
