"""Stage 1: extract a manifest of videos and captions into a feature store; every input is accounted for.

    decoding processes -> bounded queue -> batches of full size across videos -> encoder -> shard, marker

One shard is `shard_size` consecutive clips of the manifest, in which the clips of one file stand together, so that one
decoding process reads the file once; a long file spans shards. A shard's content depends on its clips and on the
settings alone: they arrive in order and a batch never spans two shards, so an interrupted and resumed run writes what
an undisturbed one writes. Decoding runs ahead over shard borders all the while. What is done is never done again; a
clip that fails is a row that says why; inputs = done + failed + skipped is checked when a shard is written.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clip.activations import require_cacheable
from pipeline.clip.encoder import Encoder
from pipeline.clip.protocol import Embedder
from pipeline.clip.text import encode_sentences, require_windows
from pipeline.errors import BadInput, DiskFull, UserError, disk_full
from pipeline.extract.cache_size import cache_bytes, require_room
from pipeline.extract.long_files import LongFiles
from pipeline.extract.settings import ExtractSettings, encoder_for
from pipeline.extract.shard_plan import Caption, ShardSpec, captions_of, in_order, skipped_of, video_specs
from pipeline.extract.sync import FileChanges, begin, compare, finish
from pipeline.fingerprint import SourceFile
from pipeline.progress import progress
from pipeline.stores.activations import frame_columns, text_columns
from pipeline.stores.catalogue import STATUS
from pipeline.stores.features import ClipSource, Failure, FeatureStore, TextFeatures, VideoFeatures
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.stores.strings import Strings, lookup
from pipeline.video.job import Job
from pipeline.video.limits import DecodeFailure
from pipeline.video.pool import Decoded, DecodePool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractReport:
    """Account of all inputs of the store, and of this run."""

    inputs: int
    done: int
    failed: int
    skipped: int
    store: str
    new_videos: int
    new_captions: int
    seconds: float
    mean_attempts: float
    failure_classes: dict[str, int]
    min_coverage: float
    manifest: Manifest = field(repr=False)
    """The manifest as it was extracted: without files that are gone."""
    changes: FileChanges | None = None
    """What became of the files since the run before, where they were compared."""

    @property
    def coverage(self) -> float:
        """Share of the inputs that are done, not counting skipped ones."""
        return self.done / max(1, self.inputs - self.skipped)

    @property
    def enough(self) -> bool:
        return self.coverage >= self.min_coverage

    def to_json(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name not in ("manifest", "changes")}
        return {**plain, "coverage": self.coverage, "files": self.changes.to_json() if self.changes else None}


def extract(
    manifest: Manifest,
    store_path: Path,
    settings: ExtractSettings,
    *,
    encoder: Embedder | None = None,
    sync: bool = False,
    amend: bool = True,
) -> ExtractReport:
    """Extract what the store lacks of `manifest`. Raises UserError; a bad video becomes a failure row.

    Args:
        manifest: videos and captions.
        store_path: folder of the store, which may not exist yet.
        settings: how to extract.
        encoder: saves loading one that is there already; it must be what `settings` name.
        sync: compare the files with what the store recorded of them: changed ones are extracted again, moved ones keep
            their features, gone ones are hidden.
        amend: the manifest decides the splits and captions of its videos. Otherwise those of the store stay.
    """
    if not manifest.entries:
        raise BadInput(f"data set {manifest.name!r} holds no videos")
    started = time.perf_counter()
    encoder = encoder or encoder_for(settings)
    store = open_store(manifest, store_path, settings, encoder)
    with store.lock(timeout=settings.wait_seconds), full_disk_is_an_error(store):
        # another may have made it meanwhile
        FeatureStore.open(store_path).require(extraction_settings(settings, encoder), "extract into it")
        plan = compare(manifest, store, accept_gone=settings.accept_gone) if sync else None
        if plan:
            begin(plan, store)
            manifest = plan.manifest
        videos = _extract_videos(manifest, store, settings, encoder, plan.redo if plan else ())
        captions = _extract_texts(manifest, store, settings, encoder)
        if plan:
            finish(plan, store)
        settle(manifest, store, amend=amend)
        report = report_of(manifest, store, settings, videos, captions, time.perf_counter() - started)
        return replace(report, changes=plan.changes) if plan else report


def extraction_settings(settings: ExtractSettings, encoder: Embedder) -> dict[str, Any]:
    """What a store's fingerprint is made of."""
    return {**encoder.settings, **settings.fingerprint_part()}


def open_store(manifest: Manifest, store_path: Path, settings: ExtractSettings, encoder: Embedder) -> FeatureStore:
    """The store that a manifest is extracted into, new or as it is. Raises UserError where that cannot be."""
    if settings.long_captions == "windows" and isinstance(encoder, Encoder):
        require_windows(encoder)
    if settings.cache_blocks:
        encoder = require_open_clip(encoder, settings.model)
        require_cacheable(encoder.model, settings.model, settings.cache_blocks)
        require_room(cache_bytes(encoder, manifest, settings.num_frames, settings.token_dtype), store_path, settings)
    made_with = extraction_settings(settings, encoder)
    return FeatureStore.create(store_path, made_with, shard_format=settings.shard_format, media_root=manifest.root)


def require_open_clip(encoder: Embedder, model: str) -> Encoder:
    """The encoder, if it is open_clip's, whose blocks can be reached. Raises BadInput."""
    if not isinstance(encoder, Encoder):
        raise BadInput(
            f"--cache-blocks: {model} is no model of open_clip's, whose blocks alone can be cached",
            fix="leave --cache-blocks out, or name the open_clip model of the same weights",
        )
    return encoder


def _with_batch_size(settings: ExtractSettings, encoder: Embedder) -> ExtractSettings:
    """The settings with a batch size, found on the device where it was left to us."""
    if settings.batch_size:
        return settings
    if not isinstance(encoder, Encoder):
        return replace(settings, batch_size=ExtractSettings.batch_size)
    size = encoder.fastest_batch()
    log.info(f"encoding {size} frames at once, the fastest batch on {encoder.device}")
    return replace(settings, batch_size=size)


def settle(manifest: Manifest, store: FeatureStore, *, amend: bool = True) -> None:
    """Bring what is not in shards (splits, withdrawn captions, the table of failures) up to date, under the lock."""
    if amend:
        store.amend(
            {entry.video_id: entry.split for entry in manifest.entries},
            dict(zip(*(manifest.texts[name].to_pylist() for name in ("caption_id", "split")), strict=True)),
        )
    store.write_failures_table()


def report_of(
    manifest: Manifest, store: FeatureStore, settings: ExtractSettings, videos: int, captions: int, seconds: float
) -> ExtractReport:
    """The account of a manifest's inputs; `videos`, `captions`, `seconds`: of this run."""
    ours = manifest.ids + [row["path"] for row in skipped_of(manifest)]
    codes = store.covered().codes_of(ours)
    done, failed, skipped = (int(count) for count in np.bincount(codes, minlength=len(STATUS)))
    failures = store.failures_table()
    failures = failures.filter(pa.array(lookup(failures["video_id"], ours) >= 0))
    attempts = done + (pc.sum(failures["attempts"]).as_py() or 0)
    return ExtractReport(
        inputs=len(ours),
        done=done,
        failed=failed,
        skipped=skipped,
        store=str(store.path),
        new_videos=videos,
        new_captions=captions,
        seconds=seconds,
        mean_attempts=attempts / max(1, done + len(failures)),
        failure_classes=dict(Counter(failures["error_class"].to_pylist())),
        min_coverage=settings.min_coverage,
        manifest=manifest,
    )


# -- videos


def _extract_videos(
    manifest: Manifest, store: FeatureStore, settings: ExtractSettings, encoder: Embedder, redo: Collection[str] = ()
) -> int:
    """How many clips this run tried."""
    failures = store.failures_table()
    attempts = dict(zip(failures["video_id"].to_pylist(), failures["attempts"].to_pylist(), strict=True))
    entries = _outstanding(manifest, store, settings, redo)
    known = store.covered().codes_of([row["path"] for row in skipped_of(manifest)])
    skipped = [row for row, code in zip(skipped_of(manifest), known, strict=True) if code < 0]
    write_video_shards(
        video_specs(manifest, entries, skipped, settings.shard_size), store, settings, encoder, attempts=attempts
    )
    return len(entries)


def write_video_shards(
    specs: Sequence[ShardSpec],
    store: FeatureStore,
    settings: ExtractSettings,
    encoder: Embedder,
    *,
    attempts: Mapping[str, int] | None = None,
) -> None:
    """Decode, encode and write these shards, one after the other; the decoding processes run ahead over their borders.

    Args:
        specs: of video shards.
        store: where they go; without a stem in the specs its lock must be held.
        settings: of the extraction.
        encoder: what `settings` name.
        attempts: how often each clip has failed before, where it has.
    """
    settings = _with_batch_size(settings, encoder)
    clips = [(spec.clips, entry) for spec in specs for entry in spec.clips.entries]
    jobs = [
        Job(index, manifest.resolve(entry), entry.start, entry.end) for index, (manifest, entry) in enumerate(clips)
    ]
    long = LongFiles(settings.num_frames)
    with (
        DecodePool(jobs, settings.decoding(encoder.frame_size), settings.worker_count) as pool,
        progress("videos") as step,
    ):
        results = iter(pool)
        for spec in specs:
            shard = _VideoShard(spec.clips.entries, settings, encoder)
            for job, result in islice(results, len(spec.clips.entries)):
                entry = clips[job.index][1]
                shard.add(entry, result, (attempts or {}).get(entry.video_id, 0))
                long.see(entry, result)
                step(job.index + 1, len(jobs))
            shard.write(store, spec.skipped, spec.stem)
    long.warn()


def write_failed_shard(
    spec: ShardSpec, failure: DecodeFailure, store: FeatureStore, settings: ExtractSettings, encoder: Embedder
) -> None:
    """Write a video shard all of whose clips failed, for one reason."""
    shard = _VideoShard(spec.clips.entries, settings, encoder)
    for entry in spec.clips.entries:
        shard.add(entry, failure, 0)
    shard.write(store, spec.skipped, spec.stem)


def _outstanding(
    manifest: Manifest, store: FeatureStore, settings: ExtractSettings, redo: Collection[str]
) -> list[VideoEntry]:
    """Clips without an outcome, those of `redo`, and failed ones of the class that is to be retried."""
    entries = in_order(manifest)
    ids = Strings([entry.video_id for entry in entries])
    wanted = store.covered().codes_of(ids) < 0
    if redo:
        wanted |= lookup(ids, list(redo)) >= 0
    if settings.retry_failed:
        failures = store.failures_table()
        if settings.retry_failed != "all":
            failures = failures.filter(pc.equal(failures["error_class"], settings.retry_failed))
        wanted |= lookup(ids, failures["video_id"]) >= 0
    return [entries[row] for row in np.flatnonzero(wanted)]


class _VideoShard:
    """The rows of one shard while its clips come in; frames wait only until a batch is full."""

    def __init__(self, entries: Sequence[VideoEntry], settings: ExtractSettings, encoder: Embedder):
        self.entries, self._settings, self._encoder = entries, settings, encoder
        shape = (len(entries), settings.num_frames)
        self._embeds = np.zeros((*shape, encoder.dim), np.float16)
        self._pts = np.full(shape, np.nan)
        self._activations: np.ndarray | None = None
        if settings.cache_blocks:
            of = require_open_clip(encoder, settings.model)
            self._activations = np.zeros((*shape, *of.activation_shape), np.float16)
        self._done: list[VideoEntry] = []
        self._sources: list[ClipSource] = []
        self._failure_sources: dict[str, ClipSource] = {}
        self._failures: list[Failure] = []
        self._decoders: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._pending: list[np.ndarray] = []  # frames not encoded yet
        self._places: list[tuple[int, int]] = []  # the row and slot of each

    def add(self, entry: VideoEntry, result: Decoded | DecodeFailure, attempts_before: int) -> None:
        if isinstance(result, DecodeFailure):
            row = (entry.video_id, entry.path, result.step, result.kind, result.message, attempts_before + 1)
            self._failures.append(Failure(*row))
            if result.source is not None:
                self._failure_sources[entry.video_id] = _clip_source(entry, result.source)
            return
        row_index = len(self._done)
        self._done.append(entry)
        self._sources.append(_clip_source(entry, result.source))
        self._pts[row_index, : len(result.times)] = result.times
        self._decoders[entry.video_id] = result.decoder
        if result.note:
            self._notes[entry.video_id] = result.note
        self._pending.extend(result.frames)
        self._places.extend((row_index, slot) for slot in range(len(result.frames)))
        while len(self._pending) >= self._settings.batch_size:
            self._encode(self._settings.batch_size)

    def _encode(self, count: int) -> None:
        places = tuple(np.array(self._places[:count]).T)
        frames, blocks = np.stack(self._pending[:count]), self._settings.cache_blocks
        if self._activations is not None:
            of = require_open_clip(self._encoder, self._settings.model)
            encoded, self._activations[places] = of.embed_frames_caching(frames, blocks)
        else:
            encoded = self._encoder.embed_frames(frames)
        embeds = encoded.numpy()
        if not np.isfinite(embeds).all():
            raise UserError(
                f"the encoder gave values that are not finite in {self._encoder.settings['dtype']}",
                fix="give --precision float32",
            )
        self._embeds[places] = embeds
        del self._pending[:count], self._places[:count]

    def write(self, store: FeatureStore, skipped: Sequence[dict[str, str]], stem: str | None) -> None:
        if self._pending:
            self._encode(len(self._pending))
        rows = len(self._done)
        videos = VideoFeatures(
            [entry.video_id for entry in self._done],
            [entry.path for entry in self._done],
            [entry.split for entry in self._done],
            self._embeds[:rows],
            ~np.isnan(self._pts[:rows]),
            self._pts[:rows],
        )
        cached = None
        if self._activations is not None:
            cached = frame_columns(self._activations[:rows], self._settings.token_dtype)
        mixed = len(set(self._decoders.values())) > 1 or self._settings.allow_mixed_decoders
        store.write_videos(
            videos,
            inputs=[*(entry.video_id for entry in self.entries), *(row["path"] for row in skipped)],
            failures=self._failures,
            skipped=[row["path"] for row in skipped],
            sources=self._sources,
            failure_sources=self._failure_sources,
            activations=cached,
            stem=stem,
            extra={
                "skip_reasons": {row["path"]: row["reason"] for row in skipped},
                "notes": self._notes,
                **({"decoders": self._decoders} if mixed else {}),
            },
        )


def _clip_source(entry: VideoEntry, file: SourceFile) -> ClipSource:
    return ClipSource(entry.start, entry.end, file.size, file.mtime, file.digest)


# -- captions


def _extract_texts(manifest: Manifest, store: FeatureStore, settings: ExtractSettings, encoder: Embedder) -> int:
    """How many captions this run encoded. A caption that changed under its id is encoded again."""
    told = manifest.texts
    same = pc.fill_null(pc.equal(told["caption"], store.captions_of(told["caption_id"])), False)
    rows = captions_of(manifest, told.filter(pc.invert(same)))
    shards = [rows[first : first + settings.text_shard_size] for first in range(0, len(rows), settings.text_shard_size)]
    embed = _remembering(encoder, shards, settings)
    _say_cut([caption.text for caption in rows], settings, encoder)
    with progress("captions") as step:
        for number, shard in enumerate(shards, start=1):
            _write_texts(shard, store, settings, encoder, embed, None)
            step(min(number * settings.text_shard_size, len(rows)), len(rows))
    return len(rows)


def _say_cut(captions: Sequence[str], settings: ExtractSettings, encoder: Embedder) -> None:
    """Log how many captions lose their ends to the model's context."""
    context, cut = encoder.context_length, encoder.count_cut(captions)
    if settings.long_captions == "cut" and cut:
        log.warning(
            f"{cut} of {len(captions)} captions are longer than the {context} tokens that {settings.model} reads, and "
            "are cut; --long-captions windows reads them whole"
        )


def write_text_shards(
    specs: Sequence[ShardSpec], store: FeatureStore, settings: ExtractSettings, encoder: Embedder
) -> None:
    """Encode and write these text shards; what is in one does not depend on the others."""
    with progress("text shards") as step:
        for number, spec in enumerate(specs, start=1):
            embed = _remembering(encoder, [spec.captions], settings)
            _write_texts(spec.captions, store, settings, encoder, embed, spec.stem)
            step(number, len(specs))


def _write_texts(
    shard: Sequence[Caption],
    store: FeatureStore,
    settings: ExtractSettings,
    encoder: Embedder,
    embed: Callable[[Sequence[str]], np.ndarray],
    stem: str | None,
) -> None:
    captions = [caption.text for caption in shard]
    if settings.cache_blocks:
        of = require_open_clip(encoder, settings.model)
        vectors, cached = encode_sentences(of, captions, settings.text_batch_size, settings.cache_blocks)
        embeds, activations = vectors.numpy(), text_columns(cached, settings.token_dtype)
    else:
        embeds, activations = embed(captions), None
    texts = TextFeatures(
        [caption.caption_id for caption in shard],
        [caption.video_id for caption in shard],
        [caption.split for caption in shard],
        captions,
        embeds,
    )
    store.write_texts(texts, activations=activations, stem=stem)


def _remembering(
    encoder: Embedder, shards: Sequence[Sequence[Caption]], settings: ExtractSettings
) -> Callable[[Sequence[str]], np.ndarray]:
    """An embedder that encodes each distinct sentence once over all shards, keeping only those that come up again."""
    appearances = Counter(caption for shard in shards for caption in {row.text for row in shard})
    kept: dict[str, np.ndarray] = {}

    def embed(captions: Sequence[str]) -> np.ndarray:
        new = [caption for caption in dict.fromkeys(captions) if caption not in kept]
        found = encoder.embed_texts(new, batch_size=settings.text_batch_size, long_captions=settings.long_captions)
        fresh = dict(zip(new, found.numpy(), strict=True))
        embeds = np.stack([kept[caption] if caption in kept else fresh[caption] for caption in captions])
        kept.update({caption: fresh[caption] for caption in new if appearances[caption] > 1})
        return embeds

    return embed


@contextmanager
def full_disk_is_an_error(store: FeatureStore) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not disk_full(error):
            raise
        raise DiskFull(
            f"no space left for {store.path} ({error})",
            fix="free some space and run the same command again: finished shards are intact and are not redone",
        ) from error
