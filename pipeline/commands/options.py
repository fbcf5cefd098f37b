"""Options that several commands share, and the checks of what they are given.

One word, one meaning: `--dataset` and `--encoder` name a feature store, `--run` and `--head-dir` a head, `--index` an
index (`evaluate --index` takes the data set's own), `--source` (or `--corpus`) is where videos come from.

Every type here is light: a bad value is refused before any heavy library loads.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.errors import BadInput

# Held equal to the constants of the rooms by tests/commands/test_refusals.py.
Decoder = Literal["pyav", "ffmpeg"]
Engine = Literal["local", "ray"]
LongCaptions = Literal["cut", "windows"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Sampling = Literal["middles", "ends"]
ShardFormat = Literal["hdf5", "parquet"]
Ties = Literal["average", "expected", "optimistic", "pessimistic", "clip4clip", "xpool"]
TokenDtype = Literal["float16", "int8"]
TrainPrecision = Literal["float32", "tf32", "bfloat16"]

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder of all data, or s3://... [default: $DITS_WORKSPACE or ./workspace]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Data set [default: the one extracted last]")]
EncoderOption = Annotated[str | None, typer.Option("--encoder", help="Folder name under features/<dataset>/")]
RunOption = Annotated[str | None, typer.Option("--run", help="Head: a run's name, or zero-shot [default: the last]")]
HeadDirOption = Annotated[Path | None, typer.Option("--head-dir", help="Head: any folder with config.json")]
IndexOption = Annotated[str | None, typer.Option("--index", help="Index, by its name [default: the one built last]")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
ShortlistOption = Annotated[
    int, typer.Option("--shortlist", min=1, max=10**6, help="Candidates of the index that are re-ranked exactly")
]
DatasetOptions = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the data set, name=value; repeatable")
]
LearningRateOption = Annotated[
    float | None, typer.Option("--lr", min=0, max=1e3, help="Learning rate [default: the data set's preset]")
]
EpochsOption = Annotated[int | None, typer.Option("--epochs", min=1, max=10**6, help="Passes over all captions")]
PairsOption = Annotated[int | None, typer.Option("--batch-size", min=1, max=10**6, help="Pairs a step")]


def show(result: Any, as_json: bool, text: str) -> None:
    """Print a command's result on stdout: one JSON object, or text for people."""
    print(json.dumps(result, ensure_ascii=False) if as_json else text, flush=True)


def filled(settings: type, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the given options that a settings dataclass has a field for, without what was left out (None)."""
    names = {field.name for field in fields(settings)}
    return {name: value for name, value in given.items() if name in names and value is not None}


def pairs(options: list[str] | None, flag: str) -> dict[str, str]:
    """["a=1"] -> {"a": "1"}."""
    for option in options or []:
        if "=" not in option:
            raise BadInput(f"{flag} {option}", expected="name=value", got=option)
    return dict(option.split("=", 1) for option in options or [])


def numbers(values: dict[str, str], flag: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in values.items()}
    except ValueError:
        raise BadInput(flag, expected="name=number", got=str(values)) from None


def size_in_bytes(text: str) -> int:
    """ "2GB" -> 2000000000; a plain number is bytes."""
    units = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    figure = text.strip().upper().rstrip("KMGTIB ")
    unit = text.strip().upper()[len(figure) :].strip()
    try:
        return max(int(float(figure) * units[unit]), 0)
    except (ValueError, KeyError, OverflowError):
        raise BadInput("not an amount of memory", expected="such as 500MB or 2GB", got=repr(text)) from None


def exclusive(options: dict[str, Any]) -> None:
    """Options, or groups of them, of which at most one may be given. Raises BadInput."""
    given = [name for name, value in options.items() if value not in (None, []) and value is not False]
    if len(given) > 1:
        raise BadInput(f"options exclude each other: {'; '.join(given)}", fix="give those of one of them")
