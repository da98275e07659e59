"""Plain residual vector quantisers: the codebooks alone, as files without an encoder hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import REQUIRED, WHOLE, Argument, Constructor, one_of
from generative.convert.base import OfficialSource, UnknownKeysError, split_by_module
from generative.core.errors import UserError
from generative.tokenizers.residual_quantizer import ResidualQuantizer

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline

KEY = "codebooks"
"""The one tensor: (depth, V, D); of a shared codebook (V, D), (1, V, D), or the same for each depth."""
DISTANCES = ("squared euclidean", "euclidean")
"""Names of the distance; both have the same nearest code."""


CONSTRUCTOR = Constructor(
    "quantiser",
    "RVQ",
    {
        "depth": Argument("depth", REQUIRED, WHOLE),
        "codebook_size": Argument("codebook_size", REQUIRED, WHOLE),
        "dim": Argument("dim", REQUIRED, WHOLE),
        "separate_codebook_per_depth": Argument("shared_codebook", True, one_of({True: False, False: True})),
        "distance": Argument(None, DISTANCES[0], one_of(DISTANCES)),
    },
)


class RVQSource(OfficialSource):
    """A residual vector quantiser by its definition (arXiv 2203.01941, eq. 2): no official code of ResGen is known."""

    name = "rvq"
    repository = "residual vector quantisation, no repository"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our quantiser.

        Args:
            config: ``depth``, ``codebook_size``, ``dim``, ``separate_codebook_per_depth`` and ``distance``.

        Returns:
            ``{"model": ResidualQuantizer}``.

        Raises:
            UserError: If an option is unknown or has no equal here.
        """
        return {"model": ResidualQuantizer(**CONSTRUCTOR.read(config))}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Take the codebooks of each depth apart.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our quantiser.

        Raises:
            UserError: If a key is unknown, or depths that share a codebook have others.
        """
        unknown = [key for key in state if key != KEY]
        if unknown:
            raise UnknownKeysError("a residual vector quantiser", unknown)
        if KEY not in state:
            return {}
        codebooks = state[KEY]
        if codebooks.ndim == 2:
            codebooks = codebooks[None]
        if cast(ResidualQuantizer, network).config.shared_codebook and len(codebooks) > 1:
            if not torch.equal(codebooks, codebooks[:1].expand_as(codebooks)):
                raise UserError("separate_codebook_per_depth is false, but the codebooks of the file differ; set it to true")
            codebooks = codebooks[:1]
        return {f"tables.{index}": codebook for index, codebook in enumerate(codebooks)}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the options off the shape of the codebooks; None for another layout.

        A file of one codebook for several depths does not tell how many: it is taken for one of a single depth.
        """
        parts = split_by_module(state)
        if set(parts) not in ({""}, {"model"}):
            return None
        tensors = next(iter(parts.values()))
        if set(tensors) != {KEY} or tensors[KEY].ndim != 3:
            return None
        depth, codebook_size, dim = tensors[KEY].shape
        return {"depth": depth, "codebook_size": codebook_size, "dim": dim, "separate_codebook_per_depth": True}

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImagePipeline:
        """Refuse: codebooks without a network make no images.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a residual vector quantiser alone makes no images; load it with generative.convert.load_official into the quantizer "
            "of an RVQTokenizer, whose encoder and decoder the file lacks"
        )
