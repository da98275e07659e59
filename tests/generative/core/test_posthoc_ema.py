"""Averages of any length from snapshots: against closed forms, averages that were really kept, and one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from generative.core.ema import PowerEMA
from generative.core.ema_snapshots import EMASnapshot, read_snapshot
from generative.core.errors import UserError
from generative.core.posthoc_ema import Profile, combine, inner_products, parse_stds, reconstruct, solve

TOTAL, BATCH = 4096, 4


def weights(images: np.ndarray) -> np.ndarray:
    """A path of weights that settles, swings and grows: (len(images), 3)."""
    share = images / TOTAL
    return np.stack([np.exp(-4 * share), np.sin(9 * share), np.sqrt(share)], axis=1)


def averages(std: float) -> np.ndarray:
    """The average of every step, by the recursion of training."""
    profile, average, found = PowerEMA(std=std), np.zeros(3), []
    for images, value in zip(range(BATCH, TOTAL + 1, BATCH), weights(np.arange(BATCH, TOTAL + 1, BATCH)), strict=True):
        beta = profile.decay(images, BATCH)
        average = beta * average + (1 - beta) * value
        found.append(average)
    return np.array(found)


def at(kept: np.ndarray, images: int) -> np.ndarray:
    return kept[images // BATCH - 1]


@pytest.mark.parametrize(("first", "second"), [((4.0, 0.05), (9.0, 0.1)), ((9.0, 0.1), (4.0, 0.2)), ((3.0, 0.1), (3.0, 0.1))])
def test_inner_products_are_integrals(first: tuple[float, float], second: tuple[float, float]) -> None:
    ours, theirs = Profile(*first), Profile(*second)
    grid = (np.arange(400_000) + 0.5) / 400_000 * 10

    def density(profile: Profile) -> np.ndarray:
        exponent = PowerEMA(std=profile.std).exponent
        inside = grid < profile.images_seen
        return inside * (exponent + 1) / profile.images_seen * (np.minimum(grid / profile.images_seen, 1)) ** exponent

    expected = (density(ours) * density(theirs)).sum() * 10 / 400_000
    assert inner_products([ours], [theirs])[0, 0] == pytest.approx(expected, rel=1e-4)
    assert inner_products([theirs], [ours])[0, 0] == pytest.approx(expected, rel=1e-4)


def test_the_error_falls_with_the_number_of_snapshots() -> None:
    """Of an average that was really kept, by its length and time; what the profile's error predicts."""
    kept = {std: averages(std) for std in (0.05, 0.1, 0.075, 0.2)}
    for std, images in ((0.075, TOTAL), (0.2, TOTAL), (0.075, TOTAL * 3 // 4)):
        errors, profiles = [], []
        for count in (4, 16, 64):
            have = [Profile(TOTAL * (k + 1) // count, s) for k in range(count) for s in (0.05, 0.1)]
            coefficients, error = combine(have, [Profile(images, std)])
            made = sum(c * at(kept[p.std], int(p.images_seen)) for c, p in zip(coefficients[:, 0], have, strict=True))
            errors.append(np.abs(made - at(kept[std], images)).max())
            profiles.append(error[0])
        assert errors[0] > 2 * errors[1] and errors[2] < 2e-3 and errors[2] < errors[1], (std, images, errors)
        assert profiles[0] > profiles[1] > 2 * profiles[2]


def test_one_length_from_the_snapshots_of_the_other() -> None:
    kept = {std: averages(std) for std in (0.05, 0.1)}
    for have, want in ((0.05, 0.1), (0.1, 0.05)):
        profiles = [Profile(TOTAL * (k + 1) // 64, have) for k in range(64)]
        coefficients, _ = combine(profiles, [Profile(TOTAL, want)])
        made = sum(c * at(kept[have], int(p.images_seen)) for c, p in zip(coefficients[:, 0], profiles, strict=True))
        assert np.abs(made - at(kept[want], TOTAL)).max() < 5e-3


def test_coefficients_sum_to_one_and_a_snapshot_is_itself() -> None:
    have = [Profile(1000.0 * (k + 1), s) for k in range(8) for s in (0.05, 0.1)]
    coefficients, errors = combine(have, [have[3], have[-1], Profile(8000.0, 0.07)])
    assert coefficients.sum(axis=0) == pytest.approx([1, 1, 1])
    assert np.array_equal(coefficients[:, 0], np.eye(16)[3]) and np.array_equal(coefficients[:, 1], np.eye(16)[15])
    assert errors[0] == errors[1] == 0 and 0 < errors[2] < 0.05


def test_discrete_response() -> None:
    response = Profile(20, 0.05).response(24)
    assert response.sum() == pytest.approx(1) and response[0] == 0 and (response[21:] == 0).all()
    assert response[10] / response[20] == pytest.approx(0.5 ** PowerEMA(std=0.05).exponent)
    assert Profile(20, 0.05).response(5) == pytest.approx(response[:5])


@pytest.fixture
def snapshots(tmp_path: Path) -> list[EMASnapshot]:
    """Files of two averages at 16 times each; an integer and a buffer beside the weights."""
    found = []
    for std in (0.05, 0.1):
        kept = averages(std)
        for k in range(16):
            images = TOTAL * (k + 1) // 16
            tensors: dict[str, Tensor] = {
                "weight": torch.tensor(at(kept, images)).float(),
                "moving": torch.tensor([float(images)]),
                "count": torch.tensor(images),
            }
            path = tmp_path / f"{std}-{images:06d}.safetensors"
            facts = {"network": "net", "std": repr(std), "images_seen": str(images)}
            save_file(tensors, path, metadata=facts)
            found.append(read_snapshot(path))
    return found


def test_weights_are_combined_and_buffers_are_not(snapshots: list[EMASnapshot]) -> None:
    coefficients, error = solve(snapshots, 0.08)
    made = reconstruct(snapshots, coefficients, frozenset({"moving"}))
    assert made["weight"].dtype == torch.float32 and error < 0.02
    assert np.abs(made["weight"].numpy() - at(averages(0.08), TOTAL)).max() < 2e-3
    main = snapshots[int(np.abs(coefficients).argmax())].images_seen
    assert made["moving"].item() == made["count"].item() == main
    own, nothing = solve(snapshots, 0.1, TOTAL // 2)
    assert nothing == 0
    assert torch.equal(reconstruct(snapshots, own, frozenset())["weight"], torch.tensor(at(averages(0.1), TOTAL // 2)).float())


def test_what_snapshots_cannot_tell(snapshots: list[EMASnapshot], tmp_path: Path) -> None:
    for arguments, message in [
        (([], 0.05), "there are no EMA snapshots"),
        ((snapshots, 0.3), r"must be above 0 and below 0\.2887, got 0\.3"),
        ((snapshots, float("nan")), "must be above 0"),
        ((snapshots, 0.05, TOTAL + 1), f"--images must be in 1..{TOTAL}, the images of the last EMA snapshot, got {TOTAL + 1}"),
        ((snapshots, 0.05, 0), "--images must be in 1"),
        ((snapshots, 0.005), r"32 EMA snapshots cannot tell an average of std 0\.005 .*% off; they tell 0\.0\d+ to 0\.2\d+"),
        ((snapshots, 0.05, 1000), "at 1000 images: .* give images of a snapshot, 1024 is the nearest"),
    ]:
        with pytest.raises(UserError, match=message):
            solve(*arguments)
    save_file({"other": torch.zeros(3)}, tmp_path / "x.safetensors")
    strange = EMASnapshot(tmp_path / "x.safetensors", "net", 0.05, TOTAL)
    with pytest.raises(UserError, match="are snapshots of different networks"):
        reconstruct([snapshots[0], strange], [0.4, 0.6], frozenset())


def test_ranges_of_a_sweep() -> None:
    assert parse_stds("0.02..0.25", 3) == [0.02, 0.07071, 0.25]
    assert parse_stds("0.1, 0.05", 8) == [0.05, 0.1]
    for text, message in [
        ("0.25..0.02", "from a smaller to a larger std"),
        ("0.02..", "takes a range such as"),
        ("a", "takes a range such as"),
        ("0.1,0.1", "names a std twice"),
        ("0.02..0.5", "above 0 and below 0.2887, got 0.5"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_stds(text, 8)
    with pytest.raises(UserError, match="--num of at least 2"):
        parse_stds("0.02..0.25", 1)
