"""Training data: clips from a source, cut into windows that both stages learn from.

A source yields clips (sound, frames, valence and arousal, portraits of the same person); `prepare`
turns them once into a cache of windows: latents, tokens of the frozen encoders, moods, and the
pixels for the pixel loss. The drawn world is the default source, a folder of videos the other.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import multiprocessing as mp

from checkpoint import load_config, load_part
from emotion import emotion_curve
from keyface import SAMPLES_PER_FRAME, Config, KeyFace, StageConfig
from media import InputError, read_audio, read_video


class Recording(Protocol):
    """One clip of a source: N frames at 25 fps."""

    wave: np.ndarray  # (640 N,) float32, 16 kHz
    mood: np.ndarray  # (N, 2) valence, arousal in [-1, 1]

    def frames(self, indices: list[int]) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1]."""

    def portrait(self, rng: np.random.Generator, window: list[int]) -> Tensor:
        """An identity frame (3, H, W) for the target frames `window`, none of which it is."""


class FolderSource:
    """A folder of videos with sound. NAME.csv beside NAME.mp4 gives valence and arousal, a row a
    frame; neutral without."""

    def __init__(self, folder: str | Path, size: int):
        endings = (".mp4", ".mov", ".mkv", ".webm")
        self.paths = sorted(p for p in Path(folder).glob("*") if p.suffix in endings)
        self.size = size
        if not self.paths:
            raise InputError(f"--data {folder}: no video in it (.mp4, .mov, .mkv or .webm)")

    def clip(self, index: int) -> "FolderClip":
        return FolderClip(self.paths[index % len(self.paths)], self.size)


class FolderClip:
    def __init__(self, path: Path, size: int):
        self.pixels = read_video(path, size)  # (N, H, W, 3) uint8
        wave = read_audio(path)
        n = min(len(self.pixels), -(-len(wave) // SAMPLES_PER_FRAME))
        self.wave = np.pad(wave, (0, SAMPLES_PER_FRAME))[:n * SAMPLES_PER_FRAME]
        curve = "neutral"
        table = path.with_suffix(".csv")
        if table.exists():
            with open(table, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            try:
                moods = [[float(row["valence"]), float(row["arousal"])] for row in rows]
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"{table}: a row a frame with valence and arousal is expected") from None
            curve = np.array(moods, np.float32)
        self.mood = emotion_curve(curve, n)

    def frames(self, indices: list[int]) -> Tensor:
        return torch.from_numpy(self.pixels[indices]).permute(0, 3, 1, 2) / 127.5 - 1

    def portrait(self, rng: np.random.Generator, window: list[int]) -> Tensor:
        # Outside the window's span if possible: else the model copies mood and mouth from it.
        times = range(len(self.mood))
        outside = [t for t in times if not window[0] <= t <= window[-1]]
        outside = outside or [t for t in times if t not in window]
        return self.frames([int(rng.choice(outside))])[0]


class ToySource:
    """The drawn world: endless clips made from a seed."""

    def __init__(self, split: str, size: int, seconds: float = 8.0):
        self.split, self.size, self.seconds = split, size, seconds

    def clip(self, index: int) -> "ToyClip":
        from toy import world  # the only place outside toy/ that knows it
        return ToyClip(world, world.make_clip(index, self.split, self.seconds), self.size)


class ToyClip:
    def __init__(self, world, clip, size: int):
        self.world, self.clip, self.size = world, clip, size
        self.wave, self.mood = clip.wave, clip.mood

    def frames(self, indices: list[int]) -> Tensor:
        return self.world.frames(self.clip, indices, self.size)

    def portrait(self, rng: np.random.Generator, window: list[int]) -> Tensor:
        return self.world.portrait(self.clip, self.size, rng)


def open_source(data: str | None, split: str, size: int) -> FolderSource | ToySource:
    """The source of `--data`: a folder of videos, or without one the drawn world."""
    return FolderSource(data, size) if data else ToySource(split, size)


FROZEN = ("vae", "wavlm", "beats")


def load_frozen(folder: Path) -> KeyFace:
    """The model of a weights folder with its autoencoder and encoders; networks as initialised."""
    model = KeyFace(load_config(Config, folder))
    parts = model.parts()
    for name in FROZEN:
        load_part(folder / f"{name}.safetensors", parts[name])
        parts[name].eval().requires_grad_(False)
    return model


# ---- windows ----------------------------------------------------------------------------------


@dataclass
class Windows:
    """n windows of one stage, in memory."""

    latents: Tensor  # (n, T, C, h, w) fp16, clean
    identity: Tensor  # (n, C, h, w) fp16
    tokens: Tensor  # (n, T, 2, D) fp16
    mood: Tensor  # (n, T, 2)
    pixels: Tensor  # (n, T, 3, H, W) uint8

    def __len__(self) -> int:
        return len(self.latents)

    def batches(self, size: int, seed: int) -> Iterator["Windows"]:
        """Endless random batches, every window once before any twice."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for rows in torch.randperm(len(self), generator=generator).split(size):
                if len(rows) == min(size, len(self)):
                    yield self.rows(rows)

    def rows(self, rows: Tensor | slice) -> "Windows":
        return Windows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def singles(self, size: int, generator: torch.Generator) -> "Windows":
        """A random batch of single frames as windows of T = 1."""
        rows = torch.randint(len(self), (size,), generator=generator)
        times = torch.randint(self.latents.shape[1], (size,), generator=generator)
        one = {name: getattr(self, name)[rows, times][:, None]
               for name in ("latents", "tokens", "mood", "pixels")}
        return Windows(identity=self.identity[rows], **one)

    def to(self, device: torch.device) -> "Windows":
        """On `device`, in float32 (pixels in [-1, 1])."""
        names = self.__dataclass_fields__
        values = {name: getattr(self, name).to(device).float() for name in names}
        values["pixels"] = values["pixels"] / 127.5 - 1
        return Windows(**values)


@torch.no_grad()
def make_windows(source: FolderSource | ToySource, model: KeyFace, stage: StageConfig,
                 clips: range, seed: int, per_clip: int) -> dict[str, Tensor]:
    """`per_clip` windows of T frames, `stage.spacing` apart, of each clip: fields of `Windows`."""
    span = (stage.frames - 1) * stage.spacing + 1
    rows: dict[str, list[Tensor]] = {name: [] for name in Windows.__dataclass_fields__}
    for index in clips:
        clip = source.clip(index)
        rng = np.random.default_rng((seed, index, stage.spacing))
        room = len(clip.mood) - span
        if room < 0:
            continue
        sound = model.audio.encode(torch.from_numpy(clip.wave), 0, len(clip.mood))  # (N, 2, D)
        for first in rng.choice(room + 1, min(per_clip, room + 1), replace=False):
            window = list(range(int(first), int(first) + span, stage.spacing))
            pictures = torch.cat([clip.portrait(rng, window)[None], clip.frames(window)])
            noise = rng.standard_normal((len(pictures), *stage.latent_shape), dtype=np.float32)
            latents = model.vae.to_latents(pictures, torch.from_numpy(noise))
            rows["identity"].append(latents[0].half())
            rows["latents"].append(latents[1:].half())
            rows["tokens"].append(sound[window].half())
            rows["mood"].append(torch.from_numpy(clip.mood[window]).float())
            rows["pixels"].append(((pictures[1:] + 1) * 127.5).round().clamp(0, 255).byte())
    return {name: torch.stack(values) for name, values in rows.items()} if rows["latents"] else {}


def _work(rank: int, workers: int, source: FolderSource | ToySource, weights: Path,
          stage: StageConfig, count: int, first: int, seed: int, per_clip: int, path: Path) -> None:
    torch.set_num_threads(1)
    clips = range(first + rank, first + -(-count // per_clip), workers)
    windows = make_windows(source, load_frozen(weights), stage, clips, seed, per_clip)
    save_file(windows, f"{path}.{rank}")


def prepare(path: Path, source: FolderSource | ToySource, weights: Path, stage: StageConfig,
            count: int, seed: int = 0, per_clip: int = 2, first: int = 0,
            workers: int | None = None) -> Windows:
    """About `count` windows for `stage`, read from `path` if an earlier run left them there, else
    made by several processes and kept. Raises InputError where no clip is as long as a window."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        workers = workers or min(os.cpu_count() or 1, 16)
        arguments = (workers, source, weights, stage, count, first, seed, per_clip, path)
        mp.spawn(_work, arguments, nprocs=workers)
        shards = [load_file(f"{path}.{rank}") for rank in range(workers)]
        shards = [shard for shard in shards if shard]
        if not shards:
            span = (stage.frames - 1) * stage.spacing + 1
            raise InputError(f"--data: no clip is long enough for a window of {span} frames")
        whole = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        save_file(whole, f"{path}.partial")
        os.replace(f"{path}.partial", path)
        for rank in range(workers):
            os.remove(f"{path}.{rank}")
    return Windows(**load_file(path))
