"""Offline text-video retrieval: extract features, train a head, index, evaluate, search.

    python cli.py demo                          the whole pipeline on the built-in data set
    python cli.py extract --videos my_clips/    stage 1 on your own videos
    python cli.py train-head                    stage 2
    python cli.py evaluate --index              stage 3

Each command only parses, calls `pipeline.flows` and prints; heavy libraries are imported inside, so that `--help`
answers at once. `--json` prints one object on stdout; progress goes to stderr. Exit codes: 0 done, 1 done but not good
enough (coverage, verification), 2 a mistake in what was given, 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from pipeline.config import Workspace
from pipeline.errors import BadInput, UserError


class Commands(typer.core.TyperGroup):
    """A UserError becomes one line on stderr and exit code 2; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            say(f"error: {error}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("interrupted; run the same command again to go on")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", help="Folder of all data [default: $DITS_WORKSPACE or ./workspace]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Data set [default: the one extracted last]")]
EncoderOption = Annotated[str | None, typer.Option("--encoder", help="Folder name under features/<dataset>/")]
RunOption = Annotated[str | None, typer.Option("--run", help="Head: a run's name, or zero-shot [default: the last]")]
HeadDirOption = Annotated[Path | None, typer.Option("--head-dir", help="Head: any folder with config.json")]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(result: Any, as_json: bool, text: str) -> None:
    """The command's result on stdout: one JSON object, or text for people."""
    print(json.dumps(result, ensure_ascii=False) if as_json else text, flush=True)


@contextmanager
def stepwise(title: str) -> Iterator[Any]:
    """A progress bar on stderr that takes (done, total, text)."""
    from tqdm import tqdm

    with tqdm(desc=title, file=sys.stderr, dynamic_ncols=True, mininterval=0.5) as bar:

        def step(done: int, total: int, text: str = "") -> None:
            bar.total = total
            bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)

        yield step


def pairs(options: list[str] | None, flag: str) -> dict[str, str]:
    """["a=1"] -> {"a": "1"}."""
    for option in options or []:
        if "=" not in option:
            raise BadInput(f"{flag} {option}", expected="name=value", got=option)
    return dict(option.split("=", 1) for option in options or [])


@app.command()
def extract(
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="shapes, msrvtt, msvd, lsmdc, didemo, vatex, charades, activitynet")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of videos (your own, or the data set's)")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder of the data set's annotation files")] = None,
    captions: Annotated[Path | None, typer.Option(help="Captions of your own videos: .csv, .parquet or .jsonl")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of the data set, name=value; repeatable")] = None,
    model: Annotated[str, typer.Option(help="Any open_clip model, or the built-in shapes-clip")] = "shapes-clip",
    pretrained: Annotated[str | None, typer.Option(help="open_clip tag, or a local weights file")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    num_frames: Annotated[int, typer.Option(help="Frames a video: the middles of as many equal intervals")] = 12,
    decoder: Annotated[str, typer.Option(help="pyav (exact, fast) or ffmpeg")] = "pyav",
    allow_mixed_decoders: Annotated[
        bool, typer.Option("--allow-mixed-decoders", help="Let ffmpeg try what PyAV cannot read; recorded a video")
    ] = False,
    hwaccel: Annotated[str | None, typer.Option(help="ffmpeg's hardware decoding, such as cuda")] = None,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0: one a core")] = 0,
    batch_size: Annotated[int, typer.Option(help="Frames encoded at once")] = 64,
    shard_size: Annotated[int, typer.Option(help="Videos a shard")] = 256,
    shard_format: Annotated[str, typer.Option("--format", help="hdf5 or parquet")] = "hdf5",
    retry_failed: Annotated[str | None, typer.Option(help="Try failed videos again: all, or a failure class")] = None,
    min_coverage: Annotated[float, typer.Option(help="Exit with 1 when a smaller part of the videos is done")] = 0.95,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another process writing to the store")] = 0.0,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 1: decode videos, encode frames and captions, write the feature store.

    Can be killed and started again at any moment: what is done stays done.

    \b
        python cli.py extract --dataset shapes
        python cli.py extract --videos my_clips/ --captions captions.csv
        python cli.py extract --dataset msrvtt --videos /data/msrvtt --annotations /data/msrvtt_csv \\
            --model ViT-B-32 --pretrained openai
        python cli.py extract --dataset vatex --retry-failed all
    """
    from pipeline.extract.settings import ExtractSettings
    from pipeline.flows.extract import dataset_manifest, extract_manifest

    place = Workspace.locate(workspace)
    settings = ExtractSettings(
        model=model,
        pretrained=pretrained,
        device=device,
        precision=precision,
        num_frames=num_frames,
        decoder=decoder,
        allow_mixed_decoders=allow_mixed_decoders,
        hwaccel=hwaccel,
        workers=workers,
        batch_size=batch_size,
        shard_size=shard_size,
        shard_format=shard_format,
        retry_failed=retry_failed,
        min_coverage=min_coverage,
        wait_seconds=wait,
    )
    manifest = dataset_manifest(place, dataset, videos, annotations, captions, pairs(option, "--option"))
    report = extract_manifest(place, manifest, settings)
    text = (
        f"{report.inputs} inputs = {report.done} done + {report.failed} failed + {report.skipped} skipped\n"
        f"features: {report.store}"
    )
    if report.failed:
        classes = ", ".join(f"{name}: {count}" for name, count in sorted(report.failure_classes.items()))
        text += f"\nfailures ({classes}): {report.store}/failures.parquet"
    show({name: getattr(report, name) for name in ("inputs", "done", "failed", "skipped", "store")}, as_json, text)
    if not report.enough:
        say(f"only {report.coverage:.1%} of the videos are done (--min-coverage {report.min_coverage:.0%})")
        raise typer.Exit(1)


@app.command("train-head")
def train_head(
    head: Annotated[str, typer.Option(help="mean-pool, xpool, mlp, fixed-prior, diffusion, dits or tmass")] = "dits",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the head, name=value; repeatable")
    ] = None,
    paper_literal: Annotated[
        bool, typer.Option("--paper-literal", help="DITS with the paper's schedule and noise taken word for word")
    ] = False,
    lr: Annotated[float | None, typer.Option(help="Learning rate [default: the data set's preset]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over all captions")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs a step")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same weights (on one CPU)")] = 24,
    start_from: Annotated[str | None, typer.Option(help="Begin with another run's equally named weights")] = None,
    devices: Annotated[int, typer.Option(help="GPUs (or CPU processes) of this machine")] = 1,
    run: Annotated[str | None, typer.Option(help="The run's name [default: head and fingerprint]")] = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 2: train a head on the extracted features.

    The checkpoint is chosen on held-out videos, never on the test split.

    \b
    python cli.py train-head
    python cli.py train-head --head xpool
    python cli.py train-head --head dits --set T_prime=5 --set condition=t --seed 1
    python cli.py train-head --paper-literal
    """
    from pipeline.flows.choose import choose_store
    from pipeline.flows.train import head_config, train_head, train_settings

    place = Workspace.locate(workspace)
    chosen = choose_store(place, dataset, encoder)
    config = head_config(head, chosen.store.dim, pairs(set_, "--set"), paper_literal=paper_literal)
    settings = train_settings(chosen, lr=lr, epochs=epochs, batch_size=batch_size, seed=seed)
    say(f"training {config.head} on {chosen.dataset}/{chosen.encoder}")
    with stepwise(config.head) as progress:
        result = train_head(
            place, chosen, config, settings, run=run, start_from=start_from, devices=devices, progress=progress
        )
    val = result["val"]
    text = (
        f"{result['run']}: validation R@1 {val['R@1']:.1f}, R@5 {val['R@5']:.1f}, R@10 {val['R@10']:.1f} "
        f"(epoch {val['epoch']}; selected on: {result['selected_on']}), {result['seconds']:.0f} s"
    )
    show(result, as_json, text)


if __name__ == "__main__":
    app()
