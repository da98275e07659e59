"""``generative convert`` on checkpoints of tokenizers and autoregressive models, in the containers that their authors save."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from safetensors import safe_open
from torch import Tensor, nn

from generative.cli.main import main
from generative.convert import get_source, load_official
from generative.convert.tokenizers.mar_vae import rename
from pipelines import load_any_pipeline, load_pipeline

VECTORS = Path(__file__).parents[2] / "parity" / "vectors"
State = dict[str, Tensor]
# What names and shapes of the small parity networks do not tell.
LLAMAGEN = {"n_head": 4, "block_size": 16, "norm_groups": 3}
MAGVIT2 = {"model": {"block_size": 16, "n_head": 4}, "tokenizer": {"image_size": 64, "norm_groups": 4}}
MAR = {"img_size": 64, "vae_stride": 8, "patch_size": 2, "vae_embed_dim": 4, "encoder_num_heads": 4, "decoder_num_heads": 2}
EMIGM = {"encoder_num_heads": 4, "decoder_num_heads": 4}


def official(name: str) -> tuple[dict[str, State], dict[str, Any]]:
    """Official weights by module, and official options."""
    modules: dict[str, State] = {}
    with safe_open(VECTORS / f"{name}.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            group, _, rest = key.partition("/")
            module, slash, inner = rest.partition("/")
            if group == "weights":
                modules.setdefault(module if slash else "model", {})[inner if slash else rest] = file.get_tensor(key)
        return modules, json.loads(file.metadata()["config"])


def expected(source: str, config: dict[str, Any], modules: dict[str, State]) -> dict[str, Any]:
    """Networks as ``load_official`` makes them."""
    networks = get_source(source).build(config)
    load_official(
        get_source(source), networks, {f"{m}/{key}": value for m, state in modules.items() for key, value in state.items()}
    )
    return {name: network.eval() for name, network in networks.items()}


def same(found: nn.Module, wanted: nn.Module) -> bool:
    ours, theirs = found.state_dict(), wanted.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def optimizer_state() -> dict[str, Any]:
    """Of an optimizer that has taken a step."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def lightning(state: State) -> dict[str, Any]:
    """A checkpoint of Lightning, whose callbacks hold tensors as well."""
    return {
        "epoch": 9,
        "global_step": 10,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {
                "best_model_score": torch.tensor(0.5),
                "best_k_models": {"epoch=9.ckpt": torch.tensor(0.5)},
                "dirpath": "x",
            }
        },
        "optimizer_states": [optimizer_state()],
        "lr_schedulers": [],
    }


def convert(*arguments: Any, config: dict[str, Any] | None = None) -> int:
    extra = []
    if config is not None:
        Path("options.json").write_text(json.dumps(config))
        extra = ["--config", "options.json"]
    return main(["convert", *map(str, arguments), *extra])


def failure(capsys: pytest.CaptureFixture[str], *arguments: Any, config: dict[str, Any] | None = None) -> str:
    """The one sentence of a conversion that is refused."""
    capsys.readouterr()
    assert convert(*arguments, "--output", "refused", config=config) == 2
    line: str = capsys.readouterr().err.strip().splitlines()[0]
    assert line.startswith("error: ") and not Path("refused").exists() and not list(Path().glob(".*refused*"))
    return line


def sample(folder: str, *options: str) -> None:
    arguments = ["--class-labels", "0,1", "--num-images-per-class", "1", "--batch-size", "2", "--output", f"{folder}-samples"]
    assert main(["sample", folder, *arguments, *options]) == 0
    assert len(list(Path(f"{folder}-samples").glob("*.png"))) == 2


def images(pipeline: Any, **options: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    made: Tensor = pipeline([3, 5], generator=generators, output_type="pt", **options).images
    return made


def autoencoder(channels: int) -> tuple[State, AutoencoderKL]:
    """A small ``kl16.ckpt`` and its network, of stride 8."""
    (network,) = get_source("mar-vae").build({"embed_dim": channels, "ch": 32, "ch_mult": [1, 1, 1, 1]}).values()
    ours = network.state_dict()
    layers = ["conv_in", "conv_out", "norm_out"]
    parts = ["norm1", "conv1", "norm2", "conv2", "nin_shortcut"]
    layers += [f"mid.block_{n}.{part}" for n, part in itertools.product((1, 2), parts)]
    layers += [f"mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out")]
    for way, sampling in (("down", "downsample"), ("up", "upsample")):
        for level in range(4):
            layers += [f"{way}.{level}.block.{n}.{part}" for n, part in itertools.product(range(3), parts)]
            layers.append(f"{way}.{level}.{sampling}.conv")
    paths = [f"{half}.{layer}" for half in ("encoder", "decoder") for layer in layers] + ["quant_conv", "post_quant_conv"]
    state: State = {}
    for key in (f"{path}.{kind}" for path in paths for kind in ("weight", "bias")):
        name = rename(key, 4)
        if name in ours:
            is_map = ".attn_1." in key and ours[name].ndim == 2
            state[key] = ours[name][:, :, None, None] if is_map else ours[name]
    assert len(state) == len(ours)
    return state, network.eval()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_flat_files_are_told_apart(order: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``var_d16.pth`` and ``vae_ch160v4096z32.pth`` are bare state dicts, and may come in either order."""
    modules, config = official("var-a")
    paths = [save(tmp_path / "var_d16.pth", modules["var"]), save(tmp_path / "vae_ch160v4096z32.pth", modules["vae"])]
    given = [paths[index] for index in order]
    assert convert(*given, "--output", "var", config={"norm_groups": 2}) == 0
    assert "VARPipeline of 10 classes, 16 x 16 pixels in 'var'" in capsys.readouterr().out
    record = json.loads(Path("var/conversion.json").read_text())
    assert record["source"] == "var" and record["options"]["vae"]["norm_groups"] == 2
    assert list(record["files"]) == [path.name for path in given]
    networks, pipeline = expected("var", config, modules), load_pipeline("var")
    assert same(pipeline.transformer, networks["var"]) and same(pipeline.tokenizer, networks["vae"])
    reference = get_source("var").pipeline(networks, config)
    assert torch.equal(images(pipeline, guidance_scale=2.0, top_k=8), images(reference, guidance_scale=2.0, top_k=8))
    if order == (0, 1):
        sample("var", "--top-k", "5")


def test_a_training_checkpoint_holds_both(tmp_path: Path) -> None:
    """``ar-ckpt-best.pth`` of VAR's trainer."""
    modules, config = official("var-a")
    trainer = {
        "config": {"patch_nums": (1, 2, 3, 4), "resos": (4, 8, 12, 16), "label_smooth": 0.0, "prog_it": 0},
        "var_wo_ddp": modules["var"],
        "vae_local": modules["vae"],
        "var_opt": {"scaler": {"scale": 65536.0, "_growth_tracker": 3}, "optimizer": optimizer_state()},
    }
    path = save(tmp_path / "ar-ckpt-best.pth", {"epoch": 3, "iter": 0, "trainer": trainer, "args": {"depth": 3, "tlr": None}})
    assert convert(path, "--output", "var", config={"vae": {"norm_groups": 2}}) == 0
    networks, pipeline = expected("var", config, modules), load_pipeline("var")
    assert same(pipeline.transformer, networks["var"]) and same(pipeline.tokenizer, networks["vae"])


def test_a_tokenizer_alone_reconstructs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modules, config = official("var-vqvae-a")
    path = save(tmp_path / "vae_ch160v4096z32.pth", modules["model"])
    assert "does not tell norm_groups" in failure(capsys, path)
    assert "does not tell v_patch_nums" in failure(capsys, path, config={"norm_groups": 4})
    assert convert(path, "--output", "vqvae", config={"norm_groups": 3, "v_patch_nums": [1, 2, 3, 4]}) == 0
    said = capsys.readouterr().out
    assert "source: var-vqvae" in said and "ImageReconstructionPipeline of 64 codes, 64 x 64 pixels" in said
    tokenizer = load_any_pipeline("vqvae").tokenizer
    with safe_open(VECTORS / "var-vqvae-a.safetensors", framework="pt") as file:
        assert torch.equal(tokenizer.encode(file.get_tensor("inputs/images")), file.get_tensor("outputs/ids"))
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    assert main(["reconstruct", "vqvae", str(tmp_path / "red.png"), "--output", "grid.png", "--device", "cpu"]) == 0
    assert Path("grid.png").is_file()


@pytest.mark.parametrize("container", ["model", "module", "state_dict", "consolidated", "training"])
def test_llamagen_in_each_container(container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As released, from DeepSpeed, from FSDP (consolidated.pth), and as its two training scripts save."""
    modules, config = official("llamagen-a")
    script = {"steps": 7, "args": argparse.Namespace(gpt_model="GPT-B", cloud_save_path=Path("x"))}
    gpt: Any = {container: modules["gpt"]}
    vq: Any = {"model": modules["vq"]}
    if container == "consolidated":
        gpt = modules["gpt"]
    elif container == "training":
        averaged = {key: value + 1 for key, value in modules["gpt"].items()}
        gpt = {"model": averaged, "optimizer": optimizer_state(), **script, "ema": modules["gpt"]}
        discriminator = {"main.0.weight": torch.zeros(4, 3, 4, 4), "main.0.bias": torch.zeros(4)}
        vq |= {"discriminator": discriminator, "optimizer": optimizer_state(), "optimizer_disc": optimizer_state(), **script}
    paths = [save(tmp_path / "c2i_B_256.pt", gpt), save(tmp_path / "vq_ds16_c2i.pt", vq)]
    assert convert(*paths, "--output", "llamagen", config=LLAMAGEN) == 0
    said = capsys.readouterr().out
    if container == "training":
        assert "note: model of 'c2i_B_256.pt' is left out; --network model takes it" in said
        assert "note: discriminator of 'vq_ds16_c2i.pt' is left out; llamagen has no place for it" in said
    networks, pipeline = expected("llamagen", config, modules), load_pipeline("llamagen")
    assert same(pipeline.transformer, networks["gpt"]) and same(pipeline.tokenizer, networks["vq"])
    assert pipeline.image_size == 64
    if container == "model":
        reference = get_source("llamagen").pipeline(networks, config)
        assert torch.equal(images(pipeline, guidance_scale=2.0), images(reference, guidance_scale=2.0))
        sample("llamagen")
        capsys.readouterr()
        assert convert(paths[1], "--output", "vq", config={"norm_groups": 3}) == 0
        assert "ImageReconstructionPipeline of 64 codes, 256 x 256 pixels" in capsys.readouterr().out


def test_lightning_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Open-MAGVIT2's tokenizer alone, and the whole model, which holds the tokenizer and its discriminator."""
    (tokenizer,) = official("magvit2-tokenizer-a")[0].values()
    (gpt,) = official("magvit2-ar-a")[0].values()
    alone = save(tmp_path / "imagenet_256_L.ckpt", lightning(tokenizer | {"loss.discriminator.main.0.weight": torch.zeros(2)}))
    assert convert(alone, "--output", "tokenizer", config={"norm_groups": 4, "image_size": 64}) == 0
    assert "ImageReconstructionPipeline of 1024 codes, 64 x 64 pixels" in capsys.readouterr().out
    whole = {f"first_stage_model.{key}": value for key, value in tokenizer.items()}
    whole |= {"first_stage_model.loss.discriminator.main.0.weight": torch.zeros(2)}
    whole |= {f"transformer.{key}": value for key, value in gpt.items()}
    assert convert(save(tmp_path / "AR_256_B.ckpt", lightning(whole)), "--output", "whole", config=MAGVIT2) == 0
    files = [save(tmp_path / "gpt.ckpt", lightning({f"transformer.{key}": value for key, value in gpt.items()})), alone]
    assert convert(*files, "--output", "both", config=MAGVIT2) == 0
    networks = expected("magvit2-ar", official_magvit2(), {"model": gpt, "tokenizer": tokenizer})
    for folder in ("whole", "both"):
        pipeline = load_pipeline(folder)
        assert same(pipeline.transformer, networks["model"]) and same(pipeline.tokenizer, networks["tokenizer"])
    assert same(load_any_pipeline("tokenizer").tokenizer, networks["tokenizer"])
    sample("whole")
    assert "lacks its tokenizer" in failure(capsys, files[0], config=MAGVIT2["model"])


def official_magvit2() -> dict[str, Any]:
    tokenizer = official("magvit2-tokenizer-a")[1] | {"image_size": 64}
    return {"model": official("magvit2-ar-a")[1], "tokenizer": tokenizer}


def test_mar_with_its_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``checkpoint-last.pth`` holds the average, which is taken, and arguments as an object, which are not looked at."""
    (average,) = official("mar-a")[0].values()
    raw = {key: value + 1 for key, value in average.items()}
    content = {"model": raw, "model_ema": average, "optimizer": optimizer_state(), "epoch": 9, "scaler": {"scale": 1.0}}
    checkpoint = save(tmp_path / "checkpoint-last.pth", content | {"args": argparse.Namespace(model="mar_base", diffloss_d=6)})
    state, network = autoencoder(4)
    kl16 = save(tmp_path / "kl16.ckpt", {"model": state})
    assert convert(kl16, checkpoint, "--output", "mar", config=MAR) == 0
    said = capsys.readouterr().out
    assert "MARPipeline of 10 classes, 64 x 64 pixels" in said and "lacks" not in said
    assert "note: model of 'checkpoint-last.pth' is left out; --network model takes it" in said
    record = json.loads(Path("mar/conversion.json").read_text())
    assert record["source"] == "mar" and record["autoencoder"]["source"] == "mar-vae"
    pipeline, networks = load_pipeline("mar"), expected("mar", official("mar-a")[1], {"model": average})
    assert same(pipeline.network, networks["model"]) and same(pipeline.autoencoder, network)
    reference = get_source("mar").pipeline(networks, {})
    reference.register_modules(autoencoder=network)
    options = {"num_inference_steps": 4, "num_diffusion_steps": 3}
    assert torch.equal(images(pipeline, **options), images(reference, **options))
    sample("mar", "--num-inference-steps", "2", "--num-diffusion-steps", "2")
    assert convert(checkpoint, kl16, "--output", "raw", "--network", "model", config=MAR) == 0
    assert torch.equal(load_pipeline("raw").network.state_dict()["mask_embedding"].flatten(), raw["mask_token"].flatten())

    capsys.readouterr()
    assert convert(kl16, "--output", "kl") == 0
    assert "ImageReconstructionPipeline of latents of 4 channels, 256 x 256 pixels" in capsys.readouterr().out
    assert convert(checkpoint, "--output", "without", config=MAR) == 0
    assert "convert again with --autoencoder FOLDER or with the file kl16.ckpt too before sampling" in capsys.readouterr().out
    assert convert(checkpoint, "--output", "folder", "--autoencoder", "kl", config=MAR) == 0
    assert same(load_pipeline("folder").autoencoder, network)
    assert "there are two autoencoders" in failure(capsys, checkpoint, kl16, "--autoencoder", "kl", config=MAR)
    wide = save(tmp_path / "kl8.ckpt", {"model": autoencoder(8)[0]})
    assert "model of 'kl8.ckpt' has 8 channels, the network 4" in failure(capsys, checkpoint, wide, config=MAR)
    state.pop("decoder.conv_out.bias")
    save(kl16, {"model": state})
    assert "the official checkpoint of mar-vae (model) lacks decoder.conv_out.bias" in failure(
        capsys, checkpoint, kl16, config=MAR
    )
    wrong = MAR | {"autoencoder": {"width": 3}}
    assert "AutoencoderKL option 'width' of LTH14/mar is unknown" in failure(capsys, checkpoint, wide, config=wrong)


def test_emigm_with_its_autoencoder(tmp_path: Path) -> None:
    """Of 512 pixels its autoencoder is a folder of diffusers."""
    (weights,) = official("emigm-a")[0].values()
    content = {"model": weights, "model_ema": weights, "optimizer": optimizer_state(), "epoch": 1, "args": argparse.Namespace()}
    checkpoint = save(tmp_path / "checkpoint-last.pth", content)
    widths = {"encoder_block_out_channels": (12, 12), "decoder_block_out_channels": (12, 12)}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    scales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    deep = AutoencoderDC(latent_channels=6, **widths, **layers, **scales)
    deep.save_pretrained(tmp_path / "dc-ae")
    assert convert(checkpoint, "--output", "emigm", "--autoencoder", tmp_path / "dc-ae", config=EMIGM) == 0
    pipeline = load_pipeline("emigm")
    assert same(pipeline.network, expected("emigm", official("emigm-a")[1], {"model": weights})["model"])
    assert same(pipeline.autoencoder, deep)
    sample("emigm", "--num-inference-steps", "2", "--num-diffusion-steps", "3")
    kl16 = save(tmp_path / "kl16.ckpt", {"model": autoencoder(6)[0]})
    assert convert(kl16, checkpoint, "--output", "kl", config=EMIGM) == 0
    assert isinstance(load_pipeline("kl").autoencoder, AutoencoderKL)


def test_what_does_not_fit_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modules, _ = official("var-a")
    var, vae = modules["var"], modules["vae"]
    transformer, tokenizer = save(tmp_path / "var_d16.pth", var), save(tmp_path / "vae.pth", vae)
    groups = {"vae": {"norm_groups": 2}}
    assert "and vae is not among the files; give both" in failure(capsys, transformer)
    assert "does not tell norm_groups" in failure(capsys, transformer, tokenizer)

    other = save(tmp_path / "other.pth", vae | {"quantize.embedding.weight": torch.zeros(50, 8)})
    line = failure(capsys, other, transformer, config=groups)
    assert "the transformer (var) predicts 48 codes of 8 channels, the tokenizer (vae) has 50 codes of 8 channels" in line

    lacking = save(tmp_path / "lacking.pth", {key: value for key, value in var.items() if key != "blocks.1.ffn.fc2.bias"})
    line = failure(capsys, lacking, tokenizer, config=groups)
    assert "the official checkpoint of var (var) lacks blocks.1.mlp.fc2.bias" in line
    strange = save(tmp_path / "strange.pth", vae | {"loss.logvar": torch.zeros(1)})
    assert "VAR's VQVAE has no place for the official keys loss.logvar" in failure(capsys, strange, transformer, config=groups)

    vq = save(tmp_path / "vq_ds16_c2i.pt", {"model": official("llamagen-a")[0]["vq"]})
    line = failure(capsys, transformer, vq)
    assert "not of one model: 'var_d16.pth' is of var, model of 'vq_ds16_c2i.pt' is of llamagen; give those of one model" in line
    junk = save(tmp_path / "junk.pth", {"a.weight": torch.zeros(2)})
    line = failure(capsys, transformer, junk)
    assert "no source of official checkpoints knows this layout ('junk.pth': 1 tensors, first a.weight)" in line
    codebooks = save(tmp_path / "codebooks.pt", {"codebooks": torch.zeros(2, 8, 4)})
    assert "a residual vector quantiser alone makes no images" in failure(capsys, codebooks)
    twin = save(tmp_path / "var_d16_copy.pth", var)
    assert "'var_d16.pth' and 'var_d16_copy.pth' could be" in failure(capsys, transformer, twin)


def test_llamagen_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modules, _ = official("llamagen-a")
    gpt, vq = save(tmp_path / "c2i_B_256.pt", {"model": modules["gpt"]}), save(tmp_path / "vq.pt", {"model": modules["vq"]})
    assert "give its tokenizer too (vq_ds16_c2i.pt)" in failure(capsys, gpt, config={"n_head": 4, "block_size": 16})
    assert "does not tell block_size of gpt" in failure(capsys, gpt, vq, config={"n_head": 4, "norm_groups": 3})
    other = save(tmp_path / "vq_ds8.pt", {"model": modules["vq"] | {"quantize.embedding.weight": torch.zeros(32, 8)}})
    line = failure(capsys, gpt, other, config=LLAMAGEN)
    assert "64" in line and "32" in line
    state = save(tmp_path / "kl.ckpt", {"model": autoencoder(4)[0]})
    line = failure(capsys, gpt, vq, state, config=LLAMAGEN)
    assert "model of 'kl.ckpt' has no use here: an AutoregressiveImagePipeline makes pixels itself" in line
    assert "--config has autoencoder=3; give its official options by name" in failure(
        capsys, gpt, vq, state, config=LLAMAGEN | {"autoencoder": 3}
    )


def test_a_lightning_checkpoint_with_foreign_objects_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tokenizer,) = official("magvit2-tokenizer-a")[0].values()
    path = save(tmp_path / "last.ckpt", lightning(tokenizer) | {"hyper_parameters": {"loss": nn.Linear(1, 1)}})
    line = failure(capsys, path)
    assert "it asks for torch.nn.modules.linear.Linear, and only tensors and plain data are read" in line
