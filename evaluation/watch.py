"""Looks at one video from beginning to end and keeps a few numbers of each frame.

Frames are read in pieces, at 25 a second: the square that NAME.crop.csv names, else the middle one.
What is large, the features for Frechet distances, goes to the disk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation import mouths
from evaluation.lipreader import LipReader
from tools.cli import InputError, warn
from tools.media import FPS, loudness, video_shape
from tools.prepare import blocks_of
from tools.released import read
from toy.evaluation.judges import JAW, JUDGED, Judges, to_tensor

BLOCK = 20                # frames that are in memory at a time
READ = 500                # frames that the lip reader sees at a time: its attention grows with n^2
PUBLISHED = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"


@dataclass
class Seen:
    """A video of N frames. What could not be measured is None."""

    path: Path
    side: int                                  # of the pictures as they were read
    sharpness: np.ndarray                      # (N,): see `sharpness`
    loudness: np.ndarray | None                # (N,): root mean square, -60 to 0 dB as 0 to 1
    points: np.ndarray | None                  # (N, 68, 2): landmarks, in pixels as it was read
    opening: np.ndarray | None                 # (N,): by landmarks, else the judged jaw
    states: np.ndarray | None                  # (N, 17): columns of toy.evaluation.judges.JUDGED
    likeness: np.ndarray | None                # (N,): cosine of each face to the given picture's
    features: Callable[[], np.ndarray] | None  # opens (N, D) on the disk


def sharpness(images: Tensor) -> Tensor:
    """Mean absolute Laplacian of the grey pictures: (n, 3, H, W) -> (n,)."""
    grey = images.mean(1)                                                  # (n, H, W)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (grey[:, 1:-1, 1:-1] - around / 4).abs().mean((1, 2))


def inception() -> Callable[[Tensor], Tensor]:
    """torchvision's Inception: pictures (n, 3, H, W) in [-1, 1] -> (n, 2048). Its weights are
    Google's for ImageNet, not those that most FID figures are made with, so that figures compare
    with this command's alone."""
    path = Path(torch.hub.get_dir(), "checkpoints", PUBLISHED.rsplit("/", 1)[1])
    try:
        from torchvision.models import inception_v3
    except ImportError:
        raise InputError("--features inception: pip install torchvision first") from None
    if not path.exists():
        raise InputError(f"--features inception: {path} is not there; get it from {PUBLISHED}")
    network = inception_v3(init_weights=False, transform_input=False)
    network.load_state_dict(read(path))
    network.fc = nn.Identity()
    network.eval().requires_grad_(False)
    return lambda x: network(F.interpolate(x, (299, 299), mode="bilinear", antialias=True))


@torch.inference_mode()
def watch(path: Path, side: int, out: Path, judges: Judges | None, embed: Callable | None,
          picture: Tensor | None, landmarked: bool) -> Seen:
    """Reads the video at side x side pixels. `judges` are given for drawn faces only; `picture`
    (64,) is the given person's embedding by them; without `embed` the features are theirs. What is
    kept of each frame goes through the file `out`. Landmarks of drawn faces are looked for only if
    `landmarked`. Raises InputError for what is no video."""
    if abs((fps := video_shape(path)[2]) - FPS) > 0.01:
        warn(f"{path}: has {fps:g} frames a second and is looked at at {FPS}")
    with out.open("wb") as file:               # where small arrays do not cut up the memory
        for block in blocks_of(path, side, BLOCK):
            images = to_tensor(block)
            columns = [sharpness(images)[:, None]]
            if judges:
                state, faces, features = judges.look(images)
                likeness = faces @ picture if picture is not None else faces[:, 0] * np.nan
                columns += [state, likeness[:, None]]
            if embed:
                features = embed(images)
            rows = torch.cat(columns + [features] if judges or embed else columns, 1).numpy()
            file.write(rows.tobytes())
    def kept(which: int | slice) -> np.ndarray:
        return np.memmap(out, np.float32, "r").reshape(-1, rows.shape[1])[:, which]

    sharp, states, likeness, opening, end = np.array(kept(0)), None, None, None, 1
    if judges:
        end = len(JUDGED) + 2
        states, likeness = np.array(kept(slice(1, end - 1))), np.array(kept(end - 1))
        opening = states[:, JAW]
    points = mouths.landmarks(path, side) if landmarked or not judges else None
    if points is not None:
        if not len(sharp) <= len(points) <= len(sharp) + 2:
            raise InputError(f"{path}: has {len(sharp)} frames at {FPS} a second, but landmarks "
                             f"for {len(points)}; make them anew")
        opening = mouths.opening(points[:len(sharp)])
    return Seen(path, side, sharp, loudness(path), points, opening, states, likeness,
                (lambda: kept(slice(end, None))) if judges or embed else None)


@torch.inference_mode()
def lip_features(seen: Seen, frames: int, reader: LipReader) -> Iterator[Tensor]:
    """The lip reader's features (n, D) of so many frames of a video, READ at a time."""
    points, crops = mouths.smoothed(seen.points[:frames]), []
    for i, block in zip(range(0, frames, 25), blocks_of(seen.path, seen.side, 25)):
        crops.append(mouths.patches(block[:frames - i], points[i:i + 25]))
        if 25 * len(crops) >= READ or i + 25 >= frames:
            yield reader(mouths.normalised(np.concatenate(crops))[None])[0]
            crops = []
