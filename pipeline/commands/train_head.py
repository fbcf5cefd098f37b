"""`train-head`, stage 2."""

import logging
from typing import Annotated, Any

import typer

from pipeline.commands.config_file import ConfigOption, keep
from pipeline.commands.options import (
    DatasetOption,
    DeviceOption,
    EncoderOption,
    EpochsOption,
    JsonOption,
    LearningRateOption,
    PairsOption,
    TrainPrecision,
    WorkspaceOption,
    pairs,
    show,
)
from pipeline.errors import BadInput
from pipeline.train.head_options import DEFAULT_HEAD, check_head
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)


def train_head(
    ctx: typer.Context,
    head: Annotated[
        str | None,
        typer.Option(
            help="mean-pool, xpool, mlp, fixed-prior, diffusion, dits, tmass, tmass-lite, cca, three-views, or "
            "module:Class of your own [default: three-views; dits with --paper-literal]"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the head, name=value; repeatable")
    ] = None,
    paper_literal: Annotated[
        bool, typer.Option("--paper-literal", help="DITS with the schedule and noise exactly as the paper words them")
    ] = False,
    lr: LearningRateOption = None,
    epochs: EpochsOption = None,
    batch_size: PairsOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same weights (on one CPU)")] = 24,
    start_from: Annotated[str | None, typer.Option(help="Initialise equally named weights from another run")] = None,
    distill: Annotated[
        str | None, typer.Option(help="Distil another run's aligned text embeddings, such as ten steps into one")
    ] = None,
    train_blocks: Annotated[
        int, typer.Option(min=0, max=1000, help="Train CLIP's top K blocks too, from cached activations")
    ] = 0,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Train all of CLIP too, decoding the videos in every epoch")
    ] = False,
    clip_lr: Annotated[
        float | None,
        typer.Option(max=1e3, help="Learning rate of CLIP [default: the data set's preset, or the paper's 1e-5]"),
    ] = None,
    layer_decay: Annotated[
        float, typer.Option(max=1, help="Learning rate of a block relative to the block above it")
    ] = 1.0,
    low_memory: Annotated[bool, typer.Option("--low-memory", help="Gradient checkpointing in CLIP's blocks")] = False,
    precision: Annotated[
        TrainPrecision | None,
        typer.Option(help="Of the products in training [default: float32; bfloat16 where CLIP trains on a GPU]"),
    ] = None,
    device: DeviceOption = "auto",
    devices: Annotated[
        int, typer.Option(min=1, max=1024, help="GPUs (or CPU processes) of each machine; they share --batch-size")
    ] = 1,
    num_nodes: Annotated[
        int, typer.Option(min=1, max=10_000, help="Machines; start the command on each by torchrun or Slurm")
    ] = 1,
    run: Annotated[str | None, typer.Option(help="The run's name [default: head and fingerprint]")] = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 2: train a head on the extracted features.

    The checkpoint is chosen on held-out videos, never on the test split.

    \b
        python cli.py train-head
        python cli.py train-head --head dits
        python cli.py train-head --head xpool
        python cli.py train-head --head dits --set T_prime=5 --set condition=t --seed 1
        python cli.py train-head --paper-literal
        python cli.py train-head --head xpool --train-blocks 2
        python cli.py train-head --head dits --end-to-end
        python cli.py train-head --head xpool --train-blocks 4 --devices 4 --batch-size 256
        python cli.py train-head --head dits --device cuda --precision bfloat16
        python cli.py train-head --head dits --set T_prime=1 --distill dits-1a2b3c4d
        python cli.py train-head --config train.yaml --seed 1
    """
    if end_to_end and train_blocks:
        raise BadInput(
            "--end-to-end and --train-blocks exclude each other",
            fix="give --train-blocks K (top blocks, cached) or --end-to-end (all of CLIP, from the videos)",
        )
    if distill and (end_to_end or train_blocks):
        raise BadInput("--distill trains a head alone", fix="leave --train-blocks and --end-to-end away")
    head = head or ("dits" if paper_literal else DEFAULT_HEAD)
    check_head(head, pairs(set_, "--set"), paper_literal=paper_literal)
    place = Workspace.locate(workspace)

    from pipeline.evaluate.metrics import retrieval_metrics
    from pipeline.progress import progress
    from pipeline.resolve import resolve_store
    from pipeline.train.finetune import FinetuneTask, remember_tuned, tune_settings
    from pipeline.train.loop import TrainSettings
    from pipeline.train.recipe import head_config, recipe
    from pipeline.train.run import RunOptions, is_first_process, train_head
    from pipeline.train.tasks import DistillTask, HeadTask

    chosen = resolve_store(place, dataset, encoder)
    made = head_config(chosen, head, pairs(set_, "--set"), paper_literal=paper_literal)
    settings = TrainSettings(**recipe(chosen, lr=lr, epochs=epochs, batch_size=batch_size), seed=seed)
    task = DistillTask(distill, precision) if distill else HeadTask(precision)
    if train_blocks or end_to_end:
        given: dict[str, Any] = {"layer_decay": layer_decay, "gradient_checkpointing": low_memory}
        if clip_lr is not None:
            given["clip_lr"] = clip_lr
        task = FinetuneTask(tune_settings(chosen, "end-to-end" if end_to_end else train_blocks, **given), precision)
    options = RunOptions(run, start_from, device=device, devices=devices, num_nodes=num_nodes)
    if not is_first_process():  # of several devices: the first one reports
        train_head(place, chosen, made, settings, task, retrieval_metrics, options)
        return
    log.info(f"training {made.head} on {chosen.dataset}/{chosen.encoder}")
    with progress(made.head) as step:
        result = train_head(place, chosen, made, settings, task, retrieval_metrics, options, step)
    if train_blocks or end_to_end:
        remember_tuned(place, chosen, result["run"])
    in_effect = {name: getattr(settings, name) for name in ("lr", "epochs", "batch_size", "seed")}
    names = {"dataset": chosen.dataset, "encoder": chosen.encoder, "run": result["run"]}
    keep(ctx, place.head_dir(chosen.dataset, result["run"]) / "train.yaml", **in_effect, **names)
    val = result["val"]
    text = (
        f"{result['run']}: validation R@1 {val['R@1']:.1f}, R@5 {val['R@5']:.1f}, R@10 {val['R@10']:.1f} "
        f"(epoch {val['epoch']}; selected on: {result['selected_on']}), {result['seconds']:.0f} s"
    )
    show(result, as_json, text)
