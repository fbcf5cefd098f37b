"""encoder.json: how to load a store's encoder and to decode its clips again.

The fingerprint says what the weights are, not where they lie, and nothing of the limits of decoding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import MissingData
from pipeline.stores.atomic import write_json
from pipeline.stores.integrity import read_json

NAME = "encoder.json"


def write_encoder_record(
    store: Path,
    *,
    model: str,
    pretrained: str | None,
    precision: str,
    hwaccel: str | None = None,
    limits: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    preprocessing: str | None = None,
) -> None:
    """Record the encoder of the store in the folder `store`; a local file or folder by its absolute path."""
    if pretrained and Path(pretrained).is_file():
        pretrained = str(Path(pretrained).resolve())
    about = {"model": model, "pretrained": pretrained, "precision": precision}
    if tokenizer:
        about["tokenizer"] = str(Path(tokenizer).resolve())
    if preprocessing:
        about["preprocessing"] = preprocessing
    write_json(store / NAME, {**about, "hwaccel": hwaccel, "limits": dict(limits or {})})


def read_encoder_record(store: Path) -> dict[str, Any]:
    """{"model", "pretrained", "precision", "hwaccel", "limits"} of the store in the folder `store`; "tokenizer" and
    "preprocessing" where they were given.

    Raises MissingData for imported features whose encoder was not named.
    """
    if not (store / NAME).exists():
        raise MissingData(
            f"{store} holds imported features whose encoder was not named, so nothing more can be embedded",
            fix="import them again with --model NAME --pretrained TAG|FILE",
        )
    needs = {"model": str, "pretrained": str | None, "precision": str}
    return read_json(store / NAME, needs, {"hwaccel": str | None, "limits": dict[str, Any]})
