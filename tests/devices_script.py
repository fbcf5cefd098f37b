"""Ten steps of a head and towers on N processes, as its own script: `devices_script.py RUN_DIR DEVICES HEAD [cuda]`.

Writes losses.json (a number a step) and final.pt. Two texts say the same and lie in parts of different devices.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from training_script import DIM, toy_pairs

from dits_head.config import HeadConfig
from dits_head.head import build_head
from dits_head.joint import JointModel
from pipeline.train import loop
from pipeline.train.joint_batches import JointSource


class Towers(nn.Module):
    """A matrix a tower."""

    def __init__(self):
        super().__init__()
        self.text, self.image = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def frame_embeds(self, inputs):
        return self.image(inputs)

    def text_embeds(self, inputs, lengths):
        return self.text(inputs)


class Recorded(JointModel):
    """Remembers its losses."""

    def training_loss(self, **batch):
        loss, terms = super().training_loss(**batch)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss, terms


class ToyInputs:
    def __init__(self, data):
        self.data = data

    def frame_inputs(self, batches):
        return (torch.from_numpy(self.data.frame_embeds[rows]).float() for rows in batches)

    def text_inputs(self, rows):
        return torch.from_numpy(self.data.text_embeds[rows]), torch.ones(len(rows), dtype=torch.long)


def run(run_dir: Path, devices: int, head: str, accelerator: str = "cpu") -> None:
    fabric = Fabric(accelerator=accelerator, devices=devices)
    fabric.launch()
    torch.manual_seed(0)
    model = Recorded(build_head(HeadConfig(head=head, dim=DIM, T=3, blocks=1, **SETTINGS[head])), Towers())
    model.to(fabric.device)
    data = replace(toy_pairs(), sentence=np.arange(120) // 3)
    source = JointSource(data, ToyInputs(data), fabric.device, fabric.global_rank, fabric.world_size)
    loop.train(
        model,
        source,
        loop.parameter_groups(model, 0.2),
        loop.TrainSettings(lr=1e-3, epochs=1, batch_size=12),
        run_dir,
        identity={},
        validate=lambda _: {"R@1": 1.0, "MnR": 1.0},
        fabric=fabric,
    )
    if fabric.is_global_zero:
        torch.save(model.state_dict(), run_dir / "final.pt")
        (run_dir / "losses.json").write_text(json.dumps(model.losses))


SETTINGS: dict[str, dict[str, Any]] = {
    "xpool": {"dropout": 0.2},
    "dits": {"noise_train": True},
    "mlp": {"index_loss": 0.5},
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    run(folder, int(sys.argv[2]), *sys.argv[3:])
