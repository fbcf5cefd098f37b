"""Captions per second: cut to each batch's longest sentence, as stage 1 does, against open_clip's 77 tokens.

    python benchmarks/text.py [--model ViT-B-32] [--captions 256] [--words 14]

Untrained weights, distinct captions of 5 to `words` one-token words, float32, batches of 64; both ways take turns and
each one's fastest round counts. Seconds are of processor time, so that other programs on the machine matter little.
Also prints the largest difference between the two ways' embeddings.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.clip.text import embed_sentences, tokenise

BATCH = 64
WORDS = [
    "man",
    "woman",
    "dog",
    "cat",
    "car",
    "red",
    "small",
    "plays",
    "runs",
    "jumps",
    "sings",
    "walks",
    "with",
    "near",
    "park",
    "street",
    "guitar",
    "ball",
    "water",
]


def captions(count: int, words: int) -> list[str]:
    rng = random.Random(0)
    distinct: dict[str, None] = {}
    while len(distinct) < count:
        distinct[" ".join(rng.choices(WORDS, k=rng.randint(5, words)))] = None
    return list(distinct)


def whole_context(encoder: Encoder, sentences: list[str]) -> torch.Tensor:
    """open_clip as everybody calls it: all tokens of the context, batches in the order given."""
    with torch.inference_mode():
        batches = encoder.tokenizer(sentences).split(BATCH)
        return torch.cat([encoder.model.encode_text(batch) for batch in batches])


def processor_seconds(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    began = time.process_time()
    result = run()
    return time.process_time() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--captions", type=int, default=256)
    parser.add_argument("--words", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.model, random_seed=0, precision="float32", device="cpu")
    sentences = captions(arguments.captions, arguments.words)
    mean_tokens = tokenise(encoder, sentences)[1].float().mean().item()
    best, results = [float("inf")] * 2, [torch.empty(0)] * 2
    ways: list[Callable[[], torch.Tensor]] = [
        lambda: whole_context(encoder, sentences),
        lambda: embed_sentences(encoder, sentences, BATCH),
    ]
    for _ in range(arguments.rounds):
        for place, way in enumerate(ways):
            seconds, results[place] = processor_seconds(way)
            best[place] = min(best[place], seconds)
    difference = (results[0] - results[1]).abs().max().item()
    print(f"{arguments.model}, {len(sentences)} captions of {mean_tokens:.1f} tokens on average")
    print(f"77 tokens: {len(sentences) / best[0]:.1f} captions a processor second")
    print(f"cut:       {len(sentences) / best[1]:.1f}, {best[0] / best[1]:.2f} times as fast")
    print(f"largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
