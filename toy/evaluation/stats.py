"""Statistics that only films of the toy world need; curves are (N,). The others are in
tools/stats.py.
"""

import numpy as np

# Pairs (t, t + 1), t counted from a frame; -1 and 0 touch it, these do not.
AROUND = [-6, -5, -4, -3, -2, 1, 2, 3, 4, 5]
BLINK = .25               # opening of the eyes below which they blink; calm ones are open by .45
OPEN = .4                 # opening of eyes whose colour is looked at
SMEARED = .8              # of the sharpness of the keyframes around, below which a frame is smeared


def blinks(opening: np.ndarray) -> list[int]:
    """The lengths, in frames, of all runs of frames whose eyes (N,) are open less than BLINK."""
    shut = np.concatenate([[False], opening < BLINK, [False]])
    begin, end = np.flatnonzero(shut[1:] != shut[:-1]).reshape(-1, 2).T
    return (end - begin).tolist()


def smeared(sharpness: np.ndarray, spacing: int) -> tuple[int, int]:
    """Of frames between two keyframes, of which there is one every `spacing` frames from the first
    on: how many are less sharp than SMEARED times the mean of these two, and how many there are.
    `sharpness` is (N,)."""
    keys = sharpness[::spacing]                                             # (K,)
    between = sharpness[:(len(keys) - 1) * spacing].reshape(-1, spacing)[:, 1:]
    limit = SMEARED * (keys[:-1] + keys[1:]) / 2
    return int((between < limit[:, None]).sum()), between.size


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of two curves (N,), the six sums that a correlation over several clips needs."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])


def pooled_correlation(sums: np.ndarray) -> np.ndarray:
    """(..., 6) of `moments` -> Pearson's r over all their frames (...); 0 where nothing moves."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(((n * xx - x * x) * (n * yy - y * y)).clip(0))
    return np.where(spread > 1e-9 * n * n, (n * xy - x * y) / np.maximum(spread, 1e-12), 0.0)


def change(video: np.ndarray) -> np.ndarray:
    """Mean difference, of 255, from each frame to the next: (N, H, W, 3) uint8 -> (N - 1,)."""
    return np.array([np.abs(b - a).mean() for a, b in zip(video[:-1].astype(np.int16), video[1:])])
