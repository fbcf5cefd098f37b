"""`--head NAME` and `--set name=value`: checked without torch and without features."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from dits_head.config import HeadConfig
from dits_head.registry import ENTRY_POINTS, HEADS
from pipeline.errors import BadInput

DEFAULT_HEAD = "three-views"  # best with CLIP fixed on `shapes` and on real features: docs/results/index.md


def check_head(head: str, options: Mapping[str, str], *, paper_literal: bool = False) -> None:
    """Refuse what no features could make a head of. Raises BadInput."""
    if head not in HEADS and ":" not in head and not entry_points(group=ENTRY_POINTS, name=head):
        raise BadInput(f"unknown --head {head!r}", expected=f"{', '.join(HEADS)}, or module:Class")
    if paper_literal and head != "dits":
        raise BadInput("--paper-literal is a reading of DITS", expected="--head dits", got=f"--head {head}")
    head_settings(options)


def head_settings(options: Mapping[str, str]) -> dict[str, Any]:
    """`--set name=value` pairs, with the types of HeadConfig's fields. Raises BadInput for one that cannot be read."""
    known = HeadConfig.fields()
    for name in options:
        if name not in known or name in ("head", "dim"):
            raise BadInput(f"--set {name}", expected=", ".join(sorted({*known} - {"head", "dim"})), got=name)
    return {name: _typed(name, text, known[name]) for name, text in options.items()}


def _typed(name: str, text: str, example: Any) -> Any:
    try:
        if isinstance(example, bool):
            return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[text.lower()]
        return type(example)(text)
    except (KeyError, ValueError):
        raise BadInput(f"--set {name}", expected=f"a {type(example).__name__}", got=repr(text)) from None
