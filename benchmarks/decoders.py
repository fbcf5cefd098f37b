"""How far the features of the two decoders differ: cosine of each frame's embedding, PyAV against ffmpeg.

    python benchmarks/decoders.py VIDEOS [--model ViT-B-32] [--pretrained openai] [--frames 12]

VIDEOS is a folder of your own clips. Without --pretrained a model of open_clip has random weights, which says less.
Prints, over all clips that both decoders read, the cosines and the largest difference of a pixel.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.frame_size import FrameSize
from pipeline.video import decode_ffmpeg, decode_pyav
from pipeline.video.limits import DecodeFailure


def compared(path: Path, encoder: Encoder, request: decode_pyav.FrameRequest) -> tuple[np.ndarray, int] | str:
    """Cosines (F,) and the largest pixel difference of a clip; or why it cannot be compared."""
    try:
        clips = [decoder.decode_clip(str(path), request) for decoder in (decode_pyav, decode_ffmpeg)]
    except DecodeFailure as failure:
        return str(failure)
    if not np.allclose(clips[0].times, clips[1].times, atol=1e-3):
        return "the decoders chose other frames"
    embeds = [np.float64(encoder.embed_frames(clip.frames).float().cpu().numpy()) for clip in clips]
    units = [embed / np.linalg.norm(embed, axis=1, keepdims=True) for embed in embeds]
    pixels = np.abs(clips[0].frames.astype(int) - clips[1].frames).max()
    return (units[0] * units[1]).sum(1), int(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--model", default="shapes-clip")
    parser.add_argument("--pretrained")
    parser.add_argument("--frames", type=int, default=12)
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.model, arguments.pretrained, random_seed=0)
    height, width = encoder.image_size
    request = decode_pyav.FrameRequest(arguments.frames, FrameSize(height, width))
    cosines, pixels = [], []
    for path in sorted(path for path in arguments.videos.iterdir() if path.is_file()):
        result = compared(path, encoder, request)
        if isinstance(result, str):
            print(f"{path.name!r} left out: {result}", file=sys.stderr)
            continue
        cosines.append(result[0])
        pixels.append(result[1])
    every = np.concatenate(cosines)
    print(f"{encoder.settings['model']}: {len(cosines)} clips, {len(every)} frames")
    print(f"cosine: least {every.min():.6f}, mean {every.mean():.6f}")
    print(f"largest pixel difference {max(pixels)}; clips without any: {pixels.count(0)}")


if __name__ == "__main__":
    main()
