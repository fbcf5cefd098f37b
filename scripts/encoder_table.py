"""Write the table of encoders in docs/reference/encoders.md.

    python scripts/encoder_table.py --write
    python scripts/encoder_table.py --measure PE-Core-T-16-384,ViT-B-32   # frames a second on this machine, besides

Sizes come from the models themselves, built without weights on torch's meta device; GFLOP from torch's own counter on
one frame through the image tower (a multiply and an add are two). A cached clip is CLIP_FRAMES frames in float16, one
depth, whatever K. Licences are what timm's metadata state of each published tag's image tower.
"""

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from dits_head.towers import Uncacheable, image_tower, text_tower
from pipeline.clip import torchvision_guard
from pipeline.clip.encoder import load_encoder
from pipeline.clip.preprocessing import agreed_or_default

torchvision_guard.ensure()
import open_clip  # noqa: E402
from timm.models import get_pretrained_cfg, list_pretrained  # noqa: E402

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "encoders.md"
BEGIN, END = "<!-- table: scripts/encoder_table.py -->", "<!-- end of table -->"
CLIP_FRAMES = 12
MODELS = (
    *("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"),
    *("PE-Core-T-16-384", "PE-Core-S-16-384", "PE-Core-B-16", "PE-Core-L-14-336", "PE-Core-bigG-14-448"),
    *("ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256", "ViT-B-16-SigLIP2", "ViT-B-16-SigLIP2-384", "ViT-L-16-SigLIP2-384"),
    *("ViT-SO400M-14-SigLIP2", "ViT-SO400M-16-SigLIP2-384", "ViT-gopt-16-SigLIP2-384"),
    *("MobileCLIP2-B", "MobileCLIP2-L-14", "MobileCLIP2-S0", "MobileCLIP2-S2", "MobileCLIP2-S3", "MobileCLIP2-S4"),
)
TIMM_TAGS = {"meta": "fb", "dfndr2b": "apple_mclip2_dfndr2b"}  # what timm calls the weights of an open_clip tag


@dataclass(frozen=True)
class Row:
    """What the table says of one model."""

    model: str
    tags: list[str]
    width: int
    pixels: int
    preprocessing: str
    context: int
    tokens: str
    parameters: float
    gflop: float
    blocks: str
    cached: str

    def markdown(self, rate: str) -> str:
        tags = ", ".join(self.tags[:3]) + (f" and {len(self.tags) - 3} more" if len(self.tags) > 3 else "")
        cells = (
            *(self.model, tags, self.width, self.pixels, self.preprocessing, self.context, self.tokens),
            *(f"{self.parameters:.0f} M", f"{self.gflop:.1f}", self.blocks, self.cached, rate, licence(self.model)),
        )
        return "| " + " | ".join(map(str, cells)) + " |"


HEAD = (
    *("Model", "Tags", "Width", "Pixels", "Preprocessing", "Context", "Tokens × width", "Parameters"),
    *(
        "GFLOP a frame",
        "K, image / text",
        f"Cached clip ({CLIP_FRAMES} frames)",
        "Frames/s of one core",
        "Licence of the weights",
    ),
)


def licence(model: str) -> str:
    """What timm's metadata state of the image towers of a model's tags, with the number of tags where they differ."""
    tower = open_clip.get_model_config(model)["vision_cfg"].get("timm_model_name")
    found: Counter[str] = Counter()
    timm_weights = set(list_pretrained())
    for tag in open_clip.list_pretrained_tags_by_model(model):
        hub = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "")
        own = f"v2_{tag}" if "SigLIP2" in model else TIMM_TAGS.get(tag, tag)
        name = f"{tower}.{own}" if tower else hub.strip("/").rpartition("/")[2]
        known = get_pretrained_cfg(name) if name in timm_weights else None
        found[(known.license if known else None) or "not stated"] += 1
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{name} ({count})" for name, count in found.most_common())


def describe(name: str) -> Row:
    """A model's row, without weights and without computing anything."""
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.create_model(name, pretrained=None, load_weights=False, device="meta")
    pixels = config["vision_cfg"].get("image_size", 224)
    counter = FlopCounterMode(display=False)
    with counter:  # with gradients on: without, torch's fused attention is not counted
        model.encode_image(torch.zeros(1, 3, pixels, pixels, device="meta"))
    try:
        image, text = image_tower(model), text_tower(model)
        tokens, blocks = f"{image.tokens} × {image.width}", f"{len(image.blocks)} / {len(text.blocks)}"
        cached = f"{CLIP_FRAMES * image.tokens * image.width * 2 / 1e6:.1f} MB"
    except Uncacheable as reason:
        tokens, blocks, cached = "maps", "none: " + ("stages" if "stages" in str(reason) else str(reason)), "—"
    agreed = agreed_or_default(name)
    how = f"{agreed['resize_mode']}, {agreed['interpolation']}" if agreed else "differs by tag"
    return Row(
        name,
        open_clip.list_pretrained_tags_by_model(name),
        config["embed_dim"],
        pixels,
        how,
        config["text_cfg"].get("context_length", 77),
        tokens,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        counter.get_total_flops() / 1e9,
        blocks,
        cached,
    )


def frames_a_second(name: str, batch: int = 4, least: float = 3.0) -> float:
    """Frames a second of one core: the bare image tower in float32, by the processor's time of one thread (what else
    runs on the machine does not count), the median over `least` seconds or more."""
    torch.set_num_threads(1)
    encoder = load_encoder(name, device="cpu", precision="float32", random_seed=0)
    frames = torch.zeros((batch, *encoder.image_size, 3), dtype=torch.uint8)
    encoder.embed_frames(frames)
    seconds: list[float] = []
    while sum(seconds) < least or len(seconds) < 3:
        started = time.process_time()
        encoder.embed_frames(frames)
        seconds.append(time.process_time() - started)
    return batch / sorted(seconds)[len(seconds) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", default="", help="models whose rate is measured, with commas between")
    parser.add_argument("--write", action="store_true", help="write the table into the page, instead of printing it")
    given = parser.parse_args()
    measured = [name for name in given.measure.split(",") if name]
    if any(name.replace("/", "") not in MODELS for name in measured):
        parser.error(f"choose from {', '.join(MODELS)}")
    rates = {name: f"{frames_a_second(name):.1f}" for name in measured}
    rows = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    rows += [describe(name).markdown(rates.get(name, "—")) for name in MODELS]
    table = "\n".join(rows)
    if not given.write:
        print(table)
        return
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
