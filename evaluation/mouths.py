"""Mouth crops, as the lip reader of LipScore wants them: upright, of one size, always in one place.

Landmarks are (T, 68, 2): x, y of the usual 68 points of a face, whole numbers at the centres of
pixels. They come from a file beside the video, NAME.landmarks.npy, in the video's pixels as it is
shown, at 25 frames a second, with nan where no face was found (numpy.save); else from the package
face-alignment (`pip install -e ".[lips]"`), which fetches its own weights.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tools.cli import InputError, warn
from tools.prepare import blocks_of, square_of

SMOOTHED = 6              # frames to either side that landmarks are averaged over
LEAST = 12                # frames that a video must have
PATCH, CROP = 96, 88      # sides of what is cut out, and of its middle, which the reader sees
MOUTH = slice(48, 68)

# Points of the face that speech hardly moves (bridge and tip of the nose, corners of the eyes and
# of the mouth), and where they lie in a mean face of 256 x 256 pixels.
STABLE = (28, 33, 36, 39, 42, 45, 48, 54)
PLACES = ((128.4885, 106.9246), (128.8702, 137.3025), (92.5225, 94.3688), (112.7724, 94.9436),
          (145.5251, 94.535), (166.6771, 93.5656), (107.1676, 157.1961), (152.1928, 156.9871))


def landmarks(path: Path, side: int) -> np.ndarray | None:
    """Landmarks (T, 68, 2) of a video that is read at side x side pixels; None without a face, or
    without file and package. Raises InputError for a file that holds something else."""
    if (file := path.with_suffix(".landmarks.npy")).exists():
        try:
            points = np.load(file, allow_pickle=False).astype(np.float64)
        except (ValueError, EOFError, AttributeError) as error:
            raise InputError(f"{file}: no array ({error}); write it by numpy.save") from None
        if points.ndim != 3 or points.shape[1:] != (68, 2):
            raise InputError(f"{file}: holds {points.shape}; landmarks are (T, 68, 2)")
        *corner, square = square_of(path)
        return filled(path, (points + 0.5 - corner) * (side / square) - 0.5)
    try:
        from face_alignment import FaceAlignment, LandmarksType
    except ImportError:
        return None
    device, none = "cuda" if torch.cuda.is_available() else "cpu", np.full((68, 2), np.nan)
    finder = FaceAlignment(LandmarksType.TWO_D, device=device)
    faces = (finder.get_landmarks_from_image(frame)
             for block in blocks_of(path, side, 100) for frame in block)
    return filled(path, np.stack([found[0] if found else none for found in faces]))


def filled(path: Path, points: np.ndarray) -> np.ndarray | None:
    """(T, 68, 2) with nan in frames without a face -> interpolated along time; before the first and
    after the last face these; None, and a warning, where there is no face at all."""
    seen = np.flatnonzero(np.isfinite(points).all((1, 2)))
    if not len(seen):
        return warn(f"{path}: no face in any frame; its mouth is left out")
    flat = points.reshape(len(points), -1)
    whole = [np.interp(np.arange(len(points)), seen, column[seen]) for column in flat.T]
    return np.stack(whole, 1).reshape(points.shape)


def smoothed(points: np.ndarray) -> np.ndarray:
    """Landmarks (T, 68, 2) averaged over up to 13 frames, but each where its own frame has it."""
    total = np.concatenate([np.zeros((1, 68, 2)), points.cumsum(0)])
    t = np.arange(len(points))
    m = np.minimum(SMOOTHED, np.minimum(t, len(points) - 1 - t))
    mean = (total[t + m + 1] - total[t - m]) / (2 * m + 1)[:, None, None]
    return mean + (points.mean(1, keepdims=True) - mean.mean(1, keepdims=True))


def patches(video: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 with smoothed landmarks (T, 68, 2) -> mouths (T, 96, 96, 3) uint8.

    As complex numbers a similarity is z -> a z + b; a and b bring the stable points nearest to
    their places (least squares). The mouth of the turned face is looked up in the frame."""
    z = points[..., 0] + 1j * points[..., 1]                               # (T, 68)
    p, q = z[:, STABLE], np.array(PLACES) @ (1, 1j)                        # (T, 8), (8,)
    centred = p - p.mean(1, keepdims=True)
    a = (centred.conj() * (q - q.mean())).sum(1) / (np.abs(centred) ** 2).sum(1)     # (T,)
    b = q.mean() - a * p.mean(1)
    middle = (a[:, None] * z[:, MOUTH] + b[:, None]).mean(1)               # of the mouth, in 256
    left, top = np.rint(middle.real - PATCH / 2), np.rint(middle.imag - PATCH / 2)
    line = np.arange(PATCH)
    target = (left[:, None] + line)[:, None, :] + 1j * (top[:, None] + line)[:, :, None]
    source = (target - b[:, None, None]) / a[:, None, None]                # (T, 96, 96)
    h, w = video.shape[1:3]
    grid = np.stack([2 * source.real / (w - 1) - 1, 2 * source.imag / (h - 1) - 1], -1)
    pictures = torch.tensor(video).movedim(3, 1).float()               # (T, 3, H, W)
    found = F.grid_sample(pictures, torch.from_numpy(grid).float(), align_corners=True)
    return found.round().byte().movedim(1, 3).numpy()


def normalised(mouths: np.ndarray) -> Tensor:
    """(T, 96, 96, 3) uint8 -> (T, 1, 88, 88): the middle, in grey, as the reader was trained."""
    edge = (PATCH - CROP) // 2
    middle = torch.from_numpy(mouths[:, edge:-edge, edge:-edge]).float() / 255
    return ((middle @ torch.tensor([0.2989, 0.587, 0.114]) - 0.421) / 0.165)[:, None]


def opening(points: np.ndarray) -> np.ndarray:
    """Landmarks (T, 68, 2) -> how far the inner lips are apart, over their width (T,)."""
    gap = np.linalg.norm(points[:, 61:64] - points[:, [67, 66, 65]], axis=2).mean(1)
    return gap / np.maximum(np.linalg.norm(points[:, 60] - points[:, 64], axis=1), 1e-6)
