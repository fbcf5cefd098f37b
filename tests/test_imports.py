"""The import rules of the house: who may know whom (CONTRIBUTING.md). Imports inside functions count too."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOUNDATION = (
    "device", "errors", "fingerprint", "frame_size", "object_store", "planner", "presets", "progress", "remote",
    "workspace",
)  # fmt: skip
STAGES = ("extract", "train", "retrieve")
# From the bottom to the top. A room imports itself and lower rows; the rooms of one row do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    FOUNDATION,
    ("dits_head",),
    ("stores",),
    ("video", "clip"),
    ("datasets",),
    ("resolve",),
    STAGES,
    ("evaluate",),
    ("experiments", "serve"),
    ("commands",),
    ("cli",),
)
LIBRARIES = {"faiss": "retrieve", "open_clip": "clip", "ffmpeg": "video"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for path in [ROOT / "cli.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "dits_head").rglob("*.py")]
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; `from package import module` names the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(names & MODULES.keys() or {str(node.module)})
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else parts[0]


def test_arrows_run_downwards():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in sorted(imports(path) & MODULES.keys())
        if room(module) != room(other)
        and room(other) != "pipeline"
        and room(module) != "pipeline"
        and not floor[room(other)] < floor[room(module)]
        and not {room(module), room(other)} <= set(FOUNDATION)
    ]
    assert wrong == []


def test_no_import_circle():
    graph = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"import circle: {' -> '.join(error.args[1])}") from None


def test_the_model_knows_no_files_and_nothing_of_the_pipeline():
    forbidden = {"pipeline", "cli", "open_clip", "faiss", "typer", "h5py", "pyarrow"}
    for module, path in MODULES.items():
        if room(module) == "dits_head":
            assert not {name.split(".")[0] for name in imports(path)} & forbidden, module


def test_libraries_stand_in_one_room_each():
    for module, path in MODULES.items():
        for library in {name.split(".")[0] for name in imports(path)} & LIBRARIES.keys():
            assert room(module) == LIBRARIES[library], f"{module} imports {library}"


def test_every_room_says_what_belongs_in_it():
    for folder in sorted((ROOT / "pipeline").iterdir()):
        if folder.is_dir() and list(folder.glob("*.py")):
            said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
            assert "Belongs here" in said, folder
            assert "Does not" in said, folder


def test_help_needs_no_heavy_library():
    heavy = {"torch", "open_clip", "faiss", "h5py", "pyarrow", "av", "matplotlib", "numpy"}
    code = "import sys, cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert heavy & set(loaded.split()) == set()
