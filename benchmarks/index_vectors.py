"""Which vectors of a video an index should hold, measured on a trained head.

    python benchmarks/index_vectors.py                # after `make demo`: the head trained last on shapes

For 1, 2, 3, 4, 6 and 12 stretches of the video (`HeadConfig.index_vectors`): in how many queries the shortlist of 10,
50 or 100 holds the video that exhaustive scoring puts first, and what R@1 loses after exact re-ranking.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.resolve import resolve_head, resolve_store
from pipeline.stores.features import text_to_video
from pipeline.workspace import Workspace

SHORTLISTS = (10, 50, 100)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=None)
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--run", default=None)
    arguments = parser.parse_args()
    workspace = Workspace.locate(arguments.workspace)
    store = resolve_store(workspace, arguments.dataset)
    head = resolve_head(workspace, store, arguments.run).head
    videos, texts = store.store.videos("test"), store.store.texts("test")
    own = torch.from_numpy(text_to_video(texts, videos))
    frames, mask = torch.from_numpy(videos.frame_embeds).float(), torch.from_numpy(videos.frame_mask)
    embeds = torch.from_numpy(texts.text_embeds)
    sims = head.score(embeds, frames, mask)
    best, aligned = sims.argmax(1), F.normalize(head.align_text(embeds), dim=-1)
    exhaustive = accuracy(best, own)
    prepared = head.pooling.prepare(frames, mask)
    print(f"{head.config.head}: exhaustive R@1 {exhaustive:.2f}\n")
    print("| vectors a video | " + " | ".join(f"kept in {k} | R@1 lost" for k in SHORTLISTS) + " |")
    print("| ---: |" + " ---: |" * 2 * len(SHORTLISTS))
    for count in (1, 2, 3, 4, 6, 12):
        pooled = head.pooling.pool_windows(prepared, count).vectors()
        found = torch.einsum("td,vmd->tvm", aligned, F.normalize(pooled, dim=-1)).amax(-1)
        cells = []
        for k in SHORTLISTS:
            top = found.topk(k, dim=1).indices
            reranked = top.gather(1, sims.gather(1, top).argmax(1, keepdim=True)).squeeze(1)
            kept = 100 * (top == best[:, None]).any(1).float().mean().item()
            cells.append(f"{kept:.1f} % | {exhaustive - accuracy(reranked, own):+.2f}")
        print(f"| {count} | " + " | ".join(cells) + " |")


def accuracy(chosen: torch.Tensor, own: torch.Tensor) -> float:
    return 100 * float(np.mean((chosen == own).numpy()))


if __name__ == "__main__":
    main()
