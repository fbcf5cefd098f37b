"""What a model's published weights say of preprocessing, for weights that come as a file and do not say it.

Mean and deviation, interpolation, and whether the aspect is kept are facts of the training, not of the architecture:
most models' published weights agree on them, and then a file of the same model is taken to be of the same make. Where
they differ (ViT-L-14: one of twelve was trained with another mean; ViT-H-14: one was trained on squashed pictures), the
user is asked.
"""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import BadInput

KEY = "preprocessing"  # in the metadata of a .safetensors file that `train-head` wrote
FIELDS = ("mean", "std", "interpolation", "resize_mode")


def agreed_preprocessing(model_name: str, like: str | None = None) -> dict[str, Any]:
    """What all published weights of an open_clip model agree on.

    Args:
        model_name: a name from `open_clip.list_models()`.
        like: a tag of these weights; its preprocessing alone is taken.

    Returns:
        `mean`, `std`, `interpolation`, `resize_mode`; empty for a model without published weights.

    Raises:
        BadInput: the published weights differ, and `like` does not say which of them the file follows; or there is no
            tag `like`.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if like is not None and like not in tags:
        raise BadInput(
            f"--preprocessing: model {model_name!r} has no published weights {like!r}",
            expected=", ".join(tags) or "none, for it has no published weights",
            got=repr(like),
        )
    chosen = {tag: open_clip.get_pretrained_cfg(model_name, tag) for tag in ([like] if like else tags)}
    stated = {name: {tag: _plain(cfg[name]) for tag, cfg in chosen.items() if name in cfg} for name in FIELDS}
    for name, values in stated.items():
        if len(set(values.values())) > 1:
            raise BadInput(
                f"the weights file does not say its {name}, and the published weights of {model_name!r} differ in it",
                got="; ".join(f"{tag}: {value}" for tag, value in _one_of_each(values).items()),
                fix=f"give --preprocessing with the tag that the file was trained or tuned from: {', '.join(tags)}",
            )
    return {name: next(iter(values.values())) for name, values in stated.items() if values}


def agreed_or_default(model_name: str) -> dict[str, Any]:
    """`agreed_preprocessing`, or nothing where there is no agreement: for untrained weights, which follow nobody."""
    try:
        return agreed_preprocessing(model_name)
    except BadInput:
        return {}


def stated_preprocessing(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What a tuned model's file states of its preprocessing; None where it states nothing."""
    if KEY not in metadata:
        return None
    return {name: _plain(value) for name, value in json.loads(metadata[KEY]).items() if name in FIELDS}


def preprocessing_metadata(preprocess_cfg: Mapping[str, Any]) -> str:
    """A model's preprocessing as the text that `stated_preprocessing` reads."""
    return json.dumps({name: preprocess_cfg[name] for name in FIELDS if preprocess_cfg.get(name) is not None})


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _one_of_each(values: Mapping[str, Any]) -> dict[str, Any]:
    """One tag for each distinct value."""
    first: dict[Any, str] = {}
    for tag, value in values.items():
        first.setdefault(value, tag)
    return {tag: value for value, tag in first.items()}
