"""LFQ, RVQ and FSQ tokenizers: round trips, training outputs, saving, precision and wrong input; checkpointing of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpointed import after_backward, assert_equal
from torch import Tensor

from generative.core.errors import UserError
from generative.tokenizers.convolutional import ConvolutionalTokenizer
from generative.tokenizers.fsq import FSQTokenizer
from generative.tokenizers.lfq import LFQTokenizer
from generative.tokenizers.maskgit_vq import MaskGITVQTokenizer
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer
from generative.tokenizers.rvq import RVQTokenizer
from generative.tokenizers.vq import VQTokenizer

NETWORK = {"image_size": 16, "ch": 8, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "norm_groups": 4}
KINDS = {
    "lfq": (LFQTokenizer, {"num_bits": 6}),
    "rvq": (RVQTokenizer, {"depth": 3, "codebook_size": 32, "z_channels": 6}),
    "rvq-shared": (RVQTokenizer, {"depth": 2, "codebook_size": 32, "z_channels": 6, "shared_codebook": True}),
    "fsq": (FSQTokenizer, {"levels": (4, 3, 5)}),
}

OTHER_KINDS = {
    "vq": (VQTokenizer, {"num_codes": 32, "z_channels": 8, "dropout": 0.2}),
    "multi-scale": (MultiScaleVQTokenizer, {"num_codes": 32, "latent_channels": 6, "patch_nums": (1, 2, 4)}),
    "maskgit": (MaskGITVQTokenizer, {"num_codes": 32, "code_dim": 6}),
}


def build(kind: str, **change: object) -> ConvolutionalTokenizer:
    torch.manual_seed(3)
    tokenizer_class, options = (KINDS | OTHER_KINDS)[kind]
    tokenizer = tokenizer_class(**NETWORK | options | change)
    with torch.no_grad():
        for codebook in tokenizer.codebooks.values():
            codebook.mul_(10)
        tokenizer.encoder.conv_out.weight.mul_(4)  # so that more than a few codes are met
    return tokenizer.eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_and_decoding(kind: str) -> None:
    tokenizer = build(kind)
    ids = tokenizer.encode(pictures())
    depth = getattr(tokenizer, "depth", 1)
    assert ids.dtype == torch.int64 and ids.shape == (3, 16 * depth) == (3, tokenizer.sequence_length)
    assert tokenizer.grid_size == (4, 4) and tokenizer.image_size == 16
    assert 0 <= int(ids.min()) and int(ids.max()) < tokenizer.num_codes and len(ids.unique()) > 4
    decoded = tokenizer.decode(ids)
    assert decoded.shape == (3, 3, 16, 16) and decoded.abs().max() <= 1
    for index in range(3):  # an image does not depend on its batch
        assert torch.equal(tokenizer.encode(pictures()[index : index + 1])[0], ids[index])
        torch.testing.assert_close(tokenizer.decode(ids[index : index + 1])[0], decoded[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_training_sees_is_what_sampling_sees(kind: str) -> None:
    tokenizer = build(kind)
    result = tokenizer(pictures())
    torch.testing.assert_close(result.images.clamp(-1, 1), tokenizer.decode(tokenizer.encode(pictures())), rtol=0, atol=1e-5)
    assert set(result.losses) == {"lfq": {"entropy", "commitment"}, "fsq": set()}.get(kind, {"codebook", "commitment"})
    assert set(tokenizer.codebooks) == {name for name, use in result.codes.items() if use.vectors is not None}
    for name, codebook in tokenizer.codebooks.items():
        use = result.codes[name]
        assert codebook.shape == (use.num_codes, use.vectors.shape[1]) and len(use.ids) == len(use.vectors)
    loss = (result.images - pictures()).abs().mean() + sum(result.losses.values(), torch.zeros(()))
    loss.backward()
    untrained = [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None]
    assert untrained == []
    assert tokenizer.last_layer is tokenizer.decoder.conv_out.weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_lower_the_error(kind: str) -> None:
    tokenizer = build(kind, ch_mult=(1, 2)).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    errors = []
    for _ in range(12):
        images = pictures(2) * torch.linspace(0, 1, 16)
        result = tokenizer(images)
        error = (result.images - images).square().mean()
        loss = error + sum((0.1 * value for value in result.losses.values()), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("kind", [*KINDS, *OTHER_KINDS])
def test_gradient_checkpointing_changes_no_gradient_and_keeps_less(kind: str) -> None:
    ends = []
    for is_checkpointed in (False, True):
        tokenizer = build(kind, num_res_blocks=2)
        if is_checkpointed:
            tokenizer.enable_gradient_checkpointing()

        def loss(tokenizer: ConvolutionalTokenizer = tokenizer) -> Tensor:
            result = tokenizer(pictures(), torch.Generator().manual_seed(0))
            return (result.images - pictures()).square().mean() + sum(result.losses.values(), torch.zeros(()))

        ends.append(after_backward(tokenizer, loss))
    assert_equal(ends[0][0], ends[1][0])
    assert ends[1][1] < 0.5 * ends[0][1]


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    tokenizer = build(kind)
    tokenizer.save_pretrained(tmp_path)
    for lean in (False, True):
        loaded = type(tokenizer).from_pretrained(tmp_path, use_safetensors=True, low_cpu_mem_usage=lean).eval()
        assert loaded.fingerprint == tokenizer.fingerprint
        assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))
    half = type(tokenizer).from_pretrained(tmp_path, use_safetensors=True, torch_dtype=torch.bfloat16).eval()
    ids = half.encode(pictures())
    assert half.decode(ids).dtype == torch.float32 and half.encoder.conv_in.weight.dtype == torch.bfloat16
    assert (ids == tokenizer.encode(pictures())).float().mean() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_chosen_in_float32_under_autocast(kind: str) -> None:
    tokenizer = build(kind)
    with torch.autocast("cpu", torch.bfloat16):
        latents = tokenizer.encode_latents(pictures())
        ids = tokenizer.latents_to_ids(latents)
        result = tokenizer(pictures())
    assert latents.dtype == torch.float32 and torch.equal(ids, tokenizer.latents_to_ids(latents))
    assert all(value.dtype == torch.float32 for value in result.losses.values())
    assert result.images.dtype == torch.float32


def test_depth_is_the_fastest_axis_of_residual_ids() -> None:
    tokenizer = build("rvq")
    latents = tokenizer.encode_latents(pictures(1))
    ids = tokenizer.encode(pictures(1)).reshape(16, 3)
    vectors = latents[0].flatten(1).T  # (h w, D)
    assert torch.equal(ids, tokenizer.quantize(vectors))
    codebooks = tokenizer.codebooks_tensor
    summed = sum(codebooks[depth][ids[:, depth]] for depth in range(3))
    torch.testing.assert_close(tokenizer.embed(ids[None])[0], summed)
    torch.testing.assert_close(tokenizer.embed(ids[None, :, :1])[0], codebooks[0][ids[:, 0]])
    grid = summed.T.reshape(1, 6, 4, 4)
    torch.testing.assert_close(tokenizer.decode_latents(grid), tokenizer.decode(ids.reshape(1, -1)))


def test_quantiser_dropout_draws_on_the_generator() -> None:
    tokenizer = build("rvq", quantizer_dropout=1.0).train()
    first, again, other = (tokenizer(pictures(), torch.Generator().manual_seed(seed)).images for seed in (0, 0, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_images_and_ids_are_refused(kind: str) -> None:
    tokenizer = build(kind)
    for call in (tokenizer.encode, tokenizer):
        with pytest.raises(UserError, match=r"takes images \(B, 3, 16, 16\), got \(1, 3, 32, 32\)"):
            call(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"multiples of 4, got \(16, 18\)"):
        tokenizer.encode_latents(torch.zeros(1, 3, 16, 18))
    ids = torch.zeros(1, tokenizer.sequence_length, dtype=torch.int64)
    with pytest.raises(UserError, match=rf"token id {tokenizer.num_codes} is outside 0..{tokenizer.num_codes - 1}"):
        tokenizer.decode(ids + tokenizer.num_codes)
    with pytest.raises(UserError, match="token id -1 is outside"):
        tokenizer.decode(ids - 1)
    with pytest.raises(UserError, match=rf"takes ids \(B, {tokenizer.sequence_length}\)"):
        tokenizer.decode(ids[:, 1:])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("lfq", {"image_size": 18}, "image_size must be a multiple of 4, .*got 18"),
        ("lfq", {"image_size": 4}, "image_size must be at least 8, two vectors along an axis, got 4"),
        ("lfq", {"num_bits": 0}, "num_bits must be 1 to 24, got 0"),
        ("rvq", {"image_size": 0}, "image_size must be a multiple of 4"),
        ("rvq", {"depth": 0}, "depth must be at least 1, got 0"),
        ("rvq", {"codebook_size": 1}, "must be at least 2, got 1"),
        ("fsq", {"levels": (8, 1)}, r"at least 2 levels for each channel, got \[8, 1\]"),
        ("fsq", {"norm_groups": 3}, "norm_groups must divide"),
        ("fsq", {"image_size": 10}, "image_size must be a multiple of 4"),
    ],
)
def test_impossible_options_are_refused(kind: str, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(kind, **change)
