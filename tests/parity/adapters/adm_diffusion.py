"""How the outputs of adm_diffusion parity files follow from their inputs: a process whose network is an input of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from adm_outputs import ancestral, as_output, ddim, losses, told, under
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.adm_diffusion import CONSTRUCTOR, ADMDiffusionSource, step_variance
from generative.diffusion.formulations.gaussian_process import GaussianProcess
from generative.diffusion.respacing import ShortenedChain
from generative.diffusion.samplers.ancestral import reverse_mean
from generative.diffusion.samplers.ddim import ddim_reverse_step

SOURCE = "adm_diffusion"


def outputs(given: Given) -> Table:
    """The table of outputs."""
    inputs, config = given.inputs, {**given.config, **given.sampling}
    source = ADMDiffusionSource()
    trained, options = source.formulation(config), CONSTRUCTOR.values(config)
    process, t, x_start = trained.process, inputs["t"], inputs["x_start"]
    output = as_output(inputs["model_output"], options["learn_sigma"])
    guided = replace(output, gradient=inputs["cond_grad"])
    sample = trained.add_noise(x_start, inputs["noise"], t)
    like = torch.zeros_like(x_start)
    etas = {text.replace(".", ""): eta for eta in options["ddim_etas"] for text in (str(float(eta)), f"{eta:g}")}

    def reverse(clip: str) -> dict[str, Tensor]:
        mean, log_variance = reverse_mean(process, output, sample, t, step_variance(trained), clip == "1")
        start = process.predict_start(output.prediction, sample, t)
        is_small = step_variance(trained) == "small"
        variance = process.at(process.posterior_variance, t, sample) if is_small else log_variance.exp()
        values = {"mean": mean, "log_variance": log_variance + like, "variance": variance + like}
        return under(f"p_mean_variance_clip{clip}", values | {"pred_xstart": start.clamp(-1, 1) if clip == "1" else start})

    def ancestral_step(kind: str | None) -> dict[str, Tensor]:
        chosen = guided if kind == "_guided" else output
        run = (options["ancestral_respacing"], chosen, inputs["x_step"], inputs["t_ancestral"], inputs["step_noise"])
        return under(f"ancestral{kind or ''}", ancestral(trained, *run, clip=kind != "_noclip"))

    def ddim_step(kind: str) -> dict[str, Tensor]:
        is_guided = kind == "guided"
        run = (options["ddim_respacing"], guided if is_guided else output, inputs["x_step"], inputs["t_ddim"])
        eta = 0.0 if is_guided else etas[kind.removeprefix("eta")]
        return under(f"ddim_{kind}", ddim(trained, *run, inputs["step_noise"], eta))

    def reversed_step() -> Tensor:
        chain = ShortenedChain(process, options["ddim_respacing"]).process
        return ddim_reverse_step(chain, output, inputs["x_step"], inputs["t_ddim"], clip=True)

    def chain(name: str) -> ShortenedChain:
        respacing = next(each for each in options["all_respacings"] if each.replace(",", "_") == name)
        return ShortenedChain(process, respacing)

    def at(table: Callable[[GaussianProcess], Tensor]) -> Callable[[], Tensor]:
        return lambda: process.at(table(process), t, sample) + like

    whole_bound = ADMDiffusionSource().formulation({**config, "use_kl": True})
    return {
        "betas_f32": lambda: process.betas.float(),
        "alphas_cumprod_f32": lambda: process.alphas_cumprod.float(),
        "posterior_log_variance_clipped_f32": lambda: process.posterior_log_variance.float(),
        "q_sample": sample,
        "posterior_mean": lambda: process.posterior_mean(x_start, sample, t),
        "posterior_variance": at(lambda process: process.posterior_variance),
        "posterior_log_variance|fixed_small_log_variance": lambda: {
            name: process.at(process.posterior_log_variance, t, sample) + like
            for name in ("posterior_log_variance", "fixed_small_log_variance")
        },
        "fixed_large_log_variance": at(lambda process: process.large_log_variance),
        "p_mean_variance_clip([01])/.+": reverse,
        "loss_rescaled_kl": lambda: losses(whole_bound, output, inputs)["loss_total"],
        "loss_.+": lambda: losses(trained, output, inputs),
        "respace_(.+)/betas_f32": lambda name: chain(name).process.betas.float(),
        "respace_(.+)/timestep_map": lambda name: torch.tensor(chain(name).timesteps),
        "(ancestral|ddim)/t_seen_by_network": lambda kind: {
            f"{kind}/t_seen_by_network": told(trained, options[f"{kind}_respacing"], inputs[f"t_{kind}"])
        },
        "ancestral(_guided|_noclip)?/.+": ancestral_step,
        "ddim_reverse/sample": reversed_step,
        r"ddim_(guided|eta\d+)/.+": ddim_step,
    }
