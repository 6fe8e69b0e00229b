"""What the evaluation hands out: a table in markdown, a contact sheet, plots of jaws and flicker.

A row of the table is {"measure", "aim", "unit"} with, for some of COLUMNS, a figure {"value",
"low", "high", "n"}: its 95 % interval and the number of clips.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tools.figures import save_figure, write_curves
from tools.media import FPS
from tools.stats import bootstrap

COLUMNS = ("generated", "control", "still", "ceiling", "drawn")


def row(measure: str, aim: str, unit: str, seen: dict[str, list],
        of: Callable[[list], np.ndarray], estimate: Callable = bootstrap, **sources: str) -> dict:
    """One row: `of` turns what was seen of the clips into numbers per clip, `estimate` these into a
    figure with its interval. `sources` names, where it is not its own name, what fills a column."""
    figures = {}
    for column in COLUMNS:
        if videos := seen.get(sources.get(column, column)):
            per_clip = of(videos)
            value, low, high = estimate(per_clip)
            last = per_clip[:, 1] if per_clip.shape[1] == 2 else per_clip[:, 0]
            figures[column] = {"value": value, "low": low, "high": high, "n": int((last > 0).sum())}
    return {"measure": measure, "aim": aim, "unit": unit, **figures}


def show(figure: dict | None, unit: str) -> str:
    if figure is None:
        return "-"
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if unit == "%":
        # With a decimal, else what just misses an aim would look as if it met it.
        value, low, high = (round(100 * x, 1) + 0.0 for x in (value, low, high))  # no -0
        text, bounds = f"{value:g} %", f"{low:g} to {high:g}"
    else:
        digits = 1 if unit in ("dB", "s") else 2
        value, low, high = (round(x, digits) + 0.0 for x in (value, low, high))      # no -0.00
        text, bounds = f"{value:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"
    # (Of one clip, and of some that are all alike, nothing could be resampled.)
    return f"{text} ({bounds})" if figure["low"] < figure["high"] else text


def table(rows: list[dict]) -> str:
    head = ("measure", "aim", "generated", "n", "control", "frozen", "ceiling", "judge alone")
    lines = [head, ("---",) * len(head)]
    for r in rows:
        main, *rest = (show(r.get(column), r["unit"]) for column in COLUMNS)
        lines.append((r["measure"], r["aim"], main,
                      str(next(r[c]["n"] for c in COLUMNS if c in r)), *rest))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def describe(rows: list[dict], facts: list[str]) -> str:
    """The table and what it means; `facts` are lines to add."""
    lines = [
        ("n: clips. In brackets: 95 % intervals, bootstrap over clips, of fewer than ten the "
         "jackknife; Wilson's where a clip is yes or no."),
        "Mouth: r or ratio of each clip, then the mean; lips and vowels: share of all frames.",
        "Valence, arousal, often constant for seconds: over the frames of all clips.", *facts]
    return f"""\
People, sentences and voices of the test split.
*Generated*: to the clip's own sound and emotion curve, from the person in another emotion and pose.
*Control*: what a model that cannot know would get: another clip's sound and a third one's curve;
for the right face, another person; for vocalisations, the sound of another kind; for the
autoencoder, the mean of the clip's frames.
*Frozen*: the identity frame standing still.
*Ceiling*: the true frames after the autoencoder.
*Judge alone*: the drawn frames themselves, so the judge's own error.

{table(rows)}

""" + "".join(f"- {line}\n" for line in lines)


def write_sheet(path: Path, faces: list[np.ndarray], films: list[dict[str, np.ndarray]]) -> None:
    """The identity frames (H, W, 3) and, in a row each, every fourth frame of the named films."""
    rows = [np.concatenate([face, np.full_like(face[:, :8], 255), *video[::4]], axis=1)
            for face, named in zip(faces, films) for video in named.values()]
    size, picture = len(faces[0]), np.concatenate(rows)
    fig = Figure(figsize=(picture.shape[1] / 100 + 1.4, picture.shape[0] / 100), dpi=100)
    left = 1.4 / fig.get_figwidth()
    axes = fig.add_axes((left, 0, 1 - left, 1))
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_yticks(np.arange(len(rows)) * size + size / 2, [n for named in films for n in named])
    axes.tick_params(length=0, labelsize=9)
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    for i in range(1, len(films)):
        axes.axhline(i * len(films[0]) * size - 0.5, color="white", lw=3)
    save_figure(path, fig)


def write_jaws(path: Path, curves: list[dict[str, np.ndarray]]) -> None:
    """A panel for each clip with its named curves (N,) of the jaw over time."""
    write_curves(path, {f"jaw, clip {i}": [
        {"x": np.arange(len(curve)) / FPS, "y": curve, "label": name, "lw": 1.5, **style}
        for (name, curve), style in zip(named.items(), (
            {"color": "k"}, {"color": "C1"}, {"color": "C0", "ls": ":"}))]
        for i, named in enumerate(curves, 1)})


def write_flicker(path: Path, changes: dict[str, np.ndarray], keyframes: np.ndarray,
                  borders: np.ndarray, stretch: slice) -> None:
    """A panel for each named curve (N - 1,) of how much each frame differs from the next, along a
    stretch of frames, with thin lines at keyframes and thick ones at borders of groups."""
    fig = Figure(figsize=(12, 2.2 * len(changes)), layout="constrained")
    panels = fig.subplots(len(changes), sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (name, change) in zip(panels, changes.items()):
        for numbers, style in ((keyframes, {"color": "C0", "lw": 0.5}),
                               (borders, {"color": "C3", "lw": 1.5})):
            for frame in numbers[(numbers > stretch.start) & (numbers < stretch.stop)]:
                panel.axvline(frame / FPS, **style)
        frames = np.arange(stretch.start, stretch.stop)
        panel.plot((frames + 0.5) / FPS, change[stretch], "k-", lw=1)
        panel.set(ylabel=name, xlim=(stretch.start / FPS, stretch.stop / FPS))
    panels[0].set_title("mean absolute difference of consecutive frames, of 255; "
                        "keyframes blue, borders of groups red", fontsize=10)
    panels[-1].set_xlabel("seconds")
    save_figure(path, fig, 100)
