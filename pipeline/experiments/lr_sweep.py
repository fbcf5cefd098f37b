"""Choose the learning rates of each system on the validation split, one rate at a time.

Short runs of one seed: the head's rate first, with CLIP's as the preset has it; then CLIP's, with the head's as chosen.
Nothing of the test split is looked at, and of these runs only the score is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from pipeline.experiments.runs import RunSpec, validate_runs, validated
from pipeline.experiments.tables import SYSTEMS

FACTORS = (1.0, 1 / 3, 3.0)  # times the recipe's rate; the first wins a tie
EPOCHS = 2


def swept(epochs: int) -> str:
    """What a table says of it."""
    return (
        "Learning rates: chosen for each system on the validation split, one rate at a time, of 1/3, 1 and 3 times the "
        f"recipe's, in runs of one seed and at most {epochs} epoch{'s' * (epochs != 1)}."
    )


def choose_rates(
    specs: Mapping[str, RunSpec],
    clip_lr: float,
    jobs: int,
    progress: Callable[[int, int, str], None],
    epochs: int = EPOCHS,
) -> dict[str, RunSpec]:
    """The same runs with the rates that did best.

    Args:
        specs: A run of each system, with the recipe's rates.
        clip_lr: CLIP's rate to begin with, for the systems that train it.
        jobs: Runs at once.
        progress: Called with (done, total, what).
        epochs: Of each of these runs, at most.
    """
    short = partial(_short, epochs=epochs)
    chosen = {
        system: replace(spec, tune={"clip_lr": clip_lr} if SYSTEMS[system].tune else {})
        for system, spec in specs.items()
    }
    for clip in (False, True):
        tried = {
            system: [scaled(spec, factor, clip=clip) for factor in FACTORS]
            for system, spec in chosen.items()
            if not clip or SYSTEMS[system].tune
        }
        validate_runs([short(spec) for several in tried.values() for spec in several], jobs, progress)
        chosen |= {system: max(several, key=lambda spec: _score(short(spec))) for system, several in tried.items()}
    return chosen


def scaled(spec: RunSpec, factor: float, *, clip: bool) -> RunSpec:
    """A run whose head's rate, or CLIP's, is multiplied, and rounded to two digits."""
    if clip:
        return replace(spec, tune={**spec.tune, "clip_lr": float(f"{factor * spec.tune['clip_lr']:.2g}")})
    return replace(spec, recipe={**spec.recipe, "lr": float(f"{factor * spec.recipe['lr']:.2g}")})


def _short(spec: RunSpec, epochs: int) -> RunSpec:
    return replace(spec, recipe={**spec.recipe, "epochs": min(epochs, spec.recipe["epochs"])})


def _score(spec: RunSpec) -> tuple[float, float]:
    """As the best epoch of a run is chosen: R@1, and the mean rank between equals."""
    found = validated(spec)
    return found["R@1"], -found["MnR"]
