"""`plan`: the hours, bytes and files of a corpus before it is extracted."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import JsonOption, show
from pipeline.errors import BadInput
from pipeline.planner import (
    IndexChoice,
    MeasuredRates,
    Stage1,
    advice,
    index_choices,
    plan_extraction,
)


def plan(
    rates: Annotated[
        Path, typer.Option(help="What `extract --benchmark --save FILE` wrote, on files like the corpus'")
    ],
    videos: Annotated[float, typer.Option(min=1, max=1e12, help="Clips, such as 1e9")],
    frames: Annotated[int, typer.Option(min=1, max=10_000, help="Frames a clip")] = 12,
    dim: Annotated[int | None, typer.Option(min=1, max=65536, help="Width [default: that of --model]")] = None,
    model: Annotated[str | None, typer.Option(help="open_clip model [default: the one of --rates]")] = None,
    gpus: Annotated[int, typer.Option(min=1, max=10**6, help="Devices that encode, each as fast as the measured")] = 1,
    cores: Annotated[int, typer.Option(min=1, max=10**7, help="Decoding cores of all machines")] = 2,
    vectors: Annotated[int, typer.Option(min=1, max=1000, help="Index vectors a clip")] = 4,
    shard_size: Annotated[int, typer.Option(min=1, max=10**7, help="Clips of a shard")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Plan a corpus: device hours, core hours, bytes read and written, shards, index types, and what bounds it.

    \b
        python cli.py extract --videos sample/ --benchmark --save rates.json
        python cli.py plan --rates rates.json --videos 1e9 --frames 8 --gpus 64 --cores 4096
        python cli.py plan --rates rates.json --videos 1e6 --vectors 1 --json
    """
    measured = read_rates(rates)
    name = model or measured.model
    width = dim or _width(name)
    stage1 = plan_extraction(videos, frames, width, measured, devices=gpus, cores=cores, rows_per_shard=shard_size)
    choices, notes = index_choices(videos * vectors, width), advice(videos, vectors, width)
    if name != measured.model:
        notes.insert(0, f"the rates were measured with {measured.model}: measure again with --model {name}")
    result = {"stage1": asdict(stage1), "index": [asdict(choice) for choice in choices], "advice": notes}
    show(result, as_json, "\n".join([*_in_words(stage1, measured, gpus, cores), *_table(choices), *notes]))


def read_rates(path: Path) -> MeasuredRates:
    """Read a file of rates. Raises BadInput naming what it lacks."""
    fix = "write it with `python cli.py extract --videos DIR --benchmark --save FILE`"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"--rates {path} cannot be read ({error})", fix=fix) from None
    names = [field.name for field in fields(MeasuredRates)]
    missing = [name for name in names if not isinstance(found, dict) or name not in found]
    if missing:
        raise BadInput(f"--rates {path} lacks {', '.join(missing)}", fix=fix)
    measured = MeasuredRates(**{name: found[name] for name in names})
    numbers = (measured.clips, measured.frames, measured.decode_seconds, measured.workers, measured.encode_seconds)
    if not all(isinstance(number, int | float) and number > 0 for number in numbers):
        raise BadInput(f"--rates {path}", expected="positive counts and seconds", got=numbers, fix=fix)
    return measured


def _width(model: str) -> int:
    from pipeline.clip.loading import embedding_width

    return embedding_width(model)


def _in_words(plan: Stage1, rates: MeasuredRates, gpus: int, cores: int) -> list[str]:
    sizes = ", ".join(f"{value / 1e9:,.1f} GB {name}" for name, value in plan.feature_bytes.items())
    return [
        f"encoding   {plan.encode_device_hours:,.1f} device hours (rate of {rates.model} on {rates.device})",
        f"decoding   {plan.decode_core_hours:,.1f} core hours; {plan.cores_a_device:,.1f} cores keep one device busy",
        f"wall time  {plan.hours:,.1f} h with {gpus} devices and {cores} cores: {plan.bound} bounds it",
        f"read       {plan.bytes_read / 1e9:,.1f} GB of video",
        f"features   {sizes}, in {plan.shards:,} shards",
    ]


def _table(choices: list[IndexChoice]) -> list[str]:
    rows = [f"{choice.factory:20} {choice.bytes / 1e9:12,.2f} GB {choice.build_hours:10,.2f} h" for choice in choices]
    return [f"{'index':20} {'file, memory':>15} {'build, 2 cores':>12}", *rows]
