"""Offline text-video retrieval: extract features, train a head, index, evaluate, search.

\b
    python cli.py demo                          the whole pipeline on the built-in data set
    python cli.py extract --videos my_clips/    stage 1 on your own videos
    python cli.py train-head                    stage 2
    python cli.py evaluate --index              stage 3

`--json` prints one object on stdout; messages and progress go to stderr. Exit codes: 0 done, 1 done but not good enough
(coverage, verification), 2 a mistake in what was given, 70 an internal error, 130 interrupted.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.clean import clean
from pipeline.commands.clip_out import clip_out
from pipeline.commands.compare import compare
from pipeline.commands.demo import demo
from pipeline.commands.doctor import doctor
from pipeline.commands.duplicates import duplicates
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export_clip import export_clip
from pipeline.commands.extract import extract
from pipeline.commands.failures import failures
from pipeline.commands.figures import figures
from pipeline.commands.group import Commands, log_to_file, print_version, show_less
from pipeline.commands.import_features import import_features
from pipeline.commands.index import index
from pipeline.commands.options import size_in_bytes
from pipeline.commands.plan import plan
from pipeline.commands.presets import presets
from pipeline.commands.reindex import reindex
from pipeline.commands.reproduce import reproduce
from pipeline.commands.search import search
from pipeline.commands.serve import serve
from pipeline.commands.train_head import train_head

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(help=__doc__)
def common(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, errors and the result")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Append messages to this file too, with their times")] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(envvar="DITS_CACHE_DIR", help="Copies of a workspace on s3:// [default: ~/.cache/dits-retrieval]"),
    ] = None,
    cache_size: Annotated[
        str | None, typer.Option(envvar="DITS_CACHE_SIZE", help="Of one workspace's large files there [default: 50GB]")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    show_less(quiet)
    log_to_file(log_file)
    if cache_dir:
        os.environ["DITS_CACHE_DIR"] = str(cache_dir)  # subprocesses work in the same folder
    if cache_size:
        os.environ["DITS_CACHE_SIZE"] = str(size_in_bytes(cache_size))


COMMANDS: dict[str, Callable[..., None]] = {
    "extract": extract,
    "plan": plan,
    "import-features": import_features,
    "train-head": train_head,
    "index": index,
    "evaluate": evaluate,
    "search": search,
    "clip-out": clip_out,
    "serve": serve,
    "duplicates": duplicates,
    "reindex": reindex,
    "compare": compare,
    "reproduce": reproduce,
    "figures": figures,
    "export-clip": export_clip,
    "doctor": doctor,
    "failures": failures,
    "clean": clean,
    "presets": presets,
    "demo": demo,
}
for name, command in COMMANDS.items():
    app.command(name)(command)

if __name__ == "__main__":
    app()
