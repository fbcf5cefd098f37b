"""The import rules of the house: who may know whom (CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STAGES = ("extract", "train", "retrieve")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with the names taken from packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import")
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def offenders(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in sorted(imports(path))
        if name.startswith(tuple(f"{module}." for module in forbidden)) or name in forbidden
    ]


def test_the_model_knows_nothing_of_the_pipeline():
    assert sources("dits_head")
    assert offenders("dits_head", ("pipeline", "cli", "open_clip", "faiss", "typer", "h5py", "pyarrow")) == []


def test_stages_meet_on_disk_only():
    for stage in STAGES:
        others = tuple(f"pipeline.{other}" for other in STAGES if other != stage)
        assert sources(f"pipeline/{stage}")
        assert offenders(f"pipeline/{stage}", (*others, "pipeline.flows", "cli")) == []


def test_stores_and_data_sets_stand_below_the_stages():
    stages = tuple(f"pipeline.{stage}" for stage in STAGES)
    assert offenders("pipeline/stores", (*stages, "pipeline.flows", "pipeline.datasets", "dits_head", "cli")) == []
    assert offenders("pipeline/datasets", (*stages, "pipeline.flows", "dits_head", "cli")) == []


def test_libraries_stand_in_one_room_each():
    for path in sources("pipeline"):
        room = path.relative_to(ROOT / "pipeline").parts[0]
        heads = {name.split(".")[0] for name in imports(path)}
        if room != "retrieve":
            assert "faiss" not in heads, path
        if room != "extract":
            assert not heads & {"open_clip", "ffmpeg"}, path
        if room in ("stores", "datasets", "extract"):
            assert "dits_head" not in heads, path


def test_help_needs_no_heavy_library():
    heavy = {"torch", "open_clip", "faiss", "h5py", "pyarrow", "av", "matplotlib", "numpy"}
    code = "import sys, cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert heavy & set(loaded.split()) == set()
