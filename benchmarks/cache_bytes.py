"""What `extract --cache-blocks K` puts on the disk and `train-head --train-blocks` reads, computed and checked.

    python benchmarks/cache_bytes.py --steps-per-second 5

The bytes are `token_bytes`, which `extract` prints before it starts. They are the same for K = 1, 2, 4 and any other:
one depth is stored, the one below the K top blocks. Checked on a few clips of `shapes` with the same model, untrained.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.clip.activations import token_bytes
from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.datasets.manifests import dataset_manifest
from pipeline.extract.cache_size import cache_bytes
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings
from pipeline.presets import get_preset
from pipeline.stores.activations import DTYPES as TOKEN_DTYPES
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest
from pipeline.train.cached_inputs import CachedInputs
from pipeline.workspace import Workspace

FRAMES = 12


@dataclass(frozen=True)
class Corpus:
    """words: mean tokens of a caption besides the two that CLIP puts around it."""

    name: str
    videos: int
    captions: int
    words: int


VATEX = get_preset("vatex-b32")
CORPORA = (Corpus("MSR-VTT", 10_000, 200_000, 10), Corpus("VATEX", VATEX.videos, VATEX.captions, 15))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="ViT-B-32")
    arguments.add_argument("--batch-size", type=int, default=32, help="pairs a step")
    arguments.add_argument("--steps-per-second", type=float, default=5.0, help="what training reaches")
    given = arguments.parse_args()
    encoder = load_encoder(given.model, device="cpu", precision="float32", random_seed=0)

    print(
        f"{given.model}, {FRAMES} frames; {given.batch_size} pairs a step, {given.steps_per_second:g} steps a second\n"
    )
    print("| corpus | type | GB on disk | GB read an epoch | s an epoch | MB/s read |")
    print("|---|---|---:|---:|---:|---:|")
    for corpus in CORPORA:
        for dtype in TOKEN_DTYPES:
            print(table_row(encoder, corpus, dtype, given.batch_size, given.steps_per_second))

    print("\n| sample | type | bytes computed | bytes on disk | tokens read MB/s, from the page cache |")
    print("|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        manifest = dataset_manifest(
            Workspace(Path(folder)), "shapes", None, None, None, {"train": 8, "val": 2, "test": 2}
        )
        for dtype in TOKEN_DTYPES:
            print(sample_row(encoder, manifest, Path(folder), dtype))


def table_row(encoder: Encoder, corpus: Corpus, dtype: str, batch_size: int, rate: float) -> str:
    """Without anything kept in memory: every pair of an epoch reads its video and its caption."""
    text_tokens = corpus.words + 2
    stored = token_bytes(encoder.model, corpus.videos * FRAMES, corpus.captions * text_tokens, dtype)
    pair = token_bytes(encoder.model, FRAMES, text_tokens, dtype)
    read, seconds = pair * corpus.captions, corpus.captions / batch_size / rate
    return (
        f"| {corpus.name} | {dtype} | {stored / 1e9:.1f} | {read / 1e9:.1f} | {seconds:.0f} "
        f"| {read / seconds / 1e6:.0f} |"
    )


def sample_row(encoder: Encoder, manifest: Manifest, folder: Path, dtype: str) -> str:
    settings = ExtractSettings(cache_blocks=1, token_dtype=dtype, num_frames=FRAMES, precision="float32")
    path = folder / dtype
    extract(manifest, path, settings, encoder=encoder)
    store = FeatureStore.open(path)
    videos, texts = store.videos(), store.texts()
    embeds = videos.frame_embeds.nbytes + texts.text_embeds.nbytes
    on_disk = sum(shard.stat().st_size for kind in ("videos", "texts") for shard in store.shard_paths(kind))
    computed = cache_bytes(encoder, manifest, FRAMES, dtype)
    cache = CachedInputs(store, videos, texts)
    began = time.perf_counter()
    count = sum(tokens.numel() for tokens in cache.frame_inputs([np.arange(len(videos))] * 5))
    rate = count * (2 if dtype == "float16" else 1) / (time.perf_counter() - began)
    return (
        f"| {len(videos)} clips, {len(texts)} captions | {dtype} | {computed:,} "
        f"| {on_disk - embeds:,} ({100 * (on_disk - embeds) / computed - 100:+.2f} %) | {rate / 1e6:.0f} |"
    )


if __name__ == "__main__":
    main()
