"""Lets open_clip import beside a CPU build of torch.

The registry's torchvision is compiled for CUDA; beside a CPU torch its operators do not load and the import fails
with "operator torchvision::nms does not exist". open_clip needs only torchvision's Python transforms, so declaring
the schema of the two missing operators is enough. Calling one of them would still fail, and loudly.

`import pipeline` watches for the import of torchvision (`watch`, which loads nothing itself), so that in a notebook

    import pipeline
    import open_clip

work. Without the package's own import first: `import pipeline.clip.torchvision_guard as g; g.ensure()`.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_library: Any = None  # torch.library.Library: the declarations live as long as this object


def ensure() -> None:
    """Make `import torchvision` work; do nothing where it already does."""
    global _library
    unwatch()  # what is imported below is the real one
    if _library is not None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        _library = library


class _Watch:
    """An import hook: the first import of torchvision, by whoever it is, goes through `ensure`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        ensure()
        return ModuleSpec(name, _Loaded(sys.modules[name]))  # type: ignore[arg-type]


class _Loaded:
    """A loader that hands out a module which is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec, self._loader = module, module.__spec__, module.__loader__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__, module.__loader__ = self._spec, self._loader


def watch() -> None:
    """Apply `ensure` when torchvision is imported, not before. Imports nothing."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())  # type: ignore[arg-type]


def unwatch() -> None:
    """Take the hook away again."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Watch)]
