"""How the outputs of sid parity files follow from their inputs: EDM's denoisers, and the losses of distillation on them."""

from __future__ import annotations

import torch
from edm_outputs import denoise
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.edm import formulation
from generative.convert.diffusion.edm_keys import rename
from generative.convert.diffusion.sid import NETWORK, training_options
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.objectives.score_identity import identity_errors, identity_times

SOURCE = "sid"


class Distillation:
    """The losses of score identity distillation (arXiv 2404.04057) for one file's inputs."""

    def __init__(self, given: Given) -> None:
        self.networks, self.inputs = given.networks, given.inputs
        self.trained, self.options = formulation(given.config[NETWORK]), training_options(given.config)
        self.labels = self.inputs.get("class_labels")
        self.zeros = torch.zeros_like(self.inputs["augment_labels"]) if "augment_labels" in self.inputs else None

    def denoised(self, name: str, augment_labels: Tensor | None) -> Tensor:
        """Denoised inputs by one of the networks."""
        network = self.networks["fake_score" if name == "fake" else name]
        return denoise(network, self.trained, self.inputs["x"], self.inputs["sigma"], self.labels, augment_labels)

    def one_step_images(self) -> Tensor:
        """The generator's images."""
        sigma = torch.full((len(self.inputs["z"]),), self.options["init_sigma"])
        noise = self.options["init_sigma"] * self.inputs["z"]
        return denoise(self.networks["generator"], self.trained, noise, sigma, self.labels, self.zeros)

    def generator_sigma(self) -> Tensor:
        """Noise levels of the generator's loss."""
        levels = EDM(**{name: self.options[name] for name in ("sigma_min", "sigma_max", "rho")})
        return identity_times(levels, self.inputs["g_rand_uniform"], self.options["tmax"])

    def generator_loss(self, images: Tensor) -> Tensor:
        """Loss of the generator, each element's (arXiv 2404.04057, eq. 23)."""
        sigma = self.generator_sigma()
        sample = images + sigma * self.inputs["g_noise"]
        real, fake = (
            denoise(self.networks[name], self.trained, sample, sigma, self.labels, self.zeros)
            for name in ("teacher", "fake_score")
        )
        errors, _ = identity_errors(images, real, fake, self.options["alpha"])
        return errors

    @torch.enable_grad()
    def gradient(self, images: Tensor, of: Tensor) -> Tensor:
        """Gradient of the scaled loss per image."""
        loss = self.generator_loss(images).sum() * self.options["loss_scaling_G"] / len(images)
        return torch.autograd.grad(loss, of)[0]

    @torch.enable_grad()
    def end_to_end(self, official: str) -> Tensor:
        """Gradient of the same through the generator, by one of its weights."""
        generator = self.networks["generator"]
        name = rename(official.removeprefix("model."), generator.sizes, len(getattr(generator, "out_convs", ())))
        assert name is not None
        return self.gradient(self.one_step_images(), generator.get_parameter(name))

    @torch.enable_grad()
    def image_gradient(self) -> Tensor:
        """Gradient of the same by the images."""
        images = self.inputs["images"].clone().requires_grad_()
        return self.gradient(images, images)

    def fake_sigma(self) -> Tensor:
        """Noise levels of the fake score network's training."""
        return (self.options["P_std"] * self.inputs["f_rnd_normal"] + self.options["P_mean"]).exp()

    def fake_loss(self) -> Tensor:
        """Loss of the fake score network, each element's: EDM's."""
        images, sigma = self.inputs["images"], self.fake_sigma()
        sample = images + sigma * self.inputs["f_noise"]
        denoised = denoise(self.networks["fake_score"], self.trained, sample, sigma, self.labels)
        return EDM(sigma_data=self.options["sigma_data"]).loss_weight(sigma) * (denoised - images).square()


def outputs(given: Given) -> Table:
    """The table of outputs."""
    file = Distillation(given)
    return {
        "(teacher|fake|generator)_denoised": lambda name: file.denoised(name, given.inputs.get("augment_labels")),
        "(teacher|fake|generator)_denoised_no_augment": lambda name: file.denoised(name, None),
        "one_step_images": file.one_step_images,
        "generator_sigma": file.generator_sigma,
        "generator_loss": lambda: file.generator_loss(given.inputs["images"]),
        "generator_loss_grad_images": file.image_gradient,
        "end_to_end_generator_grad/(.+)": lambda name: {f"end_to_end_generator_grad/{name}": file.end_to_end(name)},
        "fake_score_sigma": file.fake_sigma,
        "fake_score_loss": file.fake_loss,
    }
