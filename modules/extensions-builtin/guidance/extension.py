"""More guidance than the CFG scale: rescaled, projected, and away from what a worse network would have guessed."""
from __future__ import annotations

from typing import TYPE_CHECKING

from modules.pipeline.extension import Control, Extension

if TYPE_CHECKING:
    from modules.pipeline.plan import Batch
    from modules.sampling.guidance import RowsDenoise
    from modules.sampling.samplers import Denoise


def _slider(name: str, label: str, most: float, step: float, text: str, infotext: str, default: float = 0.0, least: float = 0.0) -> Control:
    return Control(name=name, label=label, kind="float", default=default, minimum=least, maximum=most, step=step, help=text,
                   infotext=infotext)


class Guidance(Extension):
    """Every control at its default is off."""

    name = "Guidance"

    def controls(self, tab: str) -> tuple[Control, ...]:
        return (
            _slider("rescale", "CFG rescale", 1, 0.05, "brings the spread back that a high CFG scale widens (Lin et al. 2023); 0 = off",
                    "CFG rescale"),
            Control(name="apg", label="Adaptive projected guidance", kind="bool", default=False, infotext="APG",
                    help="leaves out what only saturates colours (Sadat et al. 2024)"),
            _slider("apg_parallel", "APG parallel part", 1, 0.05, "how much of the saturating part stays", "APG parallel"),
            _slider("apg_length", "APG greatest length", 50, 0.5, "0 = any", "APG length", 15.0),
            _slider("apg_momentum", "APG momentum", 1, 0.05, "below 0: away from where the last steps went", "APG momentum", -0.5, -1.0),
            _slider("pag", "Perturbed attention", 15, 0.1, "away from a network whose cells do not look around (Ahn et al. 2024); 0 = off",
                    "PAG scale"),
            _slider("slg", "Skipped layers", 15, 0.1, "away from a network without its middle transformer; 0 = off", "SLG scale"),
            _slider("sag", "Self-attention guidance", 2, 0.05, "away from a blur of what the network looks at (Hong et al. 2022); 0 = off",
                    "SAG scale"),
        )

    def wrap_model(self, rows_denoise: RowsDenoise, batch: Batch) -> RowsDenoise:
        from modules.networks.changes import without_layers, without_looking
        from modules.sampling.steering import led_away, self_attentive
        values = self.values(batch.request)
        found = rows_denoise
        if values["pag"]:
            found = led_away(found, without_looking, values["pag"])
        if values["slg"]:
            found = led_away(found, without_layers, values["slg"])
        return self_attentive(found, values["sag"]) if values["sag"] else found

    def wrap(self, denoise: Denoise, batch: Batch) -> Denoise:
        from modules.sampling.steering import projected, rescaled
        values, scale = self.values(batch.request), batch.request.cfg_scale
        found = denoise
        if values["apg"]:
            found = projected(found, scale, values["apg_parallel"], values["apg_length"], values["apg_momentum"])
        return rescaled(found, scale, values["rescale"]) if values["rescale"] else found
