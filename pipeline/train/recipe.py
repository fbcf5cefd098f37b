"""Resolve a run's recipe: presets of the data set and backbone, and the settings given for the head."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dits_head.config import MEAN_POOLED, STOCHASTIC, HeadConfig
from pipeline.errors import BadInput
from pipeline.presets import PRESETS
from pipeline.resolve import ResolvedStore
from pipeline.train.head_options import check_head, head_settings
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
        name: preset[name] for name in sorted(shared) if not (head in MEAN_POOLED and name == "dropout")
    }


def head_config(
    chosen: ResolvedStore, head: str, options: Mapping[str, str], *, paper_literal: bool = False
) -> HeadConfig:
    """Make a HeadConfig from the preset and the command line's `--set name=value` pairs, which come first.

    Raises BadInput naming the field and the fix.
    """
    check_head(head, options, paper_literal=paper_literal)
    dim = chosen.store.dim
    typed = preset_head(chosen, head) | head_settings(options)
    try:
        if paper_literal:
            return HeadConfig.paper_literal(dim, **typed)
        return HeadConfig(head=head, dim=dim, **typed)
    except ValueError as error:
        raise BadInput(f"this head cannot be built: {error}") from None
