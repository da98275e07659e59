"""Every protocol against its origin: the same seeded weights and real images, each tool through its own entry point.

The other tools form S1 S2 at d = 2048 and take a root or the eigenvalues of it, 10 to 60 seconds on two cores. The default tests
give them the same numbers in closed form (the product has the rank of the few images); the slow ones run them as they are.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metrics import registry
from metrics.cli import main
from metrics.extraction import Extraction
from metrics.extractors import FeatureExtractor, build_extractor
from metrics.extractors.clip import CLIPImageEncoder, VisionTower
from metrics.resize import build_resizer
from metrics.scores.frechet import frechet_distance_from_features
from metrics.scores.inception_score import InceptionScore
from metrics.scoring import plan
from metrics.sources import open_source
from metrics.suite import MetricSuite

_COUNT = 4
_SUBSET_SIZE = 3
_SUBSETS = 10
_SPLITS = 2
_NEIGHBOUR = 2
_FEATURES = 1e-4  # Relative to the largest feature: the tolerance promised in the documentation.
_SCORES = 1e-5  # Relative, likewise.
_SETTINGS = [
    "--kid-subset-size",
    str(_SUBSET_SIZE),
    "--kid-subsets",
    str(_SUBSETS),
    "--isc-splits",
    str(_SPLITS),
    "--prc-neighborhood",
    str(_NEIGHBOUR),
]
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning", "ignore::metrics.metric.SmallSampleWarning"
)


@pytest.fixture(scope="module")
def rivals(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    for name in ("pytorch_fid", "cleanfid", "torch_fidelity"):
        pytest.importorskip(name)
    return benchmark_module("rivals")


@pytest.fixture(scope="module")
def photographs(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    pytest.importorskip("sklearn")
    return benchmark_module("photographs")


@pytest.fixture(scope="module")
def folders(photographs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Crops of photographs of mixed sizes; the second set is blurred and dark, so that no score is a difference of noise."""
    root = tmp_path_factory.mktemp("photographs")
    real = photographs.write_pngs(root / "real", photographs.crops(_COUNT, seed=0))
    fake = photographs.write_pngs(root / "fake", photographs.crops(_COUNT, seed=1, blur=photographs.BLUR, gain=0.3))
    return real, fake


@pytest.fixture(scope="module")
def inputs(rivals: ModuleType, folders: tuple[Path, Path], inception_file: Path) -> Any:
    # One image at a time: these tools stack images and can't stack mixed sizes.
    return rivals.Inputs(*folders, inception_file, batch_size=1, num_workers=0)


@pytest.fixture(scope="module")
def network(inception_file: Path) -> FeatureExtractor:
    return build_extractor("inception-v3", weights=inception_file)


@pytest.fixture(scope="module")
def score(
    inception_file: Path, network: FeatureExtractor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """The function (paths, arguments) -> what ``fid-score --json`` writes, on the seeded weights (read once)."""
    cache = tmp_path_factory.mktemp("features")

    def run(paths: Sequence[Path], *arguments: str) -> dict[str, Any]:
        output = tmp_path_factory.mktemp("scores") / "scores.json"
        options = ["--weights", str(inception_file), "--device", "cpu", "--quiet", "--cache-root", str(cache)]
        with mock.patch.object(plan, "build_extractor", lambda *_, **__: network):
            assert main([*map(str, paths), *arguments, *options, "--json", str(output)]) == 0
        return json.loads(output.read_text())

    return run


def _low_rank(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Q (D, r) and B (r, D) with matrix = Q B, for a matrix of low rank."""
    rank = 2 * _COUNT + 4
    sketch = matrix @ np.random.default_rng(0).standard_normal((len(matrix), rank))
    basis = np.linalg.qr(matrix @ sketch)[0]  # Once more through the matrix: the noise below its rank is squared away.
    return basis, basis.T @ matrix


def _sqrtm(matrix: np.ndarray, disp: bool = True, blocksize: int = 64) -> Any:
    """A root of a product of two covariances of low rank: (Q B)^(1/2) = Q (B Q)^(-1/2) B."""
    basis, rest = _low_rank(matrix)
    values, vectors = np.linalg.eig(rest @ basis)
    kept = values.real > 1e-12 * values.real.max()
    inverse = np.where(kept, 1.0 / np.sqrt(np.where(kept, values.real, 1.0)), 0.0)
    root = basis @ ((vectors * inverse) @ np.linalg.inv(vectors)).real @ rest
    return root if disp else (root, 0.0)


def _eigvals(matrix: np.ndarray) -> np.ndarray:
    basis, rest = _low_rank(matrix)
    values = np.zeros(len(matrix), dtype=np.complex128)
    found = _SLOW_EIGVALS(rest @ basis)
    values[: len(found)] = np.where(found.real > 1e-12 * found.real.max(), found.real, 0.0)
    return values


_SLOW_EIGVALS = np.linalg.eigvals


@contextmanager
def _closed_form(rivals: ModuleType) -> Iterator[None]:
    """Give the other tools their roots and eigenvalues in closed form."""
    with (
        mock.patch("scipy.linalg.sqrtm", _sqrtm),
        mock.patch("numpy.linalg.eigvals", _eigvals),
        mock.patch.object(rivals, "disp_argument", warnings.catch_warnings),
    ):
        yield


@contextmanager
def _recorded(target: Any, name: str, replay: bool = False) -> Iterator[list[Any]]:
    """Record what a tool's function returns; ``replay`` lets it run only once per folder."""
    original = getattr(target, name)
    results: list[Any] = []
    by_folder: dict[str, Any] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        key = str(args[0])
        if not (replay and key in by_folder):
            by_folder[key] = original(*args, **kwargs)
            results.append(by_folder[key])
        return by_folder[key]

    with mock.patch.object(target, name, call):
        yield results


def _ours(folder: Path, network: FeatureExtractor, resizer: str, features: Sequence[str] = ("pool3",)) -> dict[str, np.ndarray]:
    """Features of a folder's images under a protocol's resizer, by hand."""
    extraction = Extraction(network, resizer)
    images = [image for batch in open_source(folder).batches(_COUNT) for image in batch.images]
    return {name: value.double().numpy() for name, value in extraction(images, features).items()}


def _check_features(ours: np.ndarray, theirs: Any) -> None:
    theirs = np.asarray(theirs, dtype=np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.1 and theirs.std(0).max() > 0.01, "the weights tell images apart"
    np.testing.assert_allclose(ours, theirs, rtol=_FEATURES, atol=_FEATURES * np.abs(theirs).max())


def _fidelity_options() -> dict[str, Any]:
    return {
        "isc": True,
        "kid": True,
        "prc": True,
        "feature_extractor": "inception-v3-compat",  # Else precision and recall are VGG-16's.
        "kid_subset_size": _SUBSET_SIZE,
        "kid_subsets": _SUBSETS,
        "isc_splits": _SPLITS,
        "prc_neighborhood": _NEIGHBOUR,
    }


def _check_fidelity(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=_SCORES)
    assert ours["inception_score_mean"] == pytest.approx(theirs["inception_score_mean"], rel=_SCORES)
    assert ours["inception_score_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-3), "of nearly equal scores"
    assert ours["kernel_distance_mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=_SCORES)
    assert ours["kernel_distance_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=_SCORES)
    assert ours["precision"] == pytest.approx(theirs["precision"]) and ours["recall"] == pytest.approx(theirs["recall"])


def test_pytorch_fid(rivals, inputs, folders, score, network) -> None:
    from pytorch_fid import fid_score

    with _closed_form(rivals), _recorded(fid_score, "get_activations") as activations:
        theirs = rivals.pytorch_fid(inputs)
    for folder, expected in zip(folders, activations, strict=True):
        _check_features(_ours(folder, network, "pytorch-fid")["pool3"], expected)
    record = score(folders, "--protocol", "pytorch-fid")
    assert record["scores"]["fid"] == pytest.approx(theirs["fid"], rel=_SCORES)
    assert record["protocols"][0]["normalization"] == "x / 127.5 - 1"


@pytest.mark.parametrize("dims", [64, *(pytest.param(dims, marks=pytest.mark.slow) for dims in (192, 768))])
def test_pytorch_fid_at_other_dims(rivals, inputs, folders, score, dims: int) -> None:
    with _closed_form(rivals):
        theirs = rivals.pytorch_fid(inputs, dims)
    record = score(folders, "--protocol", "pytorch-fid", "--dims", str(dims), "--batch-size", "50")
    assert record["scores"] == {"frechet_distance": pytest.approx(theirs["fid"], rel=_SCORES)}


def test_clean_fid(rivals, inputs, folders, score, network) -> None:
    from cleanfid import fid

    with _closed_form(rivals), _recorded(fid, "get_folder_features", replay=True) as features:
        theirs = rivals.clean_fid(inputs, kid=True, traced=False)
    for folder, expected in zip(folders, features, strict=True):
        _check_features(_ours(folder, network, "clean")["pool3"], expected)
    record = score(folders, "--metrics", "fid,kid")
    assert record["protocol"].startswith("clean, "), "the default"
    assert record["scores"]["fid"] == pytest.approx(theirs["fid"], rel=_SCORES)
    # With fewer than 1,000 images each of clean-fid's subsets is the whole set.
    assert record["scores"]["kernel_distance"] == pytest.approx(theirs["kid"], rel=_SCORES)


def test_torch_fidelity(rivals, inputs, folders, score, network) -> None:
    from torch_fidelity import utils

    with _closed_form(rivals), _recorded(utils, "get_featuresdict_from_dataset") as features:
        theirs = rivals.torch_fidelity(inputs, **_fidelity_options())
    for folder, expected in zip(reversed(folders), features, strict=True):  # Its first input are the samples.
        ours = _ours(folder, network, "tensorflow", ["pool3", "logits_unbiased"])
        _check_features(ours["pool3"], expected["2048"])
        _check_features(ours["logits_unbiased"], expected["logits_unbiased"])
    record = score(folders, "--protocol", "tensorflow", "--metrics", "fid,is,kid,prc", *_SETTINGS)
    _check_fidelity(record["scores"], theirs)


def test_torch_fidelitys_own_line(folders, score) -> None:
    real, fake = folders
    plain = score(folders, "--protocol", "tensorflow", "--metrics", "fid,is")
    theirs = score([], "--input1", str(fake), "--input2", str(real), "--fid", "--isc")
    assert theirs["scores"] == plain["scores"] and theirs["protocol"] == plain["protocol"]


def test_protocols_differ_on_real_images(folders, score) -> None:
    """The comparisons above can fail: another protocol's number is far outside their tolerance."""
    found = [score(folders, "--protocol", name)["scores"]["fid"] for name in ("clean", "pytorch-fid", "tensorflow")]
    gaps = [abs(a / b - 1) for a, b in ((found[0], found[1]), (found[1], found[2]), (found[0], found[2]))]
    assert min(gaps) > 100 * _SCORES


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["pytorch-fid", "clean-fid", "torch-fidelity"])
def test_full_entry_points(tool: str, rivals, inputs, folders, score) -> None:
    """Their square roots and eigenvalues as they are. Rank deficient, as here, they are off by up to 1e-5."""
    if tool == "torch-fidelity":
        theirs = rivals.torch_fidelity(inputs, **_fidelity_options())
        record = score(folders, "--protocol", "tensorflow", "--metrics", "fid,is,kid,prc", *_SETTINGS)
        _check_fidelity(record["scores"], theirs)
    else:
        found = rivals.RIVALS[tool](inputs)["fid"]
        protocol = {"pytorch-fid": "pytorch-fid", "clean-fid": "clean"}[tool]
        assert score(folders, "--protocol", protocol)["scores"]["fid"] == pytest.approx(found, rel=_SCORES)


# The evaluation suite of guided diffusion needs TensorFlow 1's interface; its formulas are these few lines.


@pytest.fixture(scope="module")
def adm_network(rivals, inception_file: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """torch-fidelity's network, which follows the same graph, as images (N, H, W, 3) -> pool3, spatial, logits without bias."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3("adm", names, feature_extractor_weights_path=str(inception_file))
    spatial: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, found: spatial.append(found))  # TF's mixed_6/conv.

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        spatial.clear()
        with torch.no_grad():
            pool3, logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        maps = spatial[0].permute(0, 2, 3, 1)[..., :7]  # NHWC, as in TF.
        return {"pool3": pool3.double().numpy(), "spatial": maps.flatten(1).double().numpy(), "logits": logits.double().numpy()}

    return run


@pytest.fixture(scope="module")
def adm_files(photographs, adm_network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A reference file whose moments are of other images than the few it holds, as in the published ones, and a sample file."""

    def images(count: int, seed: int) -> np.ndarray:
        return np.stack([np.asarray(image) for image in photographs.crops(count, seed, sizes=[(64, 64)])])

    root = tmp_path_factory.mktemp("adm")
    # The samples are of one photograph only: some lie outside of the balls of the few images, and recall is not full.
    whole, held, samples = images(9, 0), images(6, 3), np.ascontiguousarray(images(14, 13)[::2])
    of_whole = adm_network(whole)
    np.savez(
        root / "ref.npz",
        arr_0=held,
        mu=of_whole["pool3"].mean(0),
        sigma=np.cov(of_whole["pool3"], rowvar=False),
        mu_s=of_whole["spatial"].mean(0),
        sigma_s=np.cov(of_whole["spatial"], rowvar=False),
    )
    np.savez(root / "samples.npz", samples)
    return {
        "ref": root / "ref.npz",
        "samples": root / "samples.npz",
        "whole": of_whole,
        "held": adm_network(held),
        "fake": adm_network(samples),
    }


def _frechet(first: np.ndarray, second: np.ndarray) -> float:
    """|mu1 - mu2|^2 + tr S1 + tr S2 - 2 |A^T B|_*, for S1 = A A^T and S2 = B B^T of few rows."""
    roots = [((x - x.mean(0)) / np.sqrt(len(x) - 1)).T for x in (first, second)]
    overlap = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    traces = sum(float(np.square(root).sum()) for root in roots)
    return float(np.square(first.mean(0) - second.mean(0)).sum() + traces - 2 * overlap)


def _consecutive_inception_score(logits: np.ndarray, split_size: int) -> float:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    p = exponentials / exponentials.sum(1, keepdims=True)
    scores = []
    for start in range(0, len(p), split_size):
        part = p[start : start + split_size]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0, keepdims=True)))).sum(1).mean()))
    return float(np.mean(scores))


def _balls(reference: np.ndarray, samples: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall: shares inside the balls of the other set, radii to the k-th neighbour, oneself left out."""

    def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a[:, None] - b[None]).sum(2)

    real_radii = np.sort(squares(reference, reference), 1)[:, k]  # Column 0 is oneself.
    fake_radii = np.sort(squares(samples, samples), 1)[:, k]
    between = squares(reference, samples)
    return float((between <= real_radii[:, None]).any(0).mean()), float((between <= fake_radii).any(1).mean())


def test_adm(adm_files: dict[str, Any], score) -> None:
    record = score([adm_files["ref"], adm_files["samples"]], "--protocol", "adm")
    ours, fake = record["scores"], adm_files["fake"]
    assert set(registry.PROTOCOLS["adm"].scores) == {"is", "fid", "sfid", "prc"}
    assert ours["inception_score_mean"] == pytest.approx(_consecutive_inception_score(fake["logits"], 5000), rel=_SCORES)
    # The distances are to the stored moments ...
    assert ours["fid"] == pytest.approx(_frechet(adm_files["whole"]["pool3"], fake["pool3"]), rel=_SCORES)
    assert ours["sfid"] == pytest.approx(_frechet(adm_files["whole"]["spatial"], fake["spatial"]), rel=_SCORES)
    assert ours["fid"] != pytest.approx(_frechet(adm_files["held"]["pool3"], fake["pool3"]), rel=1e-2)
    # ... and precision and recall are of the images.
    precision, recall = _balls(adm_files["held"]["pool3"], fake["pool3"])
    assert (ours["precision"], ours["recall"]) == (pytest.approx(precision), pytest.approx(recall))
    assert precision < 1 and recall < 1 and (precision, recall) != _balls(adm_files["whole"]["pool3"], fake["pool3"])
    assert any("50,000" in note for note in record["notes"])


def test_adm_computes_moments_that_the_reference_lacks(adm_files: dict[str, Any], score, tmp_path: Path) -> None:
    with np.load(adm_files["ref"]) as reference:
        np.savez(tmp_path / "images.npz", arr_0=reference["arr_0"])
    ours = score([tmp_path / "images.npz", adm_files["samples"]], "--protocol", "adm")["scores"]
    held, fake = adm_files["held"], adm_files["fake"]
    assert ours["fid"] == pytest.approx(_frechet(held["pool3"], fake["pool3"]), rel=_SCORES)
    assert ours["sfid"] == pytest.approx(_frechet(held["spatial"], fake["spatial"]), rel=_SCORES)


def test_adm_splits_are_consecutive() -> None:
    logits = torch.randn(230, 12, generator=torch.Generator().manual_seed(0))
    logits += 6.0 * F.one_hot(torch.arange(230) // 20, 12)  # Sorted by class, so that the order matters.
    metric = InceptionScore("logits", **{**registry.PROTOCOLS["adm"].options["is"], "split_size": 50})
    metric.update({"logits": logits}, real=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = metric.compute()
    expected = _consecutive_inception_score(logits.double().numpy(), 50)
    assert next(iter(found.values())) == pytest.approx(expected, rel=1e-9)
    assert expected < 0.7 * _consecutive_inception_score(logits.double().numpy(), 230), "one split scores higher"


@pytest.mark.parametrize("protocol", ["adm", "edm"])
def test_mixed_sizes_are_refused_where_the_protocol_knows_one(protocol: str, folders, inception_file: Path, capsys) -> None:
    arguments = ["--protocol", protocol, "--weights", str(inception_file), "--device", "cpu", "--metrics", "fid", "--quiet"]
    assert main([*map(str, folders), *arguments]) == 2
    message = capsys.readouterr().err
    assert f"protocol {protocol} scores images of one size" in message and "256x256" in message and "64x64" in message


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (256, 256), (512, 300), (299, 299), (7, 1000)])
def test_edm_resizes_as_nvidias_network(height: int, width: int) -> None:
    """NVIDIA's detector samples a grid: an affine map whose translation cancels grid_sample's half-pixel centres, so that output
    i reads input i * in / out, as TF1, with the last pixel repeated."""
    images = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    size = 299
    theta = torch.zeros(2, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0
    theta[:, 0, 2], theta[:, 1, 2] = 1.0 / width - 1.0 / size, 1.0 / height - 1.0 / size
    grid = F.affine_grid(theta.double(), [2, 3, size, size], align_corners=False)
    theirs = F.grid_sample(images.double(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    ours = build_resizer(registry.PROTOCOLS["edm"].resizer)(images, size)
    np.testing.assert_allclose(ours.numpy(), theirs.float().numpy(), atol=255 * 1e-4)


def test_edm_is_the_tensorflow_distance(photographs, score, network, tmp_path: Path) -> None:
    real = photographs.write_pngs(tmp_path / "real", photographs.crops(4, seed=0, sizes=[(64, 64)]))
    fake = photographs.write_pngs(tmp_path / "fake", photographs.crops(4, seed=1, sizes=[(64, 64)], blur=1.0))
    record = score([real, fake], "--protocol", "edm")
    features = [_ours(folder, network, "tensorflow")["pool3"] for folder in (real, fake)]
    assert record["scores"] == {"fid": pytest.approx(_frechet(*features), rel=_SCORES)}
    assert frechet_distance_from_features(*map(torch.from_numpy, features)) == pytest.approx(_frechet(*features), rel=1e-9)
    assert any("50,000" in note for note in record["notes"])


class _SmallCLIP(CLIPImageEncoder):
    name = "clip-vit-l-14-336"  # Its scores are then called cmmd.
    default_resizer = "cmmd"
    tower = VisionTower(image_size=28, patch_size=7, width=64, layers=2, heads=4, embed_dim=24)


def test_cmmd(folders: tuple[Path, Path]) -> None:
    """1000 (mean K_xx + mean K_yy - 2 mean K_xy) with diagonals, k = exp(-|x - y|^2 / 200) of unit vectors, in N x N matrices."""
    open_clip = pytest.importorskip("open_clip")
    from PIL import Image

    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 28, "layers": 2, "width": 64, "patch_size": 7, "head_width": 16},
        text_cfg={"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
        quick_gelu=True,
    ).eval()
    suite = MetricSuite(["cmmd", "cmmd-unbiased"], _SmallCLIP(clip.state_dict(), "0" * 64).freeze())
    embeddings = []
    for folder, real in zip(folders, (True, False), strict=True):
        paths = sorted(folder.iterdir())
        suite.update([image for batch in open_source(folder).batches(_COUNT) for image in batch.images], real)
        pixels = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side)).resize((28, 28), Image.Resampling.BICUBIC)
            pixels.append(np.asarray(square, dtype=np.float32) / 255.0)
        mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
        batch = torch.from_numpy(((np.stack(pixels) - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            found = clip.encode_image(batch).double().numpy()
        embeddings.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    x, y = embeddings

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(a[:, None] - b[None]).sum(2) / (2 * 10.0**2))

    expected = 1000 * (kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())
    scores = suite.compute()
    assert scores["cmmd"] == pytest.approx(expected, rel=_SCORES)
    off_diagonal = [(kernel(z, z).sum() - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    unbiased = 1000 * (sum(off_diagonal) - 2 * kernel(x, y).mean())
    assert scores["cmmd_unbiased"] == pytest.approx(unbiased, rel=1e-3, abs=1e-4)
