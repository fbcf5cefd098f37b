"""Presets: the paper's recipe for each data set and backbone, with its cost and published figures.

    preset = get_preset("msrvtt-b32")
    print(preset.describe())

`head`, `train` and `tune` hold only what differs from the defaults of HeadConfig, TrainSettings and TuneSettings, under
their field names, so that a preset is a recipe and not a copy of them. The paper tunes CLIP together with the head and
chooses the checkpoint on the test split; here features are extracted once, and the checkpoint is chosen on held-out
videos.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import BadInput

WORTHWHILE = 3.0  # R@1 that a head must gain over its own backbone's zero-shot

MODELS = {"b32": ("ViT-B-32", "openai"), "b16": ("ViT-B-16", "openai")}
PAPER_COST = "14.9 h and 20,950 MB on one RTX 3090 for MSR-VTT with ViT-B/32, CLIP trained too (Table 10)"


@dataclass(frozen=True)
class Reached:
    """Text-to-video, as published: R@1, R@5, R@10 in percent, median and mean rank."""

    r1: float
    r5: float
    r10: float
    mdr: float
    mnr: float

    def __str__(self) -> str:
        return f"R@1 {self.r1}  R@5 {self.r5}  R@10 {self.r10}  MdR {self.mdr:g}  MnR {self.mnr}"


@dataclass(frozen=True)
class ZeroShot:
    """Text-to-video R@1 in percent that the backbone reaches untrained, and who says so. A head is worth its name from
    WORTHWHILE points above it."""

    r1: float
    source: str

    def __str__(self) -> str:
        return f"R@1 {self.r1} ({self.source}); a head should reach {self.r1 + WORTHWHILE:.1f}"


@dataclass(frozen=True)
class Preset:
    """One recipe. `paper` maps a system's name to what the paper reports for it; empty where it reports nothing.

    `videos` and `captions` are the published totals over all splits, from which the cost is computed.
    """

    name: str
    dataset: str
    model: str
    pretrained: str | None
    videos: int
    captions: int
    embed_dim: int = 512
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    num_frames: int = 12
    head: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Reached] = field(default_factory=dict)
    remark: str = ""
    sampling: str = "middles"
    pixels: int = 0
    zero_shot: ZeroShot | None = None

    @property
    def feature_bytes(self) -> int:
        """Disk for the features: float16 frames, float32 captions."""
        return self.embed_dim * (self.videos * self.num_frames * 2 + self.captions * 4)

    def cost(self) -> str:
        images = self.videos * self.num_frames
        return (
            f"{self.videos:,} videos decoded once, {images:,} frames and {self.captions:,} captions through "
            f"{self.model}, {self.feature_bytes / 1e6:,.0f} MB of features; training then reads only these"
        )

    def describe(self) -> str:
        """Describe the recipe as text: command, cost, published figures."""
        options = "".join(f" --option {key}={value}" for key, value in self.dataset_options.items())
        weights = f" --pretrained {self.pretrained}" if self.pretrained else ""
        frames = "" if self.sampling == "middles" else f" --num-frames {self.num_frames} --sampling {self.sampling}"
        lines = [
            f"{self.name}: extract --dataset {self.dataset}{options} --model {self.model}{weights}{frames}",
            f"  head: {_shown(self.head)}; training: {_shown(self.train)}; CLIP: {_shown(self.tune)}",
            f"  costs: {self.cost()}",
        ]
        if self.pixels:
            lines.append(f"  frames: {self.num_frames} of {self.pixels} x {self.pixels} pixels, {self.sampling}")
        if self.zero_shot:
            lines.append(f"  zero-shot, published: {self.zero_shot}")
        if self.paper:
            lines.append(f"  the paper's cost: {PAPER_COST}")
        lines += [f"  the paper, {system}: {reached}" for system, reached in self.paper.items()]
        return "\n".join([*lines, *([f"  {self.remark}"] if self.remark else [])])


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"


@dataclass(frozen=True)
class _Corpus:
    """What the recipes of one data set have in common. The paper's learning rate of new modules, and its T'."""

    videos: int
    captions: int
    lr: float = 1e-5
    t_prime: int = 10
    options: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


_CORPORA = {
    "msrvtt": _Corpus(10_000, 181_000, lr=3e-5, options={"protocol": "1k-A", "train": "9k"}),
    "lsmdc": _Corpus(109_487, 109_487, remark="the training file's rows are counted as videos: some names repeat"),
    "didemo": _Corpus(10_428, 10_428, t_prime=5, remark="paragraphs: 77 tokens cut some; --long-captions reads all"),
    "vatex": _Corpus(28_991, 289_910, options={"captions": "all"}),
    "charades": _Corpus(9_848, 9_848, options={"text": "script"}),
}

# Text-to-video results of the paper's tables; T-MASS is given for B/32 alone.
_PAPER = {
    "msrvtt-b32": {
        "X-Pool": Reached(46.9, 72.8, 82.2, 2, 14.3),
        "T-MASS": Reached(50.2, 75.3, 85.1, 1, 11.9),
        "DITS": Reached(51.9, 75.7, 84.6, 1, 11.6),
    },
    "msrvtt-b16": {"X-Pool": Reached(48.2, 73.7, 82.6, 2, 12.7), "DITS": Reached(55.0, 79.8, 87.1, 1, 10.0)},
    "lsmdc-b32": {
        "X-Pool": Reached(25.2, 43.7, 53.5, 8, 53.2),
        "T-MASS": Reached(28.9, 48.2, 57.6, 6, 43.3),
        "DITS": Reached(28.2, 47.3, 56.6, 6, 43.7),
    },
    "lsmdc-b16": {"X-Pool": Reached(26.1, 46.8, 56.7, 7, 47.3), "DITS": Reached(31.0, 52.4, 61.0, 5, 38.4)},
    "didemo-b32": {
        "X-Pool": Reached(44.6, 73.2, 82.0, 2, 15.4),
        "T-MASS": Reached(50.9, 77.2, 85.3, 1, 12.1),
        "DITS": Reached(51.1, 77.9, 85.8, 1, 12.1),
    },
    "didemo-b16": {"X-Pool": Reached(47.3, 74.8, 82.8, 2, 14.2), "DITS": Reached(55.8, 80.5, 87.5, 1, 11.0)},
    "vatex-b32": {
        "X-Pool": Reached(60.0, 90.0, 95.0, 1, 3.8),
        "T-MASS": Reached(63.0, 92.3, 96.4, 1, 3.2),
        "DITS": Reached(64.1, 92.7, 97.0, 1, 2.9),
    },
    "vatex-b16": {"X-Pool": Reached(62.6, 91.7, 96.0, 1, 3.4), "DITS": Reached(66.4, 94.3, 97.5, 1, 2.7)},
    "charades-b32": {
        "X-Pool": Reached(11.2, 28.3, 38.8, 20, 82.7),
        "T-MASS": Reached(14.2, 36.2, 48.3, 12, 54.8),
        "DITS": Reached(15.5, 36.5, 47.8, 12, 55.0),
    },
    "charades-b16": {"X-Pool": Reached(20.7, 42.5, 53.5, 9, 47.4), "DITS": Reached(27.4, 52.0, 64.3, 5, 29.7)},
}


def _of_the_paper(name: str) -> Preset:
    """T = 10, dropout 0.3, AdamW with weight decay 0.2, batch 32, 5 epochs, seed 24, gradient clip 1.0 (Section 4)."""
    dataset, backbone = name.split("-")
    corpus = _CORPORA[dataset]
    model, pretrained = MODELS[backbone]
    return Preset(
        name=name,
        dataset=dataset,
        model=model,
        pretrained=pretrained,
        videos=corpus.videos,
        captions=corpus.captions,
        dataset_options=corpus.options,
        head={"head": "dits", "T": 10, "T_prime": corpus.t_prime, "dropout": 0.3},
        train={"lr": corpus.lr, "epochs": 5, "batch_size": 32, "weight_decay": 0.2, "clip_norm": 1.0, "seed": 24},
        paper=_PAPER[name],
        remark=corpus.remark,
    )


@dataclass(frozen=True)
class _Backbone:
    """One of today's encoders: its open_clip name and tag, width, pixels a side, and its own frame protocol."""

    model: str
    pretrained: str
    embed_dim: int
    pixels: int
    num_frames: int = 8
    sampling: str = "ends"
    remark: str = ""


# PE's protocol is 8 frames, both ends included, mean pooling; the others have none of their own and get the same.
_PE_CUT = "captions are cut at 32 tokens: --long-captions windows reads longer ones"
_BACKBONES = {
    "pe-t": _Backbone("PE-Core-T-16-384", "meta", 512, 384, remark=_PE_CUT),
    "pe-s": _Backbone("PE-Core-S-16-384", "meta", 512, 384, remark=_PE_CUT),
    "pe-b": _Backbone("PE-Core-B-16", "meta", 1024, 224, remark=_PE_CUT),
    "pe-l": _Backbone("PE-Core-L-14-336", "meta", 1024, 336, remark=_PE_CUT),
    "pe-g": _Backbone("PE-Core-bigG-14-448", "meta", 1280, 448, remark="captions are cut at 72 tokens"),
    "siglip2-b": _Backbone("ViT-B-16-SigLIP2", "webli", 768, 224, remark="needs the extra siglip"),
    "siglip2-so400m": _Backbone("ViT-SO400M-16-SigLIP2-384", "webli", 1152, 384, remark="needs the extra siglip"),
    "mobileclip2": _Backbone("MobileCLIP2-B", "dfndr2b", 512, 224),
}

# Of the model cards of PE-Core: 8 frames, no training on the data set.
_PE_SOURCE = "Perception Encoder, arXiv 2504.13181, and its model cards: MSR-VTT, 8 frames"
_ZERO_SHOT = {
    "msrvtt-pe-t": ZeroShot(28.8, _PE_SOURCE),
    "msrvtt-pe-s": ZeroShot(39.3, _PE_SOURCE),
    "msrvtt-pe-b": ZeroShot(47.6, _PE_SOURCE),
    "msrvtt-pe-l": ZeroShot(50.3, _PE_SOURCE),
    "msrvtt-pe-g": ZeroShot(51.2, _PE_SOURCE),
}


def _of_today(dataset: str, backbone: str) -> Preset:
    """The paper's recipe for the head on one of today's encoders; the paper has no such row."""
    corpus, encoder = _CORPORA[dataset], _BACKBONES[backbone]
    name = f"{dataset}-{backbone}"
    known = _ZERO_SHOT.get(name)
    unknown = "" if known else "no published zero-shot figure is known to us: `evaluate` prints it beside the head"
    return replace(
        _of_the_paper(f"{dataset}-b32"),
        name=name,
        model=encoder.model,
        pretrained=encoder.pretrained,
        embed_dim=encoder.embed_dim,
        num_frames=encoder.num_frames,
        sampling=encoder.sampling,
        pixels=encoder.pixels,
        paper={},
        zero_shot=known,
        remark="; ".join(part for part in (corpus.remark, encoder.remark, unknown) if part),
    )


PRESETS: dict[str, Preset] = {name: _of_the_paper(name) for name in _PAPER} | {
    f"{dataset}-{backbone}": _of_today(dataset, backbone) for dataset in _CORPORA for backbone in _BACKBONES
}
PRESETS |= {
    name: Preset(
        name=name,
        dataset=name,
        model="shapes-clip",
        pretrained=None,
        videos=3200,
        captions=12800,
        embed_dim=128,
        head={"head": "dits", "init_logit_scale": 30.0},
        train={"lr": 3e-3, "epochs": 8, "batch_size": 128},
        tune={"clip_lr": 1e-3},
        remark="a built-in data set and backbone: minutes on two cores, no download; the paper has no such row",
    )
    for name in ("shapes", "shapes-hard")
}


def get_preset(name: str) -> Preset:
    """Raises BadInput with the list of names."""
    if name not in PRESETS:
        raise BadInput(f"unknown preset {name!r}", expected=", ".join(PRESETS))
    return PRESETS[name]
