"""Training data: clips from a source, cut into windows that both stages learn from.

A source yields clips (sound, frames, emotion, portraits of the same person). The autoencoder and
the audio encoders are frozen, so `prepare` runs them once and keeps what they make: windows of
latents, audio tokens and emotion, and the pixels that the pixel loss compares with. The drawn world
is the default source, a folder of videos the other.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import multiprocessing as mp
from tqdm import tqdm

from emotion import emotion_curve
from keyface import KeyFace
from stage import Config, StageConfig
from tools.checkpoint import load_config
from tools.cli import InputError, end_with_parent, make_folder, replacing
from tools.media import FRAME_SAMPLES, read_audio, read_video


class Recording(Protocol):
    """One clip of a source: N frames at 25 fps."""

    wave: np.ndarray  # (640 N,) float32, 16 kHz
    emotion: np.ndarray  # (N, 2) valence, arousal in [-1, 1]

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
        self.emotion = emotion_curve("neutral", n)
        table = path.with_suffix(".csv")
        if table.exists():
            try:
                with open(table, newline="", encoding="utf-8-sig") as file:
                    rows = [(row["valence"], row["arousal"]) for row in csv.DictReader(file)]
                self.emotion = emotion_curve(np.array(rows, np.float32), n)
            except (KeyError, TypeError, ValueError, csv.Error, InputError):
                raise InputError(f"{table}: a row a frame is expected, with valence and arousal "
                                 "between -1 and 1") from None

    def frames(self, indices: list[int]) -> Tensor:
        return torch.from_numpy(self.pixels[indices]).permute(0, 3, 1, 2) / 127.5 - 1

    def portrait(self, rng: np.random.Generator, window: list[int]) -> Tensor:
        # Outside the window's span if possible. From a frame close to its targets the model would
        # learn to copy mouth and emotion instead of listening.
        times = range(len(self.emotion))
        outside = [t for t in times if not window[0] <= t <= window[-1]]
        outside = outside or [t for t in times if t not in window]
        return self.frames([int(rng.choice(outside))])[0]


class ToySource:
    """The drawn world: endless clips made from a seed."""

    def __init__(self, split: str, size: int, seconds: float = 8.0):
        self.split, self.size, self.seconds = split, size, seconds

    def clip(self, index: int) -> "ToyClip":
        from toy import world  # the only place in the root that knows it
        kind = world.kind_of(index) if self.split == "train" else None
        return ToyClip(world, world.make_clip(index, self.split, self.seconds, kind), self.size)


class ToyClip:
    def __init__(self, world, clip, size: int):
        self.world, self.clip, self.size = world, clip, size
        self.wave, self.emotion = clip.wave, clip.emotion

    def frames(self, indices: list[int]) -> Tensor:
        return self.world.frames(self.clip, indices, self.size)

    def portrait(self, rng: np.random.Generator, window: list[int]) -> Tensor:
        return self.world.portrait(self.clip, self.size, rng)


def open_source(data: str | None, split: str, size: int) -> FolderSource | ToySource:
    """The source of `--data`: a folder of videos, or without one the drawn world."""
    return FolderSource(data, split, size) if data else ToySource(split, size)


# ---- windows ----------------------------------------------------------------------------------


@dataclass
class Windows:
    """n windows of one stage, in memory."""

    latents: Tensor  # (n, T, C, h, w) fp16, clean
    identity: Tensor  # (n, C, h, w) fp16
    audio_tokens: Tensor  # (n, T, 2, D_a) fp16
    emotion: Tensor  # (n, T, 2) valence, arousal
    pixels: Tensor  # (n, T, 3, H, W) uint8

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, size: int, step: int, seed: int) -> "Windows":
        """Batch number `step` of an endless random order, every window once before any twice. The
        order follows from seed and step alone, so a resumed training goes on where it stopped."""
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
               for name in ("latents", "audio_tokens", "emotion", "pixels")}
        return Windows(identity=self.identity[rows], **one)

    def to(self, device: torch.device) -> "Windows":
        """On `device`, as torch's default numbers (float32); pixels in [-1, 1]."""
        kind = torch.get_default_dtype()
        values = {name: getattr(self, name).to(device, kind) for name in self.__dataclass_fields__}
        values["pixels"] = values["pixels"] / 127.5 - 1
        return Windows(**values)


@torch.no_grad()
def make_windows(source: FolderSource | ToySource, model: KeyFace, stage: StageConfig,
                 clips: Iterable[int], seed: int, per_clip: int,
                 done: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
    """`per_clip` windows of T frames, `stage.spacing` apart, of each clip: the fields of `Windows`.
    `done` is called after each clip."""
    span = (stage.frames - 1) * stage.spacing + 1
    rows: dict[str, list[Tensor]] = {name: [] for name in Windows.__dataclass_fields__}
    audio = model.interp_audio if stage.interpolation else model.audio
    for index in clips:
        clip = source.clip(index)
        rng = np.random.default_rng((seed, index, stage.spacing))
        room = len(clip.emotion) - span  # how far the first frame of a window may move
        done()
        if room < 0:
            continue
        audio_tokens = audio.encode(torch.from_numpy(clip.wave), 0, len(clip.emotion))
        for first in rng.choice(room + 1, min(per_clip, room + 1), replace=False):
            window = list(range(int(first), int(first) + span, stage.spacing))
            pictures = clip.frames(window)  # (T, 3, H, W)
            # Interpolation ignores the identity frame.
            face = pictures[0] if stage.interpolation else clip.portrait(rng, window)
            pictures = torch.cat([face[None], pictures])
            noise = rng.standard_normal((len(pictures), *stage.latent_shape), dtype=np.float32)
            latents = model.vae.to_latents(pictures, torch.from_numpy(noise))  # (1 + T, C, h, w)
            rows["identity"].append(latents[0].half())
            rows["latents"].append(latents[1:].half())
            rows["audio_tokens"].append(audio_tokens[window].half())
            rows["emotion"].append(torch.from_numpy(clip.emotion[window]).float())
            rows["pixels"].append(((pictures[1:] + 1) * 127.5).round().clamp(0, 255).byte())
    return {name: torch.stack(values) for name, values in rows.items()} if rows["latents"] else {}


def _work(rank: int, workers: int, source: FolderSource | ToySource, weights: Path,
          stage: StageConfig, clips: range, seed: int, per_clip: int, folder: Path,
          count: Synchronized) -> None:
    """One of several processes: makes the windows of every `workers`-th clip, as a file."""
    end_with_parent()
    torch.set_num_threads(1)

    def done() -> None:
        with count.get_lock():
            count.value += 1

    error = folder / "error"  # which also ends the other processes' work
    mine = takewhile(lambda _: not error.exists(), clips[rank::workers])
    try:
        model = KeyFace.load_frozen(weights)
        save_file(make_windows(source, model, stage, mine, seed, per_clip, done),
                  folder / str(rank))
    except InputError as problem:
        error.write_text(str(problem))


def prepare(cache: Path, source: FolderSource | ToySource, weights: Path, stage: StageConfig,
            count: int, seed: int = 0, per_clip: int = 2, first: int = 0,
            workers: int = min(os.cpu_count() or 1, 16)) -> Windows:
    """About `count` windows for `stage`: from the folder `cache`, if an earlier run left them there
    that were made with the same frozen weights and settings, else made by several processes, with a
    progress bar, and kept. Raises InputError for clips that cannot be read or are all shorter than
    a window, OSError where a process was killed."""
    config = load_config(Config, weights)
    audio = (stage.interpolation and config.interp_audio) or config.audio
    made_with = hashlib.sha256(repr((vars(source), config.vae, audio, stage.frames, stage.spacing,
                                     seed, per_clip, first, list(Windows.__dataclass_fields__),
                                     )).encode())
    for name in config.frozen():
        made_with.update((weights / f"{name}.safetensors").read_bytes())
    kind = "interp" if stage.interpolation else "keyframe"
    path = cache / f"{kind}-{source.split}-{count}-{made_with.hexdigest()[:12]}.safetensors"
    if path.exists():
        return Windows(**load_file(path))
    make_folder(cache)
    clips = range(first, first + -(-count // per_clip))
    workers = min(workers, -(-len(clips) // 16))  # starting one takes seconds
    with replacing(path) as temporary:
        folder, made = temporary.parent, mp.get_context("spawn").Value("i", 0)
        arguments = (workers, source, weights, stage, clips, seed, per_clip, folder, made)
        try:
            running = mp.spawn(_work, arguments, nprocs=workers, daemon=True, join=False)
            # (disable=None: no bar where the output is no terminal)
            with tqdm(desc=f"{source.split} clips", total=len(clips), disable=None) as bar:
                while not running.join(timeout=0.5):
                    bar.update(made.value - bar.n)
                bar.update(made.value - bar.n)
        except mp.ProcessExitedException:
            raise OSError("a process that prepared windows was killed, most likely for want of "
                          "memory; try again with more of it free") from None
        if (folder / "error").exists():
            raise InputError((folder / "error").read_text())
        shards = [shard for rank in range(workers) if (shard := load_file(folder / str(rank)))]
        if not shards:
            raise InputError(f"--data: no {source.split} video is as long as a window, "
                             f"{(stage.frames - 1) * stage.spacing + 1} frames; give longer ones")
        whole = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        save_file(whole, temporary)
    return Windows(**whole)
