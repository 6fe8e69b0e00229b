"""What a film is made of: as a page has it, as a command line, and as lines of Python.

The last two make the same film as the page, if its files lie where they are run.
"""

import filecmp
import math
import os
import shlex
from argparse import ArgumentTypeError
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.cli import AUDIO, HERE, IMAGE, SETTINGS, InputError, crop
from tools.media import FPS, open_image, read_image

SAMPLER = ("steps", "id_guidance", "audio_guidance", "autoguidance", "seed")


def option(name: str, value: object) -> Any:
    """An option of `sample.py` from what stands in a field. Raises InputError, as the command does,
    for what cannot be used."""
    try:
        return (SETTINGS | {"crop": crop})[name](str(value))
    except ArgumentTypeError as error:
        raise InputError(f"--{name.replace('_', '-')}: {error}") from None


def seen(path: str | None, crop: str, size: int) -> np.ndarray:
    """The square of a picture that "X,Y,SIDE" chooses, (size, size, 3) uint8."""
    if not path:
        raise InputError("--image: no picture yet; choose or upload one")
    return read_image(path, size, option("crop", crop) if crop else None)


def named(path: str | Path) -> str:
    """What a file is called: a shipped one, or a copy of it, by its place in the project, another
    one by its name, for it lies in a temporary folder."""
    for shipped in (IMAGE, AUDIO):
        if os.path.isfile(path) and filecmp.cmp(path, shipped, shallow=False):
            return str(shipped.relative_to(HERE))
    return Path(path).name


def box(path: str, side: float = math.inf, middle: tuple[float, float] | None = None) -> str:
    """The crop box "X,Y,SIDE" around the middle of a picture, or around another place in it. One as
    large as the picture could not be there, and becomes half as large."""
    height, width = open_image(path).shape[:2]
    side = int(min(side, height, width))
    if middle and side == min(height, width):
        side //= 2
    x, y = middle or (width / 2, height / 2)
    left, top = (int(min(max(at - side / 2, 0), whole - side))
                 for at, whole in ((x, width), (y, height)))
    return f"{left},{top},{side}"


def timeline(rows: list[list]) -> str:
    """The table of the page as the command takes it: "0:neutral 2.5:happy". A row that is still
    being filled in does not count."""
    rows = [["" if cell is None else f"{cell}".replace(" ", "") for cell in row] for row in rows]
    return " ".join(":".join(row[:2]) for row in rows if all(row[:2]))


def curve_table(curve: np.ndarray):
    """Valence and arousal (N, 2) five times a second as a table of pandas: its columns are seconds,
    value, and of which of both."""
    import pandas

    curve = curve[::5]                                                          # (N / 5, 2)
    return pandas.DataFrame({"seconds": np.tile(np.arange(len(curve)) * 5 / FPS, 2),
                             "value": curve.T.flatten(),
                             "of": np.repeat(["valence", "arousal"], len(curve))})


@dataclass
class Order:
    """A film as it is asked for. Picture and sound are files."""

    image: str
    crop: str               # "X,Y,SIDE"; "" for the largest square in the middle
    audio: str
    emotion: str            # "0:neutral 2.5:happy"
    weights: str
    steps: int
    id_guidance: float
    audio_guidance: float
    autoguidance: float
    seed: int

    @property
    def settings(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in SAMPLER}

    def shown(self) -> dict[str, object]:
        """Each option with its value. Picture and sound go by the names that the page shows, the
        weights by their place seen from the project's folder."""
        weights = self.weights
        if weights != "released":
            weights = os.path.relpath(weights, HERE)
        return asdict(self) | {"image": named(self.image), "audio": named(self.audio),
                               "weights": weights}

    def command(self) -> str:
        """The command line that makes this film."""
        words = {name.replace("_", "-"): str(value) for name, value in self.shown().items()}
        return " \\\n    ".join(["python sample.py", *(
            f"--{name}={shlex.quote(value)}" for name, value in words.items() if value)])

    def python(self, device: str) -> str:
        """The lines of Python that make this film."""
        made = self.shown()
        crop = f", crop=({self.crop})" if self.crop else ""
        settings = "".join(f",\n    {name}={value}" for name, value in self.settings.items())
        return f"""from tools import media, released

model = released.load({made["weights"]!r}, {device!r})
face = media.read_image({made["image"]!r}, model.size{crop})
wave = media.read_audio({made["audio"]!r})
frames = model.animate(
    face, wave, {self.emotion!r}{settings})
media.write_video(
    "film.mp4", frames, wave, media.film_side(model.size), sound={made["audio"]!r})"""


def differences(a: Order, b: Order) -> str:
    """What differs between two films, as a table. Two uploads may have one name: the page keeps
    them in folders that follow from their contents."""
    rows = []
    for (name, old), new in zip(a.shown().items(), b.shown().values()):
        if old != new:
            rows.append(f"| {name} | {old} | {new} |")
        elif name in ("image", "audio") and old == Path(old).name and (
                getattr(a, name) != getattr(b, name)):
            rows.append(f"| {name} | {old} | another {new} |")
    return "\n".join(["| | the film before | this film |", "| --- | --- | --- |",
                      *(rows or ["| nothing | | |"])])
