"""Load the encoder that a feature store was made with."""

from collections.abc import Sequence

import numpy as np

from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.stores.encoder_record import read_encoder_record
from pipeline.stores.features import FeatureStore


def embed_queries(store: FeatureStore, sentences: Sequence[str]) -> np.ndarray:
    """Embed N sentences -> (N, D) float32, with the settings of the store's captions."""
    rule = store.settings.get("long_captions", "cut")
    return encoder_of(store).embed_texts(sentences, long_captions=rule).numpy()


def encoder_of(store: FeatureStore, device: str = "auto", *, to_train: bool = False) -> Encoder:
    """Load the encoder of a store, in float32 if it is to be trained.

    Raises FingerprintMismatch when what is found now is another.
    """
    about = read_encoder_record(store.path)
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
