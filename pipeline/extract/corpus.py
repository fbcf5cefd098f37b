"""Extract a manifest into its feature store in the workspace."""

import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.clip.tokenizers import folder_for
from pipeline.datasets.media import SAMPLE, same_media
from pipeline.errors import BadInput
from pipeline.extract.driver import ExtractReport, extract
from pipeline.extract.settings import ExtractSettings
from pipeline.extract.sync import records
from pipeline.resolve import encoder_name, remember_store
from pipeline.stores.encoder_record import write_encoder_record
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest, write_manifest
from pipeline.stores.metadata import write_metadata
from pipeline.workspace import Workspace


class Run(Protocol):
    """`driver.extract`, or another way to do its work or a part of it."""

    def __call__(self, manifest: Manifest, store_path: Path, settings: ExtractSettings) -> ExtractReport: ...


def extract_manifest(
    workspace: Workspace, manifest: Manifest, settings: ExtractSettings, run: Run | None = None
) -> ExtractReport:
    """Extract what the store lacks by `run`, write the manifest, and remember the store as the last one. Raises
    BadInput where the store was made from another folder of the same name, or too many files are gone."""
    store = store_path(workspace, manifest, settings)
    require_same_media(store, manifest)
    report = extract_into(workspace, manifest, store, settings, run or partial(extract, sync=True))
    write_metadata(store, manifest.metadata)
    write_encoder_record(
        store,
        model=settings.model,
        pretrained=settings.pretrained,
        precision=settings.precision,
        tokenizer=folder_for(settings.model, settings.tokenizer, settings.pretrained),
        preprocessing=settings.preprocessing,
        hwaccel=settings.hwaccel,
        limits=asdict(settings.limits),
    )
    remember_store(workspace, manifest.name, store.name)
    return report


def store_path(workspace: Workspace, manifest: Manifest, settings: ExtractSettings) -> Path:
    return workspace.features_dir(manifest.name, encoder_name(settings.model, settings.pretrained))


def extract_into(
    workspace: Workspace, manifest: Manifest, store: Path, settings: ExtractSettings, run: Run
) -> ExtractReport:
    """Bring a store up to date with a manifest by `run`, and write the manifest with what is known of the files."""
    report = run(manifest, store, settings)
    now = manifest if report.changes is None else report.manifest  # as the comparison with the files left it
    files = records(FeatureStore.open(store))
    entries = tuple(replace(entry, file=files.get(entry.video_id)) for entry in now.entries)
    write_manifest(replace(now, entries=entries), workspace.manifest_path(manifest.name))
    return report


def require_same_media(path: Path, manifest: Manifest) -> None:
    """Two folders of one name must not share a store: their videos' ids are paths inside the folder. A folder that is
    no longer where it was has moved, one with the same files is a copy, and its features stay good."""
    if not (path / "store.json").exists():
        return
    store = FeatureStore.open(path)
    was, now = store.media_root, manifest.root
    if same_media(was, now, [entry.path for entry in manifest.entries[:SAMPLE]]):
        if was != now and os.path.realpath(was) != os.path.realpath(now):
            store.move_media(now)
        return
    raise BadInput(
        f"the features in {path} are of other videos",
        expected=was,
        got=now,
        fix="give --option corpus=NAME, another --workspace, or delete these features",
    )
