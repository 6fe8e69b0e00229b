"""Figures: the contact sheet of a video, and what training shows; written whole or not at all."""

import csv
import math
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from tools.checkpoint import save_text
from tools.cli import COMMENT, InputError, replacing
from tools.media import FPS, SAMPLE_RATE


def save_figure(path: Path, figure: Figure, dpi: int | str = "figure", **metadata: str) -> None:
    """Writes a figure as its name says, PNG or WebP, by default at its own resolution."""
    with replacing(path) as temporary:      # (`metadata` is for PNG alone)
        figure.savefig(temporary, dpi=dpi, metadata=metadata or None)


def save_grid(path: Path, images: Tensor) -> None:
    """Writes images (rows, columns, 3, H, W) in [-1, 1] as one PNG."""
    picture = ((images + 1) * 127.5).byte().permute(0, 3, 1, 4, 2)  # (rows, H, columns, W, 3)
    with replacing(path) as temporary:
        imsave(temporary, picture.flatten(2, 3).flatten(0, 1).cpu().numpy())


def write_curves(path: Path, panels: dict[str, list[dict]], label: str = "seconds") -> None:
    """A panel for each name with its curves: each is what matplotlib's `plot` takes, "x" and "y"
    (N,) and how to draw them."""
    figure = Figure(figsize=(10, 2.1 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for panel, (name, curves) in zip(axes, panels.items()):
        for curve in curves:
            panel.plot(curve["x"], curve["y"], **{k: curve[k] for k in curve.keys() - {"x", "y"}})
        panel.set_ylabel(name)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="upper right", ncols=3)
    axes[-1].set_xlabel(label)
    save_figure(path, figure, 100)


def write_seconds(stem: Path, curves: dict[str, dict[Path, np.ndarray]], ours: set[Path],
                  true: set[Path]) -> None:
    """Curves of videos, by what they show and by video, with a value a second: STEM.csv, a row for
    each second of each video, and STEM.png, a panel each, the true ones in black."""
    videos = sorted(ours | true)
    with (replacing(stem.with_suffix(".csv")) as temporary,
          temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file):
        table = csv.writer(file)
        table.writerow(["video", "second", *curves])
        for video in videos:
            columns = [curve.get(video, ()) for curve in curves.values()]
            for second in range(max(map(len, columns))):
                table.writerow([video, second, *(
                    f"{column[second]:.5g}" if second < len(column) else "" for column in columns)])
    styles = {"truth": (true, {"color": "k"}), "generated": (ours - true, {"color": "C1"})}
    panels = {name: [{"x": np.arange(len(curve[video])) + 0.5, "y": curve[video], "lw": 1,
                      "alpha": 0.7, "marker": "." if len(curve[video]) < 20 else "",
                      "label": label if i == 0 else None, **style}
                     for label, (column, style) in styles.items()
                     for i, video in enumerate(sorted(column & curve.keys()))]
              for name, curve in curves.items()}
    write_curves(stem.with_suffix(".png"), panels)


def write_confusion(path: Path, answers: list[tuple[str, str]], rows: list[str],
                    columns: list[str]) -> None:
    """Draws how often each of `rows` was taken for each of `columns`: a pair of these an answer."""
    counts = np.zeros((len(rows), len(columns)), int)
    for row, column in answers:
        counts[rows.index(row), columns.index(column)] += 1
    figure = Figure(figsize=(2 + 0.8 * len(columns), 1.8 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        axes.text(j, i, str(count), ha="center", va="center",
                  color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="seen", ylabel="asked for")
    save_figure(path, figure, 100)


def tiles(images: list[np.ndarray], columns: int = 7, side: int = 128) -> np.ndarray:
    """Small pictures of images (H, W, 3) uint8 in rows, the last of them filled up with white: one
    picture. Large images lose rows and columns, so that none is much larger than `side`."""
    step = max(1, len(images[0]) // side)
    small = [image[::step, ::step] for image in images]
    small += [np.full_like(small[0], 255)] * (-len(images) % columns)
    return np.concatenate([np.concatenate(small[i:i + columns], 1)
                           for i in range(0, len(small), columns)])


def load_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV of numbers with a "step"; none where there is no such file. Raises
    InputError for another one."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        try:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
            return sorted(rows, key=lambda row: row["step"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}: not as the training wrote it; remove it") from None


def tensorboard(folder: Path, step: int):
    """A writer of TensorBoard's files into `folder`, None where TensorBoard is not installed. What
    is there of steps after `step` no longer counts: it is of a training that was killed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step + 1)


def save_metrics(path: Path, rows: list[dict[str, float]], board) -> None:
    """Writes `rows` as NAME.csv, draws their losses over minutes as NAME_curves.png and gives the
    last one to `board`, which `tensorboard` opened, where there is one."""
    lines = [rows[-1], *(row.values() for row in rows)]
    save_text(path, "".join(",".join(map(str, line)) + "\n" for line in lines))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("latent_loss", "val_1", "val_10", "val_10_other_audio"):
        axes.semilogy(*zip(*((row["minutes"], row[name]) for row in rows)), label=name)
    axes.set(xlabel="minutes", ylabel="loss")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    save_figure(path.with_name(f"{path.stem}_curves.png"), figure, 100)
    if board:
        for name, value in rows[-1].items():
            board.add_scalar(name, value, int(rows[-1]["step"]))
        board.flush()


def sheet_frames(count: int) -> list[int]:
    """Numbers of the frames on the sheet: every half second, more rarely when over 64 of them."""
    seconds = next(s for k in range(12) for s in (0.5 * 10**k, 1 * 10**k, 2 * 10**k)
                   if count / FPS / s <= 64)
    return [round(i * seconds * FPS) for i in range(math.ceil(count / FPS / seconds))]


def keep(frames: Iterable[np.ndarray], wanted: Container[int], kept: dict[int, np.ndarray]
         ) -> Iterator[np.ndarray]:
    """Hands the frames on, and puts copies of those wanted into `kept`, by number."""
    for i, frame in enumerate(frames):
        if i in wanted:
            kept[i] = frame.copy()
        yield frame


def around(keyframes: range) -> list[int]:
    """Numbers of the keyframes and of a frame after each; of more than 30 every so many."""
    some = keyframes[::math.ceil(len(keyframes) / 30)]
    return [i + j for i in some for j in (0, keyframes.step // 2)]


def write_sheet(path: Path, identity: np.ndarray, frames: dict[int, np.ndarray], wave: np.ndarray,
                curve: np.ndarray, keyframes: Container[int] = ()) -> None:
    """Draws the identity frame and some frames (by number) above sound and emotion, all in time.

    identity and frames: (H, W, 3) uint8; wave (L,) at 16 kHz; curve (N, 2) valence and arousal. Of
    the frames those that are keyframes have a "K" before their time.
    """
    seconds = len(wave) / SAMPLE_RATE
    tiles = [("identity", identity)]
    tiles += [(f"{'K ' * (i in keyframes)}{i / FPS:g} s", frame) for i, frame in frames.items()]
    columns = 9 if len(tiles) <= 27 else 13
    rows = math.ceil(len(tiles) / columns)
    tile, width = 12 / columns, 12.8
    height = rows * (tile + 0.25) + 3.75
    figure = Figure((width, height), dpi=110)
    for i, (title, image) in enumerate(tiles):
        row, column = divmod(i, columns)
        left, bottom = 0.55 + column * tile, height - (row + 1) * (tile + 0.25)
        axes = figure.add_axes(
            (left / width, bottom / height, 0.96 * tile / width, tile / height))
        axes.imshow(image, interpolation="lanczos")
        weight = None if title[0].isdecimal() else "bold"
        axes.set_title(title, fontsize=8, pad=2, fontweight=weight)
        axes.set_axis_off()

    # Sound in at most 1,500 columns, whatever its length: envelope, and spectrum of 512 samples.
    hop = max(64, math.ceil(len(wave) / 1500))
    padded = np.pad(wave, (0, -len(wave) % hop + 512))
    chunks = padded[:len(padded) - 512].reshape(-1, hop)
    starts = np.arange(len(chunks)) * hop
    windows = padded[starts[:, None] + np.arange(512)] * np.hanning(512)            # (columns, 512)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(windows)).T / 128 + 1e-5)           # (257, columns)
    plots = []
    for bottom, tall in ((2.75, 0.75), (1.65, 1.0), (0.5, 1.05)):
        plots.append(figure.add_axes((0.55 / width, bottom / height, 12 / width, tall / height),
                                     sharex=plots[0] if plots else None))
    plots[0].fill_between(starts / SAMPLE_RATE, chunks.min(1), chunks.max(1), lw=0.3)
    plots[0].set(ylabel="sound", xlim=(0, seconds), yticks=[])
    plots[1].imshow(decibels, origin="lower", aspect="auto", cmap="magma", vmin=-80, vmax=-10,
                    extent=(0, len(chunks) * hop / SAMPLE_RATE, 0, SAMPLE_RATE / 2000))
    plots[1].set(ylabel="kHz", xlim=(0, seconds))
    times = np.append(np.arange(len(curve)), len(curve)) / FPS
    for name, values in zip(("valence", "arousal"), curve.T, strict=True):
        plots[2].plot(times, np.append(values, values[-1]), label=name)
    plots[2].set(xlabel="seconds", ylim=(-1.08, 1.08), yticks=(-1, 0, 1))
    plots[2].grid(alpha=0.3)
    plots[2].legend(loc="upper right", bbox_to_anchor=(1, -0.15), ncols=2, frameon=False)
    for axes in plots[:2]:
        axes.tick_params(labelbottom=False)
    save_figure(path, figure, Comment=COMMENT)
