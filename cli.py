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
import typer.exceptions

from pipeline.errors import BadInput, MissingData, UserError
from pipeline.workspace import Workspace


class Commands(typer.core.TyperGroup):
    """A UserError or a mistyped option becomes one line on stderr and exit code 2; anything else is a bug and keeps its
    traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.exceptions.TyperException as error:
            wrong = getattr(error, "ctx", None) or ctx
            say(f"error: {BadInput(error.format_message().rstrip('.'), fix=f'see `{wrong.command_path} --help`')}")
            raise typer.Exit(2) from None
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
    """A progress bar on stderr that takes (done, total, text); it appears with the first step."""
    from tqdm import tqdm

    bars: list[Any] = []

    def step(done: int, total: int, text: str = "") -> None:
        if not bars:
            bars.append(tqdm(desc=title, total=total, file=sys.stderr, dynamic_ncols=True, mininterval=0.5))
        bars[0].set_postfix_str(text, refresh=False)
        bars[0].update(done - bars[0].n)

    try:
        yield step
    finally:
        for bar in bars:
            bar.close()


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


def pairs(options: list[str] | None, flag: str) -> dict[str, str]:
    """["a=1"] -> {"a": "1"}."""
    for option in options or []:
        if "=" not in option:
            raise BadInput(f"{flag} {option}", expected="name=value", got=option)
    return dict(option.split("=", 1) for option in options or [])


def exclusive(options: dict[str, Any]) -> None:
    """Options, or groups of them, of which at most one may be given. Raises BadInput."""
    given = [name for name, value in options.items() if value not in (None, []) and value is not False]
    if len(given) > 1:
        raise BadInput(f"options exclude each other: {'; '.join(given)}", fix="give those of one of them")


@app.command()
def extract(
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="shapes, msrvtt, msvd, lsmdc, didemo, vatex, charades, activitynet")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of videos (your own, or the data set's)")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Instead of a folder: a list (.csv, .jsonl, .parquet), a .tar, s3://..., any fsspec URL"),
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder of the data set's annotation files")] = None,
    captions: Annotated[Path | None, typer.Option(help="Captions of your own videos: .csv, .parquet or .jsonl")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of the data set, name=value; repeatable")] = None,
    preset: Annotated[str | None, typer.Option(help="Data set, options, model and weights of a preset")] = None,
    model: Annotated[
        str | None, typer.Option(help="Any open_clip model [default: the preset's, or the built-in shapes-clip]")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="open_clip tag, or a local weights file")] = None,
    quick_gelu: Annotated[
        bool | None,
        typer.Option("--quick-gelu/--no-quick-gelu", help="The activation of a weights file that does not tell it"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    num_frames: Annotated[
        int | None,
        typer.Option(help="Frames a video: the middles of as many equal intervals [default: the preset's, or 12]"),
    ] = None,
    decoder: Annotated[str, typer.Option(help="pyav (exact, fast) or ffmpeg")] = "pyav",
    allow_mixed_decoders: Annotated[
        bool, typer.Option("--allow-mixed-decoders", help="Let ffmpeg try what PyAV cannot read; recorded a video")
    ] = False,
    hwaccel: Annotated[str | None, typer.Option(help="ffmpeg's hardware decoding, such as cuda")] = None,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0: one a core")] = 0,
    batch_size: Annotated[int, typer.Option(help="Frames encoded at once")] = 64,
    shard_size: Annotated[int, typer.Option(help="Videos a shard")] = 256,
    shard_format: Annotated[str, typer.Option("--format", help="hdf5 or parquet")] = "hdf5",
    long_captions: Annotated[
        str, typer.Option(help="Captions beyond the text tower's 77 tokens: cut, or windows over all of them, averaged")
    ] = "cut",
    retry_failed: Annotated[str | None, typer.Option(help="Try failed videos again: all, or a failure class")] = None,
    min_coverage: Annotated[float, typer.Option(help="Exit with 1 when a smaller part of the videos is done")] = 0.95,
    cache_blocks: Annotated[
        int, typer.Option(help="Keep what enters so many of CLIP's top blocks, for train-head --train-blocks")
    ] = 0,
    token_dtype: Annotated[str, typer.Option(help="The cache's type: float16, or int8 at half the size")] = "float16",
    yes: Annotated[bool, typer.Option("--yes", help="Start even if the cache may not fit on the disk")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another process writing to the store")] = 0.0,
    max_seconds: Annotated[
        float, typer.Option(help="A video that takes longer is stopped and counted as failed")
    ] = 120.0,
    max_duration: Annotated[float, typer.Option(help="Longest video in seconds")] = 14400.0,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Only measure: decoding, encoding, both, and which one bounds the run")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 1: decode videos, encode frames and captions, write the feature store.

    Can be killed and started again at any moment: what is done stays done.

    \b
        python cli.py extract --dataset shapes
        python cli.py extract --videos my_clips/ --captions captions.csv
        python cli.py extract --source s3://bucket/clips
        python cli.py extract --videos my_clips/ --benchmark
        python cli.py extract --dataset msrvtt --videos /data/msrvtt --annotations /data/msrvtt_csv \\
            --model ViT-B-32 --pretrained openai
        python cli.py extract --dataset didemo --videos V --annotations A --long-captions windows
        python cli.py extract --videos my_clips/ --model ViT-B-16 --pretrained tuned.pt --quick-gelu
        python cli.py extract --preset msrvtt-b32 --videos /data/msrvtt --annotations /data/msrvtt_csv
        python cli.py extract --dataset vatex --retry-failed all
    """
    from pipeline.datasets.manifests import dataset_manifest, source_manifest
    from pipeline.extract.benchmark import benchmark as measure_rates
    from pipeline.extract.corpus import extract_manifest
    from pipeline.extract.settings import ExtractSettings
    from pipeline.video.limits import Limits

    place = Workspace.locate(workspace)
    options: dict[str, Any] = dict(pairs(option, "--option"))
    of_data_set = videos or dataset or annotations or captions or option
    exclusive({"--source": source, "--videos, --dataset, --annotations, --captions, --option": of_data_set})
    if preset:
        from pipeline.presets import get_preset

        recipe = get_preset(preset)
        if dataset not in (None, recipe.dataset):
            raise BadInput(f"--preset {preset}", expected=f"--dataset {recipe.dataset} or none", got=dataset)
        if model in (None, recipe.model):  # another model has other weights
            pretrained = pretrained or recipe.pretrained
        dataset, model = recipe.dataset, model or recipe.model
        num_frames = recipe.num_frames if num_frames is None else num_frames
        options = {**recipe.dataset_options, **options}
    given: dict[str, Any] = {"model": model, "num_frames": num_frames}
    settings = ExtractSettings(
        **{name: value for name, value in given.items() if value is not None},
        pretrained=pretrained,
        quick_gelu=quick_gelu,
        device=device,
        precision=precision,
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
        cache_blocks=cache_blocks,
        token_dtype=token_dtype,
        long_captions=long_captions,
        accept_size=yes,
        limits=Limits(max_seconds=max_seconds, max_duration=max_duration),
    )
    if source:
        manifest = source_manifest(source)
    else:
        manifest = dataset_manifest(place, dataset, videos, annotations, captions, options)
    if benchmark:
        rates = measure_rates(manifest, settings)
        show(rates.to_json(), as_json, str(rates))
        return
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
    head: Annotated[
        str, typer.Option(help="mean-pool, xpool, mlp, fixed-prior, diffusion, dits, tmass, tmass-lite or module:Class")
    ] = "dits",
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
    distill: Annotated[
        str | None, typer.Option(help="Distil another run's aligned text embeddings, such as ten steps into one")
    ] = None,
    train_blocks: Annotated[
        int, typer.Option(help="Train so many of CLIP's top blocks too, from cached activations")
    ] = 0,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Train all of CLIP too, decoding the videos in every epoch")
    ] = False,
    clip_lr: Annotated[
        float | None, typer.Option(help="Learning rate of CLIP [default: the data set's preset, or the paper's 1e-5]")
    ] = None,
    layer_decay: Annotated[float, typer.Option(help="A block's rate over that of the block above it")] = 1.0,
    low_memory: Annotated[bool, typer.Option("--low-memory", help="Gradient checkpointing in CLIP's blocks")] = False,
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
    python cli.py train-head --head xpool --train-blocks 2
    python cli.py train-head --head dits --end-to-end
    python cli.py train-head --head dits --set T_prime=1 --distill dits-1a2b3c4d
    """
    from pipeline.evaluate.metrics import retrieval_metrics
    from pipeline.resolve import resolve_store
    from pipeline.train.finetune import FinetuneTask, remember_tuned, tune_settings
    from pipeline.train.loop import TrainSettings
    from pipeline.train.recipe import head_config, recipe
    from pipeline.train.run import RunOptions, train_head
    from pipeline.train.tasks import DistillTask, HeadTask

    if end_to_end and train_blocks:
        raise BadInput(
            "--end-to-end and --train-blocks exclude each other",
            fix="give --train-blocks K (top blocks, cached) or --end-to-end (all of CLIP, from the videos)",
        )
    if distill and (end_to_end or train_blocks):
        raise BadInput("--distill trains a head alone", fix="leave --train-blocks and --end-to-end away")
    place = Workspace.locate(workspace)
    chosen = resolve_store(place, dataset, encoder)
    config = head_config(chosen, head, pairs(set_, "--set"), paper_literal=paper_literal)
    settings = TrainSettings(**recipe(chosen, lr=lr, epochs=epochs, batch_size=batch_size), seed=seed)
    task = DistillTask(distill) if distill else HeadTask()
    if train_blocks or end_to_end:
        given: dict[str, Any] = {"layer_decay": layer_decay, "gradient_checkpointing": low_memory}
        if clip_lr is not None:
            given["clip_lr"] = clip_lr
        task = FinetuneTask(tune_settings(chosen, "end-to-end" if end_to_end else train_blocks, **given))
    options = RunOptions(run, start_from, devices=devices)
    say(f"training {config.head} on {chosen.dataset}/{chosen.encoder}")
    with stepwise(config.head) as progress:
        result = train_head(place, chosen, config, settings, task, retrieval_metrics, options, progress)
    if train_blocks or end_to_end:
        remember_tuned(place, chosen, result["run"])
    val = result["val"]
    text = (
        f"{result['run']}: validation R@1 {val['R@1']:.1f}, R@5 {val['R@5']:.1f}, R@10 {val['R@10']:.1f} "
        f"(epoch {val['epoch']}; selected on: {result['selected_on']}), {result['seconds']:.0f} s"
    )
    show(result, as_json, text)


@app.command()
def index(
    factory: Annotated[
        str | None, typer.Option(help="Any FAISS factory string: Flat, HNSW32, IVF1024,SQ8, ... [default: Flat]")
    ] = None,
    recall: Annotated[float | None, typer.Option(help="Choose by need: recall@10 against exact search, 0 to 1")] = None,
    memory: Annotated[str | None, typer.Option(help="Choose by need: bytes of the index, such as 2GB")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Choose by need: milliseconds of one query alone")] = None,
    search_: Annotated[
        list[str] | None, typer.Option("--search", help="A search parameter, such as efSearch=128; repeatable")
    ] = None,
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Keep inverted lists in a mapped file")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Build on a GPU (needs faiss-gpu)")] = False,
    run: RunOption = None,
    head_dir: HeadDirOption = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 3: build a FAISS index of every video of the data set, verify it, switch to it.

    \b
        python cli.py index
        python cli.py index --recall 0.99 --memory 2GB --latency-ms 5
        python cli.py index --factory HNSW32 --search efSearch=128
        python cli.py index --run zero-shot
    """
    from pipeline.resolve import resolve_head, resolve_store
    from pipeline.retrieve.autotune import Need
    from pipeline.retrieve.corpus import build_corpus_index, choose_spec
    from pipeline.retrieve.index import IndexSpec

    place = Workspace.locate(workspace)
    chosen = resolve_store(place, dataset, encoder)
    head = resolve_head(place, chosen, run, head_dir)
    by_need = [value for value in (recall, memory, latency_ms) if value is not None]
    exclusive(
        {"--recall, --memory, --latency-ms": by_need, "--factory, --search, --on-disk": factory or search_ or on_disk}
    )
    if by_need:
        need = Need(0.95 if recall is None else recall, size_in_bytes(memory) if memory else None, latency_ms)
        spec = choose_spec(chosen, head, need, gpu=gpu, say=say)
    else:
        spec = IndexSpec(factory or "Flat", numbers(pairs(search_, "--search"), "--search"), on_disk=on_disk)
    result = build_corpus_index(place, chosen, head, spec, gpu=gpu, say=say)
    show(result.contract(), as_json, f"{chosen.dataset} {result.generation}: {result.total} videos, head {head.run}")


@app.command()
def evaluate(
    index: Annotated[bool, typer.Option("--index", help="Measure two-stage search through the index as well")] = False,
    split: Annotated[str | None, typer.Option(help="train, val or test [default: test, else everything]")] = None,
    ties: Annotated[str, typer.Option(help="expected, optimistic, pessimistic, clip4clip or xpool")] = "expected",
    memory_limit: Annotated[str, typer.Option(help="Bytes of memory, such as 2GB")] = "2GB",
    shortlist: Annotated[int, typer.Option(help="Candidates that the index hands to exact re-ranking")] = 50,
    dual_softmax: Annotated[bool, typer.Option("--dual-softmax", help="Add a row with dual softmax")] = False,
    query_bank: Annotated[bool, typer.Option("--query-bank", help="Add a row with query-bank normalisation")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html: tables, curves, worst queries in pictures")
    ] = False,
    run: RunOption = None,
    head_dir: HeadDirOption = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 3: R@1, R@5, R@10, MdR, MnR on the test split, exact, and what search through the index loses.

    \b
        python cli.py evaluate
        python cli.py evaluate --index --report
        python cli.py evaluate --run zero-shot --memory-limit 500MB
    """
    from pipeline.evaluate.evaluation import Options
    from pipeline.evaluate.run import evaluate_chosen, results_table
    from pipeline.resolve import resolve_head, resolve_store

    place = Workspace.locate(workspace)
    chosen = resolve_store(place, dataset, encoder)
    head = resolve_head(place, chosen, run, head_dir)
    post = [name for name, wanted in (("dual-softmax", dual_softmax), ("query-bank", query_bank)) if wanted]
    options = Options(ties=ties, memory_limit=size_in_bytes(memory_limit), post=post, shortlist=shortlist)  # type: ignore[arg-type]
    evaluation, folder = evaluate_chosen(
        place, chosen, head, options, split=split, through_index=index, report=report, say=say
    )
    card = evaluation.metrics["protocol"]
    heading = f"{card['dataset']}, split {card['split']}: {card['label'] or 'no published split'}"
    text = results_table([{"system": head.run, **evaluation.contract()}])
    show(evaluation.contract(), as_json, "\n".join([heading, text, *evaluation.lines, f"kept in {folder}"]))


@app.command()
def search(
    queries: Annotated[list[str], typer.Argument(metavar="SENTENCE...", help="What the video shows")],
    top: Annotated[int, typer.Option(help="How many videos")] = 10,
    shortlist: Annotated[int, typer.Option(help="Candidates that the index hands to exact re-ranking")] = 50,
    corpus: Annotated[str | None, typer.Option(help="Index [default: the one built last]")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find videos by a sentence: path and score, the best first.

    \b
        python cli.py search "a red ring moves left, then a blue star grows"
        python cli.py search "a dog barks" --top 3 --json
    """
    from pipeline.retrieve.retriever import search

    found = search(Workspace.locate(workspace), queries, corpus=corpus, top=top, shortlist=shortlist)
    hits = [[{"video_id": hit.video_id, "path": hit.path, "score": hit.score} for hit in hits] for hits in found]
    blocks = []
    for query, rows in zip(queries, found, strict=True):
        head = [f"# {query}"] if len(queries) > 1 else []
        blocks.append("\n".join([*head, *(f"{hit.score:.4f}  {hit.path}" for hit in rows)]))
    show(hits[0] if len(queries) == 1 else hits, as_json, "\n\n".join(blocks))


@app.command()
def reindex(
    corpus: Annotated[Path | None, typer.Option(help="Folder of videos: what the index lacks of it is added")] = None,
    delete: Annotated[
        list[str] | None, typer.Option(help="A video id to delete, from later builds too; repeatable")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the generation before")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the generations")] = False,
    prune: Annotated[int | None, typer.Option(help="Remove all but so many of the newest generations")] = None,
    name: Annotated[str | None, typer.Option("--index", help="Which index [default: the one built last]")] = None,
    run: RunOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 3: bring an index up to date; readers see the old generation until the new one is whole and verified.

    \b
        python cli.py reindex --corpus new_clips/
        python cli.py reindex --delete old_clip.mp4
        python cli.py reindex --list
        python cli.py reindex --rollback
    """
    from pipeline.commands.reindex import reindex as reindex_corpus
    from pipeline.retrieve.corpus import generations
    from pipeline.retrieve.retriever import only_corpus

    more = "--corpus, --delete, --run"
    exclusive({"--list": list_, "--rollback": rollback, "--prune": prune, more: corpus or delete or run})
    place = Workspace.locate(workspace)
    store = generations(place, name or only_corpus(place))
    if store.current() is None:
        raise MissingData(f"no index of {name}", fix="run `python cli.py index` first")
    if list_:
        lines = [
            f"{'*' if row['live'] else ' '} {row['generation']}  {row['videos']} videos  {row['how']}"
            for row in store.records()
        ]
        show(store.records(), as_json, "\n".join(lines))
    elif rollback:
        live = store.rollback()
        show({"generation": live}, as_json, f"live: {live}")
    elif prune is not None:
        removed = store.prune(prune)
        show({"removed": removed}, as_json, f"removed: {', '.join(removed) or 'nothing'}")
    else:
        if corpus is None and not delete and run is None:
            raise BadInput(
                "nothing to do", fix="give --corpus DIR, --delete ID, --run RUN, --list, --rollback or --prune N"
            )
        result = reindex_corpus(place, corpus=corpus, delete=delete or [], name=name, run=run, say=say)
        text = (
            f"{result.generation}: {result.added} added, {result.deleted} deleted, {result.total} in all ({result.how})"
        )
        show(result.contract(), as_json, text)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of an evaluation (reports/<dataset>/<run>)")],
    b: Annotated[Path, typer.Argument(help="Folder of another one on the same queries")],
    as_json: JsonOption = False,
) -> None:
    """The paired difference b - a of two evaluations, with its 95 % bootstrap interval over videos.

    \b
        python cli.py compare workspace/reports/shapes/zero-shot workspace/reports/shapes/dits-1a2b3c4d
    """
    from pipeline.evaluate.evaluation import compare

    result = compare(a, b)
    lines = [
        f"{direction} {name:4}  {row['a']:7.2f} -> {row['b']:7.2f}  {row['difference']:+.2f} "
        f"[{row['interval'][0]:+.2f}, {row['interval'][1]:+.2f}]"
        for direction in ("t2v", "v2t")
        for name, row in result[direction].items()
    ]
    show(result, as_json, "\n".join(lines))


@app.command()
def reproduce(
    table: Annotated[
        str,
        typer.Option(
            help="4, 5a, 5b, 6a, 6b, 7, 8, 9, 10, 11, blocks, open, control, steps, distill, "
            "robustness; several with commas; or all that the features allow"
        ),
    ] = "all",
    seeds: Annotated[int, typer.Option(help="How many seeds, from 24 on")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One epoch, one seed: does it run at all?")] = False,
    lr: Annotated[float | None, typer.Option(help="Learning rate [default: the data set's preset]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over all captions")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs a step")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of every head that does not name its own, name=value")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at once [default: one a core, one on a GPU]")] = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """The paper's tables on any data set whose features exist; runs what is missing, goes on where it was interrupted.

    \b
        python cli.py reproduce --table 4 --seeds 3
        python cli.py reproduce --table all --quick
        python cli.py reproduce --table 6a,6b --set blocks=1 --set T_prime=3 --batch-size 32
    """
    from pipeline.experiments.reproduce import possible_tables, reproduce
    from pipeline.resolve import resolve_store
    from pipeline.train.recipe import head_settings, recipe

    place = Workspace.locate(workspace)
    chosen = resolve_store(place, dataset, encoder)
    names = possible_tables(place, chosen, say) if table == "all" else table.split(",")
    given = {"lr": lr, "epochs": 1 if quick else epochs, "batch_size": batch_size}
    written = reproduce(
        place,
        chosen,
        names,
        recipe(chosen, **given),
        head=head_settings(pairs(set_, "--set")),
        seeds=1 if quick else seeds,
        jobs=jobs,
        stepwise=stepwise,
    )
    show(written, as_json, "\n\n".join(written.values()))


@app.command()
def figures(
    run: Annotated[list[str] | None, typer.Option(help="A run's name; repeatable [default: the last]")] = None,
    against: Annotated[str | None, typer.Option(help="Draw the change in cosine against this run too")] = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """The paper's figures, PNG and SVG: the gap of texts to their videos before and after, R@1 against T'.

    \b
        python cli.py figures
        python cli.py figures --run dits-1a2b3c4d --against xpool-1a2b3c4d
    """
    from pipeline.experiments.figures import draw_figures
    from pipeline.resolve import resolve_head, resolve_store

    place = Workspace.locate(workspace)
    chosen = resolve_store(place, dataset, encoder)
    heads = [resolve_head(place, chosen, name) for name in run or (None,)]
    base = resolve_head(place, chosen, against) if against else None
    drawn = draw_figures(place, chosen, heads, base, say=say)
    files = [str(path) for path in drawn.files]
    show({"gaps": drawn.means, "files": files}, as_json, "\n".join([drawn.table, *files]))


@app.command("export-clip")
def export_clip(
    run: Annotated[str, typer.Argument(help="A run trained with --train-blocks or --end-to-end")],
    out: Annotated[Path, typer.Argument(help="The file to write, .safetensors")],
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a tuned CLIP as a file that plain open_clip loads.

    \b
        python cli.py export-clip dits-top2-1a2b3c4d tuned.safetensors
    """
    from pipeline.resolve import resolve_store
    from pipeline.train.finetune import export_clip

    place = Workspace.locate(workspace)
    export_clip(place, resolve_store(place, dataset, encoder), run, out)
    show({"clip": str(out)}, as_json, f"{out}: load it with open_clip.create_model(NAME, pretrained={str(out)!r})")


@app.command()
def doctor(
    dataset: Annotated[str | None, typer.Option(help="Check a data set's files too")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of its videos")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder of its annotation files")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of the data set, name=value; repeatable")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode a frame of every video")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the environment, or a data set's files against the published split; says how to mend what is wrong.

    \b
        python cli.py doctor
        python cli.py doctor --dataset msrvtt --videos /data/msrvtt --annotations /data/msrvtt_csv --deep
    """
    from dataclasses import asdict

    from pipeline.commands.doctor import dataset_report, environment_report, worst

    place = Workspace.locate(workspace)
    if dataset is None:
        checks = list(environment_report(place.root))
        show([asdict(check) for check in checks], as_json, "\n".join(check.line() for check in checks))
    else:
        options: dict[str, Any] = dict(pairs(option, "--option"))
        report = dataset_report(dataset, videos, annotations, place.dataset_dir(dataset), deep=deep, **options)
        checks = list(report.checks)
        claim = f"results on the test split may be called: {report.claim or 'nothing'}"
        show(report.to_json(), as_json, "\n".join([*(check.line() for check in checks), claim]))
    if worst(checks) == "fail":
        raise typer.Exit(1)


@app.command()
def presets(name: Annotated[str | None, typer.Argument(help="One of them [default: all]")] = None) -> None:
    """The paper's recipe for each data set and backbone: what to run, what it costs, what the paper reached.

    \b
        python cli.py presets
        python cli.py presets msrvtt-b32
    """
    from pipeline.presets import PRESETS, get_preset

    chosen = [get_preset(name)] if name else list(PRESETS.values())
    print("\n\n".join(preset.describe() for preset in chosen))


@app.command()
def demo(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """The whole pipeline on the built-in data set, from nothing to one table.

    A second run reuses what is done.

    \b
        python cli.py demo
    """
    from pipeline.commands.demo import demo

    rows, table = demo(Workspace.locate(workspace), say, stepwise)
    show(rows, as_json, table)


if __name__ == "__main__":
    app()
