"""`extract`, stage 1."""

import importlib.util
import logging
import os
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.config_file import ConfigOption, keep
from pipeline.commands.file_lines import file_lines
from pipeline.commands.options import (
    DatasetOptions,
    Decoder,
    DeviceOption,
    Engine,
    JsonOption,
    LongCaptions,
    Precision,
    Sampling,
    ShardFormat,
    TokenDtype,
    WorkspaceOption,
    exclusive,
    filled,
    pairs,
    show,
)
from pipeline.errors import BadInput, MissingData
from pipeline.presets import get_preset
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.video.windows import Split

log = logging.getLogger(__name__)


def extract(
    ctx: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(help="shapes, msrvtt, msvd, lsmdc, didemo, vatex, charades, activitynet")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of videos (your own, or the data set's)")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            "--corpus",
            help="Instead of a folder: a list (.csv, .jsonl, .parquet), a .tar, s3://..., any fsspec URL",
        ),
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder of the data set's annotation files")] = None,
    captions: Annotated[Path | None, typer.Option(help="Captions of your own videos: .csv, .parquet or .jsonl")] = None,
    drop_captions: Annotated[
        bool,
        typer.Option("--drop-captions", help="Withdraw captions of an earlier run that --captions does not give again"),
    ] = False,
    option: DatasetOptions = None,
    preset: Annotated[str | None, typer.Option(help="Data set, options, model and weights of a preset")] = None,
    model: Annotated[
        str | None, typer.Option(help="Any open_clip model [default: the preset's, or the built-in shapes-clip]")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="open_clip tag, or a local weights file")] = None,
    quick_gelu: Annotated[
        bool | None,
        typer.Option("--quick-gelu/--no-quick-gelu", help="Activation of a weights file that does not state it"),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(help="Published tag whose preprocessing a weights file follows, where the model's tags differ"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder of the model's tokenizer, for a machine without network [default: the weights' own]"),
    ] = None,
    device: DeviceOption = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the encoder")] = "auto",
    num_frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Frames a video [default: the preset's, or 12]",
        ),
    ] = None,
    sampling: Annotated[
        Sampling | None,
        typer.Option(
            help="The middles of as many equal intervals, or both ends included [default: preset, or middles]"
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Cut files into clips: every:LENGTH[:STRIDE] in seconds, scenes, or scenes:transnetv2|content|adaptive"
        ),
    ] = None,
    min_clip: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, help="Shortest clip of --split in seconds [default: half of LENGTH; scenes: 1]"),
    ] = None,
    max_clip: Annotated[
        float | None,
        typer.Option(min=0.1, max=1e6, help="Longest scene; longer ones are cut into equal parts [default: 30]"),
    ] = None,
    decoder: Annotated[Decoder, typer.Option(help="pyav is exact and fast")] = "pyav",
    allow_mixed_decoders: Annotated[
        bool, typer.Option("--allow-mixed-decoders", help="Decode with ffmpeg what PyAV cannot; recorded per video")
    ] = False,
    hwaccel: Annotated[str | None, typer.Option(help="Hardware decoding of ffmpeg, such as cuda")] = None,
    workers: Annotated[int, typer.Option(min=0, max=1024, help="Decoding processes; 0: one a core")] = 0,
    batch_size: Annotated[int, typer.Option(min=0, max=10**6, help="Frames per encoder batch; 0: the fastest")] = 64,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the image tower first: pays on long runs")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, max=10**6, help="Videos a shard")] = 256,
    shard_format: Annotated[ShardFormat, typer.Option("--format", help="File format of the shards")] = "hdf5",
    long_captions: Annotated[
        LongCaptions,
        typer.Option(
            help="Captions beyond the model's context (77 tokens, PE 32, SigLIP 64): cut, or averaged over windows"
        ),
    ] = "cut",
    retry_failed: Annotated[str | None, typer.Option(help="Retry failed videos: all, or a failure class")] = None,
    min_coverage: Annotated[
        float, typer.Option(min=0, max=1, help="Exit with 1 when a smaller share of the videos is done")
    ] = 0.95,
    cache_blocks: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Cache the inputs of CLIP's top K blocks, for train-head --train-blocks"),
    ] = 0,
    token_dtype: Annotated[TokenDtype, typer.Option(help="Type of that cache; int8 takes half the size")] = "float16",
    accept: Annotated[
        bool,
        typer.Option("--yes", help="Go on though more than 20 % of the files are gone, or the cache may not fit"),
    ] = False,
    wait_seconds: Annotated[
        float, typer.Option("--wait", min=0, max=1e9, help="Seconds to wait for another process writing to the store")
    ] = 0.0,
    max_seconds: Annotated[
        float, typer.Option(max=1e9, help="Decoding time after which a video counts as failed")
    ] = 120.0,
    max_duration: Annotated[float, typer.Option(max=1e9, help="Longest video in seconds")] = 14400.0,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Let http(s) URLs redirect, and lead to private or loopback addresses"),
    ] = False,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Only measure the rates of decoding and encoding, and the bottleneck")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="With --benchmark: keep the rates for `plan`")] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Write part i of n (0/4 to 3/4) beside other processes; auto: that of a Slurm array task"),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="After all --shard i/n: account for all inputs, name missing shards")
    ] = False,
    engine: Annotated[Engine, typer.Option(help="This process alone, or a Ray cluster (extra `ray`)")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; auto: the one of this machine [default: a new local one]")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, max=10**5, help="Ray workers, an encoder each [default: as many as fit]")
    ] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(min=0, max=64, help="Of a Ray worker [default: 0]")] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(min=0.1, max=1024, help="Of a Ray worker, for its decoding [default: 1]")
    ] = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 1: decode videos, encode frames and captions, write the feature store.

    Can be killed and started again at any moment: what is done stays done.

    \b
        python cli.py extract --dataset shapes
        python cli.py extract --videos my_clips/ --captions captions.csv
        python cli.py extract --videos films/ --split every:10
        python cli.py extract --videos films/ --split every:10:5
        python cli.py extract --videos films/ --split scenes --max-clip 20
        python cli.py extract --source windows.csv
        python cli.py extract --videos my_clips/                        # the captions of the run before stay
        python cli.py extract --videos my_clips/ --drop-captions
        python cli.py extract --source s3://bucket/clips
        python cli.py extract --videos my_clips/ --benchmark --save rates.json
        python cli.py extract --dataset msrvtt --videos /data/msrvtt --annotations /data/msrvtt_csv \\
            --model ViT-B-32 --pretrained openai
        python cli.py extract --dataset didemo --videos V --annotations A --long-captions windows
        python cli.py extract --videos my_clips/ --model ViT-B-16 --pretrained tuned.pt --quick-gelu
        python cli.py extract --videos my_clips/ --model ViT-B-16-SigLIP2 --pretrained siglip2.safetensors \\
            --tokenizer siglip2-tokenizer/
        python cli.py extract --videos my_clips/ --model PE-Core-T-16-384 --pretrained meta --num-frames 8 \\
            --sampling ends --cache-blocks 1
        python cli.py extract --videos my_clips/ --model st:sentence-transformers/clip-ViT-B-32
        python cli.py extract --preset msrvtt-b32 --videos /data/msrvtt --annotations /data/msrvtt_csv
        python cli.py extract --dataset vatex --retry-failed all
        python cli.py extract --config extract.yaml
        python cli.py extract --videos my_clips/ --shard 0/4
        python cli.py extract --videos my_clips/ --finish
        python cli.py extract --videos my_clips/ --engine ray --gpus-per-worker 1 --cpus-per-worker 8
    """
    options: dict[str, Any] = dict(pairs(option, "--option"))
    of_data_set = videos or dataset or annotations or captions or option or drop_captions
    exclusive({"--source": source, "--videos, --dataset, --annotations, --captions, --option": of_data_set})
    exclusive({"--shard": shard, "--finish": finish, "--engine ray": engine == "ray", "--benchmark": benchmark})
    of_ray: dict[str, Any] = {"address": address, "actors": actors, "gpus_per_worker": gpus_per_worker}
    of_ray = {
        name: value for name, value in {**of_ray, "cpus_per_worker": cpus_per_worker}.items() if value is not None
    }
    if of_ray and engine != "ray":
        raise BadInput(f"--{next(iter(of_ray)).replace('_', '-')} belongs to Ray", fix="give --engine ray as well")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingData("--engine ray: ray is not installed", fix="pip install 'dits-retrieval[ray]'")
    part = None
    if shard:
        from pipeline.extract.part import parse_part

        part = parse_part(shard, os.environ)
    rule = split_rule(split, min_clip, max_clip)
    if preset:
        recipe = get_preset(preset)
        if dataset not in (None, recipe.dataset):
            raise BadInput(f"--preset {preset}", expected=f"--dataset {recipe.dataset} or none", got=dataset)
        if model in (None, recipe.model):  # another model has other weights
            pretrained = pretrained or recipe.pretrained
        dataset, model = recipe.dataset, model or recipe.model
        num_frames = recipe.num_frames if num_frames is None else num_frames
        sampling = recipe.sampling if sampling is None else sampling  # type: ignore[assignment]
        options = {**recipe.dataset_options, **options}
    given = {**locals(), "accept_size": accept, "accept_gone": accept}

    from pipeline.clip.advice import warn_of_test_model
    from pipeline.datasets.manifests import dataset_manifest, folder_name, source_manifest
    from pipeline.extract.clips import split_manifest, split_name
    from pipeline.extract.settings import ExtractSettings
    from pipeline.video.limits import Limits

    settings = ExtractSettings(**filled(ExtractSettings, given), limits=Limits(**filled(Limits, given)))
    place = Workspace.locate(workspace)
    own = videos if dataset in (None, "folder") else None
    if rule is not None and own is not None:  # the clips of one rule are a data set
        options = {"corpus": split_name(folder_name(own), rule), **options}
    if source:
        manifest = source_manifest(source, allow_private)
    else:
        manifest = dataset_manifest(place, dataset, videos, annotations, captions, options, drop_captions)
    if rule is not None:
        if own is None:
            manifest = replace(manifest, name=split_name(manifest.name, rule))
        manifest = split_manifest(manifest, rule, settings, place.dataset_dir(manifest.name))
    warn_of_test_model(settings.model, manifest.name)
    if benchmark:
        from pipeline.extract.benchmark import benchmark as measure_rates
        from pipeline.stores.atomic import write_json

        rates = measure_rates(manifest, settings)
        if save:
            write_json(save, rates.to_json())
        show(rates.to_json(), as_json, str(rates))
        return
    from pipeline.extract.corpus import extract_manifest, store_path
    from pipeline.extract.driver import extract as extract_here

    in_effect = {name: getattr(settings, name) for name in ("model", "pretrained", "num_frames")}
    path = store_path(place, manifest, settings)
    run: Any = partial(extract_here, sync=True)
    if part:
        from pipeline.extract.array_job import extract_part

        run = partial(extract_part, part=part)
    elif finish:
        from pipeline.extract.array_job import finish as account

        if (path / "store.json").exists():
            keep(ctx, path / "extract.yaml", dataset=dataset, **in_effect)
        again = ["--config", str(path / "extract.yaml"), *(["--workspace", str(workspace)] if workspace else [])]
        run = partial(account, command=f"python cli.py extract {shlex.join(again)}")
    elif engine == "ray":
        from pipeline.extract.ray_engine import RayOptions, extract_with_ray

        run = partial(extract_with_ray, options=RayOptions(**of_ray))
    report = extract_manifest(place, manifest, settings, run)
    keep(ctx, path / "extract.yaml", dataset=dataset, **in_effect)
    changes = report.manifest.protocol.get("caption_changes")  # a folder's
    files = report.changes.to_json() if report.changes else None
    lines = [
        *file_lines(files),
        f"{f'part {part[0]}/{part[1]}: ' if part else ''}"
        f"{report.inputs} inputs = {report.done} done + {report.failed} failed + {report.skipped} skipped",
    ]
    if changes:
        lines += caption_lines(changes)
    lines.append(f"features: {report.store}")
    if report.failed:
        classes = ", ".join(f"{name}: {count}" for name, count in sorted(report.failure_classes.items()))
        lines.append(f"failures ({classes}): {report.store}/failures.parquet")
    if rule is not None:
        lines.append(f"clips of {manifest.protocol['clips']['measured']} files, as data set {manifest.name}")
    result = {name: getattr(report, name) for name in ("inputs", "done", "failed", "skipped", "store")}
    show({**result, "captions": changes, "files": files}, as_json, "\n".join(lines))
    if not report.enough:
        log.warning(f"only {report.coverage:.1%} of the videos are done (--min-coverage {report.min_coverage:.0%})")
        raise typer.Exit(1)


def split_rule(split: str | None, min_clip: float | None, max_clip: float | None) -> "Split | None":
    """The rule that --split, --min-clip and --max-clip name. Raises BadInput, or MissingData without the extra."""
    if split is None:
        if min_clip is not None or max_clip is not None:
            raise BadInput(
                "--min-clip and --max-clip belong to --split", fix="give --split every:10, or leave them out"
            )
        return None
    from pipeline.video.windows import parse_split

    rule = parse_split(split, min_clip, max_clip)
    if rule.detector:
        from pipeline.video.scenes import require_detector

        require_detector(rule.detector)
    return rule


def caption_lines(changes: dict[str, Any]) -> list[str]:
    """What became of the captions, in one line where there were any; rows that fit no file are named on stderr."""
    unmatched = changes["unmatched"]
    if unmatched["count"]:
        log.warning(
            f"{unmatched['count']} rows of the captions fit no video, such as {', '.join(unmatched['examples'])}"
        )
    counts = {name: changes[name] for name in ("kept", "added", "changed", "withdrawn")}
    counts |= {"of absent files": changes["absent"], "rows without a video": unmatched["count"]}
    told = [
        f"{count} {name}"
        for name, count in counts.items()
        if count or name in ("kept", "added", "changed", "withdrawn")
    ]
    return [f"captions: {', '.join(told)}"] if any(counts.values()) else []
