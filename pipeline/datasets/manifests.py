"""Build a manifest from a data set's name, a folder, a list, a tar or a URL."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.datasets import build_manifest
from pipeline.datasets.corpus import read_source
from pipeline.datasets.metadata import captions_metadata
from pipeline.errors import BadInput
from pipeline.stores.manifest import Manifest
from pipeline.workspace import Workspace


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
        manifest = build_manifest("folder", videos, captions, None, **{"corpus": folder_name(videos), **options})
        return replace(manifest, metadata=captions_metadata(captions, manifest.entries)) if captions else manifest
    if captions is not None:
        raise BadInput(
            "--captions belongs to a folder of your own videos", fix="give --videos DIR, or --annotations DIR"
        )
    name = dataset or "shapes"
    return build_manifest(name, videos, annotations, workspace.dataset_dir(name), **options)


def folder_name(videos: Path) -> str:
    """Name of a folder's features and index: the folder's own name in safe characters."""
    return re.sub(r"[^\w.-]+", "-", Path(videos).resolve().name).strip("-.") or "videos"


def source_manifest(source: str, allow_private: bool = False) -> Manifest:
    """The manifest of `--source`, named after its last part; see `read_source`."""
    return read_source(source, folder_name(Path(source.removesuffix(".tar").rstrip("/"))), allow_private)
