"""Stage 1 as a command: bring a data set or a folder into a manifest, extract what is not there yet."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Workspace
from pipeline.datasets import build_manifest
from pipeline.errors import BadInput
from pipeline.extract.driver import ExtractReport, extract
from pipeline.extract.settings import ExtractSettings
from pipeline.flows.choose import encoder_name, remember_store
from pipeline.stores.manifest import Manifest, write_manifest


def dataset_manifest(
    workspace: Workspace,
    dataset: str | None,
    videos: Path | None,
    annotations: Path | None,
    captions: Path | None,
    options: Mapping[str, Any],
) -> Manifest:
    """The manifest of a named data set, or of any folder of videos (then `captions` is its captions file, or None).

    Raises MissingData listing the files that are absent and BadInput on malformed annotations.
    """
    if dataset in (None, "folder") and videos is not None:
        return build_manifest("folder", videos, captions, None, **{"corpus": folder_name(videos), **options})
    if captions is not None:
        raise BadInput(
            "--captions belongs to a folder of your own videos", fix="give --videos DIR, or --annotations DIR"
        )
    name = dataset or "shapes"
    return build_manifest(name, videos, annotations, workspace.dataset_dir(name), **options)


def folder_name(videos: Path) -> str:
    """What a folder's features and index are called: its own name, in characters that are safe everywhere."""
    return re.sub(r"[^\w.-]+", "-", Path(videos).resolve().name).strip("-.") or "videos"


def extract_manifest(
    workspace: Workspace, manifest: Manifest, settings: ExtractSettings, *, progress: bool = True
) -> ExtractReport:
    """Write the manifest, extract what the store lacks, and remember the store as the last one."""
    encoder = encoder_name(settings.model, settings.pretrained)
    store = workspace.features_dir(manifest.name, encoder)
    write_manifest(manifest, workspace.manifest_path(manifest.name))
    report = extract(manifest, store, settings, progress=progress)
    remember_store(workspace, manifest.name, encoder)
    return report
