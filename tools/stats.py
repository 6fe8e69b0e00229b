"""Statistics of what is measured. A clip gives a few numbers; a figure is a function of their sum
over clips, so that its interval comes from clips resampled, not frames, which are no independent
witnesses. Curves are (N,), numbers per clip (n, k).
"""

import math
from collections.abc import Callable

import numpy as np

# Student's t with 1 to 8 degrees of freedom lies with 95 % between minus and plus these.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)
FEW = 10  # clips


def student(free: int) -> float:
    """The same with `free` degrees of freedom: of more than 8 by its expansion (Fisher and Cornish)
    around the normal distribution's 1.96, which is right to .005."""
    if free <= len(STUDENT):
        return STUDENT[free - 1]
    z = 1.96
    return z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)


def share(sums: np.ndarray) -> np.ndarray:
    """(..., 2) of hits and chances, or of values and how many there are -> (...)."""
    return sums[..., 0] / sums[..., 1]


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r of two curves (N,); nan if the truth y stands still, 0 if only x does."""
    if y.std() < 0.01:
        return np.nan
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 1e-6 else 0.0


def best_lag(x: np.ndarray, y: np.ndarray, reach: int = 8) -> float:
    """Frames by which x (N,) comes after y (N,) where they agree most; nan if one stands still."""
    if x.std() <= 1e-6 or y.std() < 0.01:
        return np.nan
    n = len(x)
    fit = {lag: correlation(x[max(lag, 0):n + min(lag, 0)], y[max(-lag, 0):n - max(lag, 0)])
           for lag in range(-reach, reach + 1)}
    return max(fit, key=lambda lag: -2.0 if np.isnan(fit[lag]) else fit[lag])


def interval(found: np.ndarray) -> tuple[float, float, float]:
    """A value and its 95 % interval by the jackknife: of `found`, the value itself and then those
    without one clip, or group of clips, each. An error that is estimated from so few is itself
    uncertain, which Student's t allows for."""
    k, (value, *without) = len(found) - 1, map(float, found)
    reach = student(k - 1) * np.sqrt((k - 1) * np.var(without)) if k > 1 else 0
    return value, value - reach, value + reach


def bootstrap(per_clip: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = share,
              resamples: int = 5000) -> tuple[float, float, float]:
    """`statistic` of the sum over clips of (n, k), and its 95 % interval with clips resampled. As
    means of resampled clips scatter too little by sqrt(1 - 1/n), and know nothing of Student's t,
    quantiles farther out are taken (Hesterberg, The American Statistician 69, 2015). Of fewer than
    FEW clips it is the jackknife's."""
    clips = per_clip[(per_clip != 0).any(1)]  # the others have nothing to say
    if len(clips) < FEW:
        total = clips.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            without = [statistic(total - clip) for clip in clips]
            return interval(np.array([statistic(total), *without]))
    n, k = len(per_clip), len(clips)
    tail = math.erfc(student(k - 1) / math.sqrt(2 * (1 - 1 / k))) / 2
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), resamples)   # (R, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = statistic(times @ per_clip)
        low, high = np.nanquantile(drawn, (tail, 1 - tail))
        return float(statistic(per_clip.sum(0))), float(low), float(high)


def wilson(per_clip: np.ndarray) -> tuple[float, float, float]:
    """Wilson's interval of a share, from (n, 2) with 1 or 0 a clip: a bootstrap of 40 yes has no
    width."""
    yes, n = per_clip.sum(0)
    p, z = yes / n, 1.96
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(p), *(float((middle + s * half) / (1 + z * z / n)) for s in (-1, 1))


def figure(estimate: tuple[float, float, float], n: int) -> dict:
    """What a table holds of a value, the bounds of its interval and how many it is made of."""
    return dict(zip(("value", "low", "high"), map(float, estimate))) | {"n": n}


def show(found: dict | None) -> str:
    """A `figure` in a table; of one that nothing could be resampled of there is no interval."""
    if not found:
        return "-"
    interval = f" ({found['low']:.3g} to {found['high']:.3g})" * (found["low"] < found["high"])
    return f"{found['value']:.3g}{interval}"


def counted(values: list[float] | np.ndarray) -> np.ndarray:
    """One value a clip (n,) -> (n, 2) for `share`: its mean over the clips that have one."""
    values = np.asarray(values, np.float64)
    return np.stack([np.nan_to_num(values), ~np.isnan(values)], 1)


def slope(curves: list[np.ndarray], step: float) -> tuple[float, float, float]:
    """By how much the curves rise together in a unit of time, from values that lie `step` apart,
    with a 95 % interval: least squares, with a level for each curve. Neighbours in time are taken
    for independent, so values should last longer than what they measure does."""
    pairs = [(np.arange(len(y)) * step, np.asarray(y, np.float64)) for y in curves]
    x, y = (np.concatenate([each[i] - each[i].mean() for each in pairs]) for i in (0, 1))
    rise = x @ y / (x @ x)
    free = max(len(x) - len(curves) - 1, 1)
    error = np.sqrt(np.square(y - rise * x).sum() / free / (x @ x))
    reach = student(free) * error
    return rise, rise - reach, rise + reach
