"""The picture and the sound that `sample.py` uses by default: `python -m toy.example [assets]`.

Drawn and spoken in the toy world by a person, a voice and sentences that no model is trained on:
a sentence, a laugh and more sentences, 8 seconds in all.
"""

import re
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image

from tools.cli import InputError, Parser, make_folder, replacing, run
from tools.media import SAMPLE_RATE
from toy import faces, voices, world
from toy.vocalisations import KINDS, vocalise

PERSON, VOICE, SECONDS = 16, 6, 8.0


def sound() -> np.ndarray:
    """Speech with a laugh in it, (128000,) float32."""
    rng = np.random.default_rng(VOICE)
    voice = voices.random_voice(rng, "test")
    parts, quiet = [], np.zeros(round(0.15 * SAMPLE_RATE), np.float32)
    for item in ("speech", "laugh", "speech", "speech", "speech"):
        if item == "speech":
            parts.append(voices.speak(voices.random_sentence(rng, "test"), voice).wave)
        else:
            parts.append(vocalise(item, rng, voice.pitch_hz)[0])
        parts.append(quiet)
    wave = np.concatenate([quiet, *parts])[: round(SECONDS * SAMPLE_RATE)]
    return np.pad(wave, (0, round(SECONDS * SAMPLE_RATE) - len(wave)))


def person(rng: np.random.Generator) -> np.ndarray:
    """A face at rest, (256, 256, 3) uint8."""
    picture = faces.draw(
        torch.from_numpy(faces.random_identity(rng)), torch.as_tensor(faces.REST)[None], 256)
    return world.to_bytes(picture)[0]


def say(text: str, rng: np.random.Generator) -> np.ndarray:
    """A text in some voice, (L,) float32; of "[laugh]", "[sigh]" and their like it makes the sound.
    Raises InputError for a sound that is not known, and where there is nothing to say."""
    voice, parts = voices.random_voice(rng, "test"), []
    for i, part in enumerate(re.split(r"\[(.*?)\]", text)):     # every second one was in brackets
        if i % 2 and part not in KINDS:
            raise InputError(f"[{part}] is no sound here; known: {', '.join(KINDS)}")
        if i % 2:
            parts.append(vocalise(part, rng, voice.pitch_hz)[0])
        elif part.strip():
            parts.append(voices.speak(part, voice).wave)
    if not parts:
        raise InputError("there is nothing to say yet; type some words")
    quiet = np.zeros(round(0.15 * SAMPLE_RATE), np.float32)
    return np.concatenate([quiet, *(half for part in parts for half in (part, quiet))])


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("assets"))
    folder = parser.parse_args(argv).folder
    make_folder(folder)

    rng = np.random.default_rng((PERSON, world.SPLITS.index("test")))
    with replacing(folder / "face.png") as temporary:
        Image.fromarray(person(rng)).save(temporary)
    samples = (np.clip(sound(), -1, 1) * 32767).astype("<i2").tobytes()
    with replacing(folder / "speech.flac") as temporary:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "s16le",
                   "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "pipe:0", str(temporary)]
        subprocess.run(command, input=samples, check=True)
    print(f"wrote {folder / 'face.png'} and {folder / 'speech.flac'}")


if __name__ == "__main__":
    sys.exit(run(main))
