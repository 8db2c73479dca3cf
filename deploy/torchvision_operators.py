"""Makes a torchvision importable whose compiled library does not load; set-up.sh copies it into such an environment.

PyPI's torchvision is built for CUDA. Beside PyTorch's CPU build its library does not load, which torchvision allows
for, but for one slip: `torchvision._meta_registrations` still describes two operators of that library, and so every
import fails, that of transformers' image processors included. Here those two get their signatures, right before. What
resizes pictures is pure PyTorch and works; a call of a compiled operator says that the library is not there.

It runs at the start of every Python of the environment (a .pth file names it), so it imports nothing of size.
"""

import sys
from typing import Any

SIGNATURE = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("nms", "qnms")
"""Those that torchvision 0.28 describes whether or not its library is there."""


class Declare:
    """A finder that finds nothing, but is asked when torchvision is about to describe its operators."""

    library: Any = None  # operators live as long as the library object that declared them

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision._meta_registrations" and not sys.modules["torchvision.extension"]._has_ops():
            from torch.library import Library

            self.library = Library("torchvision", "FRAGMENT")
            for operator in OPERATORS:
                self.library.define(SIGNATURE.format(operator))


sys.meta_path.insert(0, Declare())  # type: ignore[arg-type]
