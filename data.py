"""Training data: clips from a source, cut into windows that both stages learn from.

A source yields clips (sound, frames, valence and arousal, portraits of the same person); `prepare`
turns them once into a cache of windows: latents, tokens of the frozen encoders, moods, and the
pixels for the pixel loss. The drawn world is the default source, a folder of videos the other.
"""

import csv
import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import multiprocessing as mp

from emotion import emotion_curve
from keyface import KeyFace
from stage import Config, StageConfig
from tools.checkpoint import fitting, header_config, load_config, load_metadata, load_part
from tools.cli import InputError
from tools.media import FRAME_SAMPLES, read_audio, read_video
from vae import VAEConfig


class Recording(Protocol):
    """One clip of a source: N frames at 25 fps."""

    wave: np.ndarray  # (640 N,) float32, 16 kHz
    mood: np.ndarray  # (N, 2) valence, arousal in [-1, 1]

    def frames(self, indices: list[int]) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1]."""

    def portrait(self, rng: np.random.Generator, window: list[int]) -> Tensor:
        """An identity frame (3, H, W) for the target frames `window`, none of which it is."""


class FolderSource:
    """A folder of videos with sound, every tenth of which (by name) is held out of training.
    NAME.csv beside NAME.mp4 gives valence and arousal, a row a frame; neutral without."""

    def __init__(self, folder: str | Path, split: str, size: int):
        endings = (".mp4", ".mov", ".mkv", ".webm")
        paths = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in endings)
        if len(paths) < 2:
            raise InputError(f"--data {folder}: holds {len(paths)} videos ({', '.join(endings)}); "
                             "give two or more, of which one is held out of training")
        kept = {"test": paths[::10], "train": [p for i, p in enumerate(paths) if i % 10]}
        self.paths, self.split, self.size = kept[split], split, size
        self.times = [(p.name, p.stat().st_mtime_ns) for p in sorted(Path(folder).glob("*.*"))]

    def clip(self, index: int) -> "FolderClip":
        return FolderClip(self.paths[index % len(self.paths)], self.size)


class FolderClip:
    def __init__(self, path: Path, size: int):
        self.pixels = read_video(path, size)  # (N, H, W, 3) uint8
        wave = read_audio(path)
        n = min(len(self.pixels), -(-len(wave) // FRAME_SAMPLES))
        self.wave = np.pad(wave, (0, FRAME_SAMPLES))[:n * FRAME_SAMPLES]
        self.mood = emotion_curve("neutral", n)
        table = path.with_suffix(".csv")
        if table.exists():
            try:
                with open(table, newline="", encoding="utf-8-sig") as file:
                    rows = [(row["valence"], row["arousal"]) for row in csv.DictReader(file)]
                self.mood = emotion_curve(np.array(rows, np.float32), n)
            except (KeyError, TypeError, ValueError, csv.Error, InputError):
                raise InputError(f"{table}: a row a frame is expected, with valence and arousal "
                                 "between -1 and 1") from None

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
        kind = world.kind_of(index) if self.split == "train" else None
        return ToyClip(world, world.make_clip(index, self.split, self.seconds, kind), self.size)


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
    return FolderSource(data, split, size) if data else ToySource(split, size)


# ---- frozen parts -----------------------------------------------------------------------------


def frozen_parts(config: Config) -> list[str]:
    """Names of what training leaves as it is: autoencoder and encoders."""
    return ["vae", "wavlm", "beats"] + ["wav2vec2"] * (config.interp_audio is not None)


def find_frozen(folders: list[Path]) -> tuple[Path, Config]:
    """The first of some weights folders that has all frozen parts, and its config; one that has
    no config.json yet is tiny. Raises InputError, about the first, where there is none."""
    problems = []
    for folder in folders:
        whole = (folder / "config.json").exists()
        config = load_config(Config, folder) if whole else Config.tiny()
        lacking = [name for name in frozen_parts(config)
                   if not (folder / f"{name}.safetensors").exists()]
        if not lacking:
            header = folder / "vae.safetensors"
            if not whole or "config" in load_metadata(header):  # it may be newer than config.json
                config.vae = header_config(VAEConfig, header)
            return folder, config
        problems.append(f"{folder}: lacks {', '.join(lacking)} .safetensors; run python -m "
                        "toy.train_vae and python -m toy.train_encoders first, or give --init")
    raise InputError(problems[0])


def load_frozen(folder: Path) -> KeyFace:
    """The model of a weights folder with its autoencoder and encoders; networks as initialised."""
    with fitting(folder / "config.json"):
        model = KeyFace(load_config(Config, folder).check())
    parts = model.parts()
    for name in frozen_parts(model.config):
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

    def batch(self, size: int, step: int, seed: int) -> "Windows":
        """Batch number `step` of an endless random order, every window once before any twice."""
        epoch, i = divmod(step, max(1, len(self) // size))
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self), generator=generator)
        return self.rows(order[i * size:(i + 1) * size])

    def rows(self, rows: Tensor | slice) -> "Windows":
        return Windows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def singles(self, size: int) -> "Windows":
        """A random batch of single frames as windows of T = 1."""
        rows = torch.randint(len(self), (size,))
        times = torch.randint(self.latents.shape[1], (size,))
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
                 clips: Iterable[int], seed: int, per_clip: int) -> dict[str, Tensor]:
    """`per_clip` windows of T frames, `stage.spacing` apart, of each clip: fields of `Windows`."""
    span = (stage.frames - 1) * stage.spacing + 1
    rows: dict[str, list[Tensor]] = {name: [] for name in Windows.__dataclass_fields__}
    for index in clips:
        clip = source.clip(index)
        rng = np.random.default_rng((seed, index, stage.spacing))
        room = len(clip.mood) - span
        if room < 0:
            continue
        hearing = model.interp_audio if stage.interpolation else model.audio
        sound = hearing.encode(torch.from_numpy(clip.wave), 0, len(clip.mood))  # (N, 2, D)
        for first in rng.choice(room + 1, min(per_clip, room + 1), replace=False):
            window = list(range(int(first), int(first) + span, stage.spacing))
            pictures = clip.frames(window)
            # Interpolation knows its ends alone: there the identity is not looked at.
            face = pictures[0] if stage.interpolation else clip.portrait(rng, window)
            pictures = torch.cat([face[None], pictures])
            noise = rng.standard_normal((len(pictures), *stage.latent_shape), dtype=np.float32)
            latents = model.vae.to_latents(pictures, torch.from_numpy(noise))
            rows["identity"].append(latents[0].half())
            rows["latents"].append(latents[1:].half())
            rows["tokens"].append(sound[window].half())
            rows["mood"].append(torch.from_numpy(clip.mood[window]).float())
            rows["pixels"].append(((pictures[1:] + 1) * 127.5).round().clamp(0, 255).byte())
    return {name: torch.stack(values) for name, values in rows.items()} if rows["latents"] else {}


def _work(rank: int, workers: int, source: FolderSource | ToySource, weights: Path,
          stage: StageConfig, count: int, first: int, seed: int, per_clip: int, folder: Path):
    torch.set_num_threads(1)
    error = folder / "error"  # ends the other processes' work, too
    clips = range(first + rank, first + -(-count // per_clip), workers)
    clips = takewhile(lambda _: not error.exists(), clips)
    try:
        windows = make_windows(source, load_frozen(weights), stage, clips, seed, per_clip)
        save_file(windows, folder / str(rank))
    except InputError as problem:
        error.write_text(str(problem))


def prepare(cache: Path, source: FolderSource | ToySource, weights: Path, stage: StageConfig,
            count: int, seed: int = 0, per_clip: int = 2, first: int = 0,
            workers: int = min(os.cpu_count() or 1, 16)) -> Windows:
    """About `count` windows for `stage`: from the folder `cache`, if an earlier run left them there
    that were made with the same frozen weights and settings, else made by several processes and
    kept. Raises InputError for clips that cannot be read or are all shorter than a window."""
    config = load_config(Config, weights)
    hearing = (stage.interpolation and config.interp_audio) or config.audio
    made_with = hashlib.sha256(repr((vars(source), config.vae, hearing, stage.frames,
                                     stage.spacing, seed, per_clip, first)).encode())
    for name in frozen_parts(config):
        made_with.update((weights / f"{name}.safetensors").read_bytes())
    kind = "interp" if stage.interpolation else "keyframe"
    path = cache / f"{kind}-{source.split}-{count}-{made_with.hexdigest()[:12]}.safetensors"
    if path.exists():
        return Windows(**load_file(path))
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        arguments = (workers, source, weights, stage, count, first, seed, per_clip, folder)
        mp.spawn(_work, arguments, nprocs=workers, daemon=True)
        if (folder / "error").exists():
            raise InputError((folder / "error").read_text())
        shards = [shard for rank in range(workers) if (shard := load_file(folder / str(rank)))]
        if not shards:
            raise InputError(f"--data: no {source.split} video is as long as a window, "
                             f"{(stage.frames - 1) * stage.spacing + 1} frames; give longer ones")
        whole = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        save_file(whole, folder / "whole")
        os.replace(folder / "whole", path)
    return Windows(**whole)
