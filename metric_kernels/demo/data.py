"""Handwritten digits: 0-5 to train on, 6-9 held out, and batches with the same number of images of every class.

Centred 8x8 digits are too easy for retrieval: the nearest neighbour in raw pixels has the right label 99 times in 100,
for classes never seen as well. So every image is shown as a *view*: on a 16x16 canvas with a random translation, a small
rotation and a little noise; what to ignore is then something that a network has to learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Sampler

TRAIN_CLASSES = 6
SMALLEST_CLASS = 177
BATCH_SIZES = range(2 * TRAIN_CLASSES, SMALLEST_CLASS * TRAIN_CLASSES + 1, TRAIN_CLASSES)
SEEDS = range(2**32 - 1)
CANVAS = 16
ROTATION = math.radians(10)
NOISE = 0.05


@dataclass(frozen=True)
class Digits:
    """Training images (N, 1, 8, 8) in [0, 1] and labels 0-5; held-out views (M, 1, 16, 16) and labels 6-9."""

    images: Tensor
    labels: Tensor
    held_out_views: Tensor
    held_out_labels: Tensor


def digits(seed: int) -> Digits:
    """The split. Held-out digits are seen in one view each, the same for every network and loss."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    train = labels < TRAIN_CLASSES
    held_out = views(images[~train], torch.Generator().manual_seed(seed))
    return Digits(images[train], labels[train], held_out, labels[~train])


def views(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random view (N, 1, 16, 16) of each 8x8 image: translation, rotation and noise."""
    n, width = len(images), images.shape[-1]
    rotation = ROTATION * (2 * torch.rand(n, generator=generator) - 1)
    # affine_grid takes the map from the canvas to the image; the corners of both have the coordinates -1 and 1.
    scale = CANVAS / width
    translation = (scale - 1) * (2 * torch.rand(2, n, generator=generator) - 1)
    cos, sin = scale * rotation.cos(), scale * rotation.sin()
    affine = torch.stack([cos, -sin, translation[0], sin, cos, translation[1]], dim=1).view(n, 2, 3)
    grid = F.affine_grid(affine, [n, 1, CANVAS, CANVAS], align_corners=False)
    placed = F.grid_sample(images, grid, align_corners=False)
    return placed + NOISE * torch.randn(placed.shape, generator=generator)


class ClassBalancedBatches(Sampler[list[int]]):
    """Batches with ``per_class`` images of every class; a batch sampler for ``torch.utils.data.DataLoader``.

    Within an epoch no image comes twice; images of a class that do not fill a batch wait for another epoch. The order
    depends on the seed and on how many epochs were drawn before, on nothing else.
    """

    def __init__(self, labels: Tensor, per_class: int, seed: int):
        self.members = [torch.nonzero(labels == label).squeeze(1) for label in labels.unique()]
        self.per_class = per_class
        self.generator = torch.Generator().manual_seed(seed)
        smallest = min(len(m) for m in self.members)
        if not 2 <= per_class <= smallest:
            raise ValueError(f"per_class: expected 2 to {smallest}, the size of the smallest class, got {per_class}")

    def __len__(self) -> int:
        return min(len(m) for m in self.members) // self.per_class

    def __iter__(self) -> Iterator[list[int]]:
        shuffled = [m[torch.randperm(len(m), generator=self.generator)] for m in self.members]
        for start in range(0, len(self) * self.per_class, self.per_class):
            yield torch.cat([m[start : start + self.per_class] for m in shuffled]).tolist()
