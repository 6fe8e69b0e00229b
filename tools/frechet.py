"""The Frechet distance of two sets of features (FID, FVD), of any number of them.

d^2 = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), of means m and covariances S: the distance
of two normal distributions (Heusel et al., arXiv 1706.08500). It is biased upwards where features
are few, so that only distances of equal numbers compare. A set is kept as its *moments*: the sum
over its features x (D,) of the products of [x, 1] with itself, (D + 1, D + 1). Those of two sets
add up; the last entry is their number.
"""

import numpy as np

from tools.stats import interval


def moments(features: np.ndarray) -> np.ndarray:
    """(n, D) -> (D + 1, D + 1), a few thousand at a time, as they may be on the disk."""
    found = np.zeros((features.shape[1] + 1,) * 2)
    for start in range(0, len(features), 4096):
        x = np.asarray(features[start:start + 4096], np.float64)
        x = np.concatenate([x, np.ones((len(x), 1))], 1)
        found += x.T @ x
    return found


def normal(set_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of what moments were taken of."""
    n, mean = set_[-1, -1], set_[-1, :-1] / set_[-1, -1]
    return mean, (set_[:-1, :-1] - n * np.outer(mean, mean)) / max(n - 1, 1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """d^2 of two sets of moments."""
    mean, covariance = normal(a)
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(values.clip(0))[:, None] * vectors.T                    # root^T root = S_a
    return from_root(mean, root, *normal(b))


def from_root(mean: np.ndarray, root: np.ndarray, other: np.ndarray, covariance: np.ndarray
              ) -> float:
    """d^2 where S_a = root^T root: tr (S_a S_b)^(1/2) is the trace of (root S_b root^T)^(1/2)."""
    common = np.sqrt(np.linalg.eigvalsh(root @ covariance @ root.T).clip(0)).sum()
    apart = np.square(mean - other).sum() + np.square(root).sum() + np.trace(covariance)
    return max(float(apart - 2 * common), 0.0)


def over_time(features: np.ndarray, reference: np.ndarray, window: int, hop: int | None = None
              ) -> np.ndarray:
    """d^2 of a film's features (n, D) from a set of moments, in a window that slides by `hop` (by
    default it does not overlap): a value for each place where it lies whole in the film."""
    pieces = (np.asarray(features[i:i + window], np.float64)
              for i in range(0, len(features) - window + 1, hop or window))
    whole = normal(reference)
    return np.array([from_root(x.mean(0), (x - x.mean(0)) / np.sqrt(window - 1), *whole)
                     for x in pieces])


def jackknife(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """d^2 of two sets given in parts, which are pairs, and then the same with each of at most 8
    groups of parts left out of both: (1 + groups,). Differences of two such arrays have their
    interval, too. A pair of parts without any features, as of short films, is no part."""
    a, b = zip(*(pair for pair in zip(a, b, strict=True) if pair[0][-1, -1] + pair[1][-1, -1]))
    k = min(8, len(a))
    rest = [(sum(a) - sum(a[i::k]), sum(b) - sum(b[i::k])) for i in range(k)]
    return np.array([distance(sum(a), sum(b)), *(
        distance(x, y) for x, y in rest if x[-1, -1] and y[-1, -1])])


def with_interval(a: list[np.ndarray], b: list[np.ndarray]) -> tuple[float, float, float]:
    """d^2 of two sets given in parts, and its 95 % interval."""
    return interval(jackknife(a, b))
