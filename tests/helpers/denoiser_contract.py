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
REPRESENTED: dict[str, Any] = {"representation_dim": 6, "class_dropout_prob": 0.1}
"""Options of a network of representations with a null condition."""


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

    def vectors(self) -> Tensor:
        """Three representations, standardised as RCG's are."""
        vector = torch.randn(3, REPRESENTED["representation_dim"], generator=torch.Generator().manual_seed(3))
        return (vector - vector.mean(1, keepdim=True)) / vector.std(1, keepdim=True)

    def test_representations_take_the_place_of_classes(self) -> None:
        vector = self.vectors()
        for options in self.variants:
            if not options.get("class_conditional", True):
                continue
            network = self.make(**(options | REPRESENTED))
            sample, times, labels = self.inputs(network)
            together = network(sample, times, labels, vector=vector)
            assert together.prediction.shape == sample.shape, options
            for row in range(3):
                alone = network(sample[row : row + 1], times[row], labels[row : row + 1], vector=vector[row : row + 1])
                for one, whole in zip(parts(alone), parts(together), strict=True):
                    torch.testing.assert_close(one[0], whole[row], rtol=self.tolerance, atol=self.tolerance)
            changed = network(sample, times, labels, vector=torch.stack([vector[0], vector[2], vector[1]])).prediction
            torch.testing.assert_close(changed[0], together.prediction[0], rtol=self.tolerance, atol=self.tolerance)
            for row in (1, 2):
                assert not torch.allclose(changed[row], together.prediction[row]), options
            # Labels tell where the null representation stands, and nothing else.
            assert torch.equal(network(sample, times, vector=vector).prediction, together.prediction)
            assert torch.equal(network(sample, times, labels.flip(0), vector=vector).prediction, together.prediction)

    def test_the_null_label_is_the_null_representation(self) -> None:
        network, vector = self.make(**REPRESENTED), self.vectors()
        sample, times, _ = self.inputs(network)
        assert network.null_label == NUM_CLASSES
        null = network(sample, times).prediction
        mixed = network(sample, times, torch.tensor([0, NUM_CLASSES, 1]), vector=vector).prediction
        torch.testing.assert_close(mixed[1], null[1], rtol=self.tolerance, atol=self.tolerance)
        assert not torch.allclose(mixed[0], null[0]) and not torch.allclose(mixed[2], null[2])
        assert torch.equal(network(sample, times, torch.full((3,), NUM_CLASSES), vector=2 * vector).prediction, null)
        certain = self.make(**(REPRESENTED | {"class_dropout_prob": 0.0}))
        assert certain.null_label is None
        given = [certain(sample, times, labels, vector=vector).prediction for labels in (None, torch.full((3,), NUM_CLASSES))]
        assert torch.equal(*given)
        with pytest.raises(UserError, match=f"this {type(network).__name__} is conditioned on .* no null condition; give vector"):
            certain(sample, times)

    def test_representations_that_do_not_fit_are_refused_in_one_sentence(self) -> None:
        network, name = self.make(**REPRESENTED), type(self.make()).__name__
        sample, times, labels = self.inputs(network)
        for call, sentence in (
            (
                lambda: network(sample, times, labels, vector=torch.zeros(3, 7)),
                rf"{name} takes representations of 6 .* got \(7,\)",
            ),
            (lambda: network(sample, times, labels, vector=torch.zeros(3, 6, 1)), rf"{name} takes .* of 6 .* got \(6, 1\)"),
            (lambda: self.make()(sample, times, labels, vector=self.vectors()), f"this {name} takes no representations"),
            (lambda: self.make(representation_dim=0), f"{name}: representation_dim must be at least 1, got 0"),
        ):
            with pytest.raises(UserError, match=sentence) as caught:
                call()
            assert "\n" not in str(caught.value)

    def test_the_embedding_of_representations_learns(self) -> None:
        network, vector = self.make(**REPRESENTED).train(), self.vectors()
        sample, times, _ = self.inputs(network)
        output = network(sample, times, torch.tensor([0, NUM_CLASSES, 1]), vector=vector)
        sum(part.square().sum() for part in parts(output)).backward()
        own = {name: value.grad for name, value in network.named_parameters() if "vector_embedding" in name}
        assert own and all(grad is not None and bool(grad.any()) for grad in own.values()), list(own)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network.eval()(sample, times, vector=vector).prediction.float()
        expected = network(sample, times, vector=vector).prediction
        half = network.to(torch.bfloat16)(sample.bfloat16(), times, vector=vector).prediction
        for near in (mixed, half.float()):
            assert (near - expected).norm() < 0.1 * expected.norm()

    def test_configurations_from_before_representations_load_and_new_ones_keep_them(self, tmp_path: Path) -> None:
        for name, options in (("classes", self.saved), ("representations", self.saved | REPRESENTED)):
            network = self.make(**options)
            network.save_pretrained(tmp_path / name)
            config = json.loads((tmp_path / name / "config.json").read_text())
            if name == "classes":
                assert config.pop("representation_dim") is None
                assert not any("vector_embedding" in key for key in network.state_dict())
                (tmp_path / name / "config.json").write_text(json.dumps(config))
            loaded: Any = load_network(tmp_path / name)[0].eval()
            assert loaded.config.representation_dim == options.get("representation_dim")
            told = {} if name == "classes" else {"vector": self.vectors()}
            inputs = self.inputs(network)
            assert torch.equal(loaded(*inputs, **told).prediction, network(*inputs, **told).prediction)

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
