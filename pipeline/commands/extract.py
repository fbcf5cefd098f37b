"""Stage 1 as a command: bring a data set or a folder into a manifest, extract what is not there yet."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.datasets import build_manifest
from pipeline.datasets.corpus import read_source
from pipeline.errors import BadInput
from pipeline.extract.benchmark import Rates, benchmark
from pipeline.extract.driver import ExtractReport, extract
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import encoder_name, remember_store
from pipeline.stores.atomic import read_json, write_json
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest, write_manifest
from pipeline.video.decode_pyav import Wish, decode_clip
from pipeline.video.frames import FrameSize
from pipeline.video.limits import DecodeFailure, Limits
from pipeline.workspace import Workspace

SAMPLE = 100  # files that tell a copied folder from another one of the same name


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


def source_manifest(source: str) -> Manifest:
    """A corpus that is no local folder: a list, a WebDataset tar, or a URL that fsspec reads."""
    return read_source(source, folder_name(Path(source.removesuffix(".tar").rstrip("/"))))


def measure_rates(manifest: Manifest, settings: ExtractSettings) -> Rates:
    """How fast decoding, encoding and the whole run are on these clips."""
    return benchmark(manifest, settings)


def thumbnail(path: str, width: int = 160) -> bytes | None:
    """The middle frame of a clip as JPEG, or None where it cannot be read (any more)."""
    try:
        frame = decode_clip(path, Wish(1, FrameSize(width * 9 // 16, width))).frames[0]
    except DecodeFailure:
        return None
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def extract_manifest(
    workspace: Workspace, manifest: Manifest, settings: ExtractSettings, *, progress: bool = True
) -> ExtractReport:
    """Extract what the store lacks, write the manifest, and remember the store as the last one. Raises BadInput where
    the store was made from another folder of the same name."""
    encoder = encoder_name(settings.model, settings.pretrained)
    store = workspace.features_dir(manifest.name, encoder)
    require_same_media(store, manifest)
    report = extract(manifest, store, settings, progress=progress)
    write_manifest(manifest, workspace.manifest_path(manifest.name))
    remember_encoder(store, settings)
    remember_store(workspace, manifest.name, encoder)
    return report


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
    """Bytes of those of these files that a folder holds."""
    return {name: Path(root, name).stat().st_size for name in names if Path(root, name).is_file()}


def remember_encoder(store: Path, settings: ExtractSettings) -> None:
    """Note how to load the encoder and to decode the clips again: the fingerprint knows what the weights are, not where
    they lie, and nothing of limits."""
    pretrained = settings.pretrained
    if pretrained and Path(pretrained).is_file():
        pretrained = str(Path(pretrained).resolve())
    about = {"model": settings.model, "pretrained": pretrained, "precision": settings.precision}
    write_json(store / "encoder.json", {**about, "hwaccel": settings.hwaccel, "limits": asdict(settings.limits)})


def remember_tuned_encoder(store: Path, base: FeatureStore, clip: Path) -> None:
    """The same for a store of the CLIP in the file `clip`, tuned from the encoder of `base`, on the same clips."""
    about = read_json(base.path / "encoder.json")
    write_json(store / "encoder.json", {**about, "pretrained": str(clip.resolve()), "precision": "float32"})


def settings_of(store: FeatureStore) -> ExtractSettings:
    """The settings that extract more of the same into a store."""
    about = read_json(store.path / "encoder.json")
    decoders = str(store.settings["decoder"]).split("+")
    return ExtractSettings(
        model=about["model"],
        pretrained=about["pretrained"],
        quick_gelu=store.settings["activation"] == "quickgelu",
        long_captions=store.settings.get("long_captions", "cut"),
        precision=store.settings["dtype"],
        num_frames=store.num_frames,
        decoder=decoders[0],
        allow_mixed_decoders=len(decoders) > 1,
        hwaccel=about.get("hwaccel"),
        limits=Limits(**about.get("limits", {})),
        shard_format=store.shard_format,
        min_coverage=0.0,
        **store.cache_settings,
    )


def embed_queries(store: FeatureStore, sentences: Sequence[str]) -> np.ndarray:
    """N sentences -> (N, D) float32, embedded as the captions of the store were."""
    rule = store.settings.get("long_captions", "cut")
    return encoder_of(store).embed_texts(sentences, long_captions=rule).numpy()


def encoder_of(store: FeatureStore, device: str = "auto", *, to_train: bool = False) -> Encoder:
    """The encoder that a store was made with; in float32, whatever the store's precision, if it is to be trained.

    Raises FingerprintMismatch when what is found now is another.
    """
    about = read_json(store.path / "encoder.json")
    dtype = store.settings["dtype"] if about["precision"] == "auto" else about["precision"]
    encoder = load_encoder(
        about["model"],
        about["pretrained"],
        device=device,
        precision="float32" if to_train else dtype,
        quick_gelu=store.settings["activation"] == "quickgelu",
    )
    compared = {*encoder.settings} & {*store.settings} - ({"dtype"} if to_train else set())
    found = {name: encoder.settings[name] for name in compared}
    store.require({**store.settings, **found}, "use this encoder")
    return encoder
