"""Offline text-video retrieval: data sets, features, heads, indexes, evaluation.

On a machine without a GPU the encoder shares the cores with decoding processes. By default OpenMP's threads spin while
they wait for each other and steal the cores from the decoders: a small encoder then ran 13 times slower on two busy
cores. OpenMP reads its policy when torch is loaded, so it is set here, before anything imports torch.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.retrieve.retriever import Retriever

__all__ = ["Retriever"]

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """`from pipeline import Retriever`, loaded when it is asked for: `--help` must not wait for torch."""
    if name != "Retriever":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.retrieve.retriever import Retriever

    return Retriever
