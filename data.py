"""Training data: clips on disk, of which windows are cut for either stage.

`python data.py DIR --out CACHE` runs the frozen networks, the autoencoder and the audio encoders,
once over a folder of videos (without DIR: over clips of the drawn world); tools/prepare.py does it
and tells how a cache is laid out. `Clips` reads it. Only what a batch needs is read, straight from
the disk, so memory does not grow with the hours of video.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stage import Config, StageConfig
from tools import cli, prepare
from tools.checkpoint import check_readable, load_config
from tools.cli import WEIGHTS, InputError, Parser, number
from tools.media import FPS
from vae import Posterior


@dataclass
class Windows:
    """B windows of T frames."""

    latents: Tensor  # (B, T, C, h, w) clean, a sample of the autoencoder's Gaussian, scaled
    identity: Tensor  # (B, C, h, w) the same of the identity frame
    audio_tokens: Tensor  # (B, T, 2, D_a)
    emotion: Tensor  # (B, T, 2) valence, arousal
    places: list[tuple[Path, list[int]]]  # for each, its clip's file and T rows of it

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, rows: slice) -> "Windows":
        return Windows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> "Windows":
        """On `device`, in torch's default dtype (float32)."""
        kind = torch.get_default_dtype()
        tensors = (self.latents, self.identity, self.audio_tokens, self.emotion)
        return Windows(*(tensor.to(device, kind) for tensor in tensors), self.places)

    def pictures(self, count: int, frame: int) -> Tensor:
        """The pictures of frame number `frame` of the first P = `count` windows, from the disk:
        (P, 3, H, W) in [-1, 1], on the latents' device."""
        pixels = []
        for path, places in self.places[:count]:
            with reading(path) as shard:
                start, stop = (shard.get_slice("ends")[i].item() if i >= 0 else 0
                               for i in (places[frame] - 1, places[frame]))
                jpeg = shard.get_slice("jpegs")[start:stop]
                pixels.append(np.asarray(Image.open(BytesIO(jpeg.numpy().tobytes()))))
        pixels = torch.from_numpy(np.stack(pixels)).to(self.latents)
        return pixels.permute(0, 3, 1, 2) / 127.5 - 1


@contextmanager
def reading(path: Path) -> Iterator[safe_open]:
    """A shard, of which only what is asked for is read. Raises InputError for a damaged one."""
    check_readable(path)
    try:
        with safe_open(path, "pt") as shard:
            yield shard
    except (SafetensorError, OSError, IndexError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run python data.py again"
                         ) from None


class Clip(NamedTuple):
    """A clip of a cache, and where windows of a stage can begin in it."""

    shard: Path  # the clip's file
    kind: str
    times: Sequence[int]  # the frame that each row of the shard shows; -1: a portrait, for z_id
    firsts: Sequence[int]  # first frames of windows whose frames are all there


@lru_cache(32)
def _order(seed: int, kind: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, kind, epoch]).permutation(count)


class Clips:
    """The clips of one split of a cache that are at least as long as a window, in an endless random
    order. What is random follows from the seed, the number of the step and the place in the
    batch: a resumed training goes on where it stopped, and each of several processes reads its own
    rows of the batch alone.

    `scale` turns the autoencoder's unscaled latents into scaled ones. Raises InputError for a cache
    that was made with other frozen networks than those of the folder `weights`, that is damaged, or
    that has no clip as long as a window.
    """

    def __init__(self, cache: Path, split: str, stage: StageConfig, scale: Callable,
                 weights: Path, seed: int = 0):
        again = f"python data.py ... --out {cache} --init {weights}"
        manifest, config = prepare.read_manifest(cache, again), load_config(Config, weights)
        if manifest["size"] != config.size:
            raise InputError(f"{cache}: its pictures are of {manifest['size']} pixels, those of "
                             f"{weights} of {config.size}; run {again}")
        if manifest["made_with"] != prepare.fingerprint(weights, config):
            raise InputError(f"{cache}: made with another autoencoder or other audio encoders than "
                             f"those of {weights}; run {again}")
        self.scale, self.stage, self.seed = scale, stage, seed
        own = stage.interpolation and config.interp_audio
        self.tokens = "interp_tokens" if own else "audio_tokens"
        given = [clip for clip in manifest["clips"] if clip["split"] == split]
        for clip in given:
            path = cache / clip["shard"]
            if not path.is_file() or path.stat().st_size != clip["bytes"]:
                raise InputError(f"{path}: missing or cut off; run {again}")
        self.span = (stage.frames - 1) * stage.spacing + 1  # frames that a window looks at
        clips = [clip for each in given if (clip := self._clip(cache, each)).firsts]
        if not clips:
            raise InputError(f"{cache}: none of {len(given)} {split} clips is as long as a window, "
                             f"{self.span} frames; give longer videos")
        if len(clips) < len(given):
            cli.warn(f"{cache}: {len(given) - len(clips)} of {len(given)} {split} clips are left "
                     f"out, as they are shorter than a window, {self.span} frames")
        # Kinds of clips (speech, laughs, ...) are drawn with equal weight. Of a kind each clip
        # is listed once for each window that fits into it, one after the other.
        self.kinds = [[clip for clip in clips if clip.kind == kind
                       for _ in range(1 + (len(clip.firsts) - 1) // self.span)]
                      for kind in sorted({clip.kind for clip in clips})]

    def _clip(self, cache: Path, entry: dict) -> Clip:
        times, chained = entry["times"], int(self.stage.chained)  # needs the frame before, too
        if times is None:  # all are there
            times = range(entry["frames"])
            firsts = times[chained:max(0, entry["frames"] - self.span + 1)]
        else:  # (-1 marks a portrait, which is not the frame before frame 0)
            there, steps = set(times) - {-1}, range(-chained, self.span, self.stage.spacing)
            firsts = [t for t in times if t >= 0 and there.issuperset(t + i for i in steps)]
        return Clip(cache / entry["shard"], entry["kind"], times, firsts)

    def _choose(self, number: int) -> Clip:
        """The clip that comes at place `number` of the endless order: the kinds take turns, and
        each goes through its list of clips, which is shuffled anew each time."""
        turn, place = divmod(number, k := len(self.kinds))
        kind = _order(self.seed, k, turn, k)[place]  # shuffled: else a row might get one kind only
        epoch, place = divmod(turn, n := len(self.kinds[kind]))
        return self.kinds[kind][_order(self.seed, kind, epoch, n)[place]]

    def batch(self, size: int, step: int, rows: slice = slice(None)) -> Windows:
        """These rows of batch number `step`, which has `size` windows."""
        return self._read(size, step, rows, whole=True)

    def singles(self, size: int, step: int, rows: slice = slice(None)) -> Windows:
        """The same of single frames, as windows of T = 1."""
        return self._read(size, step, rows, whole=False)

    def _read(self, size: int, step: int, rows: slice, whole: bool) -> Windows:
        found = [self._window(self._choose(step * size + i),
                              np.random.default_rng([self.seed, step, i]), whole)
                 for i in range(size)[rows]]
        *tensors, places = zip(*found, strict=True)
        mean, logvar, noise, audio_tokens, emotion = map(torch.stack, tensors)
        # In training z = mean + std * noise, as the autoencoder itself was trained.
        latents = self.scale(Posterior(mean.float(), logvar.float()).sample(noise))
        return Windows(latents[:, 1:], latents[:, 0], audio_tokens, emotion, list(places))

    def _window(self, clip: Clip, rng: np.random.Generator, whole: bool) -> tuple:
        """What a window is made of: mean, log-variance and noise of the identity frame and of its T
        frames, (1 + T, C, h, w) each; audio tokens, emotion; where the frames stand."""
        # A window of keyframes is every 13th frame from a random one on, one of interpolation 14 in
        # a row. The first phase of train_keyframe.py, of the spatial half, takes single frames.
        if whole:
            first = int(rng.choice(clip.firsts))
            times = [first + i * self.stage.spacing for i in range(self.stage.frames)]
        else:
            times = [int(rng.choice([t for t in clip.times if t >= 0]))]
        # The identity frame is a portrait where there is one, else a frame outside the window's
        # span, else one between its frames: from a frame close to its targets the model would learn
        # to copy mouth and emotion instead of listening.
        def showing(wanted: Callable[[int], bool]) -> list[int]:
            return [i for i, t in enumerate(clip.times) if wanted(t)]

        others = (showing(lambda t: t < 0) or showing(lambda t: not times[0] <= t <= times[-1])
                  or showing(lambda t: t not in times))
        if self.stage.chained:  # the autoregressive baseline gets the frame before
            others = showing(lambda t: t == times[0] - 1) or others
        identity, places = int(rng.choice(others)), [clip.times.index(t) for t in times]
        # Of the shard only these places are read from the disk. The tokens and the emotion stand
        # there for each frame of the clip, the latents for those frames that were kept.
        with reading(clip.shard) as shard:
            def read(name: str, places: list[int]) -> Tensor:
                part = shard.get_slice(name)
                return torch.stack([part[place] for place in places])

            mean, logvar = (read(name, [identity, *places]) for name in ("mean", "logvar"))
            tokens, emotion = (read(name, times) for name in (self.tokens, "emotion"))
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        return mean, logvar, noise, tokens, emotion, (clip.shard, places)


def open_cache(data: Path | None, out: Path, clips: int, frozen: Path) -> Path:
    """The cache for `--data`: the folder itself if it is one, else one under `out` with all clips
    of a folder of videos, or `clips` of the drawn world, which are prepared first where they are
    not there."""
    if data and (data / "manifest.json").exists():
        return data
    config = load_config(Config, frozen)
    source = prepare.Videos(data, config.size) if data else prepare.DrawnWorld(clips, config)
    cache = out / ("cache_videos" if data else "cache_drawn")
    prepare.prepare(source, cache, frozen)
    return cache


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("dir", type=Path, nargs="?", help="folder of videos; without it, the drawn world")
    add("--out", type=Path, required=True, metavar="CACHE", help="folder to write into")
    add("--init", type=Path, default=WEIGHTS, metavar="DIR",
        help="weights folder with the frozen networks (default: the shipped one)")
    prepare.add_video_options(parser)
    add("--clips", type=number(int, 1, 10**7), default=prepare.DRAWN_CLIPS,
        help="clips of the drawn world")
    add("--workers", type=number(int, 1, 1000), help="processes that work at a time (default: as "
        "many as there are cores, at most 16, fewer for few videos)")
    args = parser.parse_args(argv)
    config = load_config(Config, args.init)
    if args.dir:
        source = prepare.Videos(args.dir, config.size, args.crop, args.speakers)
    elif args.crop or args.speakers:
        parser.error("--crop and --speakers are for videos; name their folder first")
    else:
        source = prepare.DrawnWorld(args.clips, config)
    manifest = prepare.prepare(source, args.out, args.init, args.workers)
    for split in ("train", "test"):
        clips = [clip for clip in manifest["clips"] if clip["split"] == split]
        minutes = sum(clip["frames"] for clip in clips) / FPS / 60
        print(f"{args.out}: {len(clips)} {split} clips, {minutes:.1f} minutes")


if __name__ == "__main__":
    sys.exit(cli.run(main))
