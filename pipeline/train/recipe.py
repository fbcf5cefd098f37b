"""Resolve a run's recipe: presets of the data set and backbone, and the settings given for the head."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dits_head.config import STOCHASTIC, HeadConfig
from pipeline.errors import BadInput
from pipeline.presets import PRESETS
from pipeline.resolve import ResolvedStore
from pipeline.train.loop import TrainSettings


def recipe(chosen: ResolvedStore, **given: Any) -> dict[str, Any]:
    """TrainSettings without the seed: `given` values (None: not given), else the preset's, else the defaults."""
    values = asdict(TrainSettings()) | preset_of(chosen).get("train", {})
    del values["seed"]
    return values | {name: value for name, value in given.items() if value is not None}


def preset_of(chosen: ResolvedStore) -> dict[str, Any]:
    """{"head": ..., "train": ..., "tune": ...} of the preset for this data set and model; empty where there is none."""
    for preset in PRESETS.values():
        if (preset.dataset, preset.model) == (chosen.dataset, chosen.store.settings["model"]):
            return {"head": dict(preset.head), "train": dict(preset.train), "tune": dict(preset.tune)}
    return {}


def preset_head(chosen: ResolvedStore, head: str) -> dict[str, Any]:
    """The preset's settings for this head: all of them if it is the preset's own, else those that every head shares.

    T-MASS learns a radius from the frames, so its size is that of the features.
    """
    preset = preset_of(chosen).get("head", {})
    shared = set(preset) - {"head"} if preset.get("head") == head else {"dropout", "init_logit_scale"} & set(preset)
    of_features = {"num_frames": chosen.store.num_frames} if head in STOCHASTIC else {}
    return of_features | {
        name: preset[name] for name in sorted(shared) if not (head == "mean-pool" and name == "dropout")
    }


def head_config(
    chosen: ResolvedStore, head: str, options: Mapping[str, str], *, paper_literal: bool = False
) -> HeadConfig:
    """Make a HeadConfig from the preset and the command line's `--set name=value` pairs, which come first.

    Raises BadInput naming the field and the fix.
    """
    if paper_literal and head != "dits":
        raise BadInput("--paper-literal is a reading of DITS", expected="--head dits", got=f"--head {head}")
    dim = chosen.store.dim
    typed = preset_head(chosen, head) | head_settings(options)
    try:
        if paper_literal:
            return HeadConfig.paper_literal(dim, **typed)
        return HeadConfig(head=head, dim=dim, **typed)
    except ValueError as error:
        raise BadInput(f"this head cannot be built: {error}") from None


def head_settings(options: Mapping[str, str]) -> dict[str, Any]:
    """`--set name=value` pairs, with the types of HeadConfig's fields. Raises BadInput for one that cannot be read."""
    known = HeadConfig.fields()
    for name in options:
        if name not in known or name in ("head", "dim"):
            raise BadInput(f"--set {name}", expected=", ".join(sorted({*known} - {"head", "dim"})), got=name)
    return {name: _typed(name, text, known[name]) for name, text in options.items()}


def _typed(name: str, text: str, example: Any) -> Any:
    try:
        if isinstance(example, bool):
            return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[text.lower()]
        return type(example)(text)
    except (KeyError, ValueError):
        raise BadInput(f"--set {name}", expected=f"a {type(example).__name__}", got=repr(text)) from None
