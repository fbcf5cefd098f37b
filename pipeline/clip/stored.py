"""Load the encoder that a feature store was made with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.clip.embedders import load_embedder
from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.clip.protocol import ST_PREFIX, Embedder
from pipeline.errors import BadInput
from pipeline.stores.encoder_record import read_encoder_record
from pipeline.stores.features import FeatureStore


def embed_queries(store: FeatureStore, sentences: Sequence[str]) -> np.ndarray:
    """Embed N sentences -> (N, D) float32, with the settings of the store's captions."""
    rule = store.settings.get("long_captions", "cut")
    return embedder_of(store).embed_texts(sentences, long_captions=rule).numpy()


def encoder_of(store: FeatureStore, device: str = "auto", *, to_train: bool = False) -> Encoder:
    """Load the encoder of a store, in float32 if it is to be trained.

    Raises FingerprintMismatch when what is found now is another.
    """
    about = read_encoder_record(store.path)
    if about["model"].startswith(ST_PREFIX):
        raise BadInput(
            f"{store.path} holds features of {about['model']}, which is no CLIP of open_clip's that could be trained",
            fix="train a head alone, without --train-blocks and --end-to-end",
        )
    return _checked(store, load_encoder(about["model"], **_options(store, about, device, to_train)), to_train)


def embedder_of(store: FeatureStore, device: str = "auto") -> Embedder:
    """Load the encoder of a store, whoever made it. Raises FingerprintMismatch when what is found now is another."""
    about = read_encoder_record(store.path)
    return _checked(store, load_embedder(about["model"], **_options(store, about, device)))


def _options(store: FeatureStore, about: Mapping[str, Any], device: str, to_train: bool = False) -> dict[str, Any]:
    dtype = store.settings["dtype"] if about["precision"] == "auto" else about["precision"]
    return {
        "pretrained": about["pretrained"],
        "device": device,
        "precision": "float32" if to_train else dtype,
        "quick_gelu": store.settings["activation"] == "quickgelu",
        "tokenizer": about.get("tokenizer"),
        "preprocessing": about.get("preprocessing"),
    }


def _checked(store: FeatureStore, encoder: Any, to_train: bool = False) -> Any:
    compared = {*encoder.settings} & {*store.settings} - ({"dtype"} if to_train else set())
    found = {name: encoder.settings[name] for name in compared}
    store.require({**store.settings, **found}, "use this encoder")
    return encoder
