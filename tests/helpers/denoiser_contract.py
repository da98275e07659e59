"""What holds of every denoiser: a network's tests inherit it with a tiny network and some of its options.

A class of tests derives from ``DenoiserContract`` and makes its network; what is special to a network stays in its own functions.
"""

from __future__ import annotations

import abc
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.weights import load_network
from generative.diffusion.denoiser import DenoiserOutput

NUM_CLASSES = 4
"""Of every network made here; the null label, where there is one, is the next number."""


def parts(output: DenoiserOutput) -> list[Tensor]:
    """All that a network gave, each (B, ...)."""
    found = [output.prediction, output.variance, output.log_variance, *output.pyramid, *output.memory]
    return [part for part in found if part is not None]


def randomized(network: Any, std: float = 0.2) -> Any:
    """A network whose zero-initialised layers are made random, so that everything shows in its output."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network.eval()


class DenoiserContract(abc.ABC):
    """Tests of any denoiser of 8x8 samples of 3 channels.

    Attributes:
        variants: Sets of options; each network is tested with all of them.
        times: Of three images, as the network's formulation tells it.
        tolerance: How far an output may move with its batch.
        checkpointed: Options under which gradients are compared.
        saved: Options of the network that is saved and loaded.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    times: ClassVar[tuple[float, float, float]] = (1.5, 20.0, 700.0)
    tolerance: ClassVar[float] = 1e-4
    checkpointed: ClassVar[dict[str, Any]] = {}
    saved: ClassVar[dict[str, Any]] = {}

    @abc.abstractmethod
    def make(self, **options: Any) -> Any:
        """The network with random weights, ready to evaluate."""

    def inputs(self, network: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Three samples, times and classes."""
        generator = torch.Generator().manual_seed(1)
        sample = torch.randn(3, network.config.in_channels, 8, 8, generator=generator)
        return sample, torch.tensor(self.times), torch.tensor([0, 1, 3])

    def test_each_image_depends_on_its_own_inputs_and_on_all_of_them(self) -> None:
        for options in self.variants:
            network = self.make(**options)
            sample, times, labels = self.inputs(network)
            together = network(sample, times, labels)
            assert together.prediction.shape == sample.shape, options
            for row in range(3):
                alone = network(sample[row : row + 1], times[row], labels[row : row + 1])
                for one, whole in zip(parts(alone), parts(together), strict=True):
                    torch.testing.assert_close(one[0], whole[row], rtol=self.tolerance, atol=self.tolerance)
            assert not torch.allclose(together.prediction, network(sample, times.flip(0), labels).prediction), options
            of_other_classes = network(sample, times, labels.flip(0)).prediction
            knows_classes = network.config.get("class_conditional", True)
            assert torch.allclose(together.prediction, of_other_classes) != knows_classes, options

    def test_no_labels_are_the_null_label(self) -> None:
        network = self.make(class_dropout_prob=0.1)
        sample, times, labels = self.inputs(network)
        null = torch.full((3,), NUM_CLASSES)
        assert network.null_label == NUM_CLASSES
        assert torch.equal(network(sample, times).prediction, network(sample, times, null).prediction)
        assert not torch.allclose(network(sample, times).prediction, network(sample, times, labels).prediction)

    def test_without_label_dropout_there_is_no_null_condition(self) -> None:
        network = self.make(class_dropout_prob=0.0)
        sample, times, _ = self.inputs(network)
        assert network.null_label is None
        self.check_without_labels(network, sample, times)

    def check_without_labels(self, network: Any, sample: Tensor, times: Tensor) -> None:
        """A network without null condition asked without labels: it refuses, but for those whose papers take zeros for none."""
        with pytest.raises(UserError, match=f"this {type(network).__name__} has no null condition"):
            network(sample, times)

    def test_gradient_checkpointing_changes_no_gradient(self) -> None:
        gradients: list[dict[str, Tensor]] = []
        for is_checkpointed in (False, True):
            network = self.make(**self.checkpointed).train()
            if is_checkpointed:
                network.enable_gradient_checkpointing()
            torch.manual_seed(2)  # dropout's masks
            sum(part.square().sum() for part in parts(network(*self.inputs(network)))).backward()
            gradients.append({name: value.grad for name, value in network.named_parameters() if value.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() and gradients[0]
        for name, plain in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], plain, msg=lambda text, name=name: f"{name}: {text}")

    def test_a_saved_network_comes_back_to_the_bit(self, tmp_path: Path) -> None:
        network = self.make(**self.saved)
        network.save_pretrained(tmp_path)
        loaded, _ = load_network(tmp_path)
        assert type(loaded) is type(network)
        before, after = (json.loads(each.to_json_string()) for each in (network, loaded))
        assert {name: after[name] for name in before if name[0] != "_"} == {
            name: before[name] for name in before if name[0] != "_"
        }
        for one, other in zip(parts(network(*self.inputs(network))), parts(loaded.eval()(*self.inputs(network))), strict=True):
            assert torch.equal(one, other)

    def test_bfloat16_stays_near(self) -> None:
        network = self.make()
        sample, times, labels = self.inputs(network)
        expected = network(sample, times, labels).prediction
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(sample, times, labels).prediction.float()
        half = network.to(torch.bfloat16)(sample.bfloat16(), times, labels).prediction
        assert half.dtype == torch.bfloat16
        for near in (mixed, half.float()):
            assert (near - expected).norm() < 0.1 * expected.norm()

    def test_channels_last_is_the_same(self) -> None:
        network = self.make()
        sample, times, labels = self.inputs(network)
        expected = network(sample, times, labels).prediction
        found = network.to(memory_format=torch.channels_last)(
            sample.contiguous(memory_format=torch.channels_last), times, labels
        ).prediction
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
