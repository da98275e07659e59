"""VQ tokenizer of LlamaGen and VQGAN: ids, training outputs, saving, wrong input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.tokenizers.vq import VQTokenizer

OPTIONS: dict[str, Any] = {
    "image_size": 16,
    "num_codes": 24,
    "code_dim": 4,
    "ch": 8,
    "ch_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "z_channels": 6,
    "norm_groups": 4,
}


def build(**change: Any) -> VQTokenizer:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(**OPTIONS | change)
    with torch.no_grad():
        tokenizer.quantizer.codebook.normal_()
        tokenizer.quant_conv.weight.mul_(8)  # so that more than a few codes are met
    return tokenizer.eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("l2_norm", [True, False])
def test_encoding_training_and_decoding_agree(l2_norm: bool) -> None:
    tokenizer = build(l2_norm=l2_norm, entropy=True)
    ids = tokenizer.encode(pictures())
    assert ids.shape == (3, 16) == (3, tokenizer.sequence_length) and tokenizer.grid_size == (4, 4) and len(ids.unique()) > 3
    images, result = tokenizer.decode(ids), tokenizer(pictures())
    torch.testing.assert_close(result.images.clamp(-1, 1), images, rtol=0, atol=1e-5)
    assert set(result.losses) == {"codebook", "commitment", "entropy"}
    assert torch.equal(result.codes["codebook"].ids, ids.flatten()) and result.codes["codebook"].vectors.shape == (48, 4)
    for index in range(3):  # an image does not depend on its batch
        assert torch.equal(tokenizer.encode(pictures()[index : index + 1])[0], ids[index])
        torch.testing.assert_close(tokenizer.decode(ids[index : index + 1])[0], images[index], rtol=0, atol=1e-5)
    ((result.images - pictures()).square().mean() + sum(result.losses.values())).backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []


def test_ids_lie_in_raster_order() -> None:
    tokenizer = build()
    ids = torch.arange(16)[None]
    latents = tokenizer.ids_to_latents(ids, tokenizer.grid_size)
    assert latents.shape == (1, 4, 4, 4)
    torch.testing.assert_close(latents[0, :, 1, 2], tokenizer.quantizer.codes[6])
    assert torch.equal(tokenizer.latents_to_ids(latents), ids)


def test_a_decoder_of_other_widths() -> None:
    tokenizer = build(decoder_ch_mult=(2, 1, 3))
    assert [level.blocks[0].conv1.out_channels for level in tokenizer.decoder.levels] == [24, 8, 16]
    assert tokenizer(pictures()).images.shape == (3, 3, 16, 16)


def test_saving_and_loading(tmp_path: Path) -> None:
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path)
    for lean in (False, True):
        loaded = VQTokenizer.from_pretrained(tmp_path, use_safetensors=True, low_cpu_mem_usage=lean).eval()
        assert loaded.fingerprint == tokenizer.fingerprint
        assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))


def test_autocast_reaches_the_networks_only() -> None:
    tokenizer = build()
    with torch.autocast("cpu", torch.bfloat16):
        latents = tokenizer.encode_latents(pictures())
        ids = tokenizer.latents_to_ids(latents)
        result = tokenizer(pictures())
    assert latents.dtype == result.images.dtype == torch.float32 and torch.equal(ids, tokenizer.latents_to_ids(latents))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of 4, the stride of a network of 3 resolutions, got 18"),
        ({"decoder_ch_mult": (1, 2)}, r"decoder_ch_mult must have as many resolutions as ch_mult \[1, 2, 2\], .* got \[1, 2\]"),
        ({"code_dim": 0}, "the codes' width must be at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VQTokenizer(**OPTIONS | change)


def test_wrong_images_and_ids_are_refused() -> None:
    tokenizer = build()
    with pytest.raises(UserError, match=r"takes images \(B, 3, 16, 16\), got \(1, 3, 24, 24\)"):
        tokenizer.encode(torch.zeros(1, 3, 24, 24))
    with pytest.raises(UserError, match=r"takes ids \(B, 16\), got \(1, 15\)"):
        tokenizer.decode(torch.zeros(1, 15, dtype=torch.int64))
    with pytest.raises(UserError, match=r"token id -1 is outside 0..23"):
        tokenizer.decode(torch.full((1, 16), -1))
