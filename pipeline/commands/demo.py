"""`demo`: the main job on the built-in data set, from nothing to one table; what is done already is reused."""

import logging
from typing import Any

from pipeline.commands.evaluate import results_table
from pipeline.commands.options import JsonOption, WorkspaceOption, show
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)


def demo(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """The whole pipeline on the built-in data set, from nothing to one table.

    A second run reuses what is done.

    \b
        python cli.py demo
    """
    rows = run_demo(Workspace.locate(workspace))
    show(rows, as_json, results_table(rows))


def run_demo(workspace: Workspace, **options: Any) -> list[dict[str, Any]]:
    """One row per system. `options` go to the generator of shapes: train, val, test, seed."""
    from pipeline.datasets.manifests import dataset_manifest
    from pipeline.evaluate.evaluation import Options, compare
    from pipeline.evaluate.metrics import retrieval_metrics
    from pipeline.evaluate.run import evaluate_chosen
    from pipeline.extract.corpus import extract_manifest
    from pipeline.extract.settings import ExtractSettings
    from pipeline.progress import progress
    from pipeline.resolve import ZERO_SHOT, resolve_head, resolve_store
    from pipeline.retrieve.corpus import build_corpus_index
    from pipeline.retrieve.index import IndexSpec
    from pipeline.train.head_options import DEFAULT_HEAD
    from pipeline.train.loop import TrainSettings
    from pipeline.train.recipe import head_config, recipe
    from pipeline.train.run import train_head
    from pipeline.train.tasks import HeadTask

    log.info("1/5  shapes: generating clips and extracting features")
    settings = ExtractSettings()
    extract_manifest(workspace, dataset_manifest(workspace, "shapes", None, None, None, options), settings)
    chosen = resolve_store(workspace, "shapes", settings.model)

    baseline = "mean pooling (zero-shot)"
    runs = {baseline: ZERO_SHOT}
    heads = {"xpool": "X-Pool", "dits": "DITS", DEFAULT_HEAD: f"ensemble ({DEFAULT_HEAD})"}
    for number, (head, title) in enumerate(heads.items(), start=2):
        log.info(f"{number}/5  training {title}")
        training = TrainSettings(**recipe(chosen), seed=24)
        with progress(head) as step:
            config = head_config(chosen, head, {})
            result = train_head(workspace, chosen, config, training, HeadTask(), retrieval_metrics, progress=step)
        runs[title] = result["run"]

    log.info("5/5  indexing and evaluating")
    served = resolve_head(workspace, chosen, runs[heads[DEFAULT_HEAD]])  # `search` goes on with it
    build_corpus_index(workspace, chosen, served, IndexSpec())
    rows, folders = [], {}
    for title, run in runs.items():
        head_ = resolve_head(workspace, chosen, run)
        evaluation, folders[title] = evaluate_chosen(workspace, chosen, head_, Options(), through_index=True)
        rows.append({"system": title, "run": run, **evaluation.contract()})
    for row in rows:
        gain = None if row["system"] == baseline else compare(folders[baseline], folders[row["system"]])
        row["R@1 over zero-shot"] = gain and gain["t2v"]["R@1"]
    return rows
