"""Distances between two sets of pictures in a feature space: FID, improved precision and recall.

torchmetrics computes FID and prdc the neighbourhoods (k = 3, arXiv 1904.06991). This module gives them features. A
Gaussian of D dimensions needs many more samples than D. For FID, features are therefore projected on the reference's
first principal components, few enough for ten samples per dimension. Neighbourhoods use all dimensions.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import torch
from prdc import compute_prdc
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

SAMPLES_PER_DIMENSION = 10
NEIGHBOURS = 3
FID_SCALE = 1000.0  # unit features have distances far below 1


@dataclass(frozen=True)
class Projection:
    """The first principal components of a reference set."""

    mean: np.ndarray  # (D,)
    axes: np.ndarray  # (D, K)
    explained: float  # share of the reference's variance

    @staticmethod
    def fit(reference: np.ndarray, samples: int, most: int = 64) -> Projection:
        """From float (N, D) features. `samples`: the size of the smallest set that will be projected."""
        mean = reference.mean(axis=0)
        _, strengths, axes = np.linalg.svd(reference - mean, full_matrices=False)
        count = max(1, min(most, samples // SAMPLES_PER_DIMENSION, len(strengths)))
        variance = strengths**2
        return Projection(mean, axes[:count].T, float(variance[:count].sum() / variance.sum()))

    @property
    def dimensions(self) -> int:
        return self.axes.shape[1]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) @ self.axes


class _Given(nn.Module):
    """Stands in for torchmetrics' network, as the features exist already."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(pictures: np.ndarray, reference: np.ndarray) -> float:
    """FID of float (N, K) features against (M, K)."""
    metric = FrechetInceptionDistance(feature=_Given(pictures.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(reference).double(), real=True)
    metric.update(torch.from_numpy(pictures).double(), real=False)
    return max(0.0, float(metric.compute()))


def precision_and_recall(pictures: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Precision: share of the pictures near the reference's manifold. Recall: share of the reference near theirs."""
    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints its arguments
        found = compute_prdc(reference, pictures, nearest_k=min(NEIGHBOURS, len(pictures) - 1, len(reference) - 1))
    return float(found["precision"]), float(found["recall"])


def set_distances(pictures: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """FID (x 1000), precision and recall of unit features (N, D) against (M, D), and FID's number of dimensions."""
    project = Projection.fit(reference, samples=len(pictures))
    precision, recall = precision_and_recall(pictures, reference)
    return {
        "fid": FID_SCALE * frechet_distance(project(pictures), project(reference)),
        "precision": precision,
        "recall": recall,
        "dimensions": project.dimensions,
        "explained": project.explained,
    }
