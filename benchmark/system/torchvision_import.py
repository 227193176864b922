"""The one place that imports torchvision.

Its wheels are built with CUDA; beside a CPU-only torch the import fails because two operators it describes do not
exist. Declaring their schemas first cures that; the operators themselves (`nms`) stay unusable and are not needed.
"""

import functools
from types import ModuleType

import torch

MISSING = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def torchvision() -> ModuleType:
    """The package, imported on first use."""
    if not torch.version.cuda:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in MISSING:
            if not hasattr(torch.ops.torchvision, name):
                library.define(name + SCHEMA)
        _kept.append(library)
    import torchvision
    import torchvision.datasets

    return torchvision  # type: ignore[no-any-return]


_kept: list[torch.library.Library] = []  # a library's definitions live as long as the object
