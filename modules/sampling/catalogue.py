"""Samplers and schedules as users know them: names, aliases, defaults. Facts only, without torch; functions by dotted name.

A new sampler is one function in samplers/ and one entry here; a new schedule one function in schedule.py and one entry here.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from modules.core.errors import NotFoundError

CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
MODEL = ("prediction",)


@dataclass(frozen=True, kw_only=True)
class SamplerEntry:
    """One sampler of the menu.

    order: of its error in the step length on the noise-free equation; None for a method that is judged by its distribution instead.
    alone: a picture in a batch is then not quite the one made alone.
    start: "ve": the first latent is noise * sigma, and what stands at the end of the ladder is the picture. "vp": the method is written for
        latents of unit variance, x / sqrt(1 + sigma^2), so it starts from noise * sqrt(1 + sigma^2) and the end is divided by that root.
        See denoise.first_latent.
    own_schedule: the function of the only ladder this sampler can walk ("" = any schedule).
    eta_option: the setting that holds its eta when the request names none ("" = it has no eta).
    """

    name: str
    aliases: tuple[str, ...]
    function: str                                           # "module:function", called by the law of samplers/__init__.py
    knobs: tuple[str, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()                 # arguments that make this entry out of a shared function
    order: int | None = None
    default_schedule: str | None = None                     # internal name; None = Uniform, shown as Automatic
    second_order: bool = False                              # two model calls a step: prompt editing counts twice as many calls
    calls_a_step: int = 0                                   # where they are more than two (0 = as second_order says)
    uses_ensd: bool = False                                 # its infotext names the ENSD setting
    brownian: bool = False                                  # noise from a Brownian path instead of the pictures' generators
    discard: bool = False                                   # the smallest level of the ladder is left out
    default_eta: float = 0.0
    eta_option: Literal["", "eta_ancestral", "eta_ddim"] = ""
    start: Literal["ve", "vp"] = "ve"
    own_schedule: str = ""
    own_needs: tuple[str, ...] = ()                         # what that function is told beside steps, range and prediction
    alone: bool = False                                     # its steps are chosen by the latents: a batch would share them
    takes_uncond: bool = False                              # its direction is the guess without the prompt: wanted at CFG scale 1 too

    @property
    def options(self) -> dict[str, str]:
        """The facts in the form the API lists them: strings to strings."""
        flags = {"discard_next_to_last_sigma": self.discard, "uses_ensd": self.uses_ensd,
                 "second_order": self.second_order, "brownian_noise": self.brownian}
        own = {"scheduler": self.default_schedule} if self.default_schedule else {}
        return {**own, **{name: "True" for name, on in flags.items() if on}, **dict(self.fixed)}

    def calls(self, steps: int) -> int:
        """Model calls that prompt editing and progress count for so many steps."""
        return steps * (self.calls_a_step or (2 if self.second_order else 1))


@dataclass(frozen=True, kw_only=True)
class ScheduleEntry:
    """One schedule of the menu. default_rho -1 = it has no rho; need_inner_model: clients are told that it depends on the model.

    needs: what its function is told beside steps and range: "prediction", "rho", "alpha" and "beta", "sdxl", see schedule.ladder.
    """

    name: str                                               # internal
    label: str
    function: str = ""                                      # "" only for Automatic
    aliases: tuple[str, ...] = ()
    default_rho: float = -1.0
    need_inner_model: bool = False
    needs: tuple[str, ...] = ()


SAMPLERS: tuple[SamplerEntry, ...] = (                      # in the order of the menu; from TCD on, those that came later
    SamplerEntry(name="DPM++ 2M", aliases=("k_dpmpp_2m",), function="modules.sampling.samplers.dpmpp:dpmpp_2m", order=2,
                 default_schedule="karras"),
    SamplerEntry(name="DPM++ SDE", aliases=("k_dpmpp_sde",), function="modules.sampling.samplers.dpmpp_singlestep:dpmpp_sde",
                 knobs=("eta", "s_noise"), default_schedule="karras", second_order=True, brownian=True, default_eta=1.0,
                 eta_option="eta_ancestral"),
    SamplerEntry(name="DPM++ 2M SDE", aliases=("k_dpmpp_2m_sde",), function="modules.sampling.samplers.dpmpp:dpmpp_2m_sde",
                 knobs=("eta", "s_noise"), default_schedule="exponential", brownian=True, default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="DPM++ 2M SDE Heun", aliases=("k_dpmpp_2m_sde_heun",), function="modules.sampling.samplers.dpmpp:dpmpp_2m_sde",
                 knobs=("eta", "s_noise"), fixed=(("solver_type", "heun"),), default_schedule="exponential", brownian=True,
                 default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="DPM++ 2S a", aliases=("k_dpmpp_2s_a",), function="modules.sampling.samplers.dpmpp_singlestep:dpmpp_2s_ancestral",
                 knobs=("eta", "s_noise"), default_schedule="karras", second_order=True, uses_ensd=True, default_eta=1.0,
                 eta_option="eta_ancestral"),
    SamplerEntry(name="DPM++ 3M SDE", aliases=("k_dpmpp_3m_sde",), function="modules.sampling.samplers.dpmpp_3m:dpmpp_3m_sde",
                 knobs=("eta", "s_noise"), default_schedule="exponential", brownian=True, discard=True, default_eta=1.0,
                 eta_option="eta_ancestral"),
    SamplerEntry(name="Euler a", aliases=("k_euler_a", "k_euler_ancestral"), function="modules.sampling.samplers.euler:euler_ancestral",
                 knobs=("eta",), uses_ensd=True, default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="Euler", aliases=("k_euler",), function="modules.sampling.samplers.euler:euler", knobs=CHURN, order=1),
    SamplerEntry(name="LMS", aliases=("k_lms",), function="modules.sampling.samplers.multistep:lms", order=4),
    SamplerEntry(name="Heun", aliases=("k_heun",), function="modules.sampling.samplers.heun:heun", knobs=CHURN, order=2,
                 second_order=True),
    SamplerEntry(name="DPM2", aliases=("k_dpm_2",), function="modules.sampling.samplers.dpm2:dpm2", knobs=CHURN, order=2,
                 default_schedule="karras", second_order=True, discard=True),
    SamplerEntry(name="DPM2 a", aliases=("k_dpm_2_a",), function="modules.sampling.samplers.dpm2:dpm2_ancestral", knobs=("eta", "s_noise"),
                 default_schedule="karras", second_order=True, uses_ensd=True, discard=True, default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="DPM fast", aliases=("k_dpm_fast",), function="modules.sampling.samplers.dpm_solver:dpm_fast",
                 knobs=("eta", "s_noise"), uses_ensd=True, default_eta=1.0, eta_option="eta_ancestral",
                 own_schedule="modules.sampling.schedule:uniform"),
    SamplerEntry(name="DPM adaptive", aliases=("k_dpm_ad",), function="modules.sampling.samplers.dpm_solver:dpm_adaptive", knobs=("eta",),
                 uses_ensd=True, default_eta=1.0, eta_option="eta_ancestral", own_schedule="modules.sampling.schedule:uniform",
                 alone=True),
    SamplerEntry(name="Restart", aliases=("restart",), function="modules.sampling.samplers.restart:restart",
                 default_schedule="karras", second_order=True),
    SamplerEntry(name="DDIM", aliases=("ddim",), function="modules.sampling.samplers.ddim:ddim", knobs=("eta",), order=1,
                 eta_option="eta_ddim", start="vp", own_schedule="modules.sampling.schedule:ddim_timesteps"),
    SamplerEntry(name="DDIM CFG++", aliases=("ddim_cfgpp",),
                 function="modules.sampling.samplers.cfgpp:ddim_cfgpp", takes_uncond=True, knobs=("eta",),
                 order=1, eta_option="eta_ddim", start="vp", own_schedule="modules.sampling.schedule:ddim_timesteps"),
    SamplerEntry(name="PLMS", aliases=("plms",), function="modules.sampling.samplers.multistep:plms", order=2, start="vp",
                 own_schedule="modules.sampling.schedule:ddim_timesteps"),
    SamplerEntry(name="UniPC", aliases=("unipc",), function="modules.sampling.samplers.unipc:unipc", order=2, start="vp",
                 knobs=("order", "variant", "lower_order_final"), own_schedule="modules.sampling.samplers.unipc:even_times",
                 own_needs=("skip",)),
    SamplerEntry(name="LCM", aliases=("k_lcm",), function="modules.sampling.samplers.few_step:lcm"),
    SamplerEntry(name="TCD", aliases=("tcd",), function="modules.sampling.samplers.few_step:tcd", knobs=("eta",), default_eta=0.3),
    SamplerEntry(name="DDPM", aliases=("ddpm",), function="modules.sampling.samplers.few_step:ddpm"),
    SamplerEntry(name="HeunPP2", aliases=("heunpp2",), function="modules.sampling.samplers.heunpp:heunpp2", order=1, second_order=True,
                 calls_a_step=3),
    SamplerEntry(name="IPNDM", aliases=("ipndm",), function="modules.sampling.samplers.multistep:ipndm", order=2),
    SamplerEntry(name="IPNDM_V", aliases=("ipndm_v",), function="modules.sampling.samplers.multistep:ipndm_v", order=4),
    SamplerEntry(name="DEIS", aliases=("deis",), function="modules.sampling.samplers.multistep:deis", order=3),
    SamplerEntry(name="ER SDE", aliases=("er_sde",), function="modules.sampling.samplers.er_sde:er_sde", knobs=("s_noise",)),
    SamplerEntry(name="RES multistep", aliases=("res_multistep",), function="modules.sampling.samplers.res:res_multistep", order=2),
    SamplerEntry(name="RES multistep a", aliases=("res_multistep_ancestral",),
                 function="modules.sampling.samplers.res:res_multistep_ancestral", knobs=("eta", "s_noise"), uses_ensd=True,
                 default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="SA-Solver", aliases=("sa_solver",), function="modules.sampling.samplers.sa_solver:sa_solver",
                 knobs=("eta", "s_noise"), default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="Gradient estimation", aliases=("gradient_estimation",),
                 function="modules.sampling.samplers.multistep:gradient_estimation", order=1),
    SamplerEntry(name="SEEDS 2", aliases=("seeds_2",), function="modules.sampling.samplers.seeds:seeds_2", knobs=("eta", "s_noise"),
                 second_order=True, brownian=True, default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="SEEDS 3", aliases=("seeds_3",), function="modules.sampling.samplers.seeds:seeds_3", knobs=("eta", "s_noise"),
                 second_order=True, calls_a_step=3, brownian=True, default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="Euler CFG++", aliases=("euler_cfg_pp",),
                 function="modules.sampling.samplers.cfgpp:euler_cfgpp", takes_uncond=True, order=1),
    SamplerEntry(name="Euler a CFG++", aliases=("euler_ancestral_cfg_pp",),
                 function="modules.sampling.samplers.cfgpp:euler_ancestral_cfgpp", takes_uncond=True,
                 knobs=("eta", "s_noise"), uses_ensd=True,
                 default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="DPM++ 2S a CFG++", aliases=("dpmpp_2s_ancestral_cfg_pp",),
                 function="modules.sampling.samplers.cfgpp:dpmpp_2s_ancestral_cfgpp", takes_uncond=True,
                 knobs=("eta", "s_noise"), second_order=True,
                 uses_ensd=True, default_eta=1.0, eta_option="eta_ancestral"),
    SamplerEntry(name="DPM++ 2M CFG++", aliases=("dpmpp_2m_cfg_pp",),
                 function="modules.sampling.samplers.cfgpp:dpmpp_2m_cfgpp", takes_uncond=True, order=2),
)

SCHEDULES: tuple[ScheduleEntry, ...] = (                    # in the order of the menu
    ScheduleEntry(name="automatic", label="Automatic"),
    ScheduleEntry(name="uniform", label="Uniform", function="modules.sampling.schedule:uniform", need_inner_model=True, needs=MODEL),
    ScheduleEntry(name="karras", label="Karras", function="modules.sampling.schedule:karras", default_rho=7.0, needs=("rho",)),
    ScheduleEntry(name="exponential", label="Exponential", function="modules.sampling.schedule:exponential"),
    ScheduleEntry(name="polyexponential", label="Polyexponential", function="modules.sampling.schedule:polyexponential", default_rho=1.0,
                  needs=("rho",)),
    ScheduleEntry(name="sgm_uniform", label="SGM Uniform", function="modules.sampling.schedule:sgm_uniform", aliases=("SGMUniform",),
                  need_inner_model=True, needs=MODEL),
    ScheduleEntry(name="kl_optimal", label="KL Optimal", function="modules.sampling.schedule:kl_optimal"),
    ScheduleEntry(name="align_your_steps", label="Align Your Steps", function="modules.sampling.measured:align_your_steps",
                  aliases=("Align Your Steps 11", "align_your_steps_11"), needs=("sdxl",)),
    ScheduleEntry(name="simple", label="Simple", function="modules.sampling.schedule:simple", need_inner_model=True, needs=MODEL),
    ScheduleEntry(name="normal", label="Normal", function="modules.sampling.schedule:normal", need_inner_model=True, needs=MODEL),
    ScheduleEntry(name="ddim", label="DDIM", function="modules.sampling.schedule:ddim", need_inner_model=True, needs=MODEL),
    ScheduleEntry(name="beta", label="Beta", function="modules.sampling.schedule:beta", need_inner_model=True, needs=("alpha", "beta")),
    ScheduleEntry(name="turbo", label="Turbo", function="modules.sampling.schedule:turbo", need_inner_model=True, needs=MODEL),
    ScheduleEntry(name="align_your_steps_GITS", label="Align Your Steps GITS", function="modules.sampling.measured:align_your_steps_gits",
                  needs=("sdxl",)),
    ScheduleEntry(name="align_your_steps_32", label="Align Your Steps 32", function="modules.sampling.measured:align_your_steps_32",
                  needs=("sdxl",)),
    ScheduleEntry(name="linear_quadratic", label="Linear quadratic", function="modules.sampling.schedule:linear_quadratic"),
    ScheduleEntry(name="laplace", label="Laplace", function="modules.sampling.schedule:laplace"),
)


def sampler(name: str) -> SamplerEntry:
    """The sampler of that name or alias, upper or lower case. Raises NotFoundError (status 400) that offers the nearest names."""
    for entry in SAMPLERS:
        if _same(name, (entry.name, *entry.aliases)):
            return entry
    raise _unknown("Sampler", name, [entry.name for entry in SAMPLERS])


def schedule(name: str) -> ScheduleEntry:
    """The schedule of that label, internal name or alias, upper or lower case. Raises NotFoundError (status 400) with the nearest."""
    for entry in SCHEDULES:
        if _same(name, _names(entry)):
            return entry
    raise _unknown("Scheduler", name, [entry.label for entry in SCHEDULES])


def resolve(sampler_name: str | None, scheduler: str | None = None, *, report_default: bool = True) -> tuple[str, str]:
    """The sampler's name and the schedule's label meant by the two texts a user, a file or an API client wrote.

    "DPM++ 2M Karras" is the sampler "DPM++ 2M" on the schedule "Karras", and that suffix beats `scheduler`. No sampler name means the
    first sampler; no or an unknown scheduler means Automatic, as clients rely on (ask `schedule` to know whether it exists). With
    report_default a schedule that is the sampler's own anyway is given as "Automatic".
    Raises NotFoundError (status 400) for an unknown sampler.
    """
    name = (sampler_name or "").strip() or SAMPLERS[0].name
    label = next((entry.label for entry in SCHEDULES if _same(scheduler or "", _names(entry))), SCHEDULES[0].label)
    if not any(_same(name, (entry.name, *entry.aliases)) for entry in SAMPLERS):
        name, label = _split(name, label)
    entry = sampler(name)
    if report_default and schedule(label).name == entry.default_schedule:
        label = SCHEDULES[0].label
    return entry.name, label


def _split(name: str, label: str) -> tuple[str, str]:
    """"DPM++ 2M Karras", "" -> "DPM++ 2M", "Karras"; unchanged when no schedule's name stands at the end."""
    for entry in SCHEDULES:
        for text in _names(entry):
            if name.lower().endswith(" " + text.lower()):
                return name[: -len(text) - 1].strip(), entry.label
    return name, label


def _names(entry: ScheduleEntry) -> tuple[str, ...]:
    return (entry.label, entry.name, *entry.aliases)


def _same(name: str, names: Iterable[str]) -> bool:
    return name.strip().lower() in {other.lower() for other in names}


def _unknown(what: str, name: str, names: list[str]) -> NotFoundError:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:12]
    error = NotFoundError(f"{what} not found: {name[:80]}. Did you mean {', '.join(near)}?")
    error.status = 400
    return error
