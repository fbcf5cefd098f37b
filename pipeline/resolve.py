"""Resolve a command's feature store, head and encoder."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dits_head.config import HeadConfig
from dits_head.head import RetrievalHead, build_head
from pipeline.datasets.assemble import claim
from pipeline.errors import BadInput, CorruptShard, MissingData
from pipeline.stores.atomic import write_json
from pipeline.stores.checkpoints import load_head, read_head_record
from pipeline.stores.features import FeatureStore
from pipeline.stores.integrity import read_json
from pipeline.stores.manifest import read_manifest
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import torch

ZERO_SHOT = "zero-shot"  # the run name of plain mean pooling, which needs no training


@dataclass(frozen=True)
class ResolvedStore:
    """A feature store and the names that lead to it: features/<dataset>/<encoder>."""

    dataset: str
    encoder: str
    store: FeatureStore


@dataclass(frozen=True)
class ResolvedHead:
    """A head ready for inference, the run that it came from, and the record of how it was made. `head_dir`: its folder,
    where the user named one."""

    run: str
    head: RetrievalHead
    record: dict[str, Any]
    head_dir: Path | None = None

    def to(self, device: "torch.device") -> "ResolvedHead":
        """The same, its head on `device`: whatever is computed with it runs there."""
        return replace(self, head=self.head.to(device))


def encoder_name(model: str, pretrained: str | None) -> str:
    """The folder name of an encoder: the model, and its weights' tag or file name."""
    if not pretrained:
        return model.replace("/", "-")
    weights = Path(pretrained).stem if "/" in pretrained or Path(pretrained).suffix else pretrained
    return f"{model}-{weights}".replace("/", "-")


def remember_store(workspace: Workspace, dataset: str, encoder: str) -> None:
    """Record the store extracted last, the default of later commands."""
    write_json(workspace.root / "last.json", {"dataset": dataset, "encoder": encoder})


def resolve_store(workspace: Workspace, dataset: str | None = None, encoder: str | None = None) -> ResolvedStore:
    """Resolve a data set and encoder to a feature store; by default the only one, or the one extracted last.

    Raises MissingData when nothing fits, BadInput listing the choices when several do and none was last.
    """
    found = [(path.parent.name, path.name) for path in workspace.feature_dirs()]
    fitting = [pair for pair in found if dataset in (None, pair[0]) and encoder in (None, pair[1])]
    if not fitting:
        wanted = "/".join(name for name in (dataset, encoder) if name) or "anything"
        raise MissingData(
            f"no features of {wanted} in {workspace.root}",
            got=", ".join("/".join(pair) for pair in found) or "no feature store at all",
            fix=f"run `python cli.py extract --dataset {dataset or 'shapes'}` first",
        )
    if len(fitting) > 1:
        last = workspace.root / "last.json"
        record = read_json(last, may={"dataset": str, "encoder": str}) if last.exists() else {}
        fitting = [pair for pair in fitting if pair == (record.get("dataset"), record.get("encoder"))] or fitting
    if len(fitting) > 1:
        raise BadInput(
            "several feature stores fit",
            got=", ".join("/".join(pair) for pair in fitting),
            fix="give --dataset, --encoder",
        )
    name, encoder = fitting[0]
    return ResolvedStore(name, encoder, FeatureStore.open(workspace.features_dir(name, encoder)))


def split_label(
    workspace: Workspace, chosen: ResolvedStore, split: str | None, video_ids: Collection[str]
) -> str | None:
    """Label of results on these videos of a split; None for an unknown split.

    It is the published split's name only if the videos are that split's, every one: one that could not be downloaded
    or decoded makes it a subset.
    """
    path = workspace.manifest_path(chosen.dataset)
    accounts = read_manifest(path).protocol.get("splits", {}) if path.exists() else {}
    return claim(accounts[split], video_ids) if split in accounts else None


def resolve_head(
    workspace: Workspace, chosen: ResolvedStore, run: str | None = None, head_dir: Path | None = None
) -> ResolvedHead:
    """The head trained last on the data set with the store's encoder, the tables' runs aside; or the run named; or the
    folder named.

    `zero-shot`, and a data set without a trained head, give mean pooling. Raises MissingData for an unknown run,
    FingerprintMismatch for a head of another encoder, BadInput for one of another width.
    """
    if head_dir is not None:
        return replace(open_head(Path(head_dir), chosen.store), head_dir=Path(head_dir).resolve())
    runs = workspace.head_dirs(chosen.dataset)
    if run is None:
        runs = [path for path in runs if _taken_unnamed(path, chosen.store)]
        run = runs[-1].name if runs else ZERO_SHOT
    if run == ZERO_SHOT:
        config = HeadConfig(head="mean-pool", dim=chosen.store.dim)
        return ResolvedHead(ZERO_SHOT, build_head(config).eval(), {"head": config.to_dict(), "selected_on": None})
    if run not in [path.name for path in runs]:
        raise MissingData(
            f"no head {run!r} for {chosen.dataset}",
            got=", ".join([*(path.name for path in runs), ZERO_SHOT]),
            fix="choose one of these with --run, or train it with `python cli.py train-head`",
        )
    return open_head(workspace.head_dir(chosen.dataset, run), chosen.store)


def _taken_unnamed(folder: Path, store: FeatureStore) -> bool:
    """Whether a run fits the store and was not trained for a table of `reproduce`."""
    record = read_head_record(folder)
    return bool(record["encoder"] | store.cache_settings == store.settings) and not record.get("for_tables")


def open_head(folder: Path, store: FeatureStore) -> ResolvedHead:
    weights, record = load_head(folder)
    try:
        config = HeadConfig.from_dict(record["head"])
    except (TypeError, ValueError) as error:
        raise CorruptShard(
            f"{folder}/config.json holds no head that can be built: {error}", fix="train it again"
        ) from None
    if config.dim != store.dim:
        raise BadInput(
            f"the head in {folder} is of another width than the features in {store.path}",
            expected=f"{config.dim}-d features",
            got=f"{store.dim}-d",
            fix="extract with the head's encoder, or train a head on these features",
        )
    store.require({**record["encoder"], **store.cache_settings}, f"use the head in {folder}")
    head = build_head(config)
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise CorruptShard(f"the weights in {folder} are not this head's ({error})", fix="train it again") from None
    return ResolvedHead(folder.name, head.eval(), record)
