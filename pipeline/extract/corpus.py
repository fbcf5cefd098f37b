"""Extract a manifest into its feature store in the workspace."""

import os
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.clip.protocol import Embedder
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


def extract_manifest(workspace: Workspace, manifest: Manifest, settings: ExtractSettings) -> ExtractReport:
    """Extract what the store lacks, write the manifest, and remember the store as the last one. Raises BadInput where
    the store was made from another folder of the same name, or too many files are gone."""
    encoder = encoder_name(settings.model, settings.pretrained)
    store = workspace.features_dir(manifest.name, encoder)
    require_same_media(store, manifest)
    report = extract_into(workspace, manifest, store, settings)
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
    remember_store(workspace, manifest.name, encoder)
    return report


def extract_into(
    workspace: Workspace, manifest: Manifest, store: Path, settings: ExtractSettings, encoder: Embedder | None = None
) -> ExtractReport:
    """Bring a store up to date with a manifest and the files, and write the manifest with what is known of them."""
    report = extract(manifest, store, settings, encoder=encoder, sync=True)
    files = records(FeatureStore.open(store))
    entries = tuple(replace(entry, file=files.get(entry.video_id)) for entry in report.manifest.entries)
    write_manifest(replace(report.manifest, entries=entries), workspace.manifest_path(manifest.name))
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
