"""Several configurations laid over one another: what is merged, what a message names, and every published size."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from generative.cli.config import dump_config, parse_train_config
from generative.cli.config_files import find_config, list_configs, list_overlays, shipped_files
from generative.cli.layers import merge
from generative.cli.main import main
from generative.core.errors import UserError

BASE = "digits/dit"

# Of every published size, read from whole files before sizes were overlays: its configuration, image size, parameters of the
# network, images trained on, batch, micro-batches.
PUBLISHED = [
    ("emigm_b_256", "emigm_256", 256, 207_924_000, 1_024_933_600, 2048, 8),
    ("emigm_xs_256", "emigm_256", 256, 69_018_848, 1_024_933_600, 2048, 8),
    ("emigm_s_256", "emigm_256", 256, 96_640_544, 1_024_933_600, 2048, 8),
    ("emigm_l_256", "emigm_256", 256, 478_325_280, 1_024_933_600, 2048, 8),
    ("emigm_h_256", "emigm_256", 256, 942_401_824, 1_024_933_600, 2048, 8),
    ("emigm_xs_512", "emigm_256", 512, 104_506_624, 1_024_933_600, 2048, 8),
    ("emigm_s_512", "emigm_256", 512, 132_145_728, 1_024_933_600, 2048, 8),
    ("emigm_b_512", "emigm_256", 512, 244_150_592, 1_024_933_600, 2048, 8),
    ("emigm_l_512", "emigm_256", 512, 478_403_136, 1_024_933_600, 2048, 8),
    ("mar_b_256", "mar_256", 256, 207_924_768, 1_024_933_600, 2048, 8),
    ("mar_l_256", "mar_256", 256, 478_326_304, 1_024_933_600, 2048, 8),
    ("mar_h_256", "mar_256", 256, 942_403_104, 1_024_933_600, 2048, 8),
    ("mar_l_512", "mar_256", 512, 480_685_600, 512_466_800, 2048, 8),
    ("var_d16_256", "var_256", 256, 310_283_520, 256_233_400, 768, 2),
    ("var_d20_256", "var_256", 256, 600_917_136, 320_291_750, 768, 2),
    ("var_d24_256", "var_256", 256, 1_033_399_360, 448_408_450, 768, 4),
    ("var_d30_256", "var_256", 256, 2_010_020_356, 448_408_450, 1024, 8),
    ("var_d36_512", "var_256", 512, 2_353_893_904, 448_408_450, 768, 16),
    ("llamagen_b_256", "llamagen_256", 256, 110_888_448, 384_350_100, 256, 1),
    ("llamagen_l_256", "llamagen_256", 256, 342_910_976, 384_350_100, 256, 1),
    ("llamagen_b_384", "llamagen_256", 384, 110_888_448, 384_350_100, 256, 1),
    ("llamagen_l_384", "llamagen_256", 384, 342_910_976, 384_350_100, 256, 2),
    ("llamagen_xl_384", "llamagen_256", 384, 774_699_520, 384_350_100, 256, 4),
    ("llamagen_xxl_384", "llamagen_256", 384, 1_410_972_672, 384_350_100, 256, 8),
    ("llamagen_3b_384", "llamagen_256", 384, 3_096_659_200, 384_350_100, 256, 16),
    ("open_magvit2_b_256", "open_magvit2_256", 256, 343_570_432, 384_350_100, 768, 1),
    ("open_magvit2_l_256", "open_magvit2_256", 256, 804_362_240, 384_350_100, 768, 1),
    ("open_magvit2_xl_256", "open_magvit2_256", 256, 1_486_679_040, 448_408_450, 768, 1),
    ("biggan_128", "biggan_128", 128, 70_433_988, 675_840_000, 2048, 8),
    ("biggan_256", "biggan_128", 256, 82_097_604, 675_840_000, 2048, 16),
    ("biggan_512", "biggan_128", 512, 82_296_804, 675_840_000, 2048, 32),
    ("biggan_deep_128", "biggan_deep_128", 128, 50_244_484, 675_840_000, 2048, 8),
    ("biggan_deep_256", "biggan_deep_128", 256, 55_736_708, 675_840_000, 2048, 16),
    ("biggan_deep_512", "biggan_deep_128", 512, 56_019_780, 675_840_000, 2048, 32),
    ("maskgit_256", "maskgit_256", 256, 172_456_960, 384_350_100, 256, 1),
    ("maskgit_512", "maskgit_256", 512, 173_046_784, 384_350_100, 256, 1),
    ("projected_gan_256", "projected_gan_256", 256, 110_527_689, 10_000_000, 64, 1),
    ("projected_gan_128", "projected_gan_256", 128, 109_648_264, 10_000_000, 64, 1),
    ("lfq_256", "lfq_256", 256, 115_127_829, 345_915_090, 256, 1),
    ("lfq_128", "lfq_256", 128, 112_021_653, 448_408_450, 256, 1),
    ("multi_scale_vq_256", "multi_scale_vq_256", 256, 108_948_355, 51_246_680, 128, 1),
    ("multi_scale_vq_512", "multi_scale_vq_256", 512, 108_948_355, 51_246_680, 128, 1),
    ("kl_8_256", "kl_8_256", 256, 83_653_863, 12_000_000, 24, 2),
    ("kl_16_256", "kl_8_256", 256, 69_610_963, 12_000_000, 24, 2),
    ("vq_16_256", "vq_16_256", 256, 71_883_403, 51_246_680, 128, 1),
    ("vq_8_256", "vq_16_256", 256, 70_109_835, 51_246_680, 128, 1),
    ("dit_xl_256", "dit_256", 256, 674_834_720, 1_792_000_000, 256, 1),
    ("dit_s_256", "dit_256", 256, 32_865_056, 102_400_000, 256, 1),
    ("dit_b_256", "dit_256", 256, 130_315_808, 102_400_000, 256, 1),
    ("dit_l_256", "dit_256", 256, 457_840_672, 102_400_000, 256, 1),
    ("dit_xl_512", "dit_256", 512, 674_834_720, 768_000_000, 256, 4),
    ("fitv2_xl_256", "fitv2_256", 256, 671_045_776, 512_000_000, 256, 1),
    ("fitv2_3b_256", "fitv2_256", 256, 2_971_928_080, 256_000_000, 256, 4),
    ("adm_256", "adm_256", 256, 553_838_086, 506_880_000, 256, 8),
    ("adm_64", "adm_256", 64, 295_904_454, 1_105_920_000, 2048, 8),
    ("adm_128", "adm_256", 128, 421_529_606, 1_116_160_000, 256, 8),
    ("adm_512", "adm_256", 512, 558_997_638, 496_640_000, 256, 8),
    ("adm_classifier_256", "adm_classifier_256", 256, 54_096_360, 76_800_000, 256, 1),
    ("adm_classifier_64", "adm_classifier_256", 64, 65_438_568, 76_800_000, 256, 1),
    ("adm_classifier_128", "adm_classifier_256", 128, 42_568_040, 76_800_000, 256, 1),
    ("adm_classifier_512", "adm_classifier_256", 512, 54_448_360, 76_800_000, 256, 1),
    ("adm_upsampler_64_256", "adm_upsampler_64_256", 256, 311_795_910, 128_000_000, 256, 8),
    ("adm_upsampler_128_512", "adm_upsampler_64_256", 512, 308_835_270, 268_800_000, 256, 8),
    ("edm_64", "edm_64", 64, 295_899_267, 2_500_000_000, 4096, 1),
    ("edm2_s_64", "edm2_64", 64, 280_209_381, 1_073_741_824, 2048, 8),
    ("edm2_s_512", "edm2_512", 512, 280_212_837, 2_147_483_648, 2048, 8),
    ("edm2_l_512", "edm2_512", 512, 777_498_085, 1_879_048_192, 2048, 8),
    ("edm2_l_64", "edm2_64", 64, 777_492_325, 1_073_741_824, 2048, 8),
    ("edm2_m_512", "edm2_512", 512, 497_807_781, 2_147_483_648, 2048, 8),
    ("edm2_m_64", "edm2_64", 64, 497_803_173, 2_147_483_648, 2048, 8),
    ("edm2_xl_512", "edm2_512", 512, 1_119_283_749, 1_342_177_280, 2048, 8),
    ("edm2_xl_64", "edm2_64", 64, 1_119_276_837, 671_088_640, 2048, 8),
    ("edm2_xs_512", "edm2_512", 512, 124_713_253, 2_147_483_648, 2048, 8),
    ("edm2_xs_64", "edm2_64", 64, 124_710_949, 1_073_741_824, 2048, 8),
    ("edm2_xxl_512", "edm2_512", 512, 1_523_164_773, 939_524_096, 2048, 8),
    ("edm2_xxs_512", "edm2_512", 512, 31_309_029, 2_147_483_648, 2048, 8),
    ("u_vit_m_64", "u_vit_64", 64, 130_940_292, 307_200_000, 1024, 2),
    ("u_vit_l_64", "u_vit_64", 64, 286_827_652, 307_200_000, 1024, 4),
    ("u_vit_h_256", "u_vit_256", 256, 500_832_016, 512_000_000, 1024, 8),
    ("u_vit_l_256", "u_vit_256", 256, 286_763_172, 307_200_000, 1024, 4),
    ("u_vit_h_512", "u_vit_256", 512, 500_942_656, 512_000_000, 1024, 8),
    ("u_vit_l_512", "u_vit_256", 512, 286_861_524, 512_000_000, 1024, 4),
    ("dimr_xl_256", "dimr_256", 256, 505_046_408, 1_024_000_000, 1024, 8),
    ("dimr_g_256", "dimr_256", 256, 1_056_352_904, 1_024_000_000, 1024, 16),
    ("rin_64", "rin_64", 64, 157_780_160, 153_600_000, 1024, 1),
    ("rin_128", "rin_64", 128, 395_403_968, 153_600_000, 1024, 2),
    ("rin_256", "rin_64", 256, 395_928_256, 153_600_000, 1024, 4),
    ("compact_unet_256", "compact_unet_256", 256, 370_151_684, 307_200_000, 1024, 4),
    ("sit_xl_256", "sit_256", 256, 674_816_272, 1_792_000_000, 256, 1),
    ("sit_s_256", "sit_256", 256, 32_858_896, 102_400_000, 256, 1),
    ("sit_b_256", "sit_256", 256, 130_303_504, 102_400_000, 256, 1),
    ("sit_l_256", "sit_256", 256, 457_824_272, 102_400_000, 256, 1),
    ("sit_xl_512", "sit_256", 512, 674_816_272, 768_000_000, 256, 4),
]


@pytest.mark.parametrize(
    ("earlier", "later", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3, "d": 4}}, {"a": {"b": 1, "c": 3, "d": 4}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        (
            {"class_path": "X", "init_args": {"p": 1}},
            {"class_path": "Y", "init_args": {"q": 2}},
            {"class_path": "Y", "init_args": {"q": 2}},
        ),
        ({"class_path": "X", "init_args": {"p": 1}}, {"class_path": "Y"}, {"class_path": "Y"}),
        ({"class_path": "X", "init_args": {"p": 1}}, {"class_path": "X"}, {"class_path": "X", "init_args": {"p": 1}}),
        ({"class_path": "X", "init_args": {"p": 1}}, {"init_args": {"q": 2}}, {"class_path": "X", "init_args": {"p": 1, "q": 2}}),
        ("X", {"init_args": {"q": 2}}, {"class_path": "X", "init_args": {"q": 2}}),
        ({"class_path": "X", "init_args": {"p": 1}}, "X", {"class_path": "X", "init_args": {"p": 1}}),
        ({"class_path": "X", "init_args": {"p": 1}}, "Y", "Y"),
    ],
)
def test_merging(earlier: Any, later: Any, merged: Any) -> None:
    before = yaml.safe_dump(earlier)
    assert merge(earlier, later) == merged
    assert yaml.safe_dump(earlier) == before


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``generative train ... --print_config``; returns what it prints, read."""

    def run(*arguments: str) -> Any:
        assert main(["train", *arguments, "--print_config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return run


def overlay(folder: Path, text: str, name: str = "overlay.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_later_configurations_win_and_the_command_line_last(printed: Any, tmp_path: Path) -> None:
    first = overlay(tmp_path, "objective: {init_args: {denoiser: {init_args: {depth: 3}}}}\ntrainer: {batch_size: 48}", "a.yaml")
    second = overlay(tmp_path, "trainer: {batch_size: 32, max_grad_norm: 2.0}", "b.yaml")
    base = printed(BASE)
    # Options may stand between configurations, and one may be given as an option.
    result = printed(BASE, "--trainer.max_grad_norm", "3.0", first, "--config", second)
    expected = base | {"trainer": base["trainer"] | {"batch_size": 32, "max_grad_norm": 3.0}}
    expected["objective"]["init_args"]["denoiser"]["init_args"]["depth"] = 3
    assert result == expected


def test_another_class_takes_none_of_the_earlier_arguments(printed: Any, tmp_path: Path) -> None:
    other = overlay(tmp_path, "trainer: {lr_schedule: {class_path: generative.core.schedules.Constant}}")
    schedule = printed(BASE, other)["trainer"]["lr_schedule"]
    assert schedule["class_path"] == "generative.core.schedules.Constant"


def test_a_part_in_a_file_of_its_own_is_merged_too(printed: Any, tmp_path: Path) -> None:
    overlay(tmp_path, "class_path: generative.data.digits.DigitsDataset\ninit_args: {image_size: 16}", "part.yaml")
    first = overlay(tmp_path, "data: part.yaml", "a.yaml")
    second = overlay(tmp_path, "data: {init_args: {split: test}}", "b.yaml")
    data = printed(BASE, first, second)["data"]["init_args"]
    assert data["image_size"] == 16 and data["split"] == "test"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {batch_size: many}", "'{file}': trainer.batch_size must be int, got many"),
        ("trainer: {bach: 3}", "'{file}': trainer.bach is not a known key"),
        ("objective: {init_args: {denoiser: {init_args: {dept: 3}}}}", "'{file}': objective.denoiser.dept is not a known key"),
        ("objectiv: {}", "'{file}': objectiv is not a known key"),
        ("objective: {init_arg: {}}", "'{file}'"),
        ("- 1", "'{file}' must be a mapping"),
        ("trainer: {batch_size: 0}", "batch_size"),
        ("objective: {class_path: os.system}", "'{file}' names 'os.system', which is not of generative"),
        ("data: {class_path: generative.data.digits.DigitDataset}", "'{file}': data: there is no class 'DigitDataset'"),
    ],
)
def test_messages_name_the_file_and_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    file = overlay(tmp_path, text)
    assert main(["train", BASE, file, "--trainer.output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message.replace("{file}", file) in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_wrong_value_of_the_command_line_is_said_to_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = overlay(tmp_path, "trainer: {batch_size: 8}")
    assert main(["train", BASE, file, "--trainer.batch_size", "x"]) == 2
    assert capsys.readouterr().err == "error: command line: trainer.batch_size must be int, got x\n"


def test_an_overlay_alone_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "imagenet/sizes/mar_l_256"]) == 2
    assert "an overlay comes after a whole configuration" in capsys.readouterr().err
    with pytest.raises(UserError, match="is imagenet/sizes/mar_l_256 meant"):
        find_config("imagenet/mar_l_256")


def test_a_run_goes_on_with_several_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = "evaluation: null\ntrainer: {total_images: 64, batch_size: 32, evaluate_interval_steps: null}\n"
    short += "objective: {init_args: {denoiser: {init_args: {depth: 1, hidden_size: 24}}}}"
    command = [BASE, overlay(tmp_path, short), overlay(tmp_path, f"trainer: {{output_dir: {tmp_path / 'run'}}}", "place.yaml")]
    assert main(["train", *command]) == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["objective"]["init_args"]["denoiser"]["init_args"]["depth"] == 1
    capsys.readouterr()
    assert main(["train", *command, "--resume", "latest", "--trainer.total_images", "96"]) == 0
    assert "changed: trainer.total_images: 64 -> 96" in capsys.readouterr().out
    # A run's folder is one of the configurations; one after it may place the new run elsewhere.
    assert (
        main(["train", str(tmp_path / "run"), overlay(tmp_path, f"trainer: {{output_dir: {tmp_path / 'new'}}}", "new.yaml")]) == 0
    )
    assert (tmp_path / "new" / "pipeline").is_dir()
    (tmp_path / "run").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["train", str(tmp_path / "moved"), overlay(tmp_path, "seed: 0", "seed.yaml"), "--resume", "latest"]) == 0
    assert str(tmp_path / "moved" / "pipeline") in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_classes_are_found_by_name(printed: Any, tmp_path: Path) -> None:
    today = printed(BASE)
    content = yaml.safe_load(find_config(BASE).read_text())
    text = re.sub(r"generative(\.\w+)+\.(\w+)", r"generative.before.the.move.\2", yaml.safe_dump(content))
    assert printed(overlay(tmp_path, text)) == today
    assert printed(overlay(tmp_path, re.sub(r"generative\.before\.the\.move\.", "", text))) == today
    old = content["data"]["class_path"].rpartition(".")[2]
    assert printed(BASE, "--data", f"generative.old.{old}")["data"]["class_path"] == today["data"]["class_path"]
    assert printed(BASE, "--data.class_path", old)["data"]["class_path"] == today["data"]["class_path"]


@pytest.mark.parametrize("name", ["generative.data.digits.DigitsDatset", "DigitsDatset"])
def test_an_unknown_class_gets_near_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["train", BASE, overlay(tmp_path, f"data: {{class_path: {name}}}"), "--print_config"]) == 2
    error = capsys.readouterr().err
    assert "is DigitsDataset" in error and "meant?" in error and error.count("\n") == 1


@pytest.mark.parametrize(("name", "base", "image_size", "parameters", "images", "batch", "parts"), PUBLISHED)
def test_published_sizes(name: str, base: str, image_size: int, parameters: int, images: int, batch: int, parts: int) -> None:
    path = find_config(f"imagenet/{base}")
    files = [path]
    if (size := f"imagenet/sizes/{name}") in list_overlays():
        assert f"#   generative train imagenet/{base} {size}\n" in path.read_text(), "its command is told where it starts"
        assert f"over imagenet/{base}" in find_config(size).read_text().partition("\n")[0]
        files.append(find_config(size))
    _, config = parse_train_config(files)
    trainer = config.trainer
    assert str(trainer.output_dir) == f"runs/imagenet-{name}"
    assert (trainer.total_images, trainer.batch_size, trainer.gradient_accumulation_steps) == (images, batch, parts)
    data = config.data.init_args
    assert (data.images.init_args if "images" in data else data).image_size == image_size
    arguments = config.objective.init_args
    kinds = ("network", "transformer", "generator", "tokenizer", "denoiser", "classifier")
    network = next(arguments[key] for key in kinds if key in arguments)
    options = {key: 1000 if key == "num_classes" else value for key, value in vars(network.init_args).items()}
    module, _, kind = network.class_path.rpartition(".")
    with torch.device("meta"):
        built = getattr(import_module(module), kind)(**options)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


def test_every_overlay_is_published() -> None:
    assert {f"imagenet/sizes/{name}" for name, base, *_ in PUBLISHED if name != base} >= set(list_overlays())
    assert not set(list_overlays()) & set(list_configs())


def test_an_overlay_repeats_nothing() -> None:
    for name, base, *_ in PUBLISHED:
        if (path := list_overlays().get(f"imagenet/sizes/{name}")) is not None:
            whole, size = (yaml.safe_load(file.read_text()) for file in (find_config(f"imagenet/{base}"), path))
            assert not [key for key, value in leaves(size).items() if leaves(whole).get(key) == value], name


def leaves(content: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(content, dict):
        return {path: content}
    return {key: value for name, inner in content.items() for key, value in leaves(inner, (*path, name)).items()}


def test_a_wheel_ships_every_configuration() -> None:
    root = Path(__file__).parents[3]
    shipped = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    found = {path for patterns in shipped.values() for pattern in patterns for path in root.glob(pattern)}
    assert found >= {path for path in shipped_files().values() if path.is_relative_to(root)}
    for folder, patterns in shipped.items():
        assert all(folder == f"share/triptych/{Path(pattern).parent}" for pattern in patterns)


def test_a_resolved_configuration_resolves_to_itself(tmp_path: Path) -> None:
    text = dump_config(*parse_train_config([find_config("imagenet/mar_256"), find_config("imagenet/sizes/mar_l_512")]))
    assert dump_config(*parse_train_config(Path(overlay(tmp_path, text)))) == text
