"""Extract a manifest into its feature store in the workspace."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from pipeline.errors import BadInput
from pipeline.extract.driver import ExtractReport, extract
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import encoder_name, remember_store
from pipeline.stores.encoder_record import write_encoder_record
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest, write_manifest
from pipeline.workspace import Workspace

SAMPLE = 100  # files that tell a copied folder from another one of the same name


class Run(Protocol):
    """`driver.extract`, or another way to do its work or a part of it."""

    def __call__(self, manifest: Manifest, store_path: Path, settings: ExtractSettings) -> ExtractReport: ...


def extract_manifest(
    workspace: Workspace, manifest: Manifest, settings: ExtractSettings, run: Run = extract
) -> ExtractReport:
    """Extract what the store lacks by `run`, write the manifest, and remember the store as the last one. Raises
    BadInput where the store was made from another folder of the same name."""
    store = store_path(workspace, manifest, settings)
    require_same_media(store, manifest)
    report = run(manifest, store, settings)
    write_manifest(manifest, workspace.manifest_path(manifest.name))
    write_encoder_record(
        store,
        model=settings.model,
        pretrained=settings.pretrained,
        precision=settings.precision,
        hwaccel=settings.hwaccel,
        limits=asdict(settings.limits),
    )
    remember_store(workspace, manifest.name, store.name)
    return report


def store_path(workspace: Workspace, manifest: Manifest, settings: ExtractSettings) -> Path:
    return workspace.features_dir(manifest.name, encoder_name(settings.model, settings.pretrained))


def require_same_media(path: Path, manifest: Manifest) -> None:
    """Two folders of one name must not share a store: their videos' ids are paths inside the folder. A folder that is
    no longer where it was has moved, one with the same files is a copy, and its features stay good."""
    if not (path / "store.json").exists():
        return
    store = FeatureStore.open(path)
    was, now = store.media_root, manifest.root
    if was == now or ("://" not in was + now and os.path.realpath(was) == os.path.realpath(now)):
        return
    names = [entry.path for entry in manifest.entries[:SAMPLE]]
    if "://" not in was and (not Path(was).exists() or sizes_in(was, names) == sizes_in(now, names) != {}):
        store.move_media(now)
        return
    raise BadInput(
        f"the features in {path} are of other videos",
        expected=was,
        got=now,
        fix="give --option corpus=NAME, another --workspace, or delete these features",
    )


def sizes_in(root: str, names: Sequence[str]) -> dict[str, int]:
    """Size in bytes of each of these files that exists in a folder."""
    return {name: Path(root, name).stat().st_size for name in names if Path(root, name).is_file()}
