"""What training draws: pictures of samples, curves of metrics; written whole or not at all."""

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) as PNG."""
    temporary = path.with_name(f".{path.stem}.partial.png")
    imsave(temporary, picture)
    os.replace(temporary, path)


def plot_metrics(path: Path, rows: list[dict[str, float]]) -> None:
    """Draws the rows of a metrics CSV as curves over minutes; an empty value is left out."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("latent_loss", "val_1", "val_10", "val_10_other_sound"):
        points = [(row["minutes"], row[name]) for row in rows if row.get(name) not in (None, "")]
        axes.semilogy(*zip(*points), label=name)
    axes.set(xlabel="minutes", ylabel="loss")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    temporary = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(temporary, dpi=100)
    os.replace(temporary, path)
