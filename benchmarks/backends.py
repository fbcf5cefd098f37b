"""Images per second of the encoder on the CPU: PyTorch as stage 1 runs it, torch.compile, and OpenVINO.

    pip install openvino
    python benchmarks/backends.py [--model ViT-B-32] [--batch 32] [--rounds 3] [--ways eager openvino ...]

Untrained weights. The ways take turns and each one's fastest round counts; rates are also given as a ratio to eager
float32, with the smallest cosine between the two ways' embeddings. A way named *-throughput lets OpenVINO serve two
batches at once. bfloat16 is worth trying only where the processor has it; elsewhere it is emulated, and slow.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.clip.encoder import load_encoder

Way = Callable[[], np.ndarray]  # embeddings (2 * batch, D) of two batches


def eager(visual: Any, batches: list[torch.Tensor], dtype: torch.dtype) -> Way:
    visual = visual.to(dtype)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([visual(batch.to(dtype)).float() for batch in batches]).numpy()

    return run


def openvino(visual: Any, batches: list[torch.Tensor], precision: str, hint: str) -> Way:
    import openvino  # not one of the project's dependencies: see the docstring

    shape = openvino.PartialShape(list(batches[0].shape))
    model = openvino.convert_model(visual, example_input=batches[0], input=[shape])
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": hint}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    queue = openvino.AsyncInferQueue(compiled)
    found: dict[int, np.ndarray] = {}
    queue.set_callback(
        lambda request, number: found.__setitem__(number, np.array(request.get_output_tensor().data, np.float32))
    )

    def run() -> np.ndarray:
        for number, batch in enumerate(batches):
            queue.start_async([batch.numpy()], userdata=number, share_inputs=True)
        queue.wait_all()
        return np.concatenate([found[number] for number in range(len(batches))])

    return run


WAYS: dict[str, Callable[[Callable[[], Any], list[torch.Tensor]], Way]] = {
    "eager": lambda load, batches: eager(load(), batches, torch.float32),
    "eager-bfloat16": lambda load, batches: eager(load(), batches, torch.bfloat16),
    "compile": lambda load, batches: eager(torch.compile(load()), batches, torch.float32),
    "openvino": lambda load, batches: openvino(load(), batches, "f32", "LATENCY"),
    "openvino-throughput": lambda load, batches: openvino(load(), batches, "f32", "THROUGHPUT"),
    "openvino-bfloat16": lambda load, batches: openvino(load(), batches, "bf16", "LATENCY"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    default = ["compile", "openvino", "openvino-throughput"]
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:], default=default)
    arguments = parser.parse_args()

    def load() -> Any:
        return load_encoder(arguments.model, random_seed=0, precision="float32", device="cpu").model.visual

    torch.manual_seed(0)
    batches = list(torch.randn(2, arguments.batch, 3, 224, 224))
    ways = {name: WAYS[name](load, batches) for name in ["eager", *arguments.ways]}
    embeds = {name: torch.from_numpy(run()) for name, run in ways.items()}  # the first round pays for warming up
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(arguments.rounds):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    for name in ways:
        rate, ratio = 2 * arguments.batch / best[name], best["eager"] / best[name]
        cosine = torch.nn.functional.cosine_similarity(embeds[name], embeds["eager"]).min().item()
        print(f"{name:20} {rate:6.1f} images/s, {ratio:.2f} of eager, cosine at least {cosine:.6f}")


if __name__ == "__main__":
    main()
