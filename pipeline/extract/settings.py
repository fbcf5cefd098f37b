"""Settings of an extraction, validated on construction, and their part of the fingerprint."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.clip.embedders import load_embedder
from pipeline.clip.encoder import Encoder
from pipeline.clip.protocol import Embedder
from pipeline.errors import BadInput
from pipeline.frame_size import FrameSize
from pipeline.stores.activations import DTYPES as TOKEN_DTYPES
from pipeline.stores.encoder_record import read_encoder_record
from pipeline.stores.features import FeatureStore
from pipeline.stores.shards import SUFFIXES
from pipeline.video.job import DecodeSettings
from pipeline.video.limits import Limits
from pipeline.video.pool import available_cores
from pipeline.video.sampling import RULES, rule_of
from pipeline.video.stored import decoder_version

DECODERS = ("pyav", "ffmpeg")
LONG_CAPTIONS = ("cut", "windows")


@dataclass(frozen=True)
class ExtractSettings:
    """Settings of an extraction. Only the encoder, num_frames, sampling, the decoder and long_captions change the
    features.

    `workers` 0: one decoding process a core. `retry_failed`: None, "all", or a failure class such as "TimeLimit".
    `min_coverage`: the least share of videos (skipped ones aside) that must be done for the run to count as good.
    `allow_mixed_decoders`: ffmpeg may try what PyAV cannot read; the store then names the decoder of every video.
    `long_captions`: "cut" after the text tower's context, or "windows" over the whole caption, averaged.
    `accept_gone`: files of any number may be gone (see `pipeline.extract.sync`).
    `quick_gelu`: activation of weights that do not record it (see `pipeline.clip.loading`).
    `preprocessing`, `tokenizer`: see `pipeline.clip.encoder.load_encoder`. `batch_size` 0: the fastest that fits the
    device's memory. `compile`: compile the image tower, which pays on long runs.
    """

    model: str = "shapes-clip"
    pretrained: str | None = None
    quick_gelu: bool | None = None
    preprocessing: str | None = None
    tokenizer: str | None = None
    device: str = "auto"
    precision: str = "auto"
    num_frames: int = 12
    sampling: str = "middles"
    decoder: str = "pyav"
    allow_mixed_decoders: bool = False
    hwaccel: str | None = None
    workers: int = 0
    batch_size: int = 64
    compile: bool = False
    text_batch_size: int = 256
    shard_size: int = 256
    text_shard_size: int = 16384
    shard_format: str = "hdf5"
    retry_failed: str | None = None
    min_coverage: float = 0.95
    wait_seconds: float = 0.0
    cache_blocks: int = 0
    token_dtype: str = "float16"
    long_captions: str = "cut"
    accept_size: bool = False
    accept_gone: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("num_frames", "text_batch_size", "shard_size", "text_shard_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1", got=getattr(self, name))
        if self.batch_size < 0:
            raise BadInput("batch_size must be 0 (found automatically) or more", got=self.batch_size)
        if self.sampling not in RULES:
            raise BadInput("unknown --sampling", expected=tuple(RULES), got=repr(self.sampling))
        if self.cache_blocks < 0:
            raise BadInput("--cache-blocks must be 0 (none) or more", got=self.cache_blocks)
        if self.token_dtype not in TOKEN_DTYPES:
            raise BadInput("unknown --token-dtype", expected=TOKEN_DTYPES, got=repr(self.token_dtype))
        if self.long_captions not in LONG_CAPTIONS:
            raise BadInput("unknown --long-captions", expected=LONG_CAPTIONS, got=repr(self.long_captions))
        if self.long_captions != "cut" and self.cache_blocks:
            raise BadInput(
                "--long-captions windows does not go with --cache-blocks: CLIP's blocks train on one text a caption",
                fix="leave one of them out",
            )
        if self.workers < 0:
            raise BadInput("workers must be 0 (one a core) or more", got=self.workers)
        if not 0.0 <= self.min_coverage <= 1.0:
            raise BadInput("min_coverage must lie between 0 and 1", got=self.min_coverage)
        if self.decoder not in DECODERS:
            raise BadInput("unknown decoder", expected=DECODERS, got=repr(self.decoder))
        if self.hwaccel and self.decoder != "ffmpeg":
            raise BadInput("hardware decoding is ffmpeg's", fix="give --decoder ffmpeg with --hwaccel")
        if self.allow_mixed_decoders and self.decoder != "pyav":
            raise BadInput("mixed decoders start from pyav", fix="leave --decoder at pyav with --allow-mixed-decoders")
        if self.shard_format not in SUFFIXES:
            raise BadInput("unknown shard format", expected=sorted(SUFFIXES), got=repr(self.shard_format))

    @property
    def decode_chain(self) -> str:
        return "pyav+ffmpeg" if self.allow_mixed_decoders else self.decoder

    def decoding(self, size: FrameSize) -> DecodeSettings:
        """Settings of the decoding processes, for frames of the encoder's size."""
        return DecodeSettings(self.num_frames, size, self.decode_chain, self.hwaccel, self.limits, self.sampling)

    @property
    def worker_count(self) -> int:
        return self.workers or available_cores()

    def fingerprint_part(self) -> dict[str, Any]:
        """The settings that the features depend on, besides the encoder's."""
        cached = {"cache_blocks": self.cache_blocks, "token_dtype": self.token_dtype} if self.cache_blocks else {}
        windows = {"long_captions": self.long_captions} if self.long_captions != "cut" else {}
        return {
            **cached,
            **windows,
            "sampling": RULES[self.sampling],
            "num_frames": self.num_frames,
            "decoder": self.decode_chain,
            "decoder_version": decoder_version(self.decode_chain),
        }


def settings_of(store: FeatureStore) -> ExtractSettings:
    """Settings to extract more videos into an existing store."""
    about = read_encoder_record(store.path)
    decoders = str(store.settings["decoder"]).split("+")
    return ExtractSettings(
        model=about["model"],
        pretrained=about["pretrained"],
        quick_gelu=store.settings["activation"] == "quickgelu",
        long_captions=store.settings.get("long_captions", "cut"),
        precision=store.settings["dtype"],
        preprocessing=about.get("preprocessing"),
        tokenizer=about.get("tokenizer"),
        sampling=rule_of(store.settings["sampling"]),
        num_frames=store.num_frames,
        decoder=decoders[0],
        allow_mixed_decoders=len(decoders) > 1,
        hwaccel=about.get("hwaccel"),
        limits=Limits(**about.get("limits", {})),
        shard_format=store.shard_format,
        min_coverage=0.0,
        **store.cache_settings,
    )


def encoder_for(settings: ExtractSettings) -> Embedder:
    """Load the encoder that the settings name."""
    encoder = load_embedder(
        settings.model,
        settings.pretrained,
        device=settings.device,
        precision=settings.precision,
        quick_gelu=settings.quick_gelu,
        preprocessing=settings.preprocessing,
        tokenizer=settings.tokenizer,
    )
    if settings.compile:
        if not isinstance(encoder, Encoder):
            raise BadInput(f"--compile: {settings.model} cannot be compiled", fix="leave --compile out")
        encoder.compile()
    return encoder
