"""A page that is written by a running program: its prose, with numbers and lines of code put in.

In a text, ⟨loss:.2f⟩ stands for the value of the expression `loss` in that format, and a line

    ⟪stage.py: def keep … audio[⟫

for the lines of stage.py from the first that holds `def keep` to the next that holds `audio[`,
as they are in the file. walk.py writes its page this way.
"""

import hashlib
import io
import re
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tools.checkpoint import save_text
from tools.cli import HERE, InputError, replacing

VALUE = re.compile(r"⟨(.+?)⟩")
QUOTE = re.compile(r"^⟪(\S+): (.+?) … (.+?)⟫$", re.MULTILINE)
INK, BLUE, ORANGE, GREY = "#222222", "#2a6fbb", "#d9722e", "#8c8c8c"
STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "axes.edgecolor": GREY,
         "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
         "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
         "xtick.major.width": 0.6, "ytick.major.width": 0.6, "legend.frameon": False,
         "lines.linewidth": 1.2, "image.interpolation": "nearest"}


def quote(file: str, first: str, last: str, root: Path = HERE) -> str:
    """The lines of root/file from the first that holds `first` to the next that holds `last`, as a
    block of Markdown. Raises InputError where there are none."""
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    start = next((i for i, line in enumerate(lines) if first in line), len(lines))
    stop = next((i for i in range(start, len(lines)) if last in lines[i]), None)
    if stop is None:
        raise InputError(f"{file}: no lines from \"{first}\" to \"{last}\" any more; tell them anew"
                         " in walk.py")
    code = textwrap.dedent("\n".join(lines[start : stop + 1]))
    return f"From [`{file}`](../{file}):\n\n```python\n{code}\n```"


def quoted(text: str, root: Path = HERE) -> str:
    """The text with its lines of code put in."""
    return QUOTE.sub(lambda found: quote(*found.groups(), root), text)


def filled(text: str, values: dict[str, object]) -> str:
    """The text with its numbers put in, from a namespace."""
    return VALUE.sub(lambda found: eval(f'f"""{{{found[1]}}}"""', values), text)


def fingerprint(folder: Path) -> str:
    """Sixteen digits that change with the autoencoder or an audio encoder of a weights folder."""
    data = (Path(folder) / f"{name}.safetensors" for name in ("vae", "wavlm", "beats"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in data)).hexdigest()[:16]


class Stop:
    """A part of the page and its picture, which a notebook shows."""

    def __init__(self, text: str, picture: "Canvas | None"):
        self.text, self.picture = text, picture

    def _ipython_display_(self) -> None:
        from IPython.display import Image, Markdown, display

        display(Markdown(re.sub(r"^!\[.*", "", self.text, flags=re.MULTILINE)))
        if self.picture:
            data = io.BytesIO()
            self.picture.figure.savefig(data)
            display(Image(data.getvalue(), width=880))


class Page:
    """A folder's README.md in the making, from the folder's template.md, whose parts begin with
    "## ", and its pictures. `values` is the namespace of the program that makes it."""

    def __init__(self, folder: Path, values: dict[str, object]):
        self.folder, self.values, self.parts = folder, values, {}
        text = (folder / "template.md").read_text(encoding="utf-8")
        self.texts = re.split(r"^(?=## )", text, flags=re.MULTILINE)

    def stop(self, number: int, picture: str = "", canvas: "Canvas | None" = None) -> Stop:
        """Writes part `number` of the page (0: what stands before the first heading) with what is
        known now, and draws its picture."""
        self.parts[number] = quoted(filled(self.texts[number], self.values))
        if canvas:
            with replacing(self.folder / picture) as temporary:
                canvas.figure.savefig(temporary, format="webp", pil_kwargs={"quality": 92})
        return Stop(self.parts[number], canvas)

    def write(self) -> None:
        """Writes the page; what needed no stop is told now."""
        for i in set(range(len(self.texts))) - self.parts.keys():
            self.stop(i)
        save_text(self.folder / "README.md",
                  "".join(self.parts[i] for i in range(len(self.texts))))


class Canvas:
    """A figure as wide as a page of GitHub's. Places are in inches from the left and from the
    top, and an inch is 100 pixels on the page."""

    def __init__(self, height: float, width: float = 8.8):
        self.figure = Figure((width, height), dpi=170, facecolor="white")
        self.width, self.height = width, height
        self.paper = self.figure.add_axes((0, 0, 1, 1))
        self.paper.axis("off")
        self.paper.set(xlim=(0, width), ylim=(height, 0))

    def axes(self, left: float, top: float, width: float, height: float, **settings) -> Axes:
        """A diagram of that place and size."""
        box = (left / self.width, 1 - (top + height) / self.height,
               width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set(**settings)
        return axes

    def text(self, left: float, top: float, text: str, **style) -> None:
        self.paper.text(left, top, text, **{"va": "center", **style})

    def image(self, left: float, top: float, width: float, image: np.ndarray | Tensor,
              height: float | None = None, **style) -> None:
        """Draws (H, W) numbers, by default in colours from -2.5 (blue) to 2.5 (red), or (H, W, 3)
        colours from 0 to 1."""
        style = {"cmap": "RdBu_r", "vmin": -2.5, "vmax": 2.5, **style}
        box = (left, left + width, top + (height or width), top)
        self.paper.imshow(image, extent=box, aspect="auto", **style)
        self.paper.set(xlim=(0, self.width), ylim=(self.height, 0))

    def track(self, top: float, height: float, name: str, values: Tensor, seconds: float,
              cmap: str = "RdBu_r", low: float = -2.5, high: float = 2.5) -> Axes:
        """Draws what changes along time, (time, rows), the first row at the bottom."""
        axes = self.axes(0.85, top, self.width - 0.9, height, yticks=[])
        axes.imshow(values.T, cmap, aspect="auto", origin="lower", vmin=low, vmax=high,
                    extent=(0, seconds, -0.5, values.shape[1] - 0.5))
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.tick_params(labelbottom=False)
        return axes

    def tiles(self, left: float, top: float, side: float, images, gap: float = 0.05,
              rows: list[str] = (), columns: list[str] = (), **style) -> None:
        """Draws rows of images, with names beside the rows and above the columns."""
        for i, row in enumerate(images):
            for k, image in enumerate(row):
                self.image(left + k * (side + gap), top + i * (side + gap), side, image, **style)
        for i, name in enumerate(rows):
            self.text(left - 0.08, top + i * (side + gap) + side / 2, name, ha="right")
        for k, name in enumerate(columns):
            self.text(left + k * (side + gap) + side / 2, top - 0.09, name, ha="center")


def colours(images: Tensor) -> np.ndarray:
    """Pictures (..., 3, H, W) in [-1, 1] -> (..., H, W, 3) in [0, 1]."""
    return ((images + 1) / 2).clamp(0, 1).movedim(-3, -1).numpy()


def false_colours(latents: Tensor) -> np.ndarray:
    """Latents (..., C, h, w) of about unit variance -> (..., h, w, 3): channels 1 to 3 as red,
    green and blue."""
    return colours(latents[..., :3, :, :] / 2.5)
