"""Tokenizers and autoencoders by folder: what is found, what is refused, and their use in a configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.cli.config import build_config, dump_config, parse_train_config
from generative.core.errors import UserError
from generative.tokenizers.base import fingerprint
from generative.tokenizers.kl import KLAutoencoder
from generative.tokenizers.latents import image_range, latent_scaling
from generative.tokenizers.pixel import PixelTokenizer
from generative.tokenizers.pretrained import load_autoencoder, load_encoder, load_tokenizer
from pipelines.autoregressive import AutoregressiveImagePipeline
from pipelines.reconstruction import ImageReconstructionPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
KL: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 2, "sample_size": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of every kind."""
    root = tmp_path_factory.mktemp("folders")
    pixel = PixelTokenizer(num_levels=5)
    pixel.save_pretrained(root / "pixel")
    ImageReconstructionPipeline(pixel).save_pretrained(root / "run" / "pipeline")
    transformer = ImageTransformer(num_codes=5, grid_size=(8, 8), num_classes=2, hidden_size=16, depth=1, num_heads=2)
    AutoregressiveImagePipeline(transformer, pixel).save_pretrained(root / "generator")
    transformer.save_pretrained(root / "transformer")
    torch.manual_seed(0)
    KLAutoencoder(**KL).save_pretrained(root / "ours")
    AutoencoderKL(**KL).save_pretrained(root / "theirs")
    ImageReconstructionPipeline(KLAutoencoder(**KL)).save_pretrained(root / "kl-run" / "pipeline")
    return root


@pytest.mark.parametrize("name", ["pixel", "run", "run/pipeline", "run/pipeline/tokenizer", "generator"])
def test_tokenizers(folders: Path, name: str) -> None:
    found = load_tokenizer(folders / name)
    assert type(found) is PixelTokenizer and found.fingerprint == PixelTokenizer(num_levels=5).fingerprint
    assert not found.training and not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize(
    ("name", "network_class"), [("ours", KLAutoencoder), ("theirs", AutoencoderKL), ("kl-run", KLAutoencoder)]
)
def test_autoencoders(folders: Path, name: str, network_class: Any) -> None:
    found = load_autoencoder(folders / name)
    assert type(found) is network_class and not found.training
    path = next((folders / name).rglob(WEIGHTS))
    for key, tensor in load_file(path).items():
        assert torch.equal(found.state_dict()[key], tensor)
    assert fingerprint(found) == fingerprint(load_encoder(folders / name))


def test_autoencoders_scaled_otherwise(folders: Path) -> None:
    found = load_autoencoder(folders / "theirs", 0.5, [1.0, 2.0], [3.0, 4.0], [0.0, 1.0])
    offset, factor = latent_scaling(found)
    assert torch.as_tensor(offset).flatten().tolist() == [1.0, 2.0] and image_range(found) == (0.0, 1.0)
    assert torch.allclose(torch.as_tensor(factor).flatten(), 0.5 / torch.tensor([3.0, 4.0]))
    with pytest.raises(UserError, match="latents_std must be 2 positive numbers"):
        load_autoencoder(folders / "theirs", 0.5, latents_std=[1.0])
    with pytest.raises(UserError, match="latents_mean needs a scaling_factor"):
        load_autoencoder(folders / "theirs", latents_mean=[1.0, 2.0])


def missing_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["encoder.conv_in.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"not to be read")


def renamed(name: str) -> Any:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "_class_name": name}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_weight, "missing_keys such as encoder.conv_in.weight|cannot be loaded"),
        (pickled, "cannot be loaded, a file of it is missing or damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"short"), "cannot be loaded, a file of it is missing or damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json' cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
        (renamed("UNet2DModel"), "holds a UNet2DModel, which is neither a tokenizer nor an autoencoder"),
        (renamed("ImageTokenizer"), "holds a ImageTokenizer, which is neither"),
        (renamed("os.system"), "holds a os.system, which is neither"),
        (lambda folder: (folder / "config.json").unlink(), "holds neither a tokenizer nor an autoencoder; give the run"),
    ],
)
def test_damage_is_named(folders: Path, tmp_path: Path, change: Any, message: str) -> None:
    shutil.copytree(folders / "theirs", tmp_path / "copy")
    change(tmp_path / "copy")
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / "copy")


def test_the_other_kind_is_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a continuous autoencoder \(KLAutoencoder\), whose latents are no tokens"):
        load_tokenizer(folders / "ours")
    with pytest.raises(UserError, match=r"holds a tokenizer \(PixelTokenizer\), which has no continuous latents"):
        load_autoencoder(folders / "run")
    with pytest.raises(UserError, match="'.*nowhere' does not exist; give the run of a tokenizer"):
        load_tokenizer(folders / "nowhere")
    with pytest.raises(UserError, match="holds a ImageTransformer, which is neither"):
        load_tokenizer(folders / "transformer")
    index = {"_class_name": "GANImagePipeline", "generator": ["generative.gan.sagan", "SAGANGenerator"], "extra": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="holds a GANImagePipeline with generator, none of them a tokenizer"):
        load_tokenizer(tmp_path)


def test_configurations_name_the_functions(folders: Path, tmp_path: Path) -> None:
    """A resolved configuration can be trained again, without --trust-code."""
    content = yaml.safe_load(CONFIG.replace("FOLDER", str(folders / "pixel")))
    first = tmp_path / "first.yaml"
    first.write_text(yaml.safe_dump(content))
    parser, config = parse_train_config(first, ["--objective.init_args.tokenizer.init_args.folder", str(folders / "run")])
    resolved = dump_config(parser, config)
    second = tmp_path / "second.yaml"
    second.write_text(resolved)
    parser, config = parse_train_config(second)
    assert dump_config(parser, config) == resolved and str(folders / "run") in resolved
    built = build_config(parser, config)
    assert type(built.objective.tokenizer) is PixelTokenizer
    content["objective"]["init_args"]["tokenizer"]["init_args"]["folder"] = str(folders / "ours")
    first.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="continuous autoencoder"):
        build_config(*parse_train_config(first))


CONFIG = """
objective:
  class_path: generative.autoregressive.next_token.objective.AutoregressiveObjective
  init_args:
    transformer:
      class_path: generative.autoregressive.next_token.transformer.ImageTransformer
      init_args: {num_codes: 5, grid_size: [8, 8], num_classes: 10, hidden_size: 16, depth: 1, num_heads: 2}
    tokenizer: {class_path: generative.tokenizers.pretrained.load_tokenizer, init_args: {folder: FOLDER}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.001}}
data: {class_path: generative.data.DigitsDataset}
trainer: {output_dir: runs/x, total_images: 8}
"""
