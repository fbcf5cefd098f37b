"""Record a feature store's encoder beside the store, and load it again from there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.errors import MissingData
from pipeline.stores.atomic import read_json, write_json
from pipeline.stores.features import FeatureStore


def remember_encoder(
    store: Path,
    *,
    model: str,
    pretrained: str | None,
    precision: str,
    hwaccel: str | None,
    limits: Mapping[str, Any],
) -> None:
    """Note how to load the encoder and to decode the clips again: the fingerprint knows what the weights are, not where
    they lie, and nothing of limits."""
    if pretrained and Path(pretrained).is_file():
        pretrained = str(Path(pretrained).resolve())
    about = {"model": model, "pretrained": pretrained, "precision": precision}
    write_json(store / "encoder.json", {**about, "hwaccel": hwaccel, "limits": dict(limits)})


def remember_tuned_encoder(store: Path, base: FeatureStore, clip: Path) -> None:
    """The same for a store of the CLIP in the file `clip`, tuned from the encoder of `base`, on the same clips."""
    about = read_json(base.path / "encoder.json")
    write_json(store / "encoder.json", {**about, "pretrained": str(clip.resolve()), "precision": "float32"})


def embed_queries(store: FeatureStore, sentences: Sequence[str]) -> np.ndarray:
    """Embed N sentences -> (N, D) float32, with the settings of the store's captions."""
    rule = store.settings.get("long_captions", "cut")
    return encoder_of(store).embed_texts(sentences, long_captions=rule).numpy()


def encoder_of(store: FeatureStore, device: str = "auto", *, to_train: bool = False) -> Encoder:
    """Load the encoder of a store, in float32 if it is to be trained.

    Raises FingerprintMismatch when what is found now is another.
    """
    if not (store.path / "encoder.json").exists():
        raise MissingData(
            f"{store.path} holds imported features whose encoder was not named, so no sentence can be embedded",
            fix="import them again with --model NAME --pretrained TAG|FILE",
        )
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
