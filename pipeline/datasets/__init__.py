"""Data sets, folders, lists, tars and URLs, each brought into one manifest.

Belongs here: what an annotation file or a listing says. Does not: anything about frames or features. To add a data
set, see CONTRIBUTING: a file of `annotate`, a line here.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadInput

if TYPE_CHECKING:
    from pipeline.datasets.assemble import Annotated
    from pipeline.datasets.source import Source
    from pipeline.stores.manifest import Manifest


@dataclass(frozen=True)
class DatasetInfo:
    """`module` is imported when the data set is used. `built_in`: made by a generator, needs no files."""

    name: str
    title: str
    module: str
    built_in: bool = False


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo("shapes", "moving shapes, generated", "pipeline.datasets.shapes", built_in=True),
        DatasetInfo("msrvtt", "MSR-VTT: 1k-A (train 9k or 7k), 1k-B, full", "pipeline.datasets.msrvtt"),
        DatasetInfo("msvd", "MSVD, all captions", "pipeline.datasets.msvd"),
        DatasetInfo("lsmdc", "LSMDC 2016", "pipeline.datasets.lsmdc"),
        DatasetInfo("didemo", "DiDeMo, paragraph to video", "pipeline.datasets.didemo"),
        DatasetInfo("vatex", "VATEX, English, HGR split", "pipeline.datasets.vatex"),
        DatasetInfo("charades", "Charades, script to video", "pipeline.datasets.charades"),
        DatasetInfo("activitynet", "ActivityNet Captions val_1, paragraph to video", "pipeline.datasets.activitynet"),
        DatasetInfo("folder", "your own folder of videos, with a captions file or without", "pipeline.datasets.folder"),
        DatasetInfo(
            "shapes-hard", "moving shapes before a camera, generated", "pipeline.datasets.shapes_hard", built_in=True
        ),
    )
}


_GIVEN_OTHERWISE = {
    "source",
    "dataset_dir",
    "progress",
    "videos",
    "captions_file",
    "previous",
    "drop_captions",
}  # parameters that are no options


def dataset_info(name: str) -> DatasetInfo:
    """Raises BadInput with the list of names."""
    if name not in DATASETS:
        raise BadInput(
            f"unknown data set {name!r}",
            expected=", ".join(DATASETS),
            fix="choose one of these; your own videos need no name: extract --videos DIR [--captions FILE]",
        )
    return DATASETS[name]


def build_manifest(
    name: str,
    videos: Path | None = None,
    annotations: Path | None = None,
    dataset_dir: Path | None = None,
    *,
    previous: "Manifest | None" = None,
    drop_captions: bool = False,
    **options: Any,
) -> "Manifest":
    """Build the manifest of a data set; its files default to `dataset_dir`/{videos,annotations}.

    Options: `splits` ("train,val,test" or a part of it: the files of the other splits are then not needed), and those
    of the data set's `annotate` (or of the generator of shapes). For "folder", `annotations` is the captions file and
    the option `corpus` its name; `previous` and `drop_captions` are `folder_manifest`'s. Raises MissingData listing
    every file that is absent, BadInput on malformed ones.
    """
    from pipeline.datasets.assemble import assemble

    info = dataset_info(name)
    module = import_module(info.module)
    if info.built_in:
        checked = _checked(name, module.generate, options)
        manifest: Manifest = module.build(videos, annotations, _needed(dataset_dir, "dataset_dir"), **checked)
        return account_built_in(manifest)
    if name == "folder":
        folder = Path(videos) if videos else _needed(dataset_dir, "videos") / "videos"
        checked = _checked(name, module.build, options)
        captions = Path(annotations) if annotations else None
        return module.build(folder, captions, previous=previous, drop_captions=drop_captions, **checked)
    source = find_source(name, videos, annotations, dataset_dir, options.pop("splits", None))
    assert source.videos is not None
    annotated = annotate(source, **options)
    chosen = {**_defaults(module.annotate), **options, "splits": source.splits}
    return assemble(name, annotated, source.videos, source.repairs, chosen)


def account_built_in(manifest: "Manifest") -> "Manifest":
    """A generator's manifest with the accounts that every data set has (assemble.py)."""
    from pipeline.datasets.assemble import account_generated
    from pipeline.stores.manifest import SPLITS

    standard = inspect.signature(import_module(dataset_info(manifest.name).module).generate).parameters
    return account_generated(manifest, {split: standard[split].default for split in SPLITS})


def annotate(source: "Source", **options: Any) -> "Annotated":
    """What the annotation files of `source.dataset` say, before any video is looked for."""
    module = import_module(dataset_info(source.dataset).module)
    annotated: Annotated = module.annotate(source, **_checked(source.dataset, module.annotate, options))
    return annotated


def find_source(
    name: str,
    videos: Path | None,
    annotations: Path | None,
    dataset_dir: Path | None,
    splits: str | tuple[str, ...] | None = None,
) -> "Source":
    """The named folders, or those that the convention of the workspace gives."""
    from pipeline.datasets.source import Source
    from pipeline.stores.manifest import SPLITS

    wanted = tuple(splits.split(",")) if isinstance(splits, str) else tuple(splits or SPLITS)
    if not wanted or not set(wanted) <= set(SPLITS):
        raise BadInput("splits", expected=",".join(SPLITS) + " or a part of it", got=",".join(wanted))
    return Source(
        name,
        Path(annotations) if annotations else _needed(dataset_dir, "annotations") / "annotations",
        Path(videos) if videos else _needed(dataset_dir, "videos") / "videos",
        wanted,
    )


def _needed(path: Path | None, what: str) -> Path:
    if path is None:
        raise BadInput(f"{what}: no folder given", fix=f"name it with --{what}")
    return Path(path)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    return {key: value.default for key, value in parameters.items() if value.kind is value.KEYWORD_ONLY}


def _checked(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, numbers read from text where the function takes numbers. Raises BadInput on an unknown one."""
    parameters = inspect.signature(function).parameters
    known = {key: value for key, value in parameters.items() if key not in _GIVEN_OTHERWISE}
    checked = dict(options)
    for option, value in options.items():
        if option not in known:
            raise BadInput(f"data set {name!r} has no option {option!r}", expected=", ".join(known) or "none")
        if isinstance(value, str) and "int" in str(known[option].annotation):
            if not value.lstrip("-").isdecimal():
                raise BadInput(f"data set {name!r}: option {option!r}", expected="a whole number", got=repr(value))
            checked[option] = int(value)
    return checked
