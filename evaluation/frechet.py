"""The Frechet distance of two sets of features (FID, FVD), of any number of them.

d^2 = |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), S the covariances: the distance of two
normal distributions (Dowson and Landau, 1982; Heusel et al., arXiv 1706.08500). It is biased upwards
where there are few features, so distances compare at equal numbers alone.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Of n features (n, D): how many, their sum (D,) and that of their products (D, D)."""

    n: int
    total: np.ndarray
    products: np.ndarray

    @staticmethod
    def of(features: np.ndarray) -> "Moments":
        """Takes a few thousand at a time, as they may be on the disk."""
        width = features.shape[1]
        found = Moments(0, np.zeros(width), np.zeros((width, width)))
        for start in range(0, len(features), 4096):
            x = np.asarray(features[start:start + 4096], np.float64)
            found += Moments(len(x), x.sum(0), x.T @ x)
        return found

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.n + other.n, self.total + other.total, self.products + other.products)

    def normal(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D)."""
        mean = self.total / self.n
        return mean, (self.products - self.n * np.outer(mean, mean)) / (self.n - 1)


def distance(a: Moments, b: Moments) -> float:
    """d^2 of two sets; nan where one has less than two features."""
    if min(a.n, b.n) < 2:
        return np.nan
    mean, covariance = a.normal()
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(values.clip(0))[:, None] * vectors.T                    # root^T root = S_a
    return _distance(mean, root, *b.normal())


def _distance(mean: np.ndarray, root: np.ndarray, other: np.ndarray, covariance: np.ndarray
              ) -> float:
    """With S_a = root^T root, tr (S_a S_b)^(1/2) is the trace of (root S_b root^T)^(1/2)."""
    common = np.sqrt(np.linalg.eigvalsh(root @ covariance @ root.T).clip(0)).sum()
    between = np.square(mean - other).sum()
    return float(between + np.square(root).sum() + np.trace(covariance) - 2 * common)


def over_time(features: np.ndarray, reference: Moments, window: int) -> np.ndarray:
    """Distances (N // window,) of a film's features (N, D) in a window that slides by its own
    length, from a whole set."""
    mean, covariance = reference.normal()
    found = []
    for start in range(0, len(features) - window + 1, window):
        x = np.asarray(features[start:start + window], np.float64)
        root = (x - x.mean(0)) / np.sqrt(window - 1)       # a window's own few rows do for a root
        found.append(_distance(x.mean(0), root, mean, covariance))
    return np.array(found)


def sum_of(parts: list[Moments]) -> Moments:
    return sum(parts[1:], parts[0])


def with_interval(a: list[Moments], b: list[Moments]) -> tuple[float, float, float]:
    """d^2 of the sets that the parts a and b make up, and its 95 % interval: a jackknife that leaves
    out the same one of at most 8 groups of parts in both."""
    groups = min(8, len(a), len(b))
    value = distance(sum_of(a), sum_of(b))
    without = [distance(*(sum_of([p for i, p in enumerate(parts) if i % groups != left])
                          for parts in (a, b))) for left in range(groups)] if groups > 1 else [value]
    error = np.sqrt((len(without) - 1) * np.var(without))
    return value, value - 1.96 * error, value + 1.96 * error
