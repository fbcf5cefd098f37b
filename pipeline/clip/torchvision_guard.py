"""Lets open_clip import beside a CPU build of torch.

The registry's torchvision is compiled for CUDA; beside a CPU torch its operators do not load and the import fails
with "operator torchvision::nms does not exist". open_clip needs only torchvision's Python transforms, so declaring
the schema of the two missing operators is enough. Calling one of them would still fail, and loudly.
"""

import importlib
import sys

_library = None  # torch.library.Library: the declarations live as long as this object


def ensure() -> None:
    """Make `import torchvision` work; do nothing where it already does."""
    global _library
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
