"""Keyed randomness: pinned values, independence of keys, one stream per image."""

from __future__ import annotations

import torch

from generative.core.seeding import ImageNoise, derive_seed, keyed_generator, sample_generators


def test_seeds_are_pinned() -> None:
    """A change of these numbers changes every stored run and every sample."""
    assert derive_seed(0, "sample", 3, 7) == 5196445285644427895
    assert all(0 <= derive_seed("x", n) < 2**63 for n in range(200))


def test_different_keys_give_different_seeds() -> None:
    keys = [(0,), (1,), ("0",), (0, 0), (0, "a"), ("a", 0), (1, 23), (12, 3), ("1", "23"), ("12", "3")]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_a_key_is_a_stream() -> None:
    one, same, other = (torch.randn(5, generator=keyed_generator(*key)) for key in ((0, "a"), (0, "a"), (0, "b")))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_noise_of_an_image_does_not_depend_on_its_neighbours() -> None:
    def draw(labels: list[int], indices: list[int]) -> list[torch.Tensor]:
        noise = ImageNoise(sample_generators(5, labels, indices))
        assert len(noise) == len(labels)
        return [torch.cat([n.flatten(), u.flatten()]) for n, u in zip(noise.randn(2, 3), noise.rand(4), strict=True)]

    batch = draw([0, 1, 1], [0, 0, 1])
    assert torch.equal(draw([1], [1])[0], batch[2])
    assert torch.equal(draw([1, 0], [0, 0])[1], batch[0])
    assert not torch.equal(batch[0], batch[1]) and not torch.equal(batch[1], batch[2])


def test_shapes_and_ranges() -> None:
    noise = ImageNoise(sample_generators(0, [0] * 50, list(range(50))))
    normal, uniform = noise.randn(3, 8, 8), noise.rand(100)
    assert normal.shape == (50, 3, 8, 8) and normal.dtype == torch.float32
    assert abs(normal.mean().item()) < 0.05 and abs(normal.std().item() - 1) < 0.05
    assert uniform.shape == (50, 100) and 0 <= uniform.min() and uniform.max() < 1
