"""Dynamic thresholding: a high CFG scale without burnt colours. Saharia et al. 2022, arXiv:2205.11487, section 2.3, on latents."""
from __future__ import annotations

from typing import TYPE_CHECKING

from modules.pipeline.extension import Control, Extension

if TYPE_CHECKING:                                           # torch and what needs it stay out of the start
    from modules.pipeline.plan import Batch
    from modules.sampling.samplers import Denoise


class DynamicThresholding(Extension):
    """Each guided latent is clipped at a percentile, and spread as guidance by a lower scale would spread it."""

    name = "Dynamic thresholding"

    def controls(self, tab: str) -> tuple[Control, ...]:
        return (
            Control(name="enabled", label="Enable", kind="bool", default=False, infotext="Dynamic thresholding"),
            Control(name="mimic_scale", label="Mimic CFG scale", kind="float", default=7.0, minimum=1, maximum=30, step=0.5,
                    infotext="Mimic scale", help="the CFG scale whose contrast the picture shall have"),
            Control(name="percentile", label="Percentile", kind="float", default=0.995, minimum=0.5, maximum=1, step=0.001,
                    infotext="Threshold percentile", help="where the values of each channel are clipped"),
        )

    def wrap(self, denoise: Denoise, batch: Batch) -> Denoise:
        from modules.sampling.steering import mimicking
        values = self.values(batch.request)
        if not values["enabled"]:
            return denoise
        return mimicking(denoise, batch.request.cfg_scale, values["mimic_scale"], values["percentile"])
