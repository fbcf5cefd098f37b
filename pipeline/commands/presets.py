"""`presets`: the paper's recipes."""

from typing import Annotated

import typer

from pipeline.presets import PRESETS, get_preset


def presets(name: Annotated[str | None, typer.Argument(help="One of them [default: all]")] = None) -> None:
    """The paper's recipe for each data set and backbone: what to run, what it costs, what the paper reached.

    \b
        python cli.py presets
        python cli.py presets msrvtt-b32
    """
    chosen = [get_preset(name)] if name else list(PRESETS.values())
    print("\n\n".join(preset.describe() for preset in chosen))
