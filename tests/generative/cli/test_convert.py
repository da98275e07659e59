"""``generative convert`` on tiny official checkpoints of every source, then ``generative sample`` on what it wrote."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from generative.cli.main import main
from generative.convert import SOURCES, get_source, load_official
from generative.core.checkpoint import fingerprint_folder
from pipelines import load_pipeline

VECTORS = Path(__file__).parents[2] / "parity" / "vectors"
# Source -> its parity file, which of its modules samples, and which is its discriminator.
PARITY = {
    "biggan": ("biggan-a", "generator", "discriminator"),
    "biggan-deep": ("biggan-deep-a", "generator", "discriminator"),
    "projected-gan": ("projected-gan-a", "generator_cond", "discriminator_cond"),
    "projected-gan_256": ("projected-gan_256-a", "generator_cond", None),
    "sagan": ("sagan-a", "generator", "discriminator"),
    "wgan-gp": ("wgan-gp-a", "generator_cond", "discriminator_cond"),
}
# Tokenizers and what is made of tokens: tried in test_convert_tokens.py.
TOKENS = ("emigm", "llamagen", "magvit2-ar", "magvit2-tokenizer", "mar", "mar-vae", "rvq", "var", "var-vqvae")
State = dict[str, Tensor]


def official(name: str) -> dict[str, State]:
    """Official weights of a parity file, by module."""
    modules: dict[str, State] = {}
    with safe_open(VECTORS / f"{name}.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            group, _, rest = key.partition("/")
            module, slash, inner = rest.partition("/")
            if group == "weights":
                modules.setdefault(module if slash else "model", {})[inner if slash else rest] = file.get_tensor(key)
    return modules


def normalised(prefix: str, layer: nn.Linear | nn.Conv2d) -> State:
    """State of a layer under torch's old spectral norm, whose vectors some steps in training have brought near."""
    layer = nn.utils.spectral_norm(layer, n_power_iterations=10)
    width = layer.weight_orig.shape[1]
    layer(torch.randn(1, width) if isinstance(layer, nn.Linear) else torch.randn(1, width, 4, 4))
    return {f"{prefix}.{key}": value.detach() for key, value in layer.state_dict().items()}


def pretrained_biggan(width: int = 8, z_dim: int = 4, num_classes: int = 3) -> State:
    """A checkpoint of pytorch-pretrained-biggan at 128 pixels."""
    widths = [(16, 16), (16, 16), (16, 16), (16, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1)]
    state: State = {"embeddings.weight": torch.randn(z_dim, num_classes)}
    state |= normalised("generator.gen_z", nn.Linear(2 * z_dim, 16 * 16 * width))

    def norm(prefix: str, channels: int) -> State:
        return {f"{prefix}.running_means": torch.zeros(51, channels), f"{prefix}.running_vars": torch.ones(51, channels)}

    for index, (multiplier_in, multiplier_out) in enumerate(widths):
        name = f"generator.layers.{index + (index >= 8)}"
        inside, outside, middle = width * multiplier_in, width * multiplier_out, width * multiplier_in // 4
        for i, (source, target, size) in enumerate(
            [(inside, middle, 1), (middle, middle, 3), (middle, middle, 3), (middle, outside, 1)]
        ):
            state |= norm(f"{name}.bn_{i}", source)
            state |= normalised(f"{name}.bn_{i}.scale", nn.Linear(2 * z_dim, source, bias=False))
            state |= normalised(f"{name}.bn_{i}.offset", nn.Linear(2 * z_dim, source, bias=False))
            state |= normalised(f"{name}.conv_{i}", nn.Conv2d(source, target, size))
    attended = 2 * width
    for name, source, target in (("theta", 8, 1), ("phi", 8, 1), ("g", 8, 4), ("o_conv", 4, 8)):
        layer = nn.Conv2d(attended * source // 8, attended * target // 8, 1, bias=False)
        state |= normalised(f"generator.layers.8.snconv1x1_{name}", layer)
    state["generator.layers.8.gamma"] = torch.zeros(1)
    state |= norm("generator.bn", width) | {"generator.bn.weight": torch.ones(width), "generator.bn.bias": torch.zeros(width)}
    return state | normalised("generator.conv_to_rgb", nn.Conv2d(width, width, 3))


def save_parts(source: str, folder: Path) -> list[Path]:
    """Write the official files of a source as its authors do."""
    if source == "pretrained-biggan":
        torch.save(pretrained_biggan(), folder / "pytorch_model.bin")
        return [folder / "pytorch_model.bin"]
    name, generator, discriminator = PARITY[source]
    weights = official(name)
    if source == "wgan-gp":
        paths = [folder / f"model={letter}-best-weights-step=80.pth" for letter in "GD"]
        torch.save({"state_dict": weights[generator], "optimizer": {"state": {}, "param_groups": []}}, paths[0])
        torch.save({"state_dict": weights[discriminator or ""], "best_fid": 3.5, "run_name": "x"}, paths[1])
        return paths
    if source == "projected-gan":
        networks = {"G": rebuilt(weights[generator]), "D": rebuilt(weights[discriminator or ""])}
        (folder / "snapshot.pkl").write_bytes(pickle.dumps(networks | {"G_ema": networks["G"], "training_set_kwargs": {}}))
        return [folder / "snapshot.pkl"]
    if discriminator is None:
        save_file(weights[generator], folder / "G_ema.safetensors")
        return [folder / "G_ema.safetensors"]
    torch.save(weights[generator], folder / "G_ema.pth")
    torch.save(weights[discriminator], folder / "D.pth")
    return [folder / "G_ema.pth", folder / "D.pth"]


def rebuilt(state: State) -> nn.Module:
    """Modules within modules that have this state dict."""
    network = nn.Module()
    for key, value in state.items():
        module = network
        *path, name = key.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_buffer(name, value)
    return network


def convert(*arguments: Any) -> int:
    return main(["convert", *map(str, arguments)])


def failure(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 2) -> list[str]:
    capsys.readouterr()
    assert convert(*arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].startswith("error: ") and not any("Traceback" in line for line in lines)
    return lines


def test_every_source_is_tried() -> None:
    diffusion = {
        name for name, (module, _) in SOURCES.items() if ".diffusion." in module
    }  # in tests/generative/convert/diffusion
    representation = {"mage", "mage_class"}  # in tests/generative/convert/autoregressive/test_mage.py
    assert {*PARITY, "pretrained-biggan", *diffusion, *TOKENS, *representation} == set(SOURCES)


@pytest.mark.parametrize("source", [*PARITY, "pretrained-biggan"])
def test_a_checkpoint_becomes_a_pipeline_that_samples(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = save_parts(source, tmp_path)
    assert convert(*paths, "--output", "pipeline") == 0
    said = capsys.readouterr().out
    canonical = get_source(source).name
    assert f"source: {canonical} ({get_source(source).repository})" in said and "tensors" in said and "parameters" in said
    record = json.loads(Path("pipeline/conversion.json").read_text())
    assert record["source"] == canonical and list(record["files"]) == [path.name for path in paths]
    assert all(len(digest) == 64 for digest in record["files"].values()) and record["torch_version"] == torch.__version__

    pipeline = load_pipeline("pipeline")
    if source in PARITY:  # the weights are those that the official options and names load
        name, generator, _ = PARITY[source]
        with safe_open(VECTORS / f"{name}.safetensors", framework="pt") as file:
            config = json.loads(file.metadata()["config"])
        networks = get_source(source).build(config)
        state = {f"{module}/{key}": value for module, part in official(name).items() for key, value in part.items()}
        load_official(get_source(source), networks, state)
        expected, found = networks[generator].state_dict(), pipeline.generator.state_dict()
        torch.testing.assert_close(dict(found), dict(expected), rtol=1e-5, atol=1e-6)  # u W v is computed, in another order
        assert Path("pipeline/discriminator/config.json").is_file() == (PARITY[source][2] is not None)
    arguments = ["--class-labels", "0,1", "--num-images-per-class", "1", "--batch-size", "2", "--output", "samples"]
    assert main(["sample", "pipeline", *arguments]) == 0
    assert len(list(Path("samples").glob("*.png"))) == 2


def test_a_discriminator_can_be_loaded_again(tmp_path: Path) -> None:
    from generative.gan.sagan import SAGANDiscriminator

    assert convert(*save_parts("sagan", tmp_path), "--output", "pipeline") == 0
    network = SAGANDiscriminator.from_pretrained("pipeline/discriminator")
    expected = official("sagan-a")["discriminator"]["linear.weight"]
    torch.testing.assert_close(network.linear.weight.detach(), expected, rtol=0, atol=0)


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = save_parts("sagan", tmp_path)
    assert convert(*paths, "--output", "a") == convert(*paths, "--output", "b") == 0
    assert fingerprint_folder(Path("a")) == fingerprint_folder(Path("b"))


def test_the_average_is_taken_and_another_network_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = official("sagan-a")["generator"]
    average = {key: value + (key == "output_layer.2.bias") for key, value in weights.items()}
    torch.save(weights, tmp_path / "G.pth")
    torch.save(average, tmp_path / "G_ema.pth")
    for network, expected in ((None, average), ("G", weights)):
        wanted = ["--network", network] if network else []
        assert convert(tmp_path / "G.pth", tmp_path / "G_ema.pth", "--output", f"out-{network}", *wanted) == 0
        bias = load_pipeline(f"out-{network}").generator.conv_out.bias.detach()
        assert torch.equal(bias, expected["output_layer.2.bias"])
    assert "note: G of 'G.pth' is left out; --network G takes it" in capsys.readouterr().out
    assert (
        "there is no network 'G_best' in the checkpoint; it has G"
        in failure(capsys, tmp_path / "G.pth", "--output", "x", "--network", "G_best")[0]
    )
    torch.save(weights, tmp_path / "G_copy0.pth")
    lines = failure(capsys, tmp_path / "G.pth", tmp_path / "G_copy0.pth", "--output", "x")
    assert "not clear which network is meant, G of 'G.pth' and G of 'G_copy0.pth' could be" in lines[0]


def test_options_that_the_checkpoint_states_are_taken(tmp_path: Path) -> None:
    paths = save_parts("biggan", tmp_path)
    torch.save({"itr": 9, "config": {"SN_eps": 1e-3, "G_activation": nn.ReLU(), "lr": 1.0}}, tmp_path / "state_dict.pth")
    assert convert(*paths, tmp_path / "state_dict.pth", "--output", "a") == 0
    (tmp_path / "options.json").write_text('{"generator": {"BN_eps": 0.5}}')
    assert convert(*paths, "--config", tmp_path / "options.json", "--output", "b") == 0
    options = {name: json.loads(Path(f"{name}/conversion.json").read_text())["options"] for name in "ab"}
    assert options["a"]["generator"]["SN_eps"] == options["a"]["discriminator"]["SN_eps"] == 1e-3
    assert options["b"]["generator"]["BN_eps"] == 0.5 and options["b"]["generator"]["SN_eps"] == 1e-6


def test_every_key_that_does_not_fit_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = official("sagan-a")["generator"]
    for index in range(7):
        weights[f"strange.{index}.weight"] = torch.zeros(1)
    biases = [key for key in weights if key.endswith("conv1.bias")]
    for key in biases:
        del weights[key]
    weights["output_layer.2.bias"] = torch.zeros(5)
    torch.save(weights, tmp_path / "G.pth")
    lines = failure(capsys, tmp_path / "G.pth", "--output", "out")
    assert "generator of sagan has no place for the official keys strange.0.weight" in lines[0]
    listed = [line.strip() for line in lines[1:]]
    assert [line for line in listed if "strange" in line] == [f"generator: no place for strange.{i}.weight" for i in range(7)]
    assert len([line for line in listed if line.startswith("generator: lacks")]) == len(biases)
    assert listed[-1] == "generator: has other shapes for conv_out.bias (5,) for (3,)"
    assert not Path("out").exists()


def test_what_no_source_knows_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).state_dict(), tmp_path / "net.pth")
    found = "'net.pth': 4 tensors, first 0.weight, 0.bias, 1.weight, 1.bias"
    assert failure(capsys, tmp_path / "net.pth", "--output", "out")[0] == (
        f"error: no source of official checkpoints knows this layout ({found}); known sources: {', '.join(SOURCES)}"
    )
    line = failure(capsys, tmp_path / "net.pth", "--output", "out", "--source", "sagan")[0]
    assert f"the checkpoint is not of the layout of sagan ({found})" in line
    line = failure(capsys, tmp_path / "net.pth", "--output", "out", "--source", "stylegan")[0]
    assert "named 'stylegan'; known: " in line and "biggan" in line
    assert not Path("out").exists()


def test_a_layout_of_several_sources_needs_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(official("sagan-a")["discriminator"], tmp_path / "D.pth")
    line = failure(capsys, tmp_path / "D.pth", "--output", "out")[0]
    assert line == "error: the checkpoint may be of any of biggan, sagan; say which with --source"
    line = failure(capsys, tmp_path / "D.pth", "--output", "out", "--source", "sagan")[0]
    assert "holds a discriminator only" in line


def test_shapes_that_no_layout_has_are_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sagan-a", "biggan-deep-a", "wgan-gp-a", "projected-gan-a", "dit-a"):
        for module, state in official(name).items():
            wrong = {key: torch.zeros(1) for key in state}
            torch.save(wrong, tmp_path / f"{module}.pth")
            failure(capsys, tmp_path / f"{module}.pth", "--output", "out")


def test_keys_are_listed_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a.weight": torch.zeros(2, 3), "n": torch.tensor(4)}}, tmp_path / "G.pth")
    assert convert(tmp_path / "G.pth", "--list-keys") == 0
    expected = ["G of 'G.pth': 2 tensors, 7 values", "  a.weight  2x3  float32", "  n  scalar  int64"]
    assert capsys.readouterr().out.splitlines() == expected
    assert "--output is missing" in failure(capsys, tmp_path / "G.pth")[0]


def test_where_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save_parts("sagan", tmp_path)
    for folder in ("taken", "empty", "out"):
        Path(folder).mkdir()
    Path("taken/file").write_text("precious")
    for flags in ([], ["--overwrite"]):
        assert "holds no converted pipeline; choose another" in failure(capsys, *paths, "--output", "taken", *flags)[0]
    assert Path("taken/file").read_text() == "precious"
    assert "is a file; give a folder" in failure(capsys, *paths, "--output", "taken/file")[0]
    assert convert(*paths, "--output", "empty") == 0
    assert "choose another folder, or --overwrite it" in failure(capsys, *paths, "--output", "empty")[0]
    assert convert(paths[0], "--output", "empty", "--overwrite") == 0
    assert not Path("empty/discriminator").exists(), "what was there before is gone"

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("generative.core.checkpoint.save_network", full)
    assert "no space left" in failure(capsys, *paths, "--output", "half", code=1)[0]
    assert not Path("half").exists() and not list(Path().glob(".*half*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ("[1]", "must hold a JSON object of official options, got a list"),
        ('{"generator": {"G_colour": 1}}', "generator option 'G_colour' of BigGAN-PyTorch is unknown here"),
        ('{"encoder": {}}', "has the modules generator and discriminator, got ['encoder']"),
    ],
)
def test_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    paths = save_parts("sagan", tmp_path)
    (tmp_path / "options.json").write_text(content)
    assert message in failure(capsys, *paths, "--output", "out", "--config", tmp_path / "options.json")[0]


def test_dit_and_its_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import AutoencoderKL

    weights = official("dit-a")["model"]
    torch.save({"model": weights, "ema": weights, "opt": {"state": {}, "param_groups": []}}, tmp_path / "0400000.pt")
    line = failure(capsys, tmp_path / "0400000.pt", "--output", "out")[0]
    assert "may be of any of dit, sit; say which with --source" in line
    line = failure(capsys, tmp_path / "0400000.pt", "--source", "dit", "--output", "out")[0]
    assert 'give {"num_heads": N} in --config' in line
    (tmp_path / "options.json").write_text('{"num_heads": 4}')
    common = [tmp_path / "0400000.pt", "--source", "dit", "--config", tmp_path / "options.json", "--output"]
    assert convert(*common, "without") == 0
    assert "makes latents of 4 channels and lacks the autoencoder" in capsys.readouterr().out

    for channels in (3, 4):
        blocks: dict[str, Any] = {"block_out_channels": (4, 4), "layers_per_block": 1, "norm_num_groups": 2}
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        AutoencoderKL(latent_channels=channels, **blocks, **kinds).save_pretrained(tmp_path / f"vae{channels}")
    assert "has 3 channels, the denoiser 4" in failure(capsys, *common, "x", "--autoencoder", tmp_path / "vae3")[0]
    assert "it has no config.json" in failure(capsys, *common, "x", "--autoencoder", tmp_path)[0]
    assert convert(*common, "pipeline", "--autoencoder", tmp_path / "vae4") == 0
    assert "lacks" not in capsys.readouterr().out
    arguments = ["--class-labels", "3", "--num-images-per-class", "1", "--num-inference-steps", "2", "--output", "samples"]
    assert main(["sample", "pipeline", *arguments]) == 0
    assert load_pipeline("pipeline").image_size == 16

    paths = save_parts("sagan", tmp_path)
    line = failure(capsys, *paths, "--output", "x", "--autoencoder", tmp_path / "vae4")[0]
    assert "--autoencoder has no use here: a GANImagePipeline makes pixels itself" in line
