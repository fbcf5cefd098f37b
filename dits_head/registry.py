"""Names of heads: the built-in ones, and those that another package brings.

A head is named by its aligner's class (`dits_head.aligners.Aligner`), or, where it is made of several heads, by its own
(`dits_head.head.RetrievalHead`): a name of HEADS, an entry point of the group `dits_retrieval.heads`, or `module:Class`
of anything that can be imported. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

ENTRY_POINTS = "dits_retrieval.heads"
HEADS = {
    "mean-pool": "dits_head.aligners:MeanPooled",
    "xpool": "dits_head.aligners:Identity",
    "mlp": "dits_head.aligners:MLP",
    "fixed-prior": "dits_head.aligners:FixedPrior",
    "diffusion": "dits_head.aligners:Diffusion",
    "dits": "dits_head.aligners:DITS",
    "tmass": "dits_head.aligners:TMASS",
    "tmass-lite": "dits_head.aligners:TMASSLite",
    "cca": "dits_head.cca:CCA",
    "three-views": "dits_head.three_views:ThreeViews",
}


def aligner_class(head: str) -> Any:
    """Import the class that names a head. Raises ValueError, naming the fix, for a name that leads to none."""
    path = HEADS.get(head, head)
    if ":" not in path:
        found = entry_points(group=ENTRY_POINTS, name=head)
        if not found:
            raise ValueError(
                f"head={head!r}: choose one of {', '.join(HEADS)}, an entry point of {ENTRY_POINTS}, or module:Class"
            )
        path = next(iter(found)).value
    module, _, name = path.partition(":")
    try:
        aligner = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"head={head!r} cannot be imported ({error}); put its folder on PYTHONPATH") from None
    if not (isinstance(aligner, type) and hasattr(aligner, "needs_video")):  # to import Aligner here closes a circle
        raise ValueError(f"head={head!r} is no head; make it a subclass of dits_head.aligners.Aligner")
    return aligner
