"""The main job on the built-in data set, from nothing to one table; what is done already is reused."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from pipeline.datasets.manifests import dataset_manifest
from pipeline.evaluate.evaluation import Options, compare
from pipeline.evaluate.metrics import retrieval_metrics
from pipeline.evaluate.run import evaluate_chosen, results_table
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import ZERO_SHOT, resolve_head, resolve_store
from pipeline.retrieve.corpus import build_corpus_index
from pipeline.retrieve.index import IndexSpec
from pipeline.train.loop import TrainSettings
from pipeline.train.recipe import head_config, recipe
from pipeline.train.run import train_head
from pipeline.train.tasks import HeadTask
from pipeline.workspace import Workspace

Say = Callable[[str], None]
Stepwise = Callable[[str], AbstractContextManager[Any]]


def demo(workspace: Workspace, say: Say, stepwise: Stepwise, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """(a row a system, the table in words). `options` go to the generator of shapes: train, val, test, seed."""
    say("1/4  shapes: generating clips and extracting features")
    settings = ExtractSettings()
    manifest = dataset_manifest(workspace, "shapes", None, None, None, options)
    extract_manifest(workspace, manifest, settings)
    chosen = resolve_store(workspace, "shapes", settings.model)

    runs = {"mean pooling (zero-shot)": ZERO_SHOT}
    for number, (head, title) in enumerate((("xpool", "X-Pool"), ("dits", "DITS")), start=2):
        say(f"{number}/4  training {title}")
        training = TrainSettings(**recipe(chosen), seed=24)
        with stepwise(head) as progress:
            config = head_config(chosen, head, {})
            result = train_head(workspace, chosen, config, training, HeadTask(), retrieval_metrics, progress=progress)
        runs[title] = result["run"]

    say("4/4  indexing and evaluating")
    served = resolve_head(workspace, chosen, runs["DITS"])  # `search` goes on with it
    build_corpus_index(workspace, chosen, served, IndexSpec(), say=say)
    rows, folders = [], {}
    for title, run in runs.items():
        head_ = resolve_head(workspace, chosen, run)
        evaluation, folders[title] = evaluate_chosen(workspace, chosen, head_, Options(), through_index=True, say=say)
        rows.append({"system": title, "run": run, **evaluation.contract()})
    differences = {
        title: compare(folders["mean pooling (zero-shot)"], folder)["t2v"]["R@1"]
        for title, folder in folders.items()
        if title != "mean pooling (zero-shot)"
    }
    for row in rows:
        row["R@1 over zero-shot"] = differences.get(row["system"])
    return rows, results_table(rows)
