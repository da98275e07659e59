"""What a generator is conditioned on where that is a representation: the encoder of images, and the diffusion that samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.types import Batch
from generative.tokenizers.representation import RepresentationEncoder, describe_encoder

if TYPE_CHECKING:
    from pipelines.representation import RepresentationPipeline


class RepresentationCondition:
    """The encoder and the representation diffusion of a generator, checked against one another.

    Args:
        encoder: Encodes the images of a batch that brings no ``representations``; None for a generator that takes none.
        diffusion: Run or pipeline folder of the representation diffusion, see ``pipelines.representation.load_representation``;
            or its pipeline.
        takes: Numbers of a representation that the generator takes; None if it takes none.
        network: The generator's class, for messages.

    Attributes:
        num_classes: Classes of the representation diffusion; 1 where it has none.

    Raises:
        UserError: If one is missing, they are of other widths, or the diffusion learnt representations of another encoder.
    """

    def __init__(
        self,
        encoder: RepresentationEncoder | None,
        diffusion: Path | RepresentationPipeline | None,
        takes: int | None,
        network: str,
    ) -> None:
        self.encoder = None if encoder is None else encoder.requires_grad_(False).eval()
        self._pipeline: RepresentationPipeline | None = None
        self.num_classes = 1
        if takes is None:
            if encoder is not None or diffusion is not None:
                given = "representation_encoder" if encoder is not None else "representation_diffusion"
                raise UserError(f"the {network} takes no representation, and {given} is given; leave it out, or condition on one")
            return
        if encoder is None or diffusion is None:
            missing = "representation_encoder" if encoder is None else "representation_diffusion"
            raise UserError(f"the {network} is conditioned on representations; give {missing}")
        if encoder.dim != takes:
            raise UserError(
                f"the {network} takes representations of {takes} numbers (representation_dim) and the encoder gives "
                f"{describe_encoder(encoder.config)}; make them equal"
            )
        from pipelines.representation import check_representation, load_representation

        self._pipeline = load_representation(diffusion) if isinstance(diffusion, Path | str) else diffusion
        check_representation(self._pipeline, takes, network)
        learnt = self._pipeline.config.representation_encoder
        if learnt is not None and dict(learnt) != encoder.config:
            raise UserError(
                f"the representation diffusion '{diffusion}' learnt {describe_encoder(learnt)}, and representation_encoder gives "
                f"{describe_encoder(encoder.config)}; give the same"
            )
        self.num_classes = self._pipeline.num_classes

    @property
    def frozen(self) -> dict[str, nn.Module]:
        """The encoder, as objectives list what they hold fixed."""
        return {} if self.encoder is None else {"representation_encoder": self.encoder}

    @property
    def loss_extractors(self) -> frozenset[str]:
        """The extractor that the encoder is: it may not score what it conditions."""
        return frozenset(() if self.encoder is None else (self.encoder.extractor,))

    @property
    def fingerprint(self) -> str | None:
        """The encoder's; None without one."""
        return None if self.encoder is None else self.encoder.fingerprint

    def identity(self) -> dict[str, Any]:
        """What encodes the representations, for ``Objective.identity``."""
        return {} if self.encoder is None else {"representation_encoder": dict(self.encoder.config)}

    def encode(self, batch: Batch) -> Tensor | None:
        """Representations (B, D) of a batch: those that it brings, or else those of its images; None without an encoder.

        Raises:
            UserError: If the batch has neither.
        """
        if self.encoder is None:
            return None
        return encode_batch(self.encoder, batch)

    def representation(self, network: nn.Module) -> RepresentationPipeline | None:
        """The representation diffusion, moved to where a network is."""
        if self._pipeline is None:
            return None
        return self._pipeline.to(next(network.parameters()).device)


def encode_batch(encoder: RepresentationEncoder, batch: Batch) -> Tensor:
    """Representations (B, D) of a batch: those that a cache brings, or else those of its images.

    Raises:
        UserError: If the batch has neither.
    """
    if "representations" in batch:
        return batch["representations"]
    if "images" not in batch:
        raise UserError(
            "representations are of images, and the data gives only tokens or latents; put the data into a RepresentationDataset"
        )
    return encoder(batch["images"])
