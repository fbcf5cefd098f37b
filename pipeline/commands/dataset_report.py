"""Check a copy of a data set against its published form.

    report = dataset_report("msrvtt", dataset_dir=workspace.dataset_dir("msrvtt"), deep=True)

Nothing is written, and nothing raised for what the user can mend: each finding is a `Check`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.commands.environment import FAIL, OK, WARN, Check
from pipeline.datasets import account_built_in, annotate, build_manifest, dataset_info, find_source
from pipeline.datasets.assemble import Clip, assemble, claim
from pipeline.errors import UserError
from pipeline.stores.manifest import Manifest, read_manifest

SHORT_BYTES = 50  # a caption of so few bytes has fewer tokens than CLIP's limit: no need to count them


@dataclass(frozen=True)
class DatasetReport:
    """`claim`: what results on the test split may be called, None if there can be none."""

    name: str
    checks: tuple[Check, ...]
    claim: str | None = None
    splits: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def dataset_report(
    name: str,
    videos: Path | None = None,
    annotations: Path | None = None,
    dataset_dir: Path | None = None,
    *,
    deep: bool = False,
    workers: int = 0,
    **options: Any,
) -> DatasetReport:
    """Check a copy of a data set (arguments as for `build_manifest`); `deep` also decodes a frame of every video.

    Raises BadInput on an unknown data set or option; whatever is wrong with the files becomes checks.
    """
    dataset_info(name)
    try:
        clips, manifest, repairs = _read(name, videos, annotations, dataset_dir, options)
    except UserError as error:
        return DatasetReport(name, (Check("files", FAIL, str(error)),))
    checks = [*_captions(clips), *_ids(name, clips), *_repairs(repairs)]
    if isinstance(manifest, Check):
        return DatasetReport(name, (manifest, *checks))
    checks = [*_folder(manifest), *_accounts(manifest.protocol), _shared_files(manifest), *checks]
    test = [entry.video_id for entry in manifest.entries if entry.split == "test"]
    if deep:
        unreadable = _unreadable(manifest, workers or os.cpu_count() or 1)
        checks.append(_examples("unreadable videos", unreadable, "replace these files; extract lists them as failures"))
        test = [video_id for video_id in test if video_id not in unreadable]
    splits = manifest.protocol.get("splits", {})
    return DatasetReport(name, tuple(checks), claim(splits["test"], test) if test else None, splits)


def _read(
    name: str, videos: Path | None, annotations: Path | None, dataset_dir: Path | None, options: dict[str, Any]
) -> tuple[Sequence[Clip], Manifest | Check, dict[str, Any]]:
    """The annotated clips, the manifest or why there is none (no videos), and the repairs made."""
    if dataset_info(name).built_in:
        manifest = account_built_in(read_manifest((dataset_dir or Path()) / "manifest.parquet"))
    elif name == "folder":
        manifest = build_manifest(name, videos, annotations, dataset_dir, **options)
    else:
        own = {key: value for key, value in options.items() if key != "splits"}
        source = find_source(name, videos, annotations, dataset_dir, options.get("splits"))
        annotated = annotate(replace(source, videos=None), **own)
        assert source.videos is not None
        try:
            chosen = {**own, "splits": source.splits}
            manifest = assemble(name, annotated, source.videos, source.repairs, chosen)
        except UserError as error:
            return annotated.clips, Check("videos", FAIL, str(error)), source.repairs.to_json()
        return annotated.clips, manifest, source.repairs.to_json()
    clips = [Clip(entry.video_id, entry.split, entry.captions) for entry in manifest.entries]
    return clips, manifest, manifest.protocol.get("repairs", {})


def _examples(name: str, found: Iterable[str], fix: str, status: str = WARN) -> Check:
    listed = list(found)
    if not listed:
        return Check(name, OK, "none")
    more = ", ..." if len(listed) > 3 else ""
    return Check(name, status, f"{len(listed)} ({', '.join(listed[:3])}{more})", fix)


def _accounts(protocol: dict[str, Any]) -> list[Check]:
    checks = []
    for split, account in protocol.get("splits", {}).items():
        if not account["annotated"] and account["published"] is None:
            continue
        published = f"of {account['published']} published " if account["published"] else ""
        unit = account["unit"]
        found = (
            f"{account['annotated']} annotated {published}{unit if published else 'videos'}, {account['found']} found"
        )
        found += f", {account['captions']} captions: {account['claim']}"
        whole = account["claim"] == account["name"]
        fix = "" if whole else "results may only be called by the name at the end of this line"
        checks.append(Check(split, OK if whole else WARN, found, fix))
    for key, title, fix in (
        ("missing", "missing videos", "get them, or report results as the subset that they are"),
        ("uncaptioned", "videos without captions", "complete the caption files"),
    ):
        ids = [video_id for listed in protocol.get(key, {}).get("ids", {}).values() for video_id in listed]
        checks.append(_examples(title, ids, fix))
    extra = protocol.get("extra_files", {"count": 0, "examples": []})
    found = f"{extra['count']} ({', '.join(extra['examples'][:3])})" if extra["count"] else "none"
    checks.append(Check("files that nobody names", OK, found))
    return checks


def _folder(manifest: Manifest) -> list[Check]:
    """Of an own folder: how many videos, which files are none, and which rows of the captions fit none."""
    if "files" not in manifest.protocol:
        return []
    skipped, unmatched = manifest.protocol["skipped_files"], manifest.protocol["caption_changes"]["unmatched"]
    others = f"{len(skipped)} ({', '.join(row['path'] for row in skipped[:3])})" if skipped else "none"
    videos = f"{len(manifest.entries)}, {manifest.protocol['files']['captioned']} with captions"
    checks = [Check("videos", OK, videos), Check("files that are no videos", OK, others)]
    if unmatched["count"]:
        told = f"{unmatched['count']} ({'; '.join(unmatched['examples'][:3])})"
        checks.append(Check("rows of the captions without a video", WARN, told, "correct the names there"))
    return checks


def _repairs(repairs: dict[str, Any]) -> list[Check]:
    fix = "mended while reading; look at these places"
    return [
        Check("repair", WARN, f"{kind}: {where['count']} ({'; '.join(where['examples'][:3])})", fix)
        for kind, where in repairs.items()
    ]


def _captions(clips: Sequence[Clip]) -> list[Check]:
    """Repeated test captions (they cap R@1: two videos, one text) and captions that the tokenizer would cut."""
    counts = Counter(caption for clip in clips if clip.split == "test" for caption in set(clip.captions))
    repeated = {caption: count for caption, count in counts.items() if count > 1}
    found = f"{len(repeated)} captions stand for {sum(repeated.values())} test videos" if repeated else "none"
    long, total = _too_long(clips)
    parts = ", ".join(f"{count} {split}" for split, count in long.items() if count)
    cut = Check("captions beyond 77 tokens", OK, f"none of {total}")
    if parts:
        fix = "CLIP cuts them; --long-captions reads them whole, in windows"
        cut = Check("captions beyond 77 tokens", WARN, f"{parts}, of {total} in all", fix)
    return [Check("captions shared by several test videos", OK, found), cut]


def _too_long(clips: Sequence[Clip]) -> tuple[Counter[str], int]:
    from pipeline.clip.long_captions import CONTEXT_LENGTH, clip_tokenizer, token_count

    candidates = [(clip.split, text) for clip in clips for text in clip.captions if len(text.encode()) > SHORT_BYTES]
    tokenizer = clip_tokenizer() if candidates else None
    long = Counter(split for split, text in candidates if tokenizer and token_count(tokenizer, text) > CONTEXT_LENGTH)
    return long, sum(len(clip.captions) for clip in clips)


def _ids(name: str, clips: Sequence[Clip]) -> list[Check]:
    special: dict[str, Callable[[Sequence[Clip]], Check]] = {"lsmdc": _repeated_names, "vatex": _cut_ids}
    return [special[name](clips)] if name in special else []


def _repeated_names(clips: Sequence[Clip]) -> Check:
    several = [clip for clip in clips if len(clip.captions) > 1]
    rows = sum(len(clip.captions) for clip in several)
    found = f"{len(several)} names over {rows} rows, every sentence kept" if several else "none"
    return Check("repeated clip names", OK, found)


def _cut_ids(clips: Sequence[Clip]) -> Check:
    counts = Counter(clip.video_id[:11] for clip in clips)
    shared = [clip.video_id for clip in clips if counts[clip.video_id[:11]] > 1]
    return _examples(
        "ids that collide when cut to 11 characters", shared, "their files must carry the whole id in their name"
    )


def _shared_files(manifest: Manifest) -> Check:
    counts = Counter(entry.path for entry in manifest.entries if entry.is_whole)
    return _examples("files that serve several ids", (path for path, n in counts.items() if n > 1), "check their names")


def _unreadable(manifest: Manifest, workers: int) -> dict[str, str]:
    """Video id -> why no frame of it can be had. Decoding runs in processes that may crash, hang or eat memory."""
    from pipeline.frame_size import FrameSize
    from pipeline.video.job import DecodeSettings, Job
    from pipeline.video.limits import DecodeFailure
    from pipeline.video.pool import DecodePool

    jobs = [Job(number, manifest.resolve(entry)) for number, entry in enumerate(manifest.entries)]
    with DecodePool(jobs, DecodeSettings(num_frames=1, size=FrameSize(32, 32)), workers) as pool:
        return {
            manifest.entries[job.index].video_id: f"{result.kind}: {result.message}"
            for job, result in pool
            if isinstance(result, DecodeFailure)
        }
