"""Read a feature store's decoding settings, to decode the same frames again."""

from collections.abc import Callable

from pipeline.frame_size import FrameSize
from pipeline.stores.encoder_record import read_encoder_record
from pipeline.stores.features import FeatureStore
from pipeline.video.job import DecodeSettings
from pipeline.video.limits import Limits
from pipeline.video.sampling import rule_of


def decode_settings_of(store: FeatureStore, size: FrameSize) -> DecodeSettings:
    """Return the decoding settings of `store`, for frames of the encoder's `size`."""
    about = read_encoder_record(store.path)
    limits = Limits(**about.get("limits", {}))
    rule = rule_of(store.settings.get("sampling", ""))
    return DecodeSettings(store.num_frames, size, store.settings["decoder"], about.get("hwaccel"), limits, rule)


def decoder_version(chain: str) -> str:
    """Versions of the installed decoders in `chain`: "pyav", "ffmpeg" or "pyav+ffmpeg"."""
    from pipeline.video import decode_ffmpeg, decode_pyav

    versions: dict[str, Callable[[], str]] = {"pyav": decode_pyav.version, "ffmpeg": decode_ffmpeg.version}
    return "; ".join(versions[name]() for name in chain.split("+"))
