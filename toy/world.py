"""The toy world: clips of drawn people who speak, laugh and change their emotion, all of it known.

Stands in for the paper's dataset. A clip is made from a seed alone: sound (L,) at 16 kHz; identity
(D,), state (N, 15) and emotion (N, 2) at 25 fps; labels of phoneme, viseme and sound event.
Pictures are drawn on demand. `python -m toy.world DIR` writes example clips and their truth.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools import cli
from tools.cli import Parser, number, run
from tools.media import FPS, FRAME_SAMPLES, SAMPLE_RATE, frame_count, write_video
from toy import faces, voices
from toy.faces import STATE
from toy.vocalisations import KINDS, vocalise

SPLITS = ("train", "test")
EVENTS = ("silence", "speech", *KINDS)  # classes of sound event
COLUMN = {name: i for i, name in enumerate(STATE)}
LOWEST = np.array([0, 0, 0, -1, 0, 0, -1, -1, 0, 0, -1, -1, -1, -1, -1], np.float32)
HIGHEST = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1.2, 1, 1, 1, 1, 1, 1], np.float32)


@dataclass
class Clip:
    """One person for N = ceil(L / 640) frames, with the truth about every frame."""

    seed: int
    split: str
    wave: np.ndarray  # (L,) float32, 16 kHz, in [-1, 1]
    identity: np.ndarray  # (D,) float32 in [0, 1]
    state: np.ndarray  # (N, 15) float32, columns of STATE
    emotion: np.ndarray  # (N, 2) float32: valence, arousal in [-1, 1]
    phoneme: np.ndarray  # (2N,) int64: index into voices.PHONEMES, every 20 ms
    viseme: np.ndarray  # (N,) int64: index into voices.VISEME_CLASSES
    event: np.ndarray  # (N,) int64: index into EVENTS


def random_emotion(rng: np.random.Generator, n_frames: int) -> np.ndarray:
    """Valence and arousal, each linear between 1 to 4 random points in time: (N, 2) in [-1, 1]."""
    curves = []
    for _ in range(2):
        knots = rng.integers(1, 5)
        times = np.sort(rng.uniform(0, n_frames, knots))
        curves.append(np.interp(np.arange(n_frames), times, rng.uniform(-1, 1, knots)))
    return np.stack(curves, axis=1).astype(np.float32)


def emotional_face(emotion: np.ndarray) -> np.ndarray:
    """The face of an emotion: (N, 2) -> (N, 15). The smile shows valence; eyes and brow height show
    arousal."""
    valence, arousal = emotion.T
    state = np.tile(faces.REST, (len(emotion), 1))
    state[:, COLUMN["smile"]] = 0.8 * valence
    state[:, COLUMN["cheek"]] = 0.5 * valence.clip(0)
    state[:, COLUMN["brow_slope"]] = (
        -0.9 * (-valence).clip(0) * np.tanh(2 * arousal)
    )  # sad when calm, angry when roused
    state[:, COLUMN["brow_height"]] = 0.7 * arousal
    state[:, COLUMN["eye_open"]] = 0.775 + 0.325 * arousal
    return state


def _drift(rng: np.random.Generator, n_frames: int, seconds: float) -> np.ndarray:
    """Smooth noise (N,) of standard deviation about 1 that changes over `seconds`."""
    width = seconds * FPS / 2
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    return np.convolve(
        rng.standard_normal(n_frames + 2 * reach), kernel / np.linalg.norm(kernel), "valid"
    )


def _idle(rng: np.random.Generator, n_frames: int) -> dict[str, np.ndarray]:
    """Slow movements {state name: (N,)} of gaze and head, and "blink" (N,), 1 for shut eyes."""
    idle = {
        "head_x": 0.22 * _drift(rng, n_frames, 1.2),
        "head_y": 0.15 * _drift(rng, n_frames, 1.2),
        "tilt": 0.22 * _drift(rng, n_frames, 1.5),
        "gaze_x": 0.25 * _drift(rng, n_frames, 0.8),
        "gaze_y": 0.15 * _drift(rng, n_frames, 0.8),
        "blink": np.zeros(n_frames),
    }
    start = rng.uniform(0, 3) * FPS
    while start < n_frames:
        blink = [0.6, 1, 1, 0.5] if rng.random() < 0.5 else [0.7, 1, 0.5]
        here = slice(int(start), int(start) + len(blink))
        idle["blink"][here] = blink[: n_frames - here.start]
        start += rng.uniform(2, 5) * FPS
    return idle


def _contents(rng: np.random.Generator, kind: str | None, count: int) -> list[str]:
    """What follows on what: "speech" or one of KINDS, more than a clip can hold."""
    if kind is not None:
        return [kind] * count
    contents = ["speech"] * count
    draw = rng.random()
    if draw < 1 / 6:  # mostly vocalisations
        contents = [rng.choice(KINDS) if rng.random() < 0.8 else "speech" for _ in contents]
    elif draw < 2 / 3:  # one or two of them between sentences
        for _ in range(rng.integers(1, 3)):
            contents.insert(rng.integers(0, 3), rng.choice(KINDS))
    return contents


def kind_of(seed: int) -> str | None:
    """`kind` of clips to learn from: every fifth holds one vocalisation only, which are rare in the
    mix and move the head fastest."""
    return KINDS[seed // 5 % len(KINDS)] if seed % 5 == 0 else None


def make_clip(
    seed: int, split: str = "train", seconds: float = 8.0, kind: str | None = None
) -> Clip:
    """A clip, from its seed alone.

    kind: None for the mix of training (sentences, vocalisations between them), "speech" for
    sentences only, or one of KINDS for that vocalisation only. The emotion depends on neither sound
    nor identity; arousal alone is heard a little.
    """
    stream = [np.random.default_rng([seed, SPLITS.index(split), i]) for i in range(6)]
    length = round(seconds * SAMPLE_RATE)
    n_frames = frame_count(length)
    identity = faces.random_identity(stream[0])
    emotion = random_emotion(stream[1], n_frames)
    idle = _idle(stream[2], n_frames)
    voice = voices.random_voice(stream[3], split)

    wave = np.zeros(
        n_frames * FRAME_SAMPLES + 30 * SAMPLE_RATE, np.float32
    )  # longer than any item beyond the end
    event = np.zeros(n_frames, np.int64)
    phonemes: list[voices.Phoneme] = []
    gestures = np.zeros((n_frames, len(STATE)), np.float32)
    rng = stream[4]
    position = round(rng.uniform(0.05, 0.6) * SAMPLE_RATE)
    for item in _contents(rng, kind, max(40, int(seconds))):  # of a second or more each
        if position >= length:
            break
        frame = position // FRAME_SAMPLES
        if item == "speech":
            sentence, arousal = voices.random_sentence(rng, split), float(emotion[frame, 1])
            speech = voices.speak(sentence, voice, arousal)
            sound, start = speech.wave, position / SAMPLE_RATE
            phonemes += [
                (start + a, start + b, symbol, stressed)
                for a, b, symbol, stressed in speech.phonemes
            ]
        else:
            sound, gesture = vocalise(item, rng, voice.pitch_hz)
            position = frame * FRAME_SAMPLES
            event[frame : frame + frame_count(len(sound))] = EVENTS.index(item)
            for name, amount in gesture.items():
                amount = amount[: n_frames - frame]
                gestures[frame : frame + len(amount), COLUMN[name]] = amount
        wave[position : position + len(sound)] = sound
        position += len(sound) + round(rng.uniform(0.2, 0.8) * SAMPLE_RATE)
    wave = wave[:length]

    state = emotional_face(emotion)
    mouth = voices.mouth_track(phonemes, n_frames)
    lively = 1 + 0.3 * emotion[:, 1]
    mouth[:, 0] *= lively
    state[:, [COLUMN[name] for name in ("jaw", "width", "rounding", "bite", "tongue")]] = mouth
    for name in ("head_x", "head_y", "tilt", "gaze_x", "gaze_y"):
        state[:, COLUMN[name]] += idle[name] * (lively**1.5 if "gaze" not in name else 1)
    middle = (np.arange(n_frames) + 0.5) / FPS
    for start, end, symbol, stressed in phonemes:
        if stressed and symbol in voices.VOWELS:  # a small nod
            state[:, COLUMN["head_y"]] += (
                0.14 * lively * np.exp(-0.5 * ((middle - (start + end) / 2) / 0.09) ** 2)
            )
    state += gestures
    state[:, COLUMN["eye_open"]] *= 1 - idle["blink"]
    state = np.clip(state, LOWEST, HIGHEST).astype(np.float32)

    viseme = voices.viseme_track(phonemes, n_frames)
    phoneme = np.zeros(2 * n_frames, np.int64)
    for start, end, symbol, _ in phonemes:
        phoneme[max(0, round(start * 50)) : max(0, round(end * 50))] = voices.PHONEMES.index(symbol)
    event[viseme > 0] = EVENTS.index("speech")

    if stream[5].random() < 0.8:
        wave = voices.acoustics(wave, stream[5])
    return Clip(seed, split, wave, identity, state, emotion, phoneme, viseme, event)


def frames(clip: Clip, indices: list[int] | np.ndarray, size: int) -> Tensor:
    """Pictures of some frames of a clip: (n, 3, size, size) in [-1, 1]."""
    return faces.draw(
        torch.from_numpy(clip.identity), torch.from_numpy(clip.state[np.asarray(indices)]), size
    )


def portrait(clip: Clip, size: int, rng: np.random.Generator) -> Tensor:
    """The clip's person at another moment: (3, size, size) in [-1, 1].

    Eyes open, mouth shut or a little open; emotion, pose and gaze have nothing to do with the clip,
    so that a model can take nothing but the identity from it.
    """
    state = emotional_face(rng.uniform(-1, 1, (1, 2)))
    for name, reach in (
        ("gaze_x", 0.6),
        ("gaze_y", 0.4),
        ("head_x", 0.6),
        ("head_y", 0.5),
        ("tilt", 0.6),
    ):
        state[0, COLUMN[name]] = rng.uniform(-reach, reach)
    state[0, COLUMN["jaw"]] = max(0, rng.uniform(-0.2, 0.25))
    return faces.draw(torch.from_numpy(clip.identity), torch.from_numpy(np.float32(state)), size)[0]


def to_bytes(pictures: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8."""
    return ((pictures.movedim(-3, -1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def write_clip(clip: Clip, stem: Path, size: int) -> None:
    """`stem`.mp4 (the clip), .csv (its truth, a row a frame), .landmarks.npy (of each frame, as
    evaluation/mouths.py reads them) and .png (the portrait)."""
    import imageio.v3 as iio

    n_frames = len(clip.state)
    write_video(
        stem.with_suffix(".mp4"),
        (to_bytes(frames(clip, [i], size))[0] for i in range(n_frames)),
        clip.wave,
        size,
    )
    points = faces.landmarks(torch.from_numpy(clip.identity), torch.from_numpy(clip.state), size)
    with cli.replacing(stem.with_suffix(".landmarks.npy")) as temporary:
        np.save(temporary, points.numpy())
    rng = np.random.default_rng([clip.seed, SPLITS.index(clip.split), 6])
    with cli.replacing(stem.with_suffix(".png")) as temporary:
        iio.imwrite(temporary, to_bytes(portrait(clip, size, rng)))
    with (cli.replacing(stem.with_suffix(".csv")) as temporary,
          temporary.open("w", newline="") as file):
        table = csv.writer(file)
        table.writerow(["seconds", "valence", "arousal", *STATE, "viseme", "event"])
        for i in range(n_frames):
            numbers = [f"{x:.3f}" for x in (i / FPS, *clip.emotion[i], *clip.state[i])]
            table.writerow([*numbers, voices.VISEME_CLASSES[clip.viseme[i]], EVENTS[clip.event[i]]])


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="python -m toy.world", description="Write example clips and their truth."
    )
    parser.add_argument("dir", type=Path, help="folder to write into")
    parser.add_argument("--clips", type=number(int, 1, 10**6), default=6,
                        help="how many (default 6)")
    parser.add_argument("--seconds", type=number(float, 0.04, 3600), default=8,
                        help="length of each (default 8)")
    parser.add_argument(
        "--seed",
        type=number(int, 0, 10**9),
        default=0,
        help="seed of the first clip, the next has the next (default 0)",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="whose voices and sentences (default test)"
    )
    parser.add_argument(
        "--kind",
        choices=("speech", *KINDS),
        help="only this sound (default: a mix, as in training)",
    )
    parser.add_argument(
        "--size", type=number(int, 16, 4096), default=256,
        help="side of the pictures in pixels, even (default 256)",
    )
    args = parser.parse_args(argv)
    cli.make_folder(args.dir)
    for i in range(args.clips):
        stem = args.dir / f"clip_{i:03d}"
        write_clip(make_clip(args.seed + i, args.split, args.seconds, args.kind), stem, args.size)
        print(f"{stem}.mp4 .csv .landmarks.npy .png")


if __name__ == "__main__":
    sys.exit(run(main))
