"""Which shards a manifest's features consist of: the unit of work that processes share without talking to each other.

A shard is a function of its spec and of the settings. The plan follows from the manifest and the shard sizes alone, so
every process that has them makes the same plan, and a shard's name (its number, and a fingerprint of its inputs) is
the same whoever writes it. Pure but for the look at what a store holds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.extract.settings import ExtractSettings
from pipeline.fingerprint import fingerprint
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import SKIPPED, Manifest, VideoEntry
from pipeline.video.passes import completion


@dataclass(frozen=True)
class Caption:
    """A caption, and the video that it describes."""

    caption_id: str
    video_id: str
    split: str
    text: str


@dataclass(frozen=True)
class ShardSpec:
    """All that a process needs to know to write one shard."""

    clips: Manifest
    """Its clips, in the order of its rows, without captions; under `SKIPPED` the files that it records as skipped."""
    captions: tuple[Caption, ...] = ()
    stem: str | None = None
    """File name without suffix; None: the next free number, which only the holder of the store's lock can give."""
    number: int = 0
    """Among all shards of the plan, of both kinds."""

    @property
    def kind(self) -> str:
        return "texts" if self.captions else "videos"

    @property
    def skipped(self) -> list[dict[str, str]]:
        return skipped_of(self.clips)

    @property
    def inputs(self) -> int:
        return len(self.clips.entries) + len(self.skipped) + len(self.captions)


def plan(manifest: Manifest, settings: ExtractSettings) -> list[ShardSpec]:
    """All shards of a manifest: video shards first, then text shards. The last video shard has the skipped files."""
    specs = video_specs(manifest, in_order(manifest), skipped_of(manifest), settings.shard_size)
    captions = captions_of(manifest, manifest.texts)
    size = settings.text_shard_size
    specs += [
        ShardSpec(replace(manifest, entries=(), protocol={}), tuple(captions[first : first + size]))
        for first in range(0, len(captions), size)
    ]
    numbers: Counter[str] = Counter()
    named = []
    for number, spec in enumerate(specs):
        stem = f"{spec.kind}-{numbers[spec.kind]:05d}-{_key(spec)}"
        numbers[spec.kind] += 1
        named.append(replace(spec, stem=stem, number=number))
    return named


def video_specs(
    manifest: Manifest, entries: Sequence[VideoEntry], skipped: Sequence[Mapping[str, str]], size: int
) -> list[ShardSpec]:
    """Cut clips into shards of `size`; the last one, or one without clips, has the skipped files."""
    cut = [tuple(entries[first : first + size]) for first in range(0, len(entries), size)]
    if not cut and skipped:
        cut = [()]
    return [
        ShardSpec(
            replace(
                manifest,
                entries=tuple(replace(entry, captions=()) for entry in part),
                protocol={SKIPPED: list(skipped)} if number == len(cut) - 1 and skipped else {},
            )
        )
        for number, part in enumerate(cut)
    ]


def in_order(manifest: Manifest) -> list[VideoEntry]:
    """The clips in the manifest's order but for the clips of one file: they come together, in the order in which one
    pass over it completes them."""
    if all(entry.is_whole for entry in manifest.entries):
        return list(manifest.entries)
    first: dict[str, int] = {}
    for place, entry in enumerate(manifest.entries):
        first.setdefault(entry.path, place)
    return sorted(manifest.entries, key=lambda entry: (first[entry.path], *completion(entry.start, entry.end)))


def captions_of(manifest: Manifest, texts: Any) -> list[Caption]:
    """The rows of (a selection of) `manifest.texts`."""
    names = ("caption_id", "entry", "caption")
    return [
        Caption(caption_id, manifest.entries[entry].video_id, manifest.entries[entry].split, text)
        for caption_id, entry, text in zip(*(texts[name].to_pylist() for name in names), strict=True)
    ]


def skipped_of(manifest: Manifest) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = manifest.protocol.get(SKIPPED, [])
    return rows


def outstanding(specs: Iterable[ShardSpec], store: FeatureStore) -> list[ShardSpec]:
    """Those of the shards that are not written yet, without what other shards of the store hold.

    What another plan, or a run by one process, has left in the store is not done again; the shards of one plan share no
    input, so that what is left of a spec does not depend on which others are written already.
    """
    stems = {path.stem for kind in ("videos", "texts") for path in store.shard_paths(kind)}
    specs = [spec for spec in specs if spec.stem not in stems]
    ids = [name for spec in specs for name in _video_inputs(spec)]
    new = iter((store.covered().codes_of(ids) < 0).tolist())
    captions = [caption for spec in specs for caption in spec.captions]
    stored = store.captions_of([caption.caption_id for caption in captions])
    same = pc.fill_null(pc.equal(stored, [caption.text for caption in captions]), False) if captions else []
    fresh = iter((~np.asarray(same, bool)).tolist())
    left = []
    for spec in specs:
        entries = tuple(entry for entry in spec.clips.entries if next(new))
        skipped = [row for row in spec.skipped if next(new)]
        clips = replace(spec.clips, entries=entries, protocol={SKIPPED: skipped} if skipped else {})
        rest = replace(spec, clips=clips, captions=tuple(caption for caption in spec.captions if next(fresh)))
        if rest.inputs:
            left.append(rest)
    return left


def _video_inputs(spec: ShardSpec) -> list[str]:
    return [*(entry.video_id for entry in spec.clips.entries), *(row["path"] for row in spec.skipped)]


def _key(spec: ShardSpec) -> str:
    return fingerprint(
        {
            "clips": [[entry.video_id, entry.path, entry.start, entry.end] for entry in spec.clips.entries],
            "skipped": [row["path"] for row in spec.skipped],
            "captions": [[caption.caption_id, caption.text] for caption in spec.captions],
        }
    )
