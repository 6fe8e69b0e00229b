"""What a film is made of: as a page has it, as a command line, and as lines of Python.

The latter two make the very film that the page made, of files that lie where they are run.
"""

import filecmp
import math
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tools.cli import AUDIO, HERE, IMAGE
from tools.media import FPS, open_image

SAMPLER = ("steps", "id_guidance", "audio_guidance", "autoguidance", "seed")


def named(path: str | Path) -> str:
    """What a file is called: a shipped one, or a copy of it, by its place in the project, another
    one by its name, for it lies in a temporary folder."""
    for shipped in (IMAGE, AUDIO):
        if os.path.isfile(path) and filecmp.cmp(path, shipped, shallow=False):
            return str(shipped.relative_to(HERE))
    return Path(path).name


def box(path: str, side: float = math.inf, middle: tuple[float, float] | None = None) -> str:
    """The crop box "X,Y,SIDE" around the middle of a picture, or around another place in it."""
    height, width = open_image(path).shape[:2]
    side = int(min(side, height, width))
    x, y = middle or (width / 2, height / 2)
    left, top = (int(min(max(at - side / 2, 0), whole - side))
                 for at, whole in ((x, width), (y, height)))
    return f"{left},{top},{side}"


def timeline(rows: list[list]) -> str:
    """The table of the page as the command takes it: "0:neutral 2.5:happy"."""
    return " ".join(f"{seconds}:{emotion}".replace(" ", "") for seconds, emotion, *_ in rows
                    if f"{seconds}{emotion}".strip())


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
        """Each option with its value, files by the names that the page shows."""
        return asdict(self) | {"image": named(self.image), "audio": named(self.audio)}

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

model = released.load({self.weights!r}, {device!r})
face = media.read_image({made["image"]!r}, model.size{crop})
wave = media.read_audio({made["audio"]!r})
frames = model.animate(
    face, wave, {self.emotion!r}{settings})
media.write_video(
    "film.mp4", frames, wave, media.film_side(model.size), sound={made["audio"]!r})"""


def differences(a: Order, b: Order) -> str:
    """What differs between two films, as a table."""
    a, b = a.shown(), b.shown()
    rows = [f"| {name} | {a[name]} | {b[name]} |" for name in a if a[name] != b[name]]
    return "\n".join(["| | the film before | this film |", "| --- | --- | --- |",
                      *(rows or ["| nothing | | |"])])
