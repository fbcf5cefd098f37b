"""The paper's tables as data: which systems stand in them, and the paper's own numbers on MSR-VTT with ViT-B/32.

A system is a head's settings by name, and, where it begins with another's trained weights, that system's name. Every
table of `reproduce` is a list of rows over these systems; beside the paper's tables stand this project's own:
`open` (what the paper leaves open), `control` (what the sampler's steps are worth), `distill` (many steps in one).
"""

from dataclasses import dataclass
from typing import Any

Figures = tuple[float, float, float, float, float]  # R@1 R@5 R@10 MdR MnR, text to video


@dataclass(frozen=True)
class System:
    """head: HeadConfig's settings besides dim. start_from: the system whose trained weights it begins with."""

    head: dict[str, Any]
    start_from: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table: a label, the system, and the paper's figures where it has them."""

    label: str
    system: str
    paper: Figures | None = None


@dataclass(frozen=True)
class Table:
    """The paired differences are taken from the first row. resources: seconds and memory stand in the table too."""

    title: str
    rows: tuple[Row, ...]
    notes: str = ""
    resources: bool = False


def _dits(**changes: Any) -> System:
    return System({"head": "dits", **changes})


def _steps(count: int) -> System:
    """T' steps; a T' beyond the schedule's ten needs a longer table over the same range."""
    return _dits(T=max(10, count), T_prime=count)


SYSTEMS: dict[str, System] = {
    "mean-pool": System({"head": "mean-pool"}),
    "xpool": System({"head": "xpool"}),
    "mlp": System({"head": "mlp"}),
    "tmass": System({"head": "tmass"}),
    "prior-1.0": System({"head": "fixed-prior", "sigma2": 1.0}),
    "prior-0.1": System({"head": "fixed-prior", "sigma2": 0.1}),
    "diffusion-l1": System({"head": "diffusion", "noise_loss": "l1"}, start_from="xpool"),
    "diffusion-l2": System({"head": "diffusion", "noise_loss": "l2"}, start_from="xpool"),
    "diffusion-tuned": System({"head": "diffusion", "stage": "finetune"}, start_from="diffusion-l2"),
    "dits": _dits(),
    "dits-literal": _dits(schedule="literal", noise_train=True, noise_eval=True),
    **{f"dits-{count}": _steps(count) for count in (1, 5, 15, 20, 30, 40)},
    **{f"condition-{name}": _dits(condition=name) for name in ("t", "v", "tv")},
    "gap-t-v": _dits(gap="t-v"),
    "open-linear": _dits(schedule="linear", noise_train=False, noise_eval=False, normalise=False),
    "open-linear-unit": _dits(schedule="linear", noise_train=False, noise_eval=False, normalise=True),
    "open-linear-noise": _dits(schedule="linear", noise_train=True, noise_eval=True, normalise=False),
    "open-linear-noise-train": _dits(schedule="linear", noise_train=True, noise_eval=False, normalise=False),
    "open-literal": _dits(schedule="literal", noise_train=False, noise_eval=False, normalise=False),
    "open-literal-unit": _dits(schedule="literal", noise_train=False, noise_eval=False, normalise=True),
    "open-literal-noise": _dits(schedule="literal", noise_train=True, noise_eval=True, normalise=False),
    "open-literal-noise-train": _dits(schedule="literal", noise_train=True, noise_eval=False, normalise=False),
    "dits-step-loss": _dits(step_loss=0.5),
    "dits-untied": _dits(tied=False),
    "dits-untied-step-loss": _dits(tied=False, step_loss=0.5),
    "xpool-dropout": System({"head": "xpool", "dropout": 0.3}),
    "xpool-dropout-video": System({"head": "xpool", "dropout": 0.3, "dropout_per": "video"}),
}

_BASELINE = Row("X-Pool (baseline, T' = 0)", "xpool", (46.9, 72.8, 82.2, 2, 14.3))
_DITS = Row("DITS (T' = 10)", "dits", (51.9, 75.7, 84.6, 1, 11.6))
_SWEEP = (
    Row("T' = 0", "xpool", (46.9, 72.8, 82.2, 2, 14.3)),
    Row("T' = 1", "dits-1", (49.2, 75.0, 85.1, 2, 11.3)),
    Row("T' = 5", "dits-5", (49.6, 75.1, 84.9, 2, 11.2)),
    Row("T' = 10", "dits", (51.9, 75.7, 84.6, 1, 11.6)),
    Row("T' = 15", "dits-15", (51.1, 76.1, 85.8, 1, 11.8)),
    Row("T' = 20", "dits-20", (47.0, 73.9, 83.7, 2, 12.2)),
    Row("T' = 30", "dits-30", (32.5, 63.5, 76.0, 3, 16.2)),
    Row("T' = 40", "dits-40", (0.2, 0.5, 1.0, 493.5, 497.9)),
)

TABLES: dict[str, Table] = {
    "4": Table(
        "Table 4: how the gap is modelled",
        (
            _BASELINE,
            Row("Fixed prior, sigma^2 = 1.0", "prior-1.0", (28.0, 61.9, 74.7, 3, 19.7)),
            Row("Fixed prior, sigma^2 = 0.1", "prior-0.1", (45.1, 73.3, 82.6, 2, 13.8)),
            Row("Diffusion, pretrained (L2)", "diffusion-l2", (35.4, 66.7, 78.3, 3, 14.4)),
            Row("Diffusion, fine-tuned", "diffusion-tuned", (46.5, 73.9, 83.0, 2, 13.3)),
            _DITS,
        ),
    ),
    "5a": Table("Table 5a: truncated timestep T'", _SWEEP[:5]),
    "8": Table("Table 8: truncated timestep T', the whole sweep", _SWEEP),
    "6a": Table(
        "Table 6a: condition of the noise network",
        (
            Row("none", "dits", (50.1, 75.5, 84.9, 1, 12.2)),
            Row("t", "condition-t"),
            Row("v", "condition-v"),
            Row("(t, v)", "condition-tv"),
        ),
        notes="The paper gives R@1 alone for t (42.3), v (23.1) and (t, v) (40.9).",
    ),
    "6b": Table(
        "Table 6b: direction of the gap",
        (Row("delta = v - t", "dits", (50.1, 75.5, 84.9, 1, 12.2)), Row("delta = t - v", "gap-t-v")),
        notes="The paper gives R@1 alone for t - v (39.2).",
    ),
    "7": Table(
        "Table 7: noise loss of the pretrained diffusion",
        (
            Row("L1", "diffusion-l1", (30.9, 59.5, 68.4, 4, 40.6)),
            Row("L2", "diffusion-l2", (35.4, 66.7, 78.3, 3, 14.4)),
        ),
    ),
    "10": Table(
        "Tables 10 and 11: what training and retrieval take",
        (Row("X-Pool", "xpool"), Row("T-MASS", "tmass"), Row("DITS", "dits")),
        notes="The paper, end to end on an RTX 3090 (training MB and hours; retrieval MB and seconds): X-Pool 18,986 "
        "14.67 5,452 65.35; T-MASS 20,390 14.74 5,452 76.41; DITS 20,950 14.90 5,464 70.17. Ours start from cached "
        "features.",
        resources=True,
    ),
    "open": Table(
        "What the paper leaves open: schedule, noise, normalisation",
        (
            Row("X-Pool", "xpool"),
            Row("linear 1e-4..0.02, no noise", "open-linear"),
            Row("linear, no noise, unit-length start", "open-linear-unit"),
            Row("linear, noise in training only", "open-linear-noise-train"),
            Row("linear, noise in training and retrieval", "open-linear-noise"),
            Row("literal 0.1..0.99, no noise", "open-literal"),
            Row("literal, no noise, unit-length start", "open-literal-unit"),
            Row("literal, noise in training only", "open-literal-noise-train"),
            Row("literal, noise in training and retrieval (--paper-literal)", "open-literal-noise"),
        ),
    ),
    "control": Table(
        "What the sampler's steps are worth",
        (
            Row("DITS, T' = 10", "dits"),
            Row("mean pooling, zero-shot", "mean-pool"),
            Row("X-Pool", "xpool"),
            Row("X-Pool, dropout 0.3 a pair", "xpool-dropout"),
            Row("X-Pool, dropout 0.3 a video", "xpool-dropout-video"),
            Row("residual MLP aligner", "mlp"),
            Row("T-MASS (stochastic text)", "tmass"),
            Row("DITS, T' = 1", "dits-1"),
            Row("DITS, T' = 10, loss at every step", "dits-step-loss"),
            Row("DITS, T' = 10, a network a step", "dits-untied"),
            Row("DITS, T' = 10, a network a step, loss at every step", "dits-untied-step-loss"),
        ),
    ),
}
