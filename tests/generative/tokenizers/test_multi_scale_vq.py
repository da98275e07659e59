"""Multi-scale VQ tokenizer: ids, what a generator takes from it, training outputs, saving, wrong input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative.core.errors import UserError
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer

OPTIONS: dict[str, Any] = {
    "image_size": 16,
    "num_codes": 24,
    "latent_channels": 6,
    "patch_nums": (1, 2, 4),
    "ch": 8,
    "ch_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "norm_groups": 4,
    "share_quant_resi": 0,
}


def build(**change: Any) -> MultiScaleVQTokenizer:
    torch.manual_seed(0)
    tokenizer = MultiScaleVQTokenizer(**OPTIONS | change)
    with torch.no_grad():
        tokenizer.quantizer.codebook.normal_()
        tokenizer.encoder.conv_out.weight.mul_(8)  # so that more than a few codes are met
    return tokenizer.eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def some_ids(tokenizer: MultiScaleVQTokenizer, count: int = 3) -> Tensor:
    shape = (count, tokenizer.sequence_length)
    return torch.randint(tokenizer.num_codes, shape, generator=torch.Generator().manual_seed(2))


def test_what_it_says_of_itself() -> None:
    tokenizer = build()
    assert tokenizer.patch_nums == (1, 2, 4) and tokenizer.sequence_length == 21 and tokenizer.grid_size == (4, 4)
    assert (tokenizer.num_codes, tokenizer.latent_channels, tokenizer.image_size) == (24, 6, 16)
    assert tokenizer.codebooks["codebook"] is tokenizer.quantizer.codebook and tokenizer.codebook.shape == (24, 6)
    assert tokenizer.last_layer is tokenizer.decoder.conv_out.weight


def test_ids_do_not_depend_on_the_batch() -> None:
    tokenizer = build()
    ids = tokenizer.encode(pictures())
    assert ids.shape == (3, 21) and ids.dtype == torch.int64 and len(ids.unique()) > 4
    images = tokenizer.decode(ids)
    assert images.shape == (3, 3, 16, 16) and images.abs().max() <= 1
    for index in range(3):
        assert torch.equal(tokenizer.encode(pictures()[index : index + 1])[0], ids[index])
        torch.testing.assert_close(tokenizer.decode(ids[index : index + 1])[0], images[index], rtol=0, atol=1e-5)


def test_what_training_sees_is_what_sampling_sees() -> None:
    tokenizer = build()
    result = tokenizer(pictures())
    ids = tokenizer.encode(pictures())
    torch.testing.assert_close(result.images.clamp(-1, 1), tokenizer.decode(ids), rtol=0, atol=1e-5)
    assert set(result.losses) == {"codebook", "commitment"}
    by_scale = [part.flatten() for part in ids.split([1, 4, 16], dim=1)]
    assert torch.equal(result.codes["codebook"].ids, torch.cat(by_scale))
    assert result.codes["codebook"].vectors.shape == (3 * 21, 6)
    ((result.images - pictures()).square().mean() + sum(result.losses.values())).backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []


def test_a_generator_sees_the_map_of_the_scales_before() -> None:
    """Teacher inputs are the maps of a loop over scales, each brought to the next size by area, as sampling makes them."""
    tokenizer = build()
    ids = some_ids(tokenizer)
    accumulated, inputs = tokenizer.zero_map(3), []
    for scale, part in enumerate(ids.split([1, 4, 16], dim=1)):
        accumulated = tokenizer.add_scale(accumulated, part, scale)
        if scale < 2:
            inputs.append(tokenizer.next_input(accumulated, scale))
            size = tokenizer.patch_nums[scale + 1]
            plain = F.interpolate(accumulated, size=(size, size), mode="area").flatten(2).transpose(1, 2)
            torch.testing.assert_close(inputs[-1], plain, rtol=1e-5, atol=1e-6)
    teacher = tokenizer.teacher_inputs(ids)
    assert teacher.shape == (3, 20, 6) and teacher.dtype == torch.float32
    torch.testing.assert_close(teacher, torch.cat(inputs, dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(tokenizer.decode_latents(accumulated), tokenizer.decode(ids), rtol=0, atol=1e-6)
    assert len(tokenizer.accumulate(ids)) == 3
    torch.testing.assert_close(tokenizer.accumulate(ids)[-1], accumulated, rtol=0, atol=1e-6)


def test_teacher_inputs_do_not_see_the_last_scale_or_later_ones() -> None:
    tokenizer = build()
    ids = some_ids(tokenizer)
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 24
    assert torch.equal(tokenizer.teacher_inputs(other), tokenizer.teacher_inputs(ids))
    other[:, 4] = (other[:, 4] + 1) % 24  # of the second scale: seen by the third, not by the second
    assert torch.equal(tokenizer.teacher_inputs(other)[:, :4], tokenizer.teacher_inputs(ids)[:, :4])
    assert not torch.equal(tokenizer.teacher_inputs(other)[:, 4:], tokenizer.teacher_inputs(ids)[:, 4:])


def test_codes_and_their_mixtures_can_be_added() -> None:
    tokenizer = build()
    ids = some_ids(tokenizer)[:, 1:5]
    by_ids = tokenizer.add_scale(tokenizer.zero_map(3), ids, 1)
    one_hot = F.one_hot(ids, 24).float()
    torch.testing.assert_close(tokenizer.add_scale(tokenizer.zero_map(3), one_hot @ tokenizer.codebook, 1), by_ids)
    assert by_ids.shape == (3, 6, 4, 4)


def test_saving_and_loading(tmp_path: Path) -> None:
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path)
    for lean in (False, True):
        loaded = MultiScaleVQTokenizer.from_pretrained(tmp_path, use_safetensors=True, low_cpu_mem_usage=lean).eval()
        assert loaded.fingerprint == tokenizer.fingerprint
        assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))
    half = MultiScaleVQTokenizer.from_pretrained(tmp_path, use_safetensors=True, torch_dtype=torch.bfloat16).eval()
    assert half.decode(half.encode(pictures())).dtype == torch.float32 and half.zero_map(1).dtype == torch.float32


def test_autocast_reaches_the_networks_only() -> None:
    tokenizer = build()
    with torch.autocast("cpu", torch.bfloat16):
        latents = tokenizer.encode_latents(pictures())
        ids = tokenizer.latents_to_ids(latents)
        teacher = tokenizer.teacher_inputs(ids)
        result = tokenizer(pictures())
    assert latents.dtype == result.images.dtype == torch.float32
    assert torch.equal(ids, tokenizer.latents_to_ids(latents)) and torch.equal(teacher, tokenizer.teacher_inputs(ids))


def test_one_scale_is_plain_quantisation() -> None:
    tokenizer = build(patch_nums=(4,), quant_resi=0.0)
    assert tokenizer.sequence_length == 16
    assert tokenizer.teacher_inputs(tokenizer.encode(pictures())).shape == (3, 0, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of 4, the stride of a network of 3 resolutions, got 18"),
        (
            {"patch_nums": (1, 2, 3)},
            r"patch_nums must grow to 4, the size of the latent map \(16 pixels in steps of 4\), got \[1, 2, 3\]",
        ),
        ({"patch_nums": (1, 8, 4)}, "patch_nums must grow to 4"),
        ({"patch_nums": ()}, "patch_nums must grow to 4"),
        ({"quant_conv_ks": 2}, "quant_conv_ks must be odd, so that the map keeps its size, got 2"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MultiScaleVQTokenizer(**OPTIONS | change)


def test_wrong_images_and_ids_are_refused() -> None:
    tokenizer = build()
    with pytest.raises(UserError, match=r"takes images \(B, 3, 16, 16\), got \(1, 3, 32, 32\)"):
        tokenizer.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"takes ids \(B, 21\), got \(1, 16\)"):
        tokenizer.decode(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(UserError, match=r"takes ids \(B, 21\), got \(1, 16\)"):
        tokenizer.teacher_inputs(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(UserError, match=r"token id 24 is outside 0..23"):
        tokenizer.decode(torch.full((1, 21), 24))
