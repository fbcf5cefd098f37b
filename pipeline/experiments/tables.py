"""The paper's tables as data: their systems, and the paper's own figures on MSR-VTT 1k-A with ViT-B/32.

A system is a head's settings under a name, and, where it begins with another's trained weights, that system's name.
Every table of `reproduce` is a list of rows over these systems. Beside the paper's tables stand this project's own:
`fixed`, `joint` and `joint-top` (every system, with CLIP fixed and trained too), `open` (what the paper leaves open),
`control` (what the sampler's steps are worth), `distill` (many steps in one).
"""

from dataclasses import dataclass, replace
from typing import Any

from dits_head.config import HeadConfig
from pipeline.evaluate.metrics import FIGURES

Figures = tuple[float, float, float, float, float]  # the five of FIGURES, text to video


@dataclass(frozen=True)
class System:
    """One way to train a head."""

    head: dict[str, Any]
    """HeadConfig's settings besides `dim`."""
    start_from: str | None = None
    """The system whose trained weights it begins with."""
    distilled_from: str | None = None
    """The system whose aligned texts it learns."""
    tune: int | str | None = None
    """How much of CLIP trains too: its top k blocks or `all`, from cached activations, or `end-to-end`."""

    @property
    def parent(self) -> str | None:
        """The system that must be trained before this one."""
        return self.start_from or self.distilled_from


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    system: str
    paper: Figures | None = None
    """The paper's figures, where it has them."""
    joint: bool = True
    """Whether the paper trained CLIP with the head."""
    against: str | None = None
    """The system that R@1 is compared with; None: the first row's."""


@dataclass(frozen=True)
class Column:
    """A column beside the figures."""

    label: str
    measure: str
    """A name of `measures.MEASURES`."""
    key: str
    """Of what the measure gives for a run."""
    digits: int = 2


@dataclass(frozen=True)
class Table:
    """A table of `reproduce`."""

    title: str
    rows: tuple[Row, ...]
    notes: str = ""
    paper_notes: str = ""
    """What the paper gives beside its column; shown where that is."""
    base: str = "the first row"
    """In words, what R@1 is compared with."""
    resources: tuple[str, ...] = ()
    """`train`, `test`: the stages whose seconds and memory are shown."""
    figures: tuple[str, ...] = FIGURES
    """Which of FIGURES are shown."""
    columns: tuple[Column, ...] = ()
    tall: bool = False
    """One column a system, where there are many measures."""


def _dits(**changes: Any) -> System:
    return System({"head": "dits", **changes})


def _steps(count: int) -> System:
    """T' steps; a T' beyond the schedule's ten needs a longer table over the same range."""
    return _dits(T=max(10, count), T_prime=count)


NOISES = {"still": "no noise", "train": "noise in training only", "noise": "noise in training and retrieval"}
STARTS = {
    "raw": "start as it is",
    "unit": "unit-length start",
    "relative": "steps and noise relative to the text",
}


def _open(schedule: str, noise: str, start: str) -> tuple[str, System, Row]:
    """A reading of what the paper leaves open: its name, which is `dits` for the one that is the default."""
    system = _dits(
        schedule=schedule,
        noise_train=noise != "still",
        noise_eval=noise == "noise",
        normalise=start == "unit",
        relative=start == "relative",
    )
    is_default = HeadConfig(dim=1, **system.head) == HeadConfig(dim=1)
    name = "dits" if is_default else f"open-{schedule}-{noise}-{start}"
    label = f"{schedule}, {NOISES[noise]}, {STARTS[start]}" + (" (the default)" if is_default else "")
    return name, system, Row(label, name)


_OPEN = (
    _open("literal", "train", "relative"),
    _open("literal", "still", "relative"),
    _open("linear", "train", "relative"),
    _open("linear", "still", "relative"),
    _open("linear", "still", "raw"),
    _open("linear", "still", "unit"),
    _open("linear", "noise", "raw"),
    _open("literal", "still", "raw"),
    _open("literal", "still", "unit"),
    _open("literal", "train", "raw"),
    _open("literal", "train", "unit"),
    _open("literal", "noise", "raw"),  # the paper word for word
    _open("literal", "noise", "unit"),
)

_FIXED: dict[str, System] = {
    "mean-pool": System({"head": "mean-pool"}),
    "xpool": System({"head": "xpool"}),
    "mlp": System({"head": "mlp"}),
    "mlp-unit": System({"head": "mlp", "normalise": True}),
    "tmass": System({"head": "tmass", "dropout": 0.3}),
    "tmass-lite": System({"head": "tmass-lite"}),
    "cca": System({"head": "cca"}),
    "three-views": System({"head": "three-views"}),
    "prior-1.0": System({"head": "fixed-prior", "sigma2": 1.0}),
    "prior-0.1": System({"head": "fixed-prior", "sigma2": 0.1}),
    "diffusion-l1": System({"head": "diffusion", "noise_loss": "l1"}, start_from="xpool"),
    "diffusion-l2": System({"head": "diffusion", "noise_loss": "l2"}, start_from="xpool"),
    "diffusion-ddpm": System(
        {"head": "diffusion", "noise_loss": "l2", "schedule": "linear", "T": 1000, "T_prime": 1000}, start_from="xpool"
    ),
    "diffusion-tuned": System({"head": "diffusion", "stage": "finetune"}, start_from="diffusion-l2"),
    "dits": _dits(),
    "distilled": System({"head": "dits", "T_prime": 1}, distilled_from="dits"),
    **{f"dits-{count}": _steps(count) for count in (1, 5, 15, 20, 30, 40)},
    **{f"condition-{name}": _dits(condition=name) for name in ("t", "v", "tv")},
    "dits-one-block": _dits(blocks=1),
    "condition-v-one-block": _dits(condition="v", blocks=1),
    "gap-t-v": _dits(gap="t-v"),
    **{name: system for name, system, _ in _OPEN if name != "dits"},
    "xpool-dropout": System({"head": "xpool", "dropout": 0.3}),
    "xpool-dropout-video": System({"head": "xpool", "dropout": 0.3, "dropout_per": "video"}),
}
MOST_BLOCKS = 48  # of a CLIP that is trained from cached activations: more than any published one has


def tuned(system: str, how: int | str) -> str:
    """The name of a system trained together with CLIP; `how` as in System.tune."""
    return f"{system}-tuned-{how}"


SYSTEMS: dict[str, System] = _FIXED | {
    tuned(name, how): replace(system, tune=how)
    for name, system in _FIXED.items()
    if not system.distilled_from
    for how in (*range(1, MOST_BLOCKS + 1), "all", "end-to-end")
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

_STRETCHED = "Up to T' = 10 the last T' steps of ten; beyond, T' steps over the same range of beta."

_EVERY = (
    ("X-Pool", "xpool"),
    ("mean pooling", "mean-pool"),
    ("closed form (`cca`)", "cca"),
    ("residual MLP", "mlp"),
    ("residual MLP, unit-length start", "mlp-unit"),
    ("T-MASS", "tmass"),
    ("DITS", "dits"),
    ("DITS, no training noise", "open-literal-still-relative"),
    ("ensemble (`three-views`)", "three-views"),
)
_RIVALS = (Row("X-Pool", "xpool"), Row("T-MASS", "tmass"), Row("DITS", "dits"))
WORDS_PERCENT = (10, 20, 30, 50)  # of a caption's words that are damaged
FRAMES_LEFT = (9, 6, 3, 1)
_DAMAGE = (
    *(
        Column(f"{n} % of words {kind}", "robustness", f"{kind} {n}", 1)
        for kind in ("dropped", "swapped")
        for n in WORDS_PERCENT
    ),
    *(Column(f"frames left, evenly: {n}", "robustness", f"even {n}", 1) for n in FRAMES_LEFT),
    *(Column(f"frames left, at random: {n}", "robustness", f"random {n}", 1) for n in FRAMES_LEFT),
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
    "5a": Table("Table 5a: truncated timestep T'", _SWEEP[:5], notes=_STRETCHED),
    "5b": Table(
        "Table 5b: CLIP fixed, or trained with the head",
        (
            Row("DITS, fix CLIP", "dits", (39.2, 65.4, 77.1, 2, 18.0), joint=False),
            Row("DITS, joint", "dits-tuned-end-to-end", (51.9, 75.7, 84.6, 1, 11.6)),
        ),
    ),
    "8": Table("Table 8: truncated timestep T', the whole sweep", _SWEEP, notes=_STRETCHED),
    "6a": Table(
        "Table 6a: condition of the noise network",
        (
            Row("none", "dits", (50.1, 75.5, 84.9, 1, 12.2)),
            Row("t", "condition-t"),
            Row("v", "condition-v"),
            Row("(t, v)", "condition-tv"),
        ),
        paper_notes="The paper gives R@1 alone for t (42.3), v (23.1) and (t, v) (40.9).",
    ),
    "6a-full": Table(
        "Table 6a at the full recipe, as far as a CPU affords it",
        (
            Row("none", "dits"),
            Row("t", "condition-t"),
            Row("none, one block", "dits-one-block"),
            Row("v, one block", "condition-v-one-block", against="dits-one-block"),
        ),
        notes="A system that sees the video runs its sampler once a pair: v takes most of this table's time.",
        base="none (v: none with one block)",
    ),
    "6b": Table(
        "Table 6b: direction of the gap",
        (Row("delta = v - t", "dits", (50.1, 75.5, 84.9, 1, 12.2)), Row("delta = t - v", "gap-t-v")),
        paper_notes="The paper gives R@1 alone for t - v (39.2).",
    ),
    "7": Table(
        "Table 7: noise loss of the pretrained diffusion",
        (
            Row("L1", "diffusion-l1", (30.9, 59.5, 68.4, 4, 40.6)),
            Row("L2", "diffusion-l2", (35.4, 66.7, 78.3, 3, 14.4)),
            Row("L2, 1,000 steps over DDPM's range of beta", "diffusion-ddpm"),
        ),
    ),
    "9": Table(
        "Table 9: the gap over relevant pairs of the test split, means before and after alignment",
        (
            Row("X-Pool (moves no text)", "xpool"),
            Row("DITS, fix CLIP", "dits"),
            Row("DITS, joint", "dits-tuned-end-to-end"),
        ),
        notes="Unit-length vectors, but for the columns called raw.",
        paper_notes="The paper: mean L1 norm 23.76 with CLIP fixed, 18.13 joint; mean cosine 0.122 and 0.168.",
        figures=("R@1",),
        columns=tuple(
            Column(f"{name.removesuffix(' unit')} {when}", "gap", f"{name} {when}", 3)
            for name in ("L1 unit", "L2 unit", "cosine", "L1 raw", "L2 raw")
            for when in ("before", "after")
        ),
        tall=True,
    ),
    "10": Table(
        "Table 10: what training takes",
        _RIVALS,
        notes="Starts from cached features.",
        paper_notes="The paper, end to end on an RTX 3090: X-Pool 18,986 MB and 14.67 h, T-MASS 20,390 and 14.74, DITS "
        "20,950 and 14.90.",
        resources=("train",),
    ),
    "11": Table(
        "Table 11: what retrieval takes",
        _RIVALS,
        notes="Starts from cached features.",
        paper_notes="The paper, end to end on an RTX 3090: X-Pool 5,452 MB and 65.35 s, T-MASS 5,452 and 76.41, DITS "
        "5,464 and 70.17.",
        resources=("test",),
    ),
    "blocks": Table(
        "CLIP's top blocks from cached activations",
        (
            Row("fix CLIP", "dits"),
            Row("k = 1", "dits-tuned-1"),
            Row("k = 2", "dits-tuned-2"),
            Row("all blocks", "dits-tuned-all"),
            Row("end to end", "dits-tuned-end-to-end"),
        ),
        notes="On the disk: features; with blocks also what enters them, the same bytes for every k; end to end the "
        "video files. MB of training are those of the training process, without its decoding processes.",
        columns=(
            Column("s an epoch", "cost", "epoch s", 1),
            Column("training MB", "cost", "training MB", 0),
            Column("disk MB", "cost", "disk MB", 1),
        ),
    ),
    "fixed": Table(
        "Every system with CLIP fixed",
        (*(Row(label, system) for label, system in _EVERY), Row("T-MASS, unit text and shared draws", "tmass-lite")),
        base="X-Pool",
    ),
    "joint": Table(
        "Every system trained together with all of CLIP's blocks, from cached activations",
        tuple(Row(label, tuned(system, "all")) for label, system in _EVERY),
        base="X-Pool",
    ),
    "joint-top": Table(
        "Every system trained together with CLIP's top k blocks, from cached activations",
        tuple(
            Row(f"{label}, k = {how}", tuned(system, how), against=tuned("xpool", how))
            for how in (1, 2)
            for label, system in _EVERY
        ),
        base="X-Pool of the same k",
    ),
    "open": Table(
        "What the paper leaves open: schedule, noise, normalisation",
        (
            Row("X-Pool", "xpool"),
            *(row for _, _, row in _OPEN),
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
            Row("residual MLP aligner, unit-length start", "mlp-unit"),
            Row("T-MASS, as published", "tmass"),
            Row("T-MASS, unit text and shared draws (ours)", "tmass-lite"),
            Row("DITS, T' = 1", "dits-1"),
        ),
    ),
    "distill": Table(
        "The sampler's ten steps in one",
        (
            Row("DITS, T' = 10 (the teacher)", "dits"),
            Row("DITS, T' = 1, trained directly", "dits-1"),
            Row("T' = 1, distilled", "distilled"),
        ),
        notes="A student's training seconds do not hold its teacher's.",
        resources=("train",),
        columns=(Column("ms to align 1000 texts", "align", "ms", 1),),
    ),
    "robustness": Table(
        "R@1 as captions are damaged and frames removed",
        (Row("X-Pool", "xpool"), Row("residual MLP aligner", "mlp"), Row("DITS", "dits")),
        notes="Heads are trained on whole captions and all frames; R@1 is theirs. Every run meets the same damage.",
        figures=("R@1",),
        columns=_DAMAGE,
        tall=True,
    ),
}
