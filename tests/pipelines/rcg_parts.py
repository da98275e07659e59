"""Tiny networks of RCG with random weights, for the tests of its pipelines and of what joins them."""

from __future__ import annotations

from typing import Any

import torch
from contract import quiet
from torch import nn

from generative.autoregressive.masked.mage import MAGETransformer
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.simple_mlp import SimpleMLP
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.ldm_ddim import LDMDDIMSampler
from generative.tokenizers.pixel import PixelTokenizer
from pipelines.mage import MAGEPipeline
from pipelines.rcg import RCGPipeline
from pipelines.representation import RepresentationPipeline

DIM = 6


def randomize(network: nn.Module, std: float = 0.2) -> Any:
    """The network with all its matrices drawn anew: at first many of them are zero."""
    for parameter in network.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=std)
    return network.eval()


def make_representation(num_classes: int = 3, dim: int = DIM) -> RepresentationPipeline:
    torch.manual_seed(0)
    conditional = num_classes > 1
    denoiser = SimpleMLP(
        in_channels=dim,
        hidden_size=16,
        bottleneck_size=16,
        depth=2,
        time_embedding_size=8,
        class_embedding_size=8,
        num_classes=num_classes,
        class_conditional=conditional,
        class_dropout_prob=0.1 if conditional else 0.0,
    )
    formulation = GaussianDiffusion(20, "scaled_linear", 0.0015, 0.4, prediction_type="sample")
    defaults = {"num_inference_steps": 4}
    encoder = {"extractor": "resnet9", "weights_sha256": "0" * 64, "feature": "pooled", "input_size": 8, "dim": dim}
    sampler = LDMDDIMSampler(eta=1.0)
    return quiet(RepresentationPipeline(randomize(denoiser, 0.5), sampler, formulation, encoder, defaults))


def make_mage(condition: str = "representation", **options: Any) -> MAGEPipeline:
    torch.manual_seed(1)
    tokenizer = PixelTokenizer(4, 5, 1)
    transformer = MAGETransformer(
        num_codes=5,
        num_classes=3 if condition == "class" else 1,
        condition=condition,  # type: ignore[arg-type] # one of its names
        representation_dim=DIM,
        class_dropout_prob=0.0 if condition == "none" else 0.1,
        grid_size=(4, 4),
        hidden_size=32,
        depth=2,
        num_heads=4,
        decoder_hidden_size=16,
        decoder_depth=1,
        decoder_num_heads=2,
    )
    randomize(transformer)
    torch.manual_seed(0)
    if transformer.vector_embedding is not None:
        nn.init.normal_(transformer.vector_embedding.linear.weight, std=4.0)
    nn.init.normal_(transformer.token_embedding.weight, std=0.3)
    representation = options.pop("representation", make_representation() if condition == "representation" else None)
    return quiet(MAGEPipeline(transformer, tokenizer, representation=representation))


def make_rcg(**options: Any) -> RCGPipeline:
    torch.manual_seed(2)
    denoiser = DiT(
        sample_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=1, representation_dim=DIM
    )
    formulation = GaussianDiffusion(num_train_timesteps=20)
    representation = options.pop("representation", make_representation())
    sampler = AncestralSampler(clip_sample=True)
    return quiet(RCGPipeline(randomize(denoiser, 0.4), sampler, formulation=formulation, representation=representation))
