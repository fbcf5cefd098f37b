"""Makes pipeline/clip/weights/shapes-clip.safetensors, the backbone of the built-in data set `shapes`.

    python scripts/train_shapes_clip.py               # about 10 minutes on two cores, 3.5 MB out
    python scripts/train_shapes_clip.py --rows-only   # seconds: only the rows of words that training did not show

A standard open_clip model (pipeline/clip/weights/shapes-clip.json) learns from endless single frames of the `shapes`
world and canonical captions of them: one word an attribute, no synonym, no motion, and scenes that are not the data
set's. First the image tower alone learns to name what it sees (which words belong to each patch, which colour goes with
which shape in the frame): so small a transformer learns that from labels in a tenth of the steps that captions would
take. Then both towers learn with CLIP's loss. Linear layers that name are thrown away.

The words that only the data set's captions use are never trained. A synonym gets its canonical word's embedding row
under noise (SYNONYM_NOISE), as words of like use lie near each other in a model that has read much; every other word,
those of motion among them, gets a row drawn from the Gaussian of the trained rows, which means nothing. So the model
reads the data set's captions worse than its own; what they say more clearly than it reads is for a head to learn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pipeline.clip import shapes_clip, torchvision_guard
from pipeline.datasets import shapes_world as world
from pipeline.datasets.shapes_drawing import render
from pipeline.stores.atomic import atomic_write

torchvision_guard.ensure()
import open_clip  # noqa: E402  (needs the guard)

COLOURS, SHAPES = tuple(world.COLOURS), tuple(world.SHAPES)
EMBEDDING = "token_embedding.weight"
SYNONYM_NOISE = 1.5  # standard deviation of the noise on a synonym's row, in those of the trained rows (by dimension)


class Batch(NamedTuple):
    images: Tensor  # (B, 3, side, side) float32, normalised
    captions: list[str]
    pairs: Tensor  # (B, colours * shapes): 1 where an object of that colour and shape is shown
    patch_words: Tensor  # (B, patches, colours + shapes): 1 where an object of that colour, that shape covers the patch


class Frames(IterableDataset):
    """`steps` batches of frames, each a function of the seed and its number."""

    def __init__(self, seed: str, steps: int, batch_size: int, side: int, grid: int):
        self.seed, self.steps, self.batch_size, self.side, self.grid = seed, steps, batch_size, side, grid

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        mean, std = (
            torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        for step in range(self.steps):
            rng = Random(f"shapes-clip/{self.seed}/{step}")
            frames, captions = [], []
            pairs = torch.zeros(self.batch_size, len(COLOURS) * len(SHAPES))
            patch_words = torch.zeros(self.batch_size, self.grid**2, len(COLOURS) + len(SHAPES))
            for row in range(self.batch_size):
                scene = world.make_scene(rng, num_objects=world.pick(rng, (1, 2)), num_frames=1)
                moment = rng.random()
                frames.append(render(scene, moment))
                captions.append(world.frame_caption(rng, scene, moment))
                for item in scene.objects:
                    colour, shape = COLOURS.index(item.colour), SHAPES.index(item.shape)
                    pairs[row, colour * len(SHAPES) + shape] = 1
                    patch_words[row, self._covered(item, moment), colour] = 1
                    patch_words[row, self._covered(item, moment), len(COLOURS) + shape] = 1
            pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
            size = (self.side, self.side)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            yield Batch((pixels - mean) / std, captions, pairs, patch_words)

    def _covered(self, item: world.Object, moment: float) -> Tensor:
        """(patches,) bool: those that the object reaches well into."""
        x, y, radius, _ = world.placement(item, moment)
        patch = world.FRAME_SIDE / self.grid
        centres = (torch.arange(self.grid) + 0.5) * patch
        reach = 0.8 * radius + 0.6 * patch / 2
        return (((centres - y).abs() < reach)[:, None] & ((centres - x).abs() < reach)).flatten()


class Words:
    """The tokens of the `shapes` world: which of them exist, and captions as rows of a compact embedding."""

    def __init__(self, context_length: int):
        self.tokenize = open_clip.SimpleTokenizer(context_length=context_length)
        self.trained = self._ids(self._canonical())
        self.ids = sorted(self.trained | self._ids(self._others()))
        self.kin = self._kin()
        self._compact = torch.zeros(self.tokenize.vocab_size, dtype=torch.long)
        self._compact[self.ids] = torch.arange(len(self.ids))

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Compact tokens (B, L), cut after the longest caption, and the position (B,) of each one's end token."""
        tokens = self.tokenize(captions)
        ends = tokens.argmax(dim=-1)
        return self._compact[tokens[:, : int(ends.max()) + 1]], ends

    def _ids(self, texts: list[str]) -> set[int]:
        return set(self.tokenize(texts).flatten().tolist())

    def _kin(self) -> dict[int, int]:
        """Each untrained token of a synonym -> a token of its canonical word; one of two words goes to the first."""
        kin: dict[int, int] = {}
        for attribute in (world.COLOURS, world.SHAPES, world.SIZES, world.BACKGROUNDS):
            for canonical, synonyms in attribute.items():
                own = self.tokenize.encode(canonical)[0]
                for token in (token for synonym in synonyms for token in self.tokenize.encode(synonym)):
                    if token not in self.trained:
                        kin.setdefault(token, own)
        return kin

    @staticmethod
    def _canonical() -> list[str]:
        attributes = (world.COLOURS, world.SHAPES, world.SIZES, world.BACKGROUNDS)
        canonical = [word for words in attributes for word in words]
        return [*canonical, "a and on background at the top bottom left right center"]

    @staticmethod
    def _others() -> list[str]:
        attributes = (world.COLOURS, world.SHAPES, world.SIZES, world.BACKGROUNDS, world.MOTIONS)
        others = [text for words in attributes for texts in words.values() for text in texts]
        return [*others, "an, then while before backdrop"]


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: for the weight matrices inside transformer blocks (K. Jordan, 2024).

    torch's own works in bfloat16, which CPUs without it emulate slowly; this one stays in float32, takes matrices of
    one shape together, and query, key and value each for itself.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float):
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        for shape in {parameter.shape for parameter in group["params"]}:
            alike = [parameter for parameter in group["params"] if parameter.shape == shape]
            gradients = torch.stack([parameter.grad for parameter in alike])  # (N, rows, columns)
            momentum = self.state[alike[0]].setdefault("momentum", torch.zeros_like(gradients))
            momentum.lerp_(gradients, 0.05)
            update = gradients.lerp(momentum, 0.95)
            square = update.reshape(-1, shape[1], shape[1]) if shape[0] == 3 * shape[1] else update
            step = orthogonal(square).reshape(update.shape) * max(1.0, square.shape[1] / square.shape[2]) ** 0.5
            for parameter, change in zip(alike, step, strict=True):
                parameter.add_(change, alpha=-group["lr"])


def orthogonal(x: Tensor) -> Tensor:
    """(N, rows, columns): roughly the nearest matrices with orthonormal rows or columns, by Newton-Schulz steps."""
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def encode_text(model: open_clip.CLIP, tokens: Tensor, ends: Tensor) -> Tensor:
    """open_clip's text tower on sequences shorter than its context: (B, L), (B,) -> (B, D), not normalised."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]  # (B, L, W)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), ends] @ model.text_projection


def fit(
    name: str, modules: list[nn.Module], batches: DataLoader, steps: int, loss_of: Callable[[Batch], Tensor]
) -> None:
    """Minimise the loss over the modules' parameters: warm-up, then linear decay to nothing."""
    named = [(n, p) for module in modules for n, p in module.named_parameters()]
    matrices = [p for n, p in named if "resblocks" in n and p.ndim == 2]
    rest = [p for n, p in named if not ("resblocks" in n and p.ndim == 2)]
    optimizers = [Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / (0.05 * steps), 1 - step / steps))
        for o in optimizers
    ]
    started, losses = time.monotonic(), []
    for step, batch in enumerate(batches, 1):
        loss = loss_of(batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            print(
                f"{name} {step}/{steps}  loss {np.mean(losses[-100:]):.3f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )


def train(words: Words, seed: int, naming_steps: int, caption_steps: int) -> dict[str, Tensor]:
    """The state dict after training; rows of words that it did not show are still to be set."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the second core renders
    model = open_clip.create_model(shapes_clip.MODEL_NAME)
    model.token_embedding = nn.Embedding(len(words.ids), model.token_embedding.embedding_dim)
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    visual = model.visual
    visual.output_tokens = True
    name_pairs = nn.Linear(visual.output_dim, len(COLOURS) * len(SHAPES))
    name_patches = nn.Linear(visual.conv1.out_channels, len(COLOURS) + len(SHAPES))

    def loader(part: str, steps: int, batch_size: int) -> DataLoader:
        frames = Frames(f"{seed}/{part}", steps, batch_size, side=visual.image_size[0], grid=visual.grid_size[0])
        return DataLoader(frames, batch_size=None, num_workers=1, prefetch_factor=8)

    def naming(embeds: Tensor, tokens: Tensor, batch: Batch) -> Tensor:
        pairs = F.binary_cross_entropy_with_logits(name_pairs(embeds), batch.pairs)
        patches = F.binary_cross_entropy_with_logits(name_patches(tokens), batch.patch_words)
        return 100 * pairs + 20 * patches

    def name(batch: Batch) -> Tensor:
        embeds, tokens = visual(batch.images)  # (B, D), (B, patches, W)
        return naming(embeds, tokens, batch)

    def match(batch: Batch) -> Tensor:
        images, patches = visual(batch.images)
        texts = encode_text(model, *words(batch.captions))
        sims = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * model.logit_scale.exp().clamp(max=100)
        own = torch.arange(len(sims))
        return (F.cross_entropy(sims, own) + F.cross_entropy(sims.T, own)) / 2 + 0.1 * naming(images, patches, batch)

    fit("name", [visual, name_pairs, name_patches], loader("name", naming_steps, 64), naming_steps, name)
    fit("match", [model, name_pairs, name_patches], loader("match", caption_steps, 128), caption_steps, match)
    return full_state(model, words)


def full_state(model: open_clip.CLIP, words: Words) -> dict[str, Tensor]:
    """The trained state dict with the token embedding in its full size again."""
    full = {name: value.detach().clone() for name, value in model.state_dict().items()}
    embedding = torch.zeros(words.tokenize.vocab_size, full[EMBEDDING].shape[1])
    embedding[words.ids] = full[EMBEDDING]
    return {**full, EMBEDDING: embedding}


def with_untrained_rows(full: dict[str, Tensor], words: Words, seed: int) -> dict[str, Tensor]:
    """The state dict with the rows of words that training never showed set anew: see the top of this file."""
    embedding = full[EMBEDDING].clone()
    trained = embedding[sorted(words.trained)]
    mean, std = trained.mean(dim=0), trained.std(dim=0)
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(seed))
    for token in set(words.ids) - words.trained:
        kin = words.kin.get(token)
        embedding[token] = (
            mean + std * noise[token] if kin is None else full[EMBEDDING][kin] + SYNONYM_NOISE * std * noise[token]
        )
    return {**full, EMBEDDING: embedding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=shapes_clip.WEIGHTS_PATH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--naming-steps", type=int, default=1600)
    parser.add_argument("--caption-steps", type=int, default=400)
    parser.add_argument("--rows-only", action="store_true", help="keep the trained weights of --out")
    arguments = parser.parse_args()
    shapes_clip.register()
    words = Words(open_clip.get_model_config(shapes_clip.MODEL_NAME)["text_cfg"]["context_length"])
    if arguments.rows_only:
        full = shapes_clip.expand(load_file(arguments.out))
    else:
        full = train(words, arguments.seed, arguments.naming_steps, arguments.caption_steps)
    stored = shapes_clip.compact(with_untrained_rows(full, words, arguments.seed), torch.tensor(words.ids))
    with atomic_write(arguments.out) as temporary:
        save_file(stored, temporary)
        temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
