"""Health of a GAN: measurements on networks whose health is known, and rules on histories good and bad."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.core.seeding import keyed_generator
from generative.core.types import Batch
from generative.gan.diagnosis import BEFORE, RECENT, diagnose, find_warnings, spread_within_classes
from generative.layers.spectral_norm import SpectralNormLinear

LABELS = torch.arange(4).repeat_interleave(8)


class LinearGenerator(nn.Module):
    """Images that are a class's brightness plus ``spread`` times the first number of the noise."""

    def __init__(self, spread: float, brightness: float = 0.0) -> None:
        super().__init__()
        self.spread, self.brightness = spread, brightness

    def forward(self, z: Tensor, class_labels: Tensor) -> Tensor:
        values = self.brightness + self.spread * z[:, 0] + 0.1 * class_labels
        return values.view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def real_batch(spread: float = 0.2) -> Batch:
    noise = torch.randn(32, 1, 1, 1, generator=keyed_generator("real"))
    return {"images": (0.05 * LABELS.view(-1, 1, 1, 1) + spread * noise).expand(-1, 3, 4, 4), "class_labels": LABELS}


def test_spread_by_hand() -> None:
    """Class 0 holds 0 and 2, class 1 holds 5 alone, class 2 holds three equal images: (1 + 1) / (1 + 0 + 2)."""
    values = torch.tensor([0.0, 2.0, 5.0, 7.0, 7.0, 7.0]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    spread = spread_within_classes(values, torch.tensor([0, 0, 1, 2, 2, 2]))
    assert spread.item() == pytest.approx(math.sqrt(2 / 3))
    assert spread_within_classes(values[:3], torch.tensor([0, 1, 2])).item() == 0


def test_spread_is_that_of_pairs() -> None:
    images = torch.randn(6, 3, 4, 4, generator=keyed_generator(0))
    pairs = [(images[i] - images[j]).square().mean() for i in range(6) for j in range(i)]
    expected = (torch.stack(pairs).mean() / 2).sqrt()
    torch.testing.assert_close(spread_within_classes(images, torch.zeros(6, dtype=torch.long)), expected)


def test_diversity_compares_with_real_images_and_not_between_classes() -> None:
    values = {spread: diagnose(LinearGenerator(spread), nn.Identity(), 3, real_batch()) for spread in (0.0, 0.1, 0.2)}
    assert values[0.0]["diversity"] < 1e-5  # its classes differ, images of one class do not
    torch.testing.assert_close(values[0.2]["diversity"], 2 * values[0.1]["diversity"])
    assert 0.7 < values[0.2]["diversity"] < 1.4
    assert "diversity" not in diagnose(LinearGenerator(0.1), nn.Identity(), 3, real_batch(spread=0.0))


def test_saturation_is_a_share_of_pixels() -> None:
    values = diagnose(LinearGenerator(0.0, brightness=0.75), nn.Identity(), 3, real_batch(0.0))
    assert values["saturation"].item() == 0.25 and values["real_saturation"].item() == 0  # 0.75 0.85 0.95 1.05


def test_singular_values_are_those_of_the_last_training_forward() -> None:
    torch.manual_seed(0)
    discriminator = nn.Sequential(*(SpectralNormLinear(6, 6, num_iterations=50) for _ in range(3)))
    with torch.no_grad():
        for factor, layer in zip((1.0, 5.0, 0.1), discriminator, strict=True):
            layer.weight.copy_(factor * torch.eye(6))
    discriminator(torch.randn(2, 6))
    values = diagnose(LinearGenerator(0.1), discriminator, 3, real_batch())
    assert values["discriminator_largest_singular_value"].item() == pytest.approx(5.0)
    assert values["discriminator_smallest_singular_value"].item() == pytest.approx(0.1)
    assert "generator_largest_singular_value" not in values


# ------------------------------------------------------------------ rules


def history(length: int = 40, **changes: Any) -> list[dict[str, Any]]:
    """A healthy run's entries, with noise; ``changes`` are functions of the entry's number that replace a value."""
    random = torch.Generator().manual_seed(0)
    entries = []
    for index in range(length):
        noise = [1 + 0.2 * float(x) for x in torch.randn(7, generator=random).clamp(-2, 2)]
        values = {
            "discriminator/real_logits": 0.4 * noise[0],
            "discriminator/fake_logits": -0.5 * noise[1],
            "generator/grad_norm": 3.0 * noise[2],
            "discriminator/grad_norm": 9.0 * noise[6],
            "diagnosis/diversity": 0.8 * noise[3],
            "diagnosis/generator_largest_singular_value": 2.0 * 1.01**index * noise[4],
            "diagnosis/discriminator_largest_singular_value": 3.0 * 1.01**index,
            "diagnosis/saturation": 0.5 * noise[5],
            "diagnosis/real_saturation": 0.6,
        }
        values.update({name.replace("__", "/"): change(index) for name, change in changes.items()})
        entries.append({"step": 50 * index, "images_seen": 3200 * index, **values})
    return entries


def sick(index: int) -> bool:
    return index >= 40 - RECENT


BAD: dict[str, dict[str, Any]] = {
    "discriminator_wins": {
        "discriminator__real_logits": lambda i: 4.0 if sick(i) else 0.4,
        "discriminator__fake_logits": lambda i: -6.0 if sick(i) else -0.5,
        "generator__grad_norm": lambda i: 0.02 if sick(i) else 3.0,
    },
    "discriminator_died": {
        "discriminator__real_logits": lambda i: -0.09 if sick(i) else 0.4,
        "discriminator__fake_logits": lambda i: -0.09 if sick(i) else -0.5,
        "discriminator__grad_norm": lambda i: 0.1 if sick(i) else 9.0,
    },
    "mode_collapse": {"diagnosis__diversity": lambda i: 0.05 if sick(i) else 0.8},
    "generator_spectral_explosion": {
        "diagnosis__generator_largest_singular_value": lambda i: 2.0 * (3.0 if sick(i) else 1.0),
    },
    "discriminator_spectral_explosion": {
        "diagnosis__discriminator_largest_singular_value": lambda i: 2.0 * 1.15**i,
    },
    "saturation": {"diagnosis__saturation": lambda i: 0.97 if sick(i) else 0.5},
}


def test_a_healthy_history_gives_no_warning_at_any_point() -> None:
    entries = history(60)
    assert all(find_warnings(entries[:length]) == {} for length in range(61))


@pytest.mark.parametrize("rule", list(BAD))
def test_each_sickness_gives_its_warning_and_no_other(rule: str) -> None:
    found = find_warnings(history(**BAD[rule]))
    assert list(found) == [rule]
    assert "\n" not in found[rule] and ";" in found[rule]


@pytest.mark.parametrize("rule", list(BAD))
def test_one_good_entry_ends_it_but_for_medians(rule: str) -> None:
    entries = history(**BAD[rule])
    assert find_warnings(entries[:-RECENT]) == {} or rule == "discriminator_spectral_explosion"
    recovered = [*entries, *history(40 + RECENT)[-RECENT:]]
    assert find_warnings(recovered) == {}


def test_a_strong_discriminator_alone_is_no_sickness() -> None:
    """A critic's gap may grow as long as the generator still learns, and small gradients may be the end of learning."""
    wins = BAD["discriminator_wins"]
    assert find_warnings(history(**{k: v for k, v in wins.items() if "logits" in k})) == {}
    assert find_warnings(history(generator__grad_norm=wins["generator__grad_norm"])) == {}


def test_nothing_is_said_of_the_first_entries() -> None:
    entries = history(BEFORE + RECENT, diagnosis__diversity=lambda i: 0.0)
    assert find_warnings(entries[:-1]) == {} and list(find_warnings(entries)) == ["mode_collapse"]


def test_images_that_are_black_and_white_may_be_generated_so() -> None:
    options = {"diagnosis__saturation": lambda i: 0.95, "diagnosis__real_saturation": lambda i: 0.9}
    assert find_warnings(history(**options)) == {}


def test_entries_without_the_values_are_passed_over() -> None:
    entries = history(**BAD["mode_collapse"])
    mixed = [e for entry in entries for e in (entry, {"step": entry["step"], "evaluation/recall": 0.3})]
    assert list(find_warnings(mixed)) == ["mode_collapse"]
    assert find_warnings([{"step": 1, "denoise/loss": 0.1}] * 50) == {}
