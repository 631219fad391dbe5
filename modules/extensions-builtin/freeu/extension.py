"""FreeU: what the network's depth says is strengthened over what its side ways carry. Si et al. 2023, arXiv:2309.11497."""
from __future__ import annotations

from typing import TYPE_CHECKING

from modules.pipeline.extension import Control, Extension

if TYPE_CHECKING:
    from modules.pipeline.plan import Batch
    from modules.sampling.guidance import RowsDenoise

FACTORS = (("b1", 1.3), ("b2", 1.4), ("s1", 0.9), ("s2", 0.2))


class FreeU(Extension):
    name = "FreeU"

    def controls(self, tab: str) -> tuple[Control, ...]:
        words = {"b": "strength of what comes from below", "s": "what stays of low frequencies from the side"}
        return (
            Control(name="enabled", label="Enable", kind="bool", default=False, infotext="FreeU"),
            Control(name="version", label="Version", kind="choice", default="2", choices=("1", "2"), infotext="FreeU version"),
            *(Control(name=name, label=name.upper(), kind="float", default=default, minimum=0, maximum=2, step=0.01,
                      infotext=f"FreeU {name}", help=words[name[0]]) for name, default in FACTORS),
        )

    def wrap_model(self, rows_denoise: RowsDenoise, batch: Batch) -> RowsDenoise:
        from modules.networks.changes import free_u
        from modules.sampling.steering import changed
        values = self.values(batch.request)
        if not values["enabled"]:
            return rows_denoise
        return changed(rows_denoise, free_u(*(values[name] for name, _ in FACTORS), version=int(values["version"])))
