"""The claims about films of one model, under other settings or longer ones. Only `long` trains
something: its baseline, and a model of ours to compare that with."""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from matplotlib.patches import Rectangle

from emotion import EMOTIONS, emotion_curve
from keyface import Film, KeyFace, Plan
from tools import frechet
from tools.cli import InputError
from tools.figures import keep, save_figure
from tools.media import FPS, frame_count
from tools.stats import (
    FEW,
    bootstrap,
    correlation,
    counted,
    figure,
    show,
    student,
    wilson,
)
from toy.claims.measure import (
    BETTER,
    NONE,
    NOT,
    REPRODUCED,
    UNDECIDED,
    Claim,
    Kept,
    cells,
    compare,
    judges_of,
    look,
    markdown,
    measure,
    measure_ceiling,
    measure_strangers,
    pool,
    together,
    value,
    verdict,
)
from toy.claims.trained import FOR_LONG, LONG_STEPS
from toy.claims.variants import films_of, train
from toy.evaluation.films import face_of, loaded, made
from toy.evaluation.judges import JAW, JUDGED
from toy.evaluation.stats import moments, pooled_correlation
from toy.world import Clip, frames, make_clip, to_bytes

SHOWN = ("LipScore", "jaw", "distance", "sharpness", "smeared", "likeness", "seconds")


def measure_settings(kept: Kept, settings: dict[str, dict]) -> None:
    """A part for each of some settings of `KeyFace.animate`, and one for the ceiling of all."""
    kept.part("ceiling", partial(measure_ceiling, kept.weights, kept.clips))
    kept.part("strangers", partial(measure_strangers, kept.weights, kept.clips))
    for name, each in settings.items():
        kept.part(name, partial(measure, kept.weights, kept.clips, each))


def settings_of(parts: dict) -> dict[str, dict]:
    """The parts that are measured settings."""
    others = ("ceiling", "strangers", "default")
    return {name: found for name, found in parts.items() if name not in others}


def table_of(parts: dict, first: str) -> str:
    """A row for each of what `measure` returned."""
    rows = settings_of(parts) | {name: parts[name] for name in ("ceiling", "strangers")}
    return markdown([first, *SHOWN], ([name, *cells([each], SHOWN)] for name, each in rows.items()))


def draw_along(path: Path, parts: dict, first: str, x: list[float], label: str) -> None:
    """A panel for each figure, over `x`; the points are named, the ceiling is dotted."""
    names, settings = ("LipScore", "distance", "sharpness"), settings_of(parts)
    fig = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, name in zip(fig.subplots(1, len(names)), names):
        found = [value([each], name) for each in settings.values()]
        y, low, high = ([each[key] for each in found] for key in ("value", "low", "high"))
        axes.errorbar(x, y, [np.subtract(y, low), np.subtract(high, y)],
                      marker="o", capsize=3, lw=1)
        axes.axhline(value([parts["ceiling"]], name)["value"], color="k", ls=":", lw=1)
        for each, at, height in zip(settings, x, y):
            axes.annotate(each, (at, height), (5, 6), textcoords="offset points", fontsize=9)
        axes.set(title=f"{name}, {BETTER[name]} is better", xlabel=label)
        axes.margins(x=0.1)
        axes.grid(alpha=0.3)
    fig.suptitle(f"{first}; bars: 95 % intervals over films; dotted: the ceiling", fontsize=10)
    save_figure(path, fig, 100)


# ---- steps: ten are enough -----------------------------------------------------------------------

STEPS, SPARED = (2, 3, 4, 6, 10, 20), {"LipScore": 0.01, "distance": 0.05}


def measure_steps(kept: Kept) -> None:
    measure_settings(kept, {str(n): {"steps": n} for n in STEPS})


def enough(parts: dict, n: str) -> tuple[str, dict[str, dict]]:
    """Whether so many steps are as good as 20, and the differences from these."""
    margins = SPARED | {"distance": SPARED["distance"] * parts[n]["distance"][0]}
    found = {name: compare([parts[n]], [parts["20"]], name) for name in SPARED}
    return together([verdict(found["LipScore"], "higher", margins["LipScore"]),
                     verdict(found["distance"], "lower", margins["distance"])]), found


def judge_steps(parts: dict) -> tuple[str, str, str]:
    said, found = enough(parts, "10")
    fewer = [n for n in settings_of(parts) if n != "20" and enough(parts, n)[0] == REPRODUCED]
    spent = {n: show(value([parts[n]], "seconds")) for n in ("10", "20")}
    seen = (f"10 steps minus 20: LipScore {show(found['LipScore'])}, distance "
            f"{show(found['distance'])}, in {spent['10']} seconds of a core for one of film "
            f"against {spent['20']}")
    seen += f"; shown to be as good as 20: {', '.join(fewer) or 'none'}."
    return said, seen, table_of(parts, "steps")


def draw_steps(path: Path, parts: dict) -> None:
    draw_along(path, parts, "steps of the sampler",
               [value([each], "seconds")["value"] for each in settings_of(parts).values()],
               "seconds of a core for a second of film")


# ---- autoguidance: a bad model makes interpolation better ----------------------------------------

BAD = ("1", "1.5", "2", "3")


def measure_autoguidance(kept: Kept) -> None:
    if loaded(kept.weights).interp_bad is None:
        raise InputError(f"{kept.weights}: has no interp_bad.safetensors to be guided away from; "
                         "train_interp.py keeps one")
    measure_settings(kept, {w: {"autoguidance": float(w)} for w in BAD})


def judge_autoguidance(parts: dict) -> tuple[str, str, str]:
    found = {name: compare([parts["2"]], [parts["1"]], name)
             for name in ("distance", "sharpness", "LipScore")}
    seen = "weight 2 minus 1: " + ", ".join(f"{k} {show(v)}" for k, v in found.items()) + "."
    return verdict(found["distance"], "lower"), seen, table_of(parts, "weight")


def draw_autoguidance(path: Path, parts: dict) -> None:
    draw_along(path, parts, "weight of the good over the bad model",
               list(map(float, settings_of(parts))), "weight")


# ---- guidance: the identity's buys quality, the sound's buys sync --------------------------------

GRID = {"id": (1.0, 1.5, 2.0, 4.0), "audio": (1.0, 2.0, 5.0, 8.0)}


def measure_guidance(kept: Kept) -> None:
    config = loaded(kept.weights).config
    kept.part("default", lambda: [config.id_guidance, config.audio_guidance])
    measure_settings(kept, {
        f"{w_id:g}, {w_audio:g}": {"id_guidance": w_id, "audio_guidance": w_audio}
        for w_id in sorted({*GRID["id"], config.id_guidance})
        for w_audio in sorted({*GRID["audio"], config.audio_guidance})})


def grid_of(parts: dict) -> dict[tuple[float, float], dict]:
    """By the weights of identity and of sound."""
    return {tuple(map(float, name.split(", "))): found
            for name, found in settings_of(parts).items()}


def judge_guidance(parts: dict) -> tuple[str, str, str]:
    grid = grid_of(parts)

    w_id, w_audio = parts["default"]
    quality = compare([grid[2, w_audio]], [grid[1, w_audio]], "distance")
    sync = compare([grid[w_id, 2]], [grid[w_id, 1]], "LipScore")
    said = [verdict(quality, "lower"), verdict(sync)]
    seen = (f"weight 2 minus 1, with the other's default: identity: distance {show(quality)} "
            f"({said[0]}); sound: LipScore {show(sync)} ({said[1]}).")
    return together(said), seen, table_of(parts, "identity, sound")


def draw_guidance(path: Path, parts: dict) -> None:
    grid, default = grid_of(parts), parts["default"]
    rows, columns = (sorted({weights[i] for weights in grid}) for i in (0, 1))
    fig = Figure(figsize=(1.9 * len(columns) + 3.5, 0.7 * len(rows) + 1.6), layout="constrained")
    panels = (("distance", "Frechet distance, lower is better", "Blues"),
              ("LipScore", "LipScore, higher is better", "Blues_r"))
    for axes, (name, title, colours) in zip(fig.subplots(1, 2), panels):
        z = np.array([[value([grid[r, c]], name)["value"] for c in columns] for r in rows])
        axes.imshow(z, cmap=colours, aspect="auto")
        for (i, j), each in np.ndenumerate(z):
            dark = (each > (z.min() + z.max()) / 2) == (colours == "Blues")
            axes.text(j, i, f"{each:.3g}", ha="center", va="center",
                      color="white" if dark else "black")
        at = columns.index(default[1]), rows.index(default[0])
        corner = at[0] - 0.46, at[1] - 0.44
        axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, ec="C1", lw=3))
        axes.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
        axes.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
        axes.set(title=title, xlabel="weight of the sound", ylabel="weight of the identity")
    fig.suptitle("orange: the default; bright: better", fontsize=10)
    save_figure(path, fig, 100)


# ---- Films that are watched for longer -----------------------------------------------------------

def each_film(kept: Kept, name: str, function: Callable[..., dict], tasks: list[tuple]) -> None:
    """What `function` returns of each film, a part each, as they come. The strip of the first one
    alone is kept, as no other is drawn."""
    missing = [i for i in range(len(tasks)) if f"{name} {i}" not in kept.parts]
    films = made(pool(), function, [tasks[i] for i in missing], name) if missing else []
    for i, found in zip(missing, films):
        if i:
            del found["strip"]
        kept.part(f"{name} {i}", lambda found=found: found)


def parts_of(parts: dict, name: str) -> list[dict]:
    """Those of each film of that name."""
    return [parts[f"{name} {i}"] for i in range(len(parts)) if f"{name} {i}" in parts]


def to_text(pictures: list[np.ndarray]) -> str:
    """Pictures (H, W, 3) side by side, as a PNG in base64."""
    file = io.BytesIO()
    imsave(file, np.concatenate(pictures, 1), format="png")
    return base64.b64encode(file.getvalue()).decode()


def show_strip(axes: Axes, text: str, label: str) -> None:
    axes.imshow(imread(io.BytesIO(base64.b64decode(text))), interpolation="lanczos")
    axes.set(xticks=[], yticks=[], ylabel=label)
    for side in axes.spines.values():
        side.set_visible(False)


def band(axes: Axes, x: np.ndarray, curves: np.ndarray, **style: object) -> None:
    """The mean of curves (n, N), and where it lies with 95 %; few curves are drawn each."""
    n = len(curves)
    if n < 5:
        axes.plot(x, curves[0], lw=0.8, **style)
        axes.plot(x, curves[1:].T, lw=0.8, color=style["color"])
        return
    mean, reach = curves.mean(0), student(n - 1) * curves.std(0, ddof=1) / np.sqrt(n)
    axes.plot(x, mean, lw=1.3, **style)
    axes.fill_between(x, mean - reach, mean + reach, color=style["color"], alpha=0.2, lw=0)


# ---- emotions: they change within one video ------------------------------------------------------

FOUR, HELD, PASSING, LIMIT = ("happy", "angry", "sad", "calm"), 3.0, 1.0, 0.9
EMOTION_SEEDS, TURN = 79_000_000, HELD + PASSING
LASTS = len(FOUR) * TURN - PASSING                         # seconds of a film
TIMELINE = " ".join(f"{i * TURN + t:g}:{name}" for i, name in enumerate(FOUR) for t in (0, HELD))
HOLDS = [slice(int((i * TURN + HELD - 1) * FPS), int((i * TURN + HELD) * FPS)) for i in range(4)]


def asked() -> np.ndarray:
    """Valence and arousal (N, 2) of each film."""
    return emotion_curve(TIMELINE, round(LASTS * FPS))


def emotional_film(weights: Path, seed: int) -> dict:
    """What is judged of one film, and some of its frames side by side."""
    clip = replace(make_clip(seed, "test", LASTS, "speech"), emotion=asked())
    model, kept = loaded(weights), {}
    wanted = [round(LASTS * FPS * (i + 0.5) / 15) for i in range(15)]
    film = model.animate(face_of(clip, model.size, 0), clip.wave, clip.emotion, seed=seed)
    states = look(judges_of(weights / "judges.safetensors"), keep(film, wanted, kept)).states
    jaw, *judged = (states[:, JUDGED.index(name)] for name in ("jaw", "valence", "arousal"))
    return {"judged": np.stack(judged, 1).round(3).tolist(), "strip": to_text(list(kept.values())),
            "jaw": correlation(jaw, clip.state[:, JAW])}


def measure_emotions(kept: Kept) -> None:
    each_film(kept, "film", emotional_film,
              [(kept.weights, EMOTION_SEEDS + i) for i in range(kept.clips)])


def judge_emotions(parts: dict) -> tuple[str, str, str]:
    films, curve = parts_of(parts, "film"), asked()
    judged = np.array([film["judged"] for film in films])                   # (n, N, 2)
    points = np.array([EMOTIONS[name] for name in FOUR])                    # (4, 2)
    held = np.stack([judged[:, hold].mean(1) for hold in HOLDS], 1)         # (n, 4, 2)
    nearest = np.linalg.norm(held[:, :, None] - points, axis=-1).argmin(-1)
    right = counted((nearest == np.arange(4)).ravel())
    share = figure(wilson(right), len(right))
    follow = [figure(bootstrap(np.array([moments(one[:, k], curve[:, k]) for one in judged]),
                               pooled_correlation), len(films)) for k in (0, 1)]
    jaw = figure(bootstrap(counted([film["jaw"] for film in films])), len(films))
    said = (REPRODUCED if share["low"] >= LIMIT else NOT if share["high"] < LIMIT else UNDECIDED)
    seen = (f"nearest to the emotion asked for, of four: in {right[:, 0].sum():g} of {len(right)} "
            f"stretches, a share of {show(share)}; "
            f"r over time: valence {show(follow[0])}, arousal {show(follow[1])}; meanwhile the "
            f"jaw's r is {show(jaw)}.")
    rows = [[name, f"{v:g}, {a:g}", *(f"{x:.2f}" for x in held[:, i].mean(0)),
             f"{(nearest[:, i] == i).mean():.0%}"]
            for i, (name, (v, a)) in enumerate(zip(FOUR, points))]
    return said, seen, markdown(["emotion", "asked", "valence", "arousal", "nearest"], rows)


def draw_emotions(path: Path, parts: dict) -> None:
    films, curve = parts_of(parts, "film"), asked()
    judged = np.array([film["judged"] for film in films])                   # (n, N, 2)
    seconds = (np.arange(len(curve)) + 0.5) / FPS
    fig = Figure(figsize=(12, 5.2), layout="constrained")
    strip, below = fig.subfigures(2, 1, height_ratios=(1, 4.2))
    show_strip(strip.subplots(), films[0]["strip"], "")
    plane, time = below.subplots(1, 2, width_ratios=(1, 2))
    plane.plot(*curve.T, "k:", lw=1, label="asked")
    plane.plot(*judged.mean(0).T, color="C0", lw=1.3, label="judged, mean")
    for i, name in enumerate(FOUR):
        plane.scatter(*judged[:, HOLDS[i]].mean(1).T, s=14, color=f"C{i + 1}", ec="w", lw=0.4,
                      zorder=3, label="judged, a film each" if i == 0 else None)
        plane.plot(*EMOTIONS[name], "k+", ms=10)
        plane.annotate(name, EMOTIONS[name], (6, 6), textcoords="offset points")
        time.text(i * TURN + HELD / 2, 1.22, name, ha="center", va="bottom")
    plane.set(xlabel="valence", ylabel="arousal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    for k, name in enumerate(("valence", "arousal")):
        time.plot(seconds, curve[:, k], color=f"C{k}", ls=":", lw=1)
        band(time, seconds, judged[:, :, k], color=f"C{k}", label=name)
    time.set(xlabel="seconds; dotted: asked, band: 95 % of the mean of films",
             xlim=(0, seconds[-1]), ylim=(-1.2, 1.2))
    for axes in (plane, time):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    save_figure(path, fig, 100)


# ---- long: errors do not accumulate --------------------------------------------------------------

LONG_SEEDS, LONG, LONGEST, PIECE, TEN = 80_000_000, 120, 600, 60, 10       # seconds
# By how much films of ours may change, as a share of what gathers in a model that goes on from its
# own last frame.
RISES = 0.1
# Two models that are trained alike, and compared by FEW films. The second goes on from its own last
# frame, or, to show what that does to it, from the true one.
OWN, CHAINED, TOLD = (f"{name}, {LONG_STEPS} steps"
                      for name in ("ours", "chained", "chained to the truth"))
PLAIN = {"id_guidance": 1.0, "autoguidance": 1.0}          # guided by the sound alone, as they are


def long_clip(seed: int, seconds: int) -> Clip:
    """One person who speaks for minutes: clips of a minute, each with another voice."""
    pieces = [make_clip(seed + i, "test", min(PIECE, seconds - i * PIECE), "speech")
              for i in range(-(-seconds // PIECE))]
    joined = {name: np.concatenate([getattr(piece, name) for piece in pieces])
              for name in ("wave", "state", "emotion", "phoneme", "viseme", "event")}
    return replace(pieces[0], **joined)


@torch.no_grad()
def chained_frames(model: KeyFace, image: np.ndarray, wave: np.ndarray, curve: np.ndarray,
                   seed: int, true: Clip | None = None) -> Iterator[np.ndarray]:
    """What others do: a window of consecutive frames after the other, each told the last frame of
    the one before as if it were the identity, or, of a clip, the `true` one of that time. It has no
    other picture of the person. Frames as `KeyFace.animate` yields them."""
    # Guidance by its own last frame would add to that one's errors: its weight is 1, which is none.
    c, plan = model.config, Plan(frame_count(len(wave)), 1, model.config.keyframe.frames)

    def told(picture: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        return model.vae.to_latents(pixels)                # (1, C, h, w)

    film = Film(plan, told(image), torch.from_numpy(wave), None,
                torch.from_numpy(emotion_curve(curve, plan.padded)), c.steps, 1.0,
                c.audio_guidance, c.autoguidance, seed, lambda *_: None)
    for window in range(plan.windows):
        latents = model.sample_keyframes(film, window)[:plan.total - window * plan.frames]
        yield from to_bytes(model.vae.to_images(latents))
        last = window * plan.frames + len(latents) - 1
        film = replace(film, identity=told(to_bytes(frames(true, [last], model.size))[0])
                       if true else latents[-1:])


def long_film(weights: Path, judges: Path, seed: int, seconds: int, name: str) -> dict:
    """The Frechet distance of each second of a film, and of the drawn person's own seconds, to all
    frames of the drawn person; and some frames of the film side by side. Films named CHAINED or
    TOLD are those of the chained model."""
    model, known, kept = loaded(weights), judges_of(judges), {}
    clip = long_clip(seed, seconds)
    chain = name in (CHAINED, TOLD)
    make = (partial(chained_frames, true=clip if name == TOLD else None) if chain
            else partial(KeyFace.animate, **PLAIN if name == OWN else {}))
    # A chain begins with the true frame, as no window of its training was told a portrait.
    face = to_bytes(frames(clip, [0], model.size))[0] if chain else face_of(clip, model.size, 0)
    film = make(model, face, clip.wave, clip.emotion, seed=seed)
    wanted = [round((seconds - 1) * FPS * i / 12) for i in range(13)]
    numbers = np.arange(len(clip.state))
    drawn = (picture for i in range(0, len(numbers), FPS)
             for picture in to_bytes(frames(clip, numbers[i:i + FPS], model.size)))
    seen = {"film": look(known, keep(film, wanted, kept)).features,
            "truth": look(known, drawn).features}
    person = frechet.moments(seen["truth"])
    return {name: frechet.over_time(each, person, FPS).round(3).tolist()
            for name, each in seen.items()} | {"strip": to_text(list(kept.values()))}


def measure_long(kept: Kept) -> None:
    judges = kept.weights / "judges.safetensors"

    def films(name: str, weights: Path, count: int, seconds: int) -> None:
        each_film(kept, name, long_film, [(weights, judges, LONG_SEEDS + 100 * i, seconds, name)
                                          for i in range(count)])

    films("ours", kept.weights, kept.clips, LONG)
    films("longest", kept.weights, -(-kept.clips // 10), LONGEST)
    few = min(FEW, kept.clips)
    missing = [(model, names) for model, names in zip(FOR_LONG, ([OWN], [CHAINED, TOLD]))
               if any(f"{name} {few - 1}" not in kept.parts for name in names)]
    train([model for model, _ in missing], kept.weights)
    for model, names in missing:
        folder = films_of("long", model, kept.weights)
        kept.bind(names, folder)
        for name in names:
            films(name, folder, few, LONG)


def curves_of(parts: dict, name: str, what: str = "film") -> np.ndarray:
    """Distances (n, seconds) of the films of that name, or of their truth."""
    return np.array([film[what] for film in parts_of(parts, name)])


def above_truth(parts: dict, name: str) -> np.ndarray:
    """By how much a film's seconds lie farther from all of the true person than the true seconds
    do, means of ten seconds each: (n, seconds / 10). The truth's own distance is large, as no
    second looks like all of two minutes. A film that varies less than the truth lies nearer."""
    above = curves_of(parts, name) - curves_of(parts, name, "truth")
    return above[:, :above.shape[1] // TEN * TEN].reshape(len(above), -1, TEN).mean(2)


def judge_long(parts: dict) -> tuple[str, str, str]:
    def shown(per_film: np.ndarray) -> dict:
        return figure(bootstrap(counted(per_film)), len(per_film)) | {"each": []}

    above = {name: above_truth(parts, name) for name in ("ours", OWN, CHAINED, TOLD, "longest")}
    gathered, more = (shown((above[CHAINED] - above[other])[:, -1]) for other in (TOLD, OWN))
    ours, margin = shown(above["ours"][:, -1] - above["ours"][:, 0]), RISES * gathered["value"]
    said = [verdict(gathered), verdict(more)]
    limited = said[0] == REPRODUCED                        # else there is nothing to compare with
    said.append(together(verdict(ours, way, margin) for way in ("lower", "higher")) if limited
                else NONE)
    seen = (f"in the last {TEN} of {LONG} s films of the chained model lie {show(gathered)} "
            f"farther away than if it were told true frames ({said[0]}) and {show(more)} farther "
            f"than ours of the same training ({said[1]}), {gathered['n']} films each; those of "
            f"ours as shipped change by {show(ours)} from the first {TEN} s to the last, "
            f"{ours['n']} films "
            + (f"(the limit is {margin:.3g}: {said[2]})." if limited else "(there is no limit)."))
    rows, people = [], len(above[OWN])
    for label, name, count in (("ours", "ours", None), ("ours, the same people", "ours", people),
                               *((name, name, None) for name in (OWN, CHAINED, TOLD, "longest"))):
        far, off = curves_of(parts, name)[:count], above[name][:count]
        minutes = np.arange(off.shape[1]) * TEN / 60
        slopes = np.array([np.polyfit(minutes, each, 1)[0] for each in off])
        rows.append([label, str(far.shape[1]), *(show(shown(x)) for x in (
            far[:, :TEN].mean(1), far[:, -TEN:].mean(1), off[:, 0], off[:, -1], slopes)),
            str(len(off))])
    return together(said), seen, markdown(
        ["films", "seconds", f"distance, first {TEN}", f"last {TEN}",
         f"minus the truth's, first {TEN}", f"last {TEN}", "slope of this, a minute", "n"], rows)


def draw_long(path: Path, parts: dict) -> None:
    colours = {"ours": "C0", OWN: "C2", CHAINED: "C3", TOLD: "C1"}
    fig = Figure(figsize=(12, 4 + len(colours)), layout="constrained")
    strips, below = fig.subfigures(2, 1, height_ratios=(len(colours), 4))
    for axes, name in zip(strips.subplots(len(colours)), colours):
        show_strip(axes, parts_of(parts, name)[0]["strip"],
                   name.replace(", ", "\n").replace("to the", "to\nthe"))
    two, ten = below.subplots(1, 2, sharey=True)
    curves = [(two, name, "film", colour, name) for name, colour in colours.items()]
    curves += [(two, "ours", "truth", "k", "truth"), (ten, "longest", "film", "C0", "ours"),
               (ten, "longest", "truth", "k", "truth")]
    for axes, name, what, colour, label in curves:     # on the left all of the same few people
        found, step = curves_of(parts, name, what)[:len(parts_of(parts, OWN))], 1
        if axes is ten:
            step, found = TEN, found.reshape(len(found), -1, TEN).mean(2)
        band(axes, (np.arange(found.shape[1]) + 0.5) * step / 60, found, color=colour,
             label=f"{label}; {len(found)} films")
    two.set(ylabel="Frechet distance in a second", ylim=(0, None),
            title="each second; band: 95 % of the mean of films")
    ten.set_title(f"means of {TEN} seconds")
    for axes in (two, ten):
        axes.set_xlabel("minutes")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower center", ncols=2, fontsize=8)
    save_figure(path, fig, 100)


# ---- All of them ---------------------------------------------------------------------------------

CLAIMS = (
    Claim("long", "Errors do not accumulate in long videos (Fig. 3).",
          f"In the last {TEN} of {LONG} seconds the films of a model that goes on from its own "
          "last frame lie farther from all of the true person (Frechet distance of a second, mean) "
          "than where the same model is told the true frame before each window (so errors have "
          "gathered), and farther than ours; both were trained from nothing for "
          f"{LONG_STEPS} steps in all, once, and {FEW} films of each are compared. And from the "
          f"first {TEN} seconds to the last our shipped model's distance, minus the true seconds' "
          f"own, changes by less than {RISES:.0%} of what has gathered.",
          measure_long, judge_long, draw_long),
    Claim("emotions", "Emotions change within one video (Fig. 4).",
          "Of the stretches in which an emotion is held, each of which is counted by itself, at "
          f"least {LIMIT:.0%} are nearest to the one asked for, of four: by the lower end of the "
          "interval.", measure_emotions,
          judge_emotions, draw_emotions),
    Claim("guidance", "Guidance by the identity buys quality, guidance by the sound buys sync "
          "(Fig. 5).", "A weight of 2 instead of 1, beside the other weight's default, lowers the "
          "distance for the identity's and raises the LipScore for the sound's.",
          measure_guidance, judge_guidance, draw_guidance),
    Claim("autoguidance", "A bad model makes interpolation better.", "A weight of 2 instead of "
          "1, which is no autoguidance, lowers the distance.",
          measure_autoguidance, judge_autoguidance, draw_autoguidance),
    Claim("steps", "Ten steps are enough.", "With 20 steps the LipScore is less than "
          f"{SPARED['LipScore']:g} higher than with 10, and the distance less than "
          f"{SPARED['distance']:.0%} lower.",
          measure_steps, judge_steps, draw_steps))
