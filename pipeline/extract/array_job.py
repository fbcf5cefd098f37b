"""Stage 1 by many processes on one store: each writes its part of the shards, and the last step accounts for all.

Writers take no lock and do not talk to each other: a shard has one name and one content, so two that write the same one
leave the same file, and one that was killed leaves a shard whole or not at all.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.clip.protocol import Embedder
from pipeline.errors import BadInput, FingerprintMismatch, MissingData, UserError
from pipeline.extract.driver import (
    ExtractReport,
    full_disk_is_an_error,
    open_store,
    report_of,
    settle,
    write_text_shards,
    write_video_shards,
)
from pipeline.extract.settings import ExtractSettings, encoder_for
from pipeline.extract.shard_plan import ShardSpec, outstanding, plan
from pipeline.fingerprint import describe_difference
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import SKIPPED, Manifest

_LISTED = 10  # missing shards that are named; the others are counted


def extract_part(
    manifest: Manifest,
    store_path: Path,
    settings: ExtractSettings,
    *,
    part: tuple[int, int],
    encoder: Embedder | None = None,
) -> ExtractReport:
    """Write every n-th shard from the i-th on, as far as they are missing.

    Args:
        manifest: of the whole data set, the same for all parts.
        store_path: the store that all parts write to.
        settings: the same for all parts; `retry_failed` is for runs by one process.
        part: (i, n).
        encoder: saves loading one; it must be what `settings` name.

    Returns:
        The account of this part's inputs alone.

    Raises:
        UserError: as `driver.extract`.
    """
    started = time.perf_counter()
    require_plannable(manifest, settings)
    index, count = part
    specs = plan(manifest, settings)[index::count]
    encoder = encoder or encoder_for(settings)
    store = open_store(manifest, store_path, settings, encoder)
    with full_disk_is_an_error(store):
        left = outstanding(specs, store)
        write_shards(left, store, settings, encoder)
    videos, captions = sum(len(spec.clips.entries) for spec in left), sum(len(spec.captions) for spec in left)
    seconds = time.perf_counter() - started
    return report_of(_together(manifest, specs), store, replace(settings, min_coverage=0.0), videos, captions, seconds)


def write_shards(specs: Sequence[ShardSpec], store: FeatureStore, settings: ExtractSettings, encoder: Embedder) -> None:
    """Write shards that have names, of both kinds."""
    write_video_shards([spec for spec in specs if spec.kind == "videos"], store, settings, encoder)
    write_text_shards([spec for spec in specs if spec.kind == "texts"], store, settings, encoder)


def finish(
    manifest: Manifest, store_path: Path, settings: ExtractSettings, *, command: str = "python cli.py extract"
) -> ExtractReport:
    """Account for all inputs once every part is done; needs no encoder.

    Args:
        manifest: of the whole data set.
        store_path: the store.
        settings: those of the parts.
        command: what runs a part, without `--shard i/n`.

    Raises:
        MissingData: shards are missing; the message names the commands that make them.
        FingerprintMismatch: the store was made with other settings.
        StoreBusy: a run by one process writes to the store.
    """
    started = time.perf_counter()
    require_plannable(manifest, settings)
    store = FeatureStore.open(store_path)
    ours = settings.fingerprint_part()
    if difference := describe_difference({name: store.settings.get(name) for name in ours}, ours):
        raise FingerprintMismatch(
            f"cannot finish {store.path}: it was made with other settings ({difference})", fix="give those of the parts"
        )
    specs = plan(manifest, settings)
    with store.lock(timeout=settings.wait_seconds), full_disk_is_an_error(store):
        if left := outstanding(specs, store):
            store.save_catalogue()
            raise _missing(left, len(specs), store.path, command)
        settle(manifest, store)
        return report_of(manifest, store, settings, 0, 0, time.perf_counter() - started)


def require_plannable(manifest: Manifest, settings: ExtractSettings) -> None:
    """Raises BadInput where the shards of a job by many processes cannot be planned."""
    if not manifest.entries:
        raise BadInput(f"data set {manifest.name!r} holds no videos")
    if settings.retry_failed:
        raise BadInput(
            "--retry-failed does not go with --shard, --finish and --engine ray",
            fix="finish the job, then run `extract --retry-failed` alone",
        )


def _missing(left: Sequence[ShardSpec], total: int, store: Path, command: str) -> UserError:
    commands = [f"`{command} --shard {spec.number}/{total}`" for spec in left[:_LISTED]]
    more = f", and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
    return MissingData(
        f"{len(left)} of {total} shards are missing from {store} ({sum(spec.inputs for spec in left)} inputs)",
        got=", ".join(str(spec.stem) for spec in left[:_LISTED]) + more,
        fix=f"run {', '.join(commands)}{more}, then --finish again",
    )


def _together(manifest: Manifest, specs: Sequence[ShardSpec]) -> Manifest:
    """The clips and skipped files of some shards."""
    skipped = [row for spec in specs for row in spec.skipped]
    entries = tuple(entry for spec in specs for entry in spec.clips.entries)
    return replace(manifest, entries=entries, protocol={SKIPPED: skipped} if skipped else {})
