"""A small training run as its own process, so that a test can kill it: `python training_script.py RUN_DIR EPOCHS`."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from dits_head.config import HeadConfig
from dits_head.head import build_head
from pipeline.train import loop
from pipeline.train.batches import BatchSource, PairData

DIM = 32


def toy_pairs(videos: int = 60, seed: int = 0) -> PairData:
    """Videos of 4 frames and two captions each, a fixed rotation away from one of their frames."""
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((videos, 4, DIM)).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    text_to_video = np.repeat(np.arange(videos), 2)
    texts = (frames[text_to_video, np.tile([0, 2], videos)] @ rotation).astype(np.float32)
    return PairData(texts, frames.astype(np.float16), np.ones((videos, 4), bool), text_to_video, np.arange(2 * videos))


def run(run_dir: Path, epochs: int, seed: int = 24, pause: float = 0.0) -> loop.RunState:
    torch.manual_seed(0)
    head = build_head(HeadConfig(head="dits", dim=DIM, T=3, blocks=1, dropout=0.2))
    data = toy_pairs()
    fabric = Fabric(accelerator="cpu", devices=1)
    settings = loop.TrainSettings(lr=1e-3, epochs=epochs, batch_size=8, seed=seed)
    source = BatchSource(data, torch.device("cpu"), free_bytes=1 << 30)

    def validate(model):
        time.sleep(pause)
        sims = model.score(
            torch.from_numpy(data.text_embeds),
            torch.from_numpy(data.frame_embeds).float(),
            torch.from_numpy(data.frame_mask),
        )
        own = sims[torch.arange(len(data)), torch.from_numpy(data.text_to_video)]
        ranks = 1 + (sims > own[:, None]).sum(1).float()
        return {"R@1": 100 * (ranks == 1).float().mean().item(), "MnR": ranks.mean().item()}

    groups = loop.parameter_groups(head, settings.weight_decay)
    state = loop.train(
        head,
        source,
        groups,
        settings,
        run_dir,
        identity={"seed": seed, "epochs": epochs},
        validate=validate,
        fabric=fabric,
    )
    torch.save(head.state_dict(), run_dir / "final.pt")
    return state


if __name__ == "__main__":
    loop.RESUME_EVERY = 0.0  # a point to go on from after every step
    run(Path(sys.argv[1]), int(sys.argv[2]))
