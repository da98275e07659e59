"""``generative edit``: the grid, its seeds, and every mistake in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generative.autoregressive.next_scale.var import VAR
from generative.cli.edit import box_mask
from generative.cli.main import main
from generative.core.errors import UserError
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer
from pipelines.var import VARPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of a random VAR, and an image."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("edit")
    tokenizer = MultiScaleVQTokenizer(
        image_size=16, num_codes=9, latent_channels=4, patch_nums=(1, 2, 4), ch=4, ch_mult=(1, 2, 2), num_res_blocks=1,
        norm_groups=2,
    )  # fmt: skip
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    network = VAR(
        num_codes=9, num_classes=3, latent_channels=4, patch_nums=(1, 2, 4), hidden_size=16, depth=1, num_heads=2, head_init=1.0
    )  # fmt: skip
    VARPipeline(network, tokenizer, {"guidance_scale": 2.0, "guidance_schedule": "linear"}).save_pretrained(path / "pipeline")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path / "cat.png")
    return path


def edit(folder: Path, output: Path, *arguments: str) -> np.ndarray:
    common = ["edit", str(folder), "--image", str(folder / "cat.png"), "--device", "cpu", "--output", str(output)]
    assert main([*common, *arguments]) == 0
    return np.asarray(Image.open(output))


def test_a_grid_with_a_row_for_each_class(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = ("--box", "4,4,12,12", "--num-images", "2")
    two = edit(folder, tmp_path / "two.png", *box, "--mode", "class", "--class-labels", "2,0", "--guidance-scale", "3")
    assert "4 edited images" in capsys.readouterr().out
    one = edit(folder, tmp_path / "one.png", *box, "--mode", "class", "--class-labels", "2", "--guidance-scale", "3")
    assert two.shape[1] == one.shape[1] and two.shape[0] > 1.9 * one.shape[0] - 4
    rows = one.shape[0] - 2
    assert np.array_equal(two[:rows], one[:rows])  # an image does not depend on what else is asked for
    again = edit(folder, tmp_path / "again.png", *box, "--mode", "class", "--class-labels", "2", "--guidance-scale", "3")
    assert np.array_equal(one, again)
    other = edit(folder, tmp_path / "other.png", *box, "--seed", "1")
    assert not np.array_equal(other, edit(folder, tmp_path / "outside.png", *box, "--seed", "1", "--mode", "outpaint"))


def test_masks() -> None:
    inside = box_mask((1, 0, 3, 2), 4, is_outside=False)
    assert inside.nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert torch.equal(box_mask((1, 0, 3, 2), 4, is_outside=True), ~inside)
    with pytest.raises(UserError, match="the whole image"):
        box_mask((0, 0, 4, 4), 4, is_outside=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "4,4,12,17"], "--box 4,4,12,17 must be left,top,right,bottom"),
        (["--box", "4,4,4,12"], "must be left,top,right,bottom"),
        (["--box", "4,4,12"], "argument --box"),
        (["--box", "1,1,9,9", "--mode", "class"], "name it with --class-labels"),
        (["--box", "1,1,9,9", "--class-labels", "7"], "class label 7 is outside"),
        (["--box", "1,1,9,9", "--num-images", "0"], "--num-images must be in 1..64"),
        (["--box", "1,1,9,9", "--top-k", "0"], "top_k must be at least 1"),
        (["--box", "1,1,9,9", "--output", "x.jpg"], "must be the name of a .png file"),
        (["--box", "1,1,9,9", "--image", "no.png"], "'no.png' does not exist"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    given = ["edit", str(folder), "--device", "cpu", *arguments]
    if "--image" not in arguments:
        given += ["--image", str(folder / "cat.png")]
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # diffusers' progress bar is above
    assert error.startswith("error: ") and message in error


def test_another_family_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from generative.autoregressive.next_token.transformer import ImageTransformer
    from generative.tokenizers.pixel import PixelTokenizer
    from pipelines.autoregressive import AutoregressiveImagePipeline

    network = ImageTransformer(3, 2, (2, 2), hidden_size=8, depth=1, num_heads=2)
    AutoregressiveImagePipeline(network, PixelTokenizer(2, 3)).save_pretrained(tmp_path)
    assert main(["edit", str(tmp_path), "--image", "x.png", "--box", "0,0,1,1"]) == 2
    assert "cannot edit images" in capsys.readouterr().err
