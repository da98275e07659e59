"""Rotary positions of images of any size: axial frequencies, scaled for sides longer than those of training.

The scalings are those of language models, taken to two axes: position interpolation (arXiv 2306.15595), NTK-aware bases, NTK by
parts and YaRN (2309.00071), each for the longer side or for both sides apart (decoupled), as FiT (2402.12376, section 3.3) and
FiTv2 (2410.13925).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from generative.core.errors import UserError

FrequencyScaling = Literal["normal", "linear", "ntk-aware", "ntk-aware-pro1", "ntk-aware-pro2", "ntk-by-parts", "yarn"]

# Rotations over the trained length between which a frequency is interpolated less and less: YaRN's, and the two ramps of NTK by
# parts (its published constants: from linear to NTK-aware, then to the trained frequencies).
YARN_ROTATIONS = (32, 1)
LINEAR_TO_NTK_ROTATIONS = (1.25, 0.75)
NTK_TO_TRAINED_ROTATIONS = (16, 2)
MIN_RAMP = 1e-3


def base_frequencies(half: int, theta: float, device: torch.device) -> Tensor:
    """Frequencies theta^(-2i / half) of one axis, (half / 2,) float32."""
    return 1 / theta ** (torch.arange(0, half, 2, device=device).float() / half)


def kept_share(rotations: tuple[float, float], half: int, theta: float, trained_length: int, device: torch.device) -> Tensor:
    """How far each frequency keeps its first value, (half / 2,): 1 where it turns often in the trained length, 0 where seldom.

    Args:
        rotations: Turns over the trained length at which the ramp begins and ends, the larger first (arXiv 2309.00071, eq. 18).
        half: Width of one axis, half of a head.
        theta: Base of the frequencies.
        trained_length: Side in tokens.
        device: Of the result.
    """

    def place(turns: float) -> float:
        return half * math.log(trained_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(place(rotations[0])), 0), min(math.ceil(place(rotations[1])), half - 1)
    width = high - low if high != low else MIN_RAMP
    return 1 - ((torch.arange(half // 2, device=device).float() - low) / width).clamp(0, 1)


def scaled_frequencies(scaling: FrequencyScaling, lengths: Tensor, half: int, theta: float, trained_length: int) -> Tensor:
    """Frequencies of one axis for sides of some lengths.

    Args:
        scaling: See ``ScaledAxialRotary``.
        lengths: (...) sides in tokens; shorter ones than the trained length change nothing.
        half: Width of one axis, half of a head.
        theta: Base of the frequencies.
        trained_length: Side that was trained with, in tokens.

    Returns:
        (..., half / 2) float32.
    """
    trained = base_frequencies(half, theta, lengths.device)
    if scaling == "normal":
        return trained.expand(*lengths.shape, -1)
    scale = (lengths.float() / trained_length).clamp(min=1)[..., None]  # (..., 1)
    if scaling == "linear":
        return trained / scale
    if scaling == "yarn":
        kept = kept_share(YARN_ROTATIONS, half, theta, trained_length, lengths.device)
        return trained / scale * (1 - kept) + trained * kept
    exponents = torch.arange(0, half, 2, device=lengths.device).float() / half
    ntk = 1 / (theta * scale ** (half / (half - 2))) ** exponents
    if scaling != "ntk-by-parts":
        return ntk
    kept = kept_share(LINEAR_TO_NTK_ROTATIONS, half, theta, trained_length, lengths.device)
    mixed = trained / scale * (1 - kept) + ntk * kept
    kept = kept_share(NTK_TO_TRAINED_ROTATIONS, half, theta, trained_length, lengths.device)
    return mixed * (1 - kept) + trained * kept


def magnitude(scaling: FrequencyScaling, heights: Tensor, widths: Tensor, trained_length: int) -> Tensor | None:
    """Factor (...) on cosines and sines that sharpens attention over more tokens; None where there is none.

    YaRN's is 0.1 ln s + 1 (arXiv 2309.00071, eq. 22). The two of FiTv2 are sqrt(ln 2L / ln L'), of sides (pro1) or of numbers of
    tokens (pro2), L' being the trained one.
    """
    longest = torch.maximum(heights, widths).float()
    if scaling == "yarn":
        return 0.1 * (longest / trained_length).clamp(min=1).log() + 1
    if scaling not in ("ntk-aware-pro1", "ntk-aware-pro2"):
        return None
    measure = longest if scaling == "ntk-aware-pro1" else (heights * widths).float()
    trained = float(trained_length if scaling == "ntk-aware-pro1" else trained_length**2)
    return torch.where(2 * measure / trained <= 1, 1.0, ((2 * measure).log() / math.log(trained)).sqrt())


class ScaledAxialRotary(nn.Module):
    """Angles of tokens on grids of several sizes: the first half of a head turns with the row, the second with the column.

    It holds no tensors. Pairs of a head are interleaved, as ``generative.layers.rope.apply_rotary`` takes them.

    Args:
        head_size: d, width of an attention head; a multiple of 4, and above 4 for the NTK scalings.
        theta: Base of the geometric series of frequencies.
        scaling: ``normal`` none; ``linear`` position interpolation; ``ntk-aware`` a larger base, ``ntk-aware-pro1`` and
            ``-pro2`` with a factor on the result (``magnitude``); ``ntk-by-parts`` and ``yarn`` by how often a frequency turns.
        max_height: Side in tokens that all images are scaled for; None with ``online``.
        max_width: Likewise.
        trained_length: Side in tokens that was trained with; None for ``normal``.
        decouple: Scale each axis for its own side; else both for the longer one.
        online: Scale each image for its own size.

    Raises:
        UserError: If an argument is out of range, or the scaling lacks a length.
    """

    def __init__(
        self,
        head_size: int,
        theta: float = 10000.0,
        scaling: FrequencyScaling = "normal",
        max_height: int | None = None,
        max_width: int | None = None,
        trained_length: int | None = None,
        decouple: bool = False,
        online: bool = False,
    ) -> None:
        super().__init__()
        if scaling not in get_args(FrequencyScaling):
            raise UserError(f"custom_freqs must be one of {', '.join(get_args(FrequencyScaling))}, got {scaling!r}")
        least = 8 if scaling.startswith("ntk") else 4
        if head_size % 4 or head_size < least:
            raise UserError(
                f"rotary positions of images ({scaling}) need heads whose width is a multiple of 4 and at least {least}, got "
                f"{head_size}; choose another num_heads"
            )
        if not (theta > 1 and math.isfinite(theta)):
            raise UserError(f"rope_theta must be a number above 1, got {theta}")
        lengths = {"ori_max_pe_len": trained_length}
        if not online:
            lengths |= {"max_pe_len_h": max_height, "max_pe_len_w": max_width}
        for name, length in lengths.items() if scaling != "normal" else ():
            if length is None or length < 1:
                advice = "" if online or name == "ori_max_pe_len" else ", or set online_rope"
                raise UserError(f"custom_freqs {scaling} needs {name}, a side in tokens, got {length}; give one{advice}")
        self.axis_width, self.theta, self.scaling = head_size // 2, theta, scaling
        self.max_height, self.max_width, self.trained_length = max_height, max_width, trained_length or 1
        self.decouple, self.online = decouple, online

    def forward(self, rows: Tensor, columns: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Angles of tokens.

        Args:
            rows: (B, L) int64 row of each token.
            columns: (B, L) int64 column of each token.
            sizes: (B, 2) int64 height and width of each image in tokens.

        Returns:
            Cosines and sines, each (B, L, d / 2) float32.
        """
        if self.scaling != "normal" and not self.online:
            assert self.max_height is not None and self.max_width is not None
            sides = (torch.full_like(sizes[:1, 0], side) for side in (self.max_height, self.max_width))
            heights, widths = sides  # each (1,)
        else:
            heights, widths = sizes.unbind(1)  # each (B,)
        of_rows, of_columns = (heights, widths) if self.decouple else (torch.maximum(heights, widths),) * 2
        angles = [
            places.float()[..., None]
            * scaled_frequencies(self.scaling, length, self.axis_width, self.theta, self.trained_length)[:, None]
            for places, length in ((rows, of_rows), (columns, of_columns))
        ]
        both = torch.cat(angles, dim=-1)  # (B, L, d / 2)
        factor = magnitude(self.scaling, heights, widths, self.trained_length)
        if factor is None:
            return both.cos(), both.sin()
        return both.cos() * factor[:, None, None], both.sin() * factor[:, None, None]
