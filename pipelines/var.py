"""Class-conditional images from VAR and a multi-scale tokenizer, and zero-shot editing of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from generative.autoregressive.next_scale.scheduler import KnownTokens, NextScaleScheduler, check_pyramid
from generative.autoregressive.next_scale.var import VAR, Modulations
from generative.autoregressive.options import VAROptions
from generative.core.errors import UserError
from generative.core.guidance import step_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop, unguided
from generative.core.seeding import ImageNoise
from generative.layers.kv_cache import KVCache
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer
from pipelines.base import ClassLabels, OutputType
from pipelines.tokens import TokenPipeline

# Scales of at most so many tokens are given and never drawn in editing: they hold the image as a whole (official demo).
ALWAYS_KNOWN_TOKENS = 3


class VARPipeline(TokenPipeline):
    """Samples scale by scale with a KV cache, then decodes the accumulated map.

    Args:
        transformer: Predicts all tokens of a scale from the class and the smaller scales.
        tokenizer: Adds up scales and turns maps into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    transformer: VAR
    tokenizer: MultiScaleVQTokenizer
    check_components = staticmethod(check_pyramid)
    options_class = VAROptions

    def sample(
        self, class_labels: Tensor, options: VAROptions, noise: ImageNoise, known: KnownTokens | None = None
    ) -> SampleState:
        """Run all scales; see the base class.

        Args:
            class_labels: (B,) int64; where all are ``num_classes``, the null condition, there is nothing to guide.
            options: Options of the family.
            noise: One random stream per image.
            known: Tokens of images to edit, which are not drawn.
        """
        scheduler, scale = self.plan(options, known)
        if bool((class_labels == self.num_classes).all()):
            scale = 1.0
        return self.run(class_labels, scheduler, scale, noise)

    def run(
        self, class_labels: Tensor, scheduler: NextScaleScheduler, scale: float | Callable[[int], float], noise: ImageNoise
    ) -> SampleState:
        """Run all scales.

        Args:
            class_labels: (B,) int64.
            scheduler: Draws the tokens.
            scale: Of guidance, from ``step_guidance``.
            noise: One random stream per image.
        """
        state = self.prepare_state(class_labels, noise)
        # Ramps leave the first scale unguided; the null branch reads it all the same, in the same pass.
        state.memory["is_guided"] = scale != 1.0
        predict = unguided(self.predict, class_labels)
        if scale != 1.0:
            predict = classifier_free_guidance(self.predict, class_labels, self.num_classes, scale)
        return sample_loop(predict, scheduler, state, scheduler.num_scales, noise, self.progress_bar)

    def plan(
        self, options: VAROptions, known: KnownTokens | None = None
    ) -> tuple[NextScaleScheduler, float | Callable[[int], float]]:
        """Scheduler and guidance scale, checked; see ``ImagePipeline.plan``."""
        scheduler = NextScaleScheduler(
            self.tokenizer, options.temperature, options.top_k, options.top_p, options.more_smooth, known
        )
        scale = step_guidance(options.guidance_scale, scheduler.num_scales, options.guidance_schedule, options.guidance_interval)
        return scheduler, scale

    @torch.no_grad()
    def edit(
        self,
        images: Tensor,
        mask: Tensor,
        class_labels: ClassLabels | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Draw a part of each image anew, without any training for it (section 5.3: in-painting, out-painting, class editing).

        At every scale the tokens outside the mask are those of the image, and the network reads them; those inside are drawn. A
        token of the last scale is drawn where at least half of its pixels are in the mask, one of a smaller scale where the mask,
        resized, is at least a half; a first scale of one token is the image's own.

        Args:
            images: (B, 3, H, W) float in [-1, 1].
            mask: (H, W) or (B, H, W) bool, True where pixels are to be drawn: inside a box to in-paint or to edit its class,
                outside of it to out-paint.
            class_labels: What to draw: labels as in a call; None for the null condition, as the paper in- and out-paints.
            generator: See ``__call__``, as all that follows.
            output_type: See ``__call__``.
            return_dict: See ``__call__``.
            **options: See ``__call__``; without class labels there is nothing to guide.

        Returns:
            The images, decoded from the mixed tokens: what is kept passes through the tokenizer.

        Raises:
            UserError: If an argument is out of range, or shapes do not fit.
        """
        known = self.known_tokens(images, mask)
        batch_size = len(known.tokens)
        if class_labels is None:
            labels = torch.full((batch_size,), self.num_classes, device=self.device)
        else:
            labels = self.check_class_labels(class_labels)
            labels = labels.expand(batch_size) if len(labels) == 1 else labels
        if len(labels) != batch_size:
            raise UserError(f"there are {len(labels)} class labels for {batch_size} images; give one for each, or one for all")
        state = self.sample(labels, self.merge_options(options), self.image_noise(generator, batch_size), known)
        return self.postprocess(self.decode(state), output_type, return_dict)

    def known_tokens(self, images: Tensor, mask: Tensor) -> KnownTokens:
        """Encode images and tell which of their tokens a mask leaves; arguments as in ``edit``.

        Raises:
            UserError: If the mask is not boolean, or of another size than the images.
        """
        self.tokenizer.check_images(images)
        if mask.dtype != torch.bool or mask.shape not in (images.shape[2:], (len(images), *images.shape[2:])):
            raise UserError(
                f"mask must be bool of shape {tuple(images.shape[2:])}, or one such for each of {len(images)} images, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        keep = (~mask.to(self.device)).float().expand(len(images), 1, *images.shape[2:]) if mask.ndim == 2 else None
        if keep is None:
            keep = (~mask.to(self.device)).float()[:, None]  # (B, 1, H, W)
        keep = (F.interpolate(keep, self.tokenizer.grid_size, mode="area") > 0.5).float()  # (B, 1, h, w)
        levels = []
        for side in self.tokenizer.patch_nums:
            level = F.interpolate(keep, (side, side), mode="bilinear", align_corners=False) > 0.5  # (B, 1, side, side)
            levels.append((level | (side * side <= ALWAYS_KNOWN_TOKENS)).flatten(1))
        return KnownTokens(self.tokenizer.encode(images.to(self.device)), torch.cat(levels, dim=1))

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Start from an empty map and no cache."""
        return NextScaleScheduler(self.tokenizer).initial_state(len(class_labels))

    def predict(self, state: SampleState, timestep: int, class_labels: Tensor) -> Tensor:
        """Logits of all tokens of scale ``timestep`` for K guidance branches, in one forward pass.

        The cache has a block of B rows for each branch. A branch that was left out of earlier scales (guidance off) first reads
        the scales it has missed, in one pass, so that the cache is right whatever the guidance schedule.

        Args:
            state: Its memory holds what the network reads at each scale so far; it keeps the cache.
            timestep: Scale k, in [0, S).
            class_labels: (K, B) int64, for each branch the same at every step.

        Returns:
            (K, B, n_k, V) float32 logits.
        """
        num_wanted, batch_size = class_labels.shape
        if timestep == 0 and num_wanted == 1 and state.memory.get("is_guided"):
            class_labels = torch.cat([class_labels, torch.full_like(class_labels, self.num_classes)])
        num_branches = len(class_labels)
        cache, modulations, read = self._cache(state, class_labels)
        for branch in range(num_branches):
            if read[branch] < timestep:
                rows = slice(branch * batch_size, (branch + 1) * batch_size)
                mine = cache.rows(rows.start, rows.stop)
                self._extend(state, read[branch], timestep, mine, modulations.rows(rows), class_labels[branch])
            read[branch] = timestep + 1
        rows = slice(0, num_branches * batch_size)
        mine = cache.rows(rows.start, rows.stop)
        logits = self._extend(state, timestep, timestep + 1, mine, modulations.rows(rows), class_labels.flatten())
        return logits.float().unflatten(0, (num_branches, batch_size))[:num_wanted]  # (K, B, n_k, V)

    def decode(self, state: SampleState) -> Tensor:
        """Decode the accumulated map into images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.decode_latents(state.memory["accumulated"])

    def _extend(
        self, state: SampleState, first: int, last: int, cache: KVCache, modulations: Modulations, class_labels: Tensor
    ) -> Tensor:
        """Logits of scales ``first`` to ``last - 1`` for rows of the cache."""
        read = state.memory["inputs"][max(first - 1, 0) : last - 1]
        inputs = None
        if read:
            inputs = torch.cat(read, dim=1).repeat(len(class_labels) // len(read[0]), 1, 1)  # (rows, tokens, C)
        return self.transformer.extend(inputs, first, last, cache, class_labels, modulations)

    def _cache(self, state: SampleState, class_labels: Tensor) -> tuple[KVCache, Modulations, list[int]]:
        """Cache and modulations of at least these branches (K, B), and how many scales each branch has read."""
        num_branches, batch_size = class_labels.shape
        cache: KVCache | None = state.memory.get("cache")
        read: list[int] = state.memory.setdefault("read", [])
        if cache is None or cache.batch_size < num_branches * batch_size:
            larger = self.transformer.make_cache(num_branches * batch_size)
            if cache is not None:
                larger.keys[:, : cache.batch_size] = cache.keys
                larger.values[:, : cache.batch_size] = cache.values
            state.memory["cache"] = cache = larger
            state.memory["modulations"] = self.transformer.modulations(class_labels.flatten())
            read.extend([0] * (num_branches - len(read)))
        return cache, state.memory["modulations"], read
