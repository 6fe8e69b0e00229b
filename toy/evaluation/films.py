"""The films that the evaluation looks at, and the truth they are compared with.

Processes of one thread make them, as many as there are cores. Films are uint8 (N, H, W, 3) at 25
fps.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from keyface import KeyFace
from tools.cli import end_with_parent
from tools.media import FPS
from toy.world import Clip, frames, portrait, to_bytes


@cache
def loaded(weights: Path) -> KeyFace:
    return KeyFace.load(weights)


def make_film(weights: Path, image: np.ndarray, wave: np.ndarray, curve: np.ndarray, seed: int
              ) -> tuple[np.ndarray, float]:
    """Frames (N, H, W, 3) of an identity frame (H, W, 3), a sound (L,) and an emotion (N, 2); and
    the seconds of one core that a second of it took."""
    model, began = loaded(weights), time.process_time()
    video = np.stack(list(model.animate(image, wave, curve, seed=seed)))
    return video, (time.process_time() - began) * FPS / len(video)


@torch.inference_mode()
def make_truth(weights: Path, clip: Clip) -> dict[str, np.ndarray]:
    """The clip as it is drawn, after the autoencoder, and as a picture that stands still."""
    model, drawn, ceiling = loaded(weights), [], []
    for some in np.split(np.arange(len(clip.state)), range(100, len(clip.state), 100)):
        pictures = frames(clip, some, model.size)          # in pieces: a minute fills gigabytes
        drawn.append(to_bytes(pictures))
        ceiling.append(to_bytes(model.vae.to_images(model.vae.to_latents(pictures))))
    return {"drawn": np.concatenate(drawn), "ceiling": np.concatenate(ceiling),
            "still": face_of(clip, model.size, 0)[None]}


def start_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def workers(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, get_context("spawn"), start_worker)


def made(pool: Executor, function: Callable, arguments: list[tuple], what: str) -> Iterable:
    """The function's results, in order, with a progress bar."""
    return tqdm(pool.map(function, *zip(*arguments)), what, len(arguments), smoothing=0.1)


def face_of(clip: Clip, size: int, which: int) -> np.ndarray:
    """The person with an emotion and a pose that have nothing to do with the clip, uint8
    (H, W, 3)."""
    return to_bytes(portrait(clip, size, np.random.default_rng([clip.seed, which])))
