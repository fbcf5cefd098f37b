"""`index`, stage 3."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import (
    DatasetOption,
    DeviceOption,
    EncoderOption,
    HeadDirOption,
    JsonOption,
    RunOption,
    WorkspaceOption,
    exclusive,
    numbers,
    pairs,
    show,
    size_in_bytes,
)
from pipeline.workspace import Workspace


def index(
    factory: Annotated[
        str | None, typer.Option(help="Any FAISS factory string: Flat, HNSW32, IVF1024,SQ8, ... [default: Flat]")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(min=0, max=1, help="Choose by need: recall@10 against exact search, 0 to 1")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Choose by need: most memory, of the index and of building it, such as 2GB")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Choose by need: milliseconds of one query alone")
    ] = None,
    search_: Annotated[
        list[str] | None, typer.Option("--search", help="A search parameter, such as efSearch=128; repeatable")
    ] = None,
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Keep inverted lists in a mapped file")] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Build nothing: write the live index's vectors, ids and paths to this Parquet file"),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Refuse to build without a GPU of FAISS; see --device")] = False,
    run: RunOption = None,
    head_dir: HeadDirOption = None,
    dataset: DatasetOption = None,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 3: build a FAISS index of every video of the data set, verify it, switch to it.

    \b
        python cli.py index
        python cli.py index --recall 0.99 --memory 2GB --latency-ms 5
        python cli.py index --factory HNSW32 --search efSearch=128
        python cli.py index --run zero-shot
        python cli.py index --export vectors.parquet
    """
    by_need = [value for value in (recall, memory, latency_ms) if value is not None]
    exclusive(
        {"--recall, --memory, --latency-ms": by_need, "--factory, --search, --on-disk": factory or search_ or on_disk}
    )
    memory_bytes = size_in_bytes(memory) if memory else None
    search_parameters = numbers(pairs(search_, "--search"), "--search")
    exclusive({"--export": export, "options of building": by_need or factory or search_ or on_disk or run or head_dir})
    place = Workspace.locate(workspace)
    if export:
        from pipeline.retrieve.corpus import generations
        from pipeline.retrieve.export import export_vectors
        from pipeline.retrieve.retriever import latest_corpus

        rows = export_vectors(generations(place, dataset or latest_corpus(place)), export)
        show({"rows": rows, "file": str(export)}, as_json, f"{rows} vectors in {export}")
        return

    from pipeline.clip.advice import warn_of_test_model
    from pipeline.device import resolve_device
    from pipeline.resolve import resolve_head, resolve_store
    from pipeline.retrieve.autotune import Requirements
    from pipeline.retrieve.corpus import autotune_spec, build_corpus_index
    from pipeline.retrieve.index import IndexSpec, asked_gpu, required_gpu

    chosen = resolve_store(place, dataset, encoder)
    warn_of_test_model(chosen.store.settings.get("model"), chosen.dataset)
    where = resolve_device(device)
    on = required_gpu(where) if gpu else asked_gpu(device, where)
    head = resolve_head(place, chosen, run, head_dir).to(where)
    if by_need:
        required = Requirements(0.95 if recall is None else recall, memory_bytes, latency_ms)
        spec = autotune_spec(place, chosen, head, required, gpu=on)
    else:
        spec = IndexSpec(factory or "Flat", search_parameters, on_disk=on_disk)
    result = build_corpus_index(place, chosen, head, spec, gpu=on)
    show(result.contract(), as_json, f"{chosen.dataset} {result.generation}: {result.total} videos, head {head.run}")
