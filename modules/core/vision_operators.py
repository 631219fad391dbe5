"""torchvision beside a torch of another build: one made for CUDA finds no operators of its own on a CPU torch and fails at import."""
from __future__ import annotations

import functools
from typing import Any

# The operators that torchvision describes to torch while it is imported, as its own library would declare them.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache                                            # the declarations live as long as the returned library does
def declare() -> Any | None:
    """Make `import torchvision` possible: declare its operators if its own library cannot be loaded. Call before that import.

    Returns the torch.library.Library that holds the declarations, None when torchvision works as it is. The operators then exist and
    raise when they are called; networks for pictures (what spandrel builds) call none of them.
    """
    # Heavy: torch.
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    _forget_half_an_import()
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def _forget_half_an_import() -> None:
    """A failed import leaves the parts that were read; the next import would take them for whole."""
    import sys
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
