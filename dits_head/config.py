"""What a retrieval head is, as plain values (no torch here, so that a command line can read and check it at once).

One `HeadConfig` describes every system of the paper; a combination that cannot work is refused when the config is made,
and the message names the fix. `HeadConfig(head="dits", dim=512)` is the default DITS, `HeadConfig.paper_literal(512)`
the paper's schedule and noise taken word for word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dits_head.registry import HEADS, aligner_class

SCHEDULES = ("linear", "literal")
CONDITIONS = ("none", "t", "v", "tv")
GAPS = ("v-t", "t-v")
PRIORS = ("none", "uniform", "normal")
STOCHASTIC = ("tmass", "tmass-lite")
SAMPLERS = ("dits", "diffusion")  # the built-in heads with a noise network over time steps
MEAN_POOLED = ("mean-pool", "cca")

# Settings of earlier versions, with the one value that is still built. Records hold them, and the names of runs and the
# fingerprints of indexes are made of records, so `to_dict` still gives them.
RETIRED = {"tied": True, "step_loss": 0.0}
# Settings of later versions, with the value that every head had before: records do not hold that one.
LATER = {"prior": "none", "relative": False}


@dataclass(frozen=True)
class HeadConfig:
    """One retrieval head.

    A value left out is resolved to the head's own when the config is made. Raises ValueError, naming the field and the
    fix, for a combination that cannot work.
    """

    head: str = "dits"
    """`mean-pool` (no parameters but the temperature), `xpool` (the paper's baseline, T' = 0), `mlp` (a residual MLP
    that aligns the text: the control for the sampler), `fixed-prior` (eq. 3), `diffusion` (DDPM on the gap, eqs. 4-7),
    `dits` (the truncated sampler, eq. 8), `tmass` (T-MASS as its authors published it, CVPR 2024), `tmass-lite` (our
    cheaper reading of it: unit-length texts, draws shared by all pairs), `cca` (shrunk canonical correlation, solved
    and not trained), `three-views` (an ensemble: `xpool`, `mlp` from unit length and `cca` in one vector), or a head
    of another package (see `registry`), which may read every setting."""
    dim: int = 512
    """Width D of CLIP's joint space."""
    dropout: float | None = None
    """X-Pool's dropout on the linear layer; 0.3 (published) for `tmass`, else 0."""
    dropout_per: str = "pair"
    """`pair`: a mask for each (text, video) pair, as X-Pool does, which needs a vector per pair; `video`: one mask a
    video, which keeps the exact identity of `pooling` and its speed."""
    pool_query: str = "text"
    """The vector that attends to the frames: the encoder's `text` (the paper's v|t) or the `aligned` text."""
    init_logit_scale: float = 100.0
    """exp of the starting temperature parameter (CLIP's own ends at 100)."""
    index_loss: float = 0.0
    """Weight of an additional contrastive loss between the aligned text and the text-independent vector that an index
    holds (`pool_video`)."""
    index_vectors: int | None = None
    """Vectors a video that an index holds, one for each of as many stretches of it; by default 4, the fewest that keep
    the exhaustive winner in a shortlist of 50 of 1000 in 99 % of queries, and 1 for mean pooling."""

    # Samplers (`dits`, `diffusion`). The paper leaves schedule, noise and normalisation open: the defaults of `dits`
    # had the highest mean R@1 of nine readings over five seeds on `shapes`.
    T: int = 10
    """Length of the variance schedule."""
    T_prime: int | None = None
    """Steps taken, the last T' of the chain; `diffusion` takes all T."""
    schedule: str = "literal"
    """`linear` (beta from 1e-4 to 0.02, DDPM's range) or `literal` (0.1 to 0.99, the paper's sentence)."""
    noise_train: bool | None = None
    """Add lambda_s z (eq. 8) in training."""
    noise_eval: bool | None = None
    """Add it at evaluation too, where the draw is a function of (noise_seed, text embedding, step) and of nothing else
    in the batch."""
    noise_seed: int = 24
    normalise: bool = False
    """L2-normalise the text (and, for the gap, the video) before sampling."""
    relative: bool | None = None
    """Sampling starts from the text (and the video) brought to length sqrt(D), the unit of eq. 8, whose z ~ N(0, I) has
    that length: steps and noise are then relative to the text, whatever the unit of the embeddings and D. On for
    `dits` unless `normalise` is; `paper_literal` takes the text as it is."""
    condition: str = "default"
    """What the noise network sees beside the state and the step: `none`, `t`, `v` or `tv`."""
    gap: str = "v-t"
    """`v-t` aligns the text, `t-v` the video."""
    blocks: int = 4
    """Depth of the noise network."""
    mlp_ratio: float = 4.0
    """Width of its MLPs, and of the head `mlp`, over D."""

    sigma2: float = 0.1
    """`fixed-prior`: the variance sigma^2."""
    noise_loss: str = "l2"
    """`diffusion`: `l1` or `l2`."""
    stage: str = "pretrain"
    """`diffusion`: `pretrain` fits the noise with the pooling frozen, `finetune` trains all through the chain with the
    contrastive loss."""
    num_frames: int = 12
    """T-MASS: frames a video."""
    radius: float = 0.1
    """`tmass-lite`: starting length of the random part relative to the text's."""
    samples: int = 20
    """T-MASS: texts drawn at evaluation."""
    support: float | None = None
    """T-MASS: weight of the support-text loss; 0.8 (published for MSR-VTT) for `tmass`, 1.2 for `tmass-lite`."""
    prior: str = "default"
    """`tmass`: what is drawn, `uniform` (from [0, 1)) or `normal` (deviation 0.003, published for LSMDC)."""

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            aligner_class(self.head)  # refuses what is no head
        self._resolve_defaults()
        self._choice("schedule", SCHEDULES)
        self._choice("condition", CONDITIONS)
        self._choice("gap", GAPS)
        self._choice("prior", PRIORS)
        self._choice("dropout_per", ("pair", "video"))
        self._choice("pool_query", ("text", "aligned"))
        self._choice("noise_loss", ("l1", "l2"))
        self._choice("stage", ("pretrain", "finetune"))
        self._check_ranges()
        self._check_combinations()

    @property
    def pooling_dropout(self) -> float:
        """X-Pool's dropout."""
        assert self.dropout is not None  # resolved in __post_init__
        return self.dropout

    @property
    def steps(self) -> int:
        """T', the number of steps taken (0 for a head without a sampler)."""
        assert self.T_prime is not None  # resolved in __post_init__
        return self.T_prime

    @property
    def vectors(self) -> int:
        """M, the vectors a video that `pool_video` gives."""
        assert self.index_vectors is not None  # resolved in __post_init__
        return self.index_vectors

    @property
    def needs_video(self) -> str | None:
        """Why the text cannot be aligned without the video, or None if it can."""
        if self.head in STOCHASTIC:
            return "T-MASS draws a text whose radius depends on the video's frames"
        if self.head not in HEADS:
            return aligner_class(self.head).needs_video
        if self.gap == "t-v":
            return "gap 't-v' moves the video towards the text, not the text"
        if self.condition in ("v", "tv"):
            return f"condition '{self.condition}' gives the noise network the pooled video"
        return None

    @property
    def aligns_text(self) -> bool:
        """Whether the compared text differs from the encoder's text."""
        if self.head not in HEADS:
            return self.needs_video is None
        aligning = ("mlp", "fixed-prior", "diffusion", "cca", "three-views")
        return self.head in aligning or (self.head == "dits" and self.steps > 0)

    @classmethod
    def paper_literal(cls, dim: int, **changes: Any) -> HeadConfig:
        """DITS with beta from 0.1 to 0.99 over T = T' = 10 steps, eq. 8's noise added to the text as it is, and
        X-Pool's dropout of 0.3.

        The loss is ours all the same: captions of one video, and equal captions, are no negatives of each other.
        """
        literal: dict[str, Any] = {"schedule": "literal", "noise_train": True, "noise_eval": True, "dropout": 0.3}
        return cls(dim=dim, **{**literal, "relative": False, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadConfig:
        """Make the config that `to_dict` gave, of this version or an earlier one."""
        values = {name: value for name, value in values.items() if (name, value) not in RETIRED.items()}
        if values.get("head") == "tmass" and "prior" not in values:  # what that name meant before `prior` was a setting
            values["head"] = "tmass-lite"
        if values.get("head") != "tmass":
            values = LATER | values
        known = set(cls.fields())
        if retired := sorted(set(values) & set(RETIRED)):
            raise ValueError(f"head config: {retired[0]}={values[retired[0]]!r} is not built any more; train it anew")
        if unknown := sorted(set(values) - known):
            raise ValueError(f"head config: unknown settings {unknown}; known are {sorted(known)}")
        return cls(**values)

    @classmethod
    def fields(cls) -> dict[str, Any]:
        """Every setting's name and its value in the default DITS."""
        return dataclasses.asdict(cls())

    def to_dict(self) -> dict[str, Any]:
        """All settings, and the retired ones, as records hold them."""
        values = dataclasses.asdict(self) | RETIRED
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}

    def _resolve_defaults(self) -> None:
        """Fill what was left to the head, so that a stored config says everything."""
        diffusion = self.head == "diffusion"
        samples = self.head in SAMPLERS or self.head not in HEADS
        random = self.head in ("diffusion", "fixed-prior")  # noise is what these two are made of
        resolved = {
            "T_prime": self.T if samples else 0,
            "noise_train": random or self.head == "dits",
            "noise_eval": random,
            "relative": self.head == "dits" and not self.normalise,
            "condition": "t" if diffusion else "none",
            "dropout": 0.3 if self.head == "tmass" else 0.0,
            "support": 0.8 if self.head == "tmass" else 1.2,
            "prior": "uniform" if self.head == "tmass" else "none",
            "index_vectors": 1 if self.head in MEAN_POOLED else 4,
        }
        for name, value in resolved.items():
            if getattr(self, name) in (None, "default"):
                object.__setattr__(self, name, value)

    def _choice(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")

    def _check_ranges(self) -> None:
        for name, least in (
            ("dim", 1),
            ("T", 1),
            ("T_prime", 0),
            ("blocks", 1),
            ("num_frames", 1),
            ("samples", 1),
            ("index_vectors", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: expected an integer >= {least}")
        if not 0 <= self.pooling_dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: expected a probability in [0, 1)")
        for name in ("init_logit_scale", "mlp_ratio", "sigma2", "radius"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number > 0")
        if self.init_logit_scale > 100:
            raise ValueError(f"init_logit_scale={self.init_logit_scale!r}: CLIP clamps it at 100; set at most 100")
        for name in ("index_loss", "support"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a weight >= 0")

    def _check_combinations(self) -> None:
        if self.steps > self.T and (self.head in SAMPLERS or self.head not in HEADS):
            raise ValueError(f"T_prime={self.steps} with T={self.T}: the schedule is too short; set T={self.steps}")
        if self.head in HEADS and self.head not in SAMPLERS:
            for name, off in (("T_prime", 0), ("condition", "none"), ("gap", "v-t")):
                if getattr(self, name) != off:
                    value = getattr(self, name)
                    raise ValueError(f"{name}={value!r} has no meaning for head={self.head!r}; use head='dits'")
        if self.head in ("diffusion", "fixed-prior") and not (self.noise_train and self.noise_eval):
            raise ValueError(f"head={self.head!r} is made of noise; leave noise_train and noise_eval on")
        if self.head in ("xpool", "mlp", "three-views", *MEAN_POOLED, *STOCHASTIC) and (
            self.noise_train or self.noise_eval
        ):
            raise ValueError(f"noise_train, noise_eval: head={self.head!r} has no such switch; leave both off")
        if self.relative and (self.normalise or (self.head in HEADS and self.head not in SAMPLERS)):
            raise ValueError(
                f"relative=True: head={self.head!r} has no steps to relate to the text, or normalise=True sets its "
                "length; leave one of the two off"
            )
        if self.head in HEADS and (self.prior == "none") == (self.head == "tmass"):
            raise ValueError(f"prior={self.prior!r}: head='tmass' draws from 'uniform' or 'normal', no other head does")
        if self.head == "diffusion":
            self._check_diffusion()
        if self.needs_video and self.pool_query == "aligned":
            raise ValueError(f"pool_query='aligned': {self.needs_video}; set pool_query='text'")
        if self.needs_video and self.index_loss:
            raise ValueError(f"index_loss={self.index_loss}: {self.needs_video}; set index_loss=0")
        if self.head in MEAN_POOLED and (self.dropout or self.pool_query == "aligned" or self.vectors > 1):
            raise ValueError(
                f"head={self.head!r} has no dropout, no pooling query and one vector a video; "
                "set dropout=0, pool_query='text', index_vectors=1"
            )

    def _check_diffusion(self) -> None:
        if self.steps != self.T:
            raise ValueError(f"T_prime={self.steps}: diffusion takes its whole chain; set T_prime={self.T}")
        if self.schedule == "linear" and self.T < 500:
            raise ValueError(
                f"schedule='linear' with T={self.T}: alpha_bar[T] stays near 1, so a chain from N(0, I) starts where "
                "training never was; set schedule='literal' or T=1000"
            )
        if self.condition in ("v", "tv") or self.gap != "v-t":
            raise ValueError("head='diffusion' draws the gap v - t for a text; set condition='t' or 'none', gap='v-t'")
        if self.index_loss and self.stage == "pretrain":
            raise ValueError("stage='pretrain' fits the noise and nothing else; set index_loss=0 or stage='finetune'")
