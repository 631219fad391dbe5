"""HyperTile: in large pictures cells look only at the cells of their own tile, which takes less time and memory."""
from __future__ import annotations

from typing import TYPE_CHECKING

from modules.pipeline.extension import Control, Extension

if TYPE_CHECKING:
    from modules.pipeline.plan import Batch
    from modules.sampling.guidance import RowsDenoise


class HyperTile(Extension):
    name = "Hypertile"

    def controls(self, tab: str) -> tuple[Control, ...]:
        return (
            Control(name="enabled", label="Enable for U-Net", kind="bool", default=False, infotext="Hypertile U-Net"),
            Control(name="tile", label="Tile size", kind="int", default=256, minimum=64, maximum=2048, step=8, help="in pixels",
                    infotext="Hypertile U-Net max tile size"),
            Control(name="depth", label="Depth", kind="int", default=3, minimum=0, maximum=3, step=1,
                    help="how many resolutions below the first", infotext="Hypertile U-Net max depth"),
        )

    def wrap_model(self, rows_denoise: RowsDenoise, batch: Batch) -> RowsDenoise:
        from modules.networks.changes import tiled_attention
        from modules.sampling.steering import changed
        values = self.values(batch.request)
        return changed(rows_denoise, tiled_attention(values["tile"] // 8, values["depth"])) if values["enabled"] else rows_denoise
