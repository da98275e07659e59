"""Pixel tokenizer: exact round trip, layout, saving, wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generative.core.errors import UserError
from generative.tokenizers.pixel import PixelTokenizer


@pytest.mark.parametrize(("num_levels", "channels"), [(17, 1), (17, 3), (256, 1), (256, 3), (2, 3)])
def test_quantised_images_survive_exactly(num_levels: int, channels: int) -> None:
    tokenizer = PixelTokenizer(5, num_levels, channels)
    index = torch.randint(num_levels, (4, channels, 5, 5), generator=torch.Generator().manual_seed(0))
    images = torch.linspace(-1, 1, num_levels)[index].expand(-1, 3, -1, -1)
    tokens = tokenizer.encode(images)
    assert tokens.dtype == torch.int64 and tokens.shape == (4, tokenizer.sequence_length)
    torch.testing.assert_close(tokenizer.decode(tokens), images, rtol=0, atol=0)


def test_every_id_survives() -> None:
    tokenizer = PixelTokenizer(4, 16)
    tokens = torch.arange(16)[None]
    assert tokenizer.encode(tokenizer.decode(tokens)).tolist() == tokens.tolist()


def test_bytes_of_the_digits_find_their_level() -> None:
    grey_bytes = (torch.arange(16) * 255 / 16).round()  # a dataset of bytes holds level i as round(255 i / 16)
    images = (grey_bytes / 127.5 - 1).reshape(1, 1, 4, 4).expand(-1, 3, -1, -1)
    assert PixelTokenizer(4, 17).encode(images).tolist() == [list(range(16))]


def test_grey_is_the_mean_and_values_are_clipped() -> None:
    pixel = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    assert PixelTokenizer(1, 17).encode(pixel).tolist() == [[8]]
    assert PixelTokenizer(1, 17).encode(pixel * 0 + 1.7).tolist() == [[16]]
    assert PixelTokenizer(1, 17).encode(pixel * 0 - 1.7).tolist() == [[0]]


def test_colours_lie_side_by_side_with_their_own_ids() -> None:
    tokenizer = PixelTokenizer(2, 3, channels=3)
    assert tokenizer.num_codes == 9 and tokenizer.grid_size == (2, 6) and tokenizer.sequence_length == 12
    images = torch.full((1, 3, 2, 2), -1.0)
    images[0, 1, 0, 1] = 1.0  # green of the upper right pixel
    assert tokenizer.encode(images).tolist() == [[0, 3, 6, 0, 5, 6, 0, 3, 6, 0, 3, 6]]
    wrong_colour = torch.tensor([[0, 3, 6, 0, 2, 6, 0, 3, 6, 0, 3, 6]])
    torch.testing.assert_close(tokenizer.decode(wrong_colour), images)  # the place decides


def test_saving_and_loading(tmp_path: Path) -> None:
    tokenizer = PixelTokenizer(3, 5, channels=3)
    tokenizer.save_pretrained(tmp_path)
    loaded = PixelTokenizer.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.fingerprint == tokenizer.fingerprint
    tokens = torch.randint(15, (2, 27), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.decode(tokens), tokenizer.decode(tokens), rtol=0, atol=0)


def test_the_fingerprint_tells_tokenizers_apart() -> None:
    prints = {PixelTokenizer(*options).fingerprint for options in ((3, 5, 1), (3, 6, 1), (4, 5, 1), (3, 5, 3))}
    assert len(prints) == 4
    changed = PixelTokenizer(3, 5, 1)
    changed.levels += 0.1
    assert changed.fingerprint not in prints
    assert PixelTokenizer(3, 5, 1).fingerprint in prints


def test_wrong_images_and_ids_are_refused() -> None:
    tokenizer = PixelTokenizer(2, 3)
    with pytest.raises(UserError, match=r"takes images \(B, 3, 2, 2\), got \(1, 3, 4, 4\)"):
        tokenizer.encode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UserError, match=r"takes images \(B, 3, 2, 2\), got \(1, 1, 2, 2\)"):
        tokenizer.encode(torch.zeros(1, 1, 2, 2))
    with pytest.raises(UserError, match="token id 3 is outside 0..2"):
        tokenizer.decode(torch.tensor([[0, 1, 2, 3]]))
    with pytest.raises(UserError, match="token id -1 is outside"):
        tokenizer.decode(torch.tensor([[0, 1, 2, -1]]))
    with pytest.raises(UserError, match=r"takes ids \(B, 4\), got \(1, 3\)"):
        tokenizer.decode(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(UserError, match="must be integers"):
        tokenizer.decode(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("options", "message"), [((0, 17, 1), "image_size"), ((8, 1, 1), "num_levels"), ((8, 17, 2), "channels")]
)
def test_impossible_options_are_refused(options: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PixelTokenizer(*options)
