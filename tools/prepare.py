"""Clips on disk: what the frozen networks make of videos, or of the drawn world, once for all.

`prepare` writes a *cache*, a folder that `data.py` reads: manifest.json, and under shards/ one
safetensors file (a shard) for each clip of N frames, of which M have pictures:

    mean, logvar    (M, C, h, w) fp16   the autoencoder's Gaussian of each picture, unscaled
    times           (M,) int64          the frame that a picture shows; -1: a portrait of the person
    audio_tokens    (N, 2, D_a) fp16    of the keyframe stage
    interp_tokens   (N, 2, D_a) fp16    of the interpolation, where it hears with another encoder
    emotion         (N, 2) float32      valence and arousal
    jpegs, ends     (bytes,) uint8, (M,) int64    the pictures, one after the other, and their ends

Of videos all frames are kept. The drawn world is asked for those frames alone that its windows
need, as drawing costs more than all the rest, and adds portraits in another pose and emotion.
"""

import csv
import hashlib
import io
import json
import math
import os
import re
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from emotion import emotion_curve
from keyface import KeyFace
from stage import Config
from tools.checkpoint import load_config, save_part, save_text
from tools.cli import (
    CORES,
    InputError,
    crop,
    end_with_parent,
    explained,
    make_folder,
    warn,
    without_interrupts,
)
from tools.media import FPS, VIDEOS, frame_count, read_audio, video_blocks, video_shape

VERSION = 1  # of all that is told above
PIECE = 1500  # frames of a clip at most: an hour's video becomes 60 clips
AT_ONCE = 25  # pictures of 128 x 128 in the autoencoder at a time, of larger ones fewer
SPEECH = "speech"  # the kind of what has none
DRAWN_CLIPS, DRAWN_TEST = 1600, 32  # of the drawn world, to learn from and held out
DRAWN_FIRST, DRAWN_HELD_OUT = 1_000_000, 30_000_000  # seeds
DRAWN_SECONDS = 8


class Piece(NamedTuple):
    """A clip of N frames before it is encoded."""

    wave: np.ndarray  # (L,) float32, 16 kHz: the whole recording that it is a piece of
    first: int  # its first frame in there
    emotion: np.ndarray  # (N, 2)
    kind: str  # what is heard in it; kinds have equal weight in training
    times: list[int]  # (M,) the frames of the pictures, counted from its first; -1: a portrait
    pictures: np.ndarray  # (M, H, W, 3) uint8


class Source(Protocol):
    """Recordings, numbered from 0."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def held_out(self, index: int) -> bool: ...

    def key(self, index: int) -> str:
        """Changes when anything that goes into the recording's clips changes; quickly told."""

    def content(self, index: int) -> str:
        """SHA-256 of what goes in, for the manifest."""

    def pieces(self, index: int) -> Iterable[Piece]:
        """Its clips. Raises InputError where it cannot be used."""


def _sha(*things: object) -> str:
    return hashlib.sha256(repr(things).encode()).hexdigest()


# ---- a folder of videos -----------------------------------------------------------------------


def square_beside(path: Path) -> tuple[int, int, int] | None:
    """Left, top and side of the square to use of a video, where NAME.crop.csv beside it says so.
    Raises InputError for a table that does not."""
    table = path.with_suffix(".crop.csv")
    if not table.exists():
        return None
    rows = _rows(table, ("left", "top", "side"))
    with suppress(Exception):  # of numbers that are no such square, or more than one
        [(square, _)] = rows
        return crop(",".join(f"{value:g}" for value in square))
    raise InputError(f"{table}: one row of whole numbers of pixels is expected, as in 40,0,300")


def square_of(path: Path) -> tuple[int, int, int]:
    """The square to use of a video where nothing is said of its folder: the one that is named
    beside it, else the middle one."""
    width, height, _ = video_shape(path)
    side = min(width, height)
    return square_beside(path) or ((width - side) // 2, (height - side) // 2, side)


def blocks_of(path: Path, size: int, length: int) -> Iterator[np.ndarray]:
    """`video_blocks` of the square that is named beside the video, else of the middle one."""
    return video_blocks(path, size, square_beside(path), length)


def first_frames(paths: Iterable[Path], size: int) -> np.ndarray:
    """Of those videos that can be read: (n, size, size, 3) uint8. The others are left out silently,
    so whoever reads on has to tell of them."""
    found = [np.zeros((0, size, size, 3), np.uint8)]
    for path in paths:
        with suppress(InputError):
            found.append(next(blocks_of(path, size, 1)))
    return np.concatenate(found)


def add_video_options(parser: ArgumentParser) -> None:
    """--crop and --speakers, which go to `Videos`."""
    parser.add_argument("--crop", type=crop, metavar="X,Y,SIDE", help="the square of all videos to "
                        "use, in their pixels, where NAME.crop.csv names no other (default: the "
                        "middle)")
    parser.add_argument("--speakers", metavar="PATTERN", help="regular expression that finds the "
                        "speaker in a video's name: nobody is both learned from and held out")


class Videos:
    """The videos in a folder and its subfolders (but for linked ones). Beside NAME.mp4 there may be

        NAME.csv        seconds,valence,arousal[,kind]: emotion is linear between rows, and a kind
                        of sound (laugh, sigh, ...) holds until the next row; neutral without
        NAME.crop.csv   left,top,side: the square of the picture to use, in its pixels

    Every tenth video by name is held out, or, with `speakers`, all videos of every tenth speaker: a
    regular expression that finds the speaker in a video's name. Raises InputError for a folder or
    files beside the videos that cannot be used.
    """

    def __init__(self, folder: Path, size: int, square: tuple[int, int, int] | None = None,
                 speakers: str | None = None):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give one of videos")
        self.folder, self.size, self.square = folder, size, square
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEOS
                            and p.is_file() and not p.name.startswith("."))
        if not self.paths and (folder / "shards").is_dir():
            raise InputError(f"{folder}: is a cache that was not finished; run the same python "
                             f"data.py ... --out {folder} again")
        if len(self.paths) < 2:
            raise InputError(f"{folder}: holds {len(self.paths) or 'no'} videos "
                             f"({', '.join(VIDEOS)}); give two or more, of which one is held out")
        self.speakers = [self._speaker(i, speakers) for i in range(len(self))]
        different = sorted(set(self.speakers))
        if len(different) < 2:
            raise InputError(f'--speakers: "{speakers}" finds one speaker only, {different[0]}; '
                             "give a pattern that tells them apart, or leave it out")
        self.apart = set(different[::10])
        for path in self.paths:  # mistakes beside the videos are told before hours of work
            self.table(path)
            square_beside(path)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index].relative_to(self.folder).as_posix()

    def _speaker(self, index: int, pattern: str | None) -> str:
        if not pattern:
            return self.name(index)
        try:
            found = re.search(pattern, self.name(index))
        except re.error as error:
            raise InputError(f'--speakers: "{pattern}" is no regular expression ({error})'
                             ) from None
        if not found:
            raise InputError(f'--speakers: "{pattern}" finds nothing in {self.name(index)}')
        return found[1] or found[0] if found.re.groups else found[0]

    def held_out(self, index: int) -> bool:
        return self.speakers[index] in self.apart

    def table(self, path: Path) -> tuple[np.ndarray, list[str]] | None:
        """The rows of NAME.csv: (n, 3) seconds, valence, arousal, and the kinds."""
        table = path.with_suffix(".csv")
        if not table.exists():
            return None
        rows = _rows(table, ("seconds", "valence", "arousal"))
        numbers = np.array([row[0] for row in rows])
        if not (np.diff(numbers[:, 0]) > 0).all():
            raise InputError(f"{table}: the seconds do not rise from row to row")
        if (np.abs(numbers[:, 1:]) > 1).any():
            raise InputError(f"{table}: valence and arousal must lie between -1 and 1")
        return numbers, [(row[1].get("kind") or "").strip() or SPEECH for row in rows]

    def _beside(self, path: Path) -> str:
        return repr([p.read_text(encoding="utf-8-sig") for ending in (".csv", ".crop.csv")
                     if (p := path.with_suffix(ending)).exists()] + [self.square, self.size])

    def key(self, index: int) -> str:
        path = self.paths[index]
        stat = path.stat()
        return _sha(stat.st_size, stat.st_mtime_ns, self._beside(path), VERSION)

    def content(self, index: int) -> str:
        digest = hashlib.sha256()
        with open(self.paths[index], "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return _sha(digest.hexdigest(), self._beside(self.paths[index]))

    def pieces(self, index: int) -> Iterator[Piece]:
        path = self.paths[index]
        wave = read_audio(path)
        heard = frame_count(len(wave))
        table, first = self.table(path), 0
        for block in video_blocks(path, self.size, square_beside(path) or self.square, PIECE):
            pictures = block[:heard - first]
            n = len(pictures)
            if mute := len(block) - n > FPS:
                warn(f"{path}: its sound ends at {heard / FPS:.1f} s; pictures after it are left "
                     "out")
            if not n:
                break
            emotion, kind = emotion_curve("neutral", n), SPEECH
            if table:
                now = (first + np.arange(n)) / FPS
                if (end := table[0][-1, 0]) < now[-1] - 1:
                    raise InputError(f"{path.with_suffix('.csv')}: ends at {end:g} s of "
                                     f"{now[-1]:.1f} or more; give rows up to the end")
                emotion = np.stack([np.interp(now, table[0][:, 0], column)
                                    for column in table[0][:, 1:].T], 1).astype(np.float32)
                # A clip is of the kind that is heard longest in it and is not speech.
                rows = (np.searchsorted(table[0][:, 0], now, "right") - 1).clip(0)
                others = [k for k in (table[1][row] for row in rows) if k != SPEECH]
                kind = max(sorted(set(others)), key=others.count, default=SPEECH)
            yield Piece(wave, first, emotion, kind, list(range(n)), pictures)
            if mute:  # (of a second or less the next block tells, if there is one)
                break
            first += n


def _rows(table: Path, columns: tuple[str, ...]) -> list[tuple[list[float], dict[str, str]]]:
    """The rows of a table: the numbers of these columns, and all cells. Raises InputError."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = [([float(row[name]) for name in columns], row) for row in csv.DictReader(file)]
        if rows and all(math.isfinite(value) for numbers, _ in rows for value in numbers):
            return rows
    except (KeyError, TypeError, ValueError, csv.Error):
        pass
    raise InputError(f"{table}: rows of numbers under the names {','.join(columns)} are expected, "
                     "none of them empty")


# ---- the drawn world --------------------------------------------------------------------------


class DrawnWorld:
    """`count` clips of the drawn world to learn from, then some held-out ones of other people. Each
    has two windows of keyframes, and all frames of three of the segments between them. Of windows
    of consecutive frames, which are short, it has four."""

    SEGMENTS, PORTRAITS = 3, 2

    def __init__(self, count: int, config: Config):
        self.count, self.size, self.stage = count, config.size, config.keyframe
        self.windows = 4 if self.stage.chained else 2
        # Frames from the first to the last of a window, which chained models need one more of.
        # Where keyframes are far apart, clips are longer.
        self.span = (self.stage.frames - 1) * self.stage.spacing + 1 + self.stage.chained
        self.seconds = DRAWN_SECONDS * -(-self.span // (DRAWN_SECONDS * FPS))

    def __len__(self) -> int:
        return self.count + DRAWN_TEST

    def held_out(self, index: int) -> bool:
        return index >= self.count

    def _seed(self, index: int) -> int:
        """All clips are of the train split, held-out ones too, so that the test split's voices and
        words are first heard in the evaluation; the audio encoders learned from none of them."""
        return DRAWN_HELD_OUT + index - self.count if self.held_out(index) else DRAWN_FIRST + index

    def name(self, index: int) -> str:
        return f"drawn/{self._seed(index)}"

    @cached_property
    def _code(self) -> str:
        """All of the drawn world's code: another world makes other clips."""
        here = Path(__file__).resolve().parents[1] / "toy"
        return _sha([(here / f"{name}.py").read_text(encoding="utf-8")
                     for name in ("faces", "voices", "vocalisations", "world")])

    def key(self, index: int) -> str:
        return _sha(self.name(index), self.size, self.stage.frames, self.stage.spacing,
                    self.windows, self.SEGMENTS, self.PORTRAITS, self._code, VERSION)

    content = key

    def pieces(self, index: int) -> Iterator[Piece]:
        from toy import world  # the only place outside toy/ that knows it

        seed = self._seed(index)
        kind = None if self.held_out(index) else world.kind_of(seed)
        clip, rng = world.make_clip(seed, "train", self.seconds, kind), np.random.default_rng(seed)
        firsts = rng.choice(len(clip.emotion) - self.span + 1, self.windows, replace=False)
        keyframes = [range(f, f + self.span, self.stage.spacing) for f in firsts]
        ends = sorted({t for window in keyframes for t in window[:-1]})
        segments = rng.choice(ends, min(self.SEGMENTS, len(ends)), replace=False)
        times = sorted({int(t) for window in keyframes for t in window}
                       | {int(a) + i for a in segments for i in range(self.stage.spacing)})
        pictures = torch.cat([world.frames(clip, times, self.size),
                              *(world.portrait(clip, self.size, rng)[None]
                                for _ in range(self.PORTRAITS))])
        yield Piece(clip.wave, 0, clip.emotion, SPEECH, times + [-1] * self.PORTRAITS,
                    world.to_bytes(pictures))


# ---- from clips to shards ---------------------------------------------------------------------


@torch.no_grad()
def encode(piece: Piece, model: KeyFace) -> dict[str, Tensor]:
    """The tensors of a shard, as told at the top."""
    means, logvars, jpegs = [], [], []
    device = next(model.vae.parameters()).device
    at_once = max(1, AT_ONCE * 128**2 // piece.pictures[0, ..., 0].size)
    for some in np.array_split(piece.pictures, -(-len(piece.pictures) // at_once)):
        images = torch.tensor(some, device=device).permute(0, 3, 1, 2) / 127.5 - 1
        posterior = model.vae.encode(images)
        means.append(posterior.mean.half().cpu())
        logvars.append(posterior.logvar.half().cpu())
        for picture in some:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
            jpegs.append(np.frombuffer(file.getvalue(), np.uint8))
    wave, stop = torch.from_numpy(piece.wave), piece.first + len(piece.emotion)
    shard = {"mean": torch.cat(means).contiguous(), "logvar": torch.cat(logvars).contiguous(),
             "times": torch.tensor(piece.times), "emotion": torch.from_numpy(piece.emotion),
             "audio_tokens": model.audio.encode(wave, piece.first, stop).half().cpu(),
             "jpegs": torch.from_numpy(np.concatenate(jpegs)),
             "ends": torch.tensor(np.cumsum([len(jpeg) for jpeg in jpegs]))}
    if model.interp_audio is not model.audio:
        shard["interp_tokens"] = model.interp_audio.encode(wave, piece.first, stop).half().cpu()
    return shard


def fingerprint(weights: Path, config: Config) -> str:
    """SHA-256 of the frozen parts of a weights folder and of what else decides over shards."""
    found = hashlib.sha256(repr((config.size, config.audio, config.interp_audio)).encode())
    for name in config.frozen():
        if not (path := weights / f"{name}.safetensors").is_file():
            raise InputError(f"{path}: no such file; give a folder that has it")
        found.update(path.read_bytes())
    return found.hexdigest()


def _record(cache: Path, source: Source, index: int) -> Path:
    """Where it is written down that a recording is done, and what became of it."""
    return cache / "shards" / f"{source.name(index)}.json"


def _done(cache: Path, source: Source, index: int, made_with: str) -> dict | None:
    """What became of a recording, if it is done with all that goes in as it is now."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(_record(cache, source, index).read_text())
        # (What could not be opened has no SHA-256, and is tried again.)
        if record["sha256"] and record["key"] == _sha(source.key(index), made_with) and all(
                (cache / clip["shard"]).stat().st_size == clip["bytes"]
                for clip in record["clips"]):
            return record
    return None


_job: tuple[Source, Path, Path, str, int] | None = None  # a worker's


def _begin(*job: object, worker: bool = True) -> None:
    """What a worker process does first."""
    global _job
    if worker:
        end_with_parent()
        torch.set_num_threads(1)
    _job = job


@lru_cache(1)
def _frozen(weights: Path, made_with: str) -> KeyFace:
    """The frozen networks, whose fingerprint is `made_with`, on a GPU if there is one."""
    model = KeyFace.load_frozen(weights)
    if torch.cuda.is_available():
        device = f"cuda:{os.getpid() % torch.cuda.device_count()}"
        for name in model.config.frozen():
            model.parts()[name].to(device)
    return model


def _work(index: int) -> None:
    """Makes the shards of one recording, and when they are there its record."""
    source, cache, weights, made_with, least = _job
    model = _frozen(weights, made_with)
    record = {"name": source.name(index), "key": _sha(source.key(index), made_with), "clips": []}
    try:
        record["sha256"] = source.content(index)
        for piece in source.pieces(index):
            if len(piece.emotion) < least:
                continue
            path = f"shards/{source.name(index)}.{len(record['clips']):03d}.safetensors"
            make_folder((cache / path).parent)  # without what killed workers left
            save_part(cache / path, encode(piece, model), half=False)
            all_there = piece.times == list(range(len(piece.emotion)))
            record["clips"].append({
                "shard": path, "bytes": (cache / path).stat().st_size, "kind": piece.kind,
                "frames": len(piece.emotion), "times": None if all_there else piece.times})
        if not record["clips"]:
            raise InputError(f"{source.name(index)}: shorter than {least} frames at {FPS} a second")
    except (InputError, PermissionError) as error:
        for clip in record["clips"]:  # of a video that only later turned out to be of no use
            (cache / clip["shard"]).unlink(missing_ok=True)
        record = {"sha256": ""} | record | {"clips": [], "left_out": explained(error)[1]}
    _record(cache, source, index).parent.mkdir(parents=True, exist_ok=True)
    save_text(_record(cache, source, index), json.dumps(record))


def prepare(source: Source, cache: Path, weights: Path,
            workers: int | None = None) -> dict:
    """Makes all clips of `source` that are not in the folder `cache` yet, by several processes and
    with a progress bar; returns the manifest. Where it is interrupted it goes on another time.
    A warning counts recordings that cannot be used, and the manifest lists them. Raises InputError
    where none can of those to learn from, or of the held-out ones, OSError where the disk is full,
    BrokenExecutor where a process is killed."""
    config = load_config(Config, weights)
    made_with = fingerprint(weights, config)
    make_folder(cache)
    todo = [i for i in range(len(source)) if not _done(cache, source, i, made_with)]
    least = config.interp.frames + 1  # a window, and one frame more for the identity
    job = (source, cache, weights, made_with, least)
    # (Starting one takes seconds, in which others draw clips; and each has the networks for itself,
    # of which a GPU holds few where they are large.)
    most = 4 * torch.cuda.device_count() if config.size > 128 else 0
    workers = min(workers or min(CORES, most or 16, -(-len(todo) // 16)), len(todo), 61)
    # (disable=None: no bar where the output is no terminal)
    with tqdm(desc="clips", total=len(source), initial=len(source) - len(todo),
              disable=None if todo else True) as bar:
        if workers == 1:
            _begin(*job, worker=False)
            for _ in map(_work, todo):
                bar.update()
        elif todo:
            with ProcessPoolExecutor(workers, get_context("spawn"), _begin, job) as pool:
                try:
                    with without_interrupts():  # (all are started here)
                        found = pool.map(_work, todo)
                    for _ in found:
                        bar.update()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    records = [json.loads(_record(cache, source, i).read_text()) for i in range(len(source))]
    clips = [clip | {"split": "test" if source.held_out(i) else "train"}
             for i, record in enumerate(records) for clip in record["clips"]]
    manifest = {"version": VERSION, "made_with": made_with, "size": config.size, "clips": clips,
                "left_out": {r["name"]: r["left_out"] for r in records if "left_out" in r},
                "inputs": {r["name"]: r["sha256"] for r in records}}
    save_text(cache / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    for held_out, purpose in ((False, "to learn from"), (True, "to be measured on")):
        of = [r for i, r in enumerate(records) if source.held_out(i) == held_out]
        if not any(r["clips"] for r in of):
            raise InputError(f"none of {len(of)} videos {purpose} can be used, as in "
                             f"{of[0]['left_out']}")
    if left_out := list(manifest["left_out"].values()):
        warn(f"{cache}: {len(left_out)} of {len(source)} videos left out, as in {left_out[0]}; all "
             "are listed in manifest.json")
    return manifest


def read_manifest(cache: Path, again: str = "") -> dict:
    """The manifest of a cache. Raises InputError for one that is damaged or of another version;
    `again` is what to run then."""
    try:
        manifest = json.loads((cache / "manifest.json").read_text())
        if manifest["version"] == VERSION:
            return manifest
        lack = "of another version"
    except FileNotFoundError:
        lack = "missing"
    except (ValueError, KeyError, TypeError):
        lack = "damaged"
    raise InputError(f"{cache / 'manifest.json'}: {lack}; run {again} again")
