"""Looks at one video from beginning to end and keeps a few numbers of each frame.

Frames are read in pieces, at 25 a second; of a video that is not square, the middle square. What is
large, the features for Frechet distances, goes to the disk.
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
from tools.media import FPS, loudness, video_blocks, video_shape
from toy.evaluation.judges import JUDGED, Judges, at_size, to_tensor

BLOCK = 100               # frames that are in memory at a time
READ = 500                # frames that the lip reader sees at a time: its attention grows with n^2
PUBLISHED = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"

Embedding = Callable[[Tensor], Tensor]         # pictures (n, 3, H, W) in [-1, 1] -> (n, D)


@dataclass
class Seen:
    """A video of N frames. What could not be measured is None."""

    path: Path
    sharpness: np.ndarray                      # (N,): see `sharpness`
    loudness: np.ndarray | None                # (N,): root mean square, -60 to 0 dB as 0 to 1
    points: np.ndarray | None                  # (N, 68, 2): landmarks, in pixels as it was read
    opening: np.ndarray | None                 # (N,): by landmarks, else the judged jaw
    states: np.ndarray | None                  # (N, 17): the columns of toy.evaluation.judges.JUDGED
    likeness: np.ndarray | None                # (N,): cosine of each face to the given picture's
    features: np.ndarray | None                # (N, D), on the disk


def sharpness(images: Tensor) -> Tensor:
    """Mean absolute Laplacian of the grey pictures: (n, 3, H, W) -> (n,)."""
    grey = images.mean(1)                                                  # (n, H, W)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (grey[:, 1:-1, 1:-1] - around / 4).abs().mean((1, 2))


def inception() -> Embedding:
    """torchvision's Inception (2048 features). Its weights are Google's for ImageNet, not those that
    most FID figures are made with, so that figures compare with this command's alone."""
    path = Path(torch.hub.get_dir(), "checkpoints", PUBLISHED.rsplit("/", 1)[1])
    try:
        from torchvision.models import inception_v3
    except ImportError:
        raise InputError("--features inception: needs torchvision; pip install torchvision"
                         ) from None
    if not path.exists():
        raise InputError(f"--features inception: {path} is not there; get it from {PUBLISHED}")
    network = inception_v3(init_weights=False, transform_input=False)
    network.load_state_dict(torch.load(path, weights_only=True))
    network.fc = nn.Identity()
    network.eval().requires_grad_(False)
    return lambda x: network(F.interpolate(x, (299, 299), mode="bilinear", antialias=True))


@torch.inference_mode()
def watch(path: Path, side: int, out: Path, judges: Judges | None, embed: Embedding | None,
          picture: Tensor | None, landmarked: bool) -> Seen:
    """Reads the video at side x side pixels. `judges` are given for drawn faces only; `picture`
    (64,) is the given person's embedding by them; `out` is where features may be written. Of drawn
    faces landmarks are looked for where they are wanted (`landmarked`) alone."""
    if abs((fps := video_shape(path)[2]) - FPS) > 0.01:
        warn(f"{path}: has {fps:g} frames a second and is looked at at {FPS}")
    sharp, states, likeness = [], [], []
    with out.open("wb") as file:
        for block in video_blocks(path, side, length=BLOCK):
            images = to_tensor(block)
            sharp.append(sharpness(images))
            small = at_size(images)
            if judges:
                states.append(judges.states(small))
                faces = judges.identity(small)
                picture = faces[0] if picture is None else picture
                likeness.append(faces @ picture)
            if embed:
                features = embed(images).numpy()
                features.tofile(file)
    sharp, states, likeness = (torch.cat(each).numpy() if each else None
                               for each in (sharp, states, likeness))
    opening = None if states is None else states[:, JUDGED.index("jaw")]
    points = mouths.landmarks(path, side) if landmarked or not judges else None
    if points is not None:
        opening = mouths.opening(points[:len(sharp)])
    shape = (len(sharp), features.shape[1]) if embed else None
    return Seen(path, sharp, loudness(path), points, opening, states, likeness,
                np.memmap(out, np.float32, "r", shape=shape) if embed else None)


@torch.inference_mode()
def lip_features(path: Path, side: int, points: np.ndarray, reader: LipReader) -> Iterator[Tensor]:
    """The lip reader's features (n, D) of a video, READ frames at a time."""
    rows = np.split(mouths.smoothed(points), range(READ, len(points), READ))
    for block, here in zip(video_blocks(path, side, length=READ), rows):
        n = min(len(block), len(here))
        crops = [mouths.patches(block[i:min(i + 25, n)], here[i:i + 25]) for i in range(0, n, 25)]
        yield reader(mouths.normalised(np.concatenate(crops))[None])[0]
