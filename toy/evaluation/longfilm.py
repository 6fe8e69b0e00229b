"""Does a film get worse as it goes on, and does one see where its pieces meet?

Films of a minute by people, sentences and voices of the test split, seen frame by frame. Their last
ten seconds are given as a fraction of the first ten *generated* ones in every column. So a model
that keeps what it has gets 1; one that loses it moves towards the control, which knows nothing. The
ceiling is the true film's last ten seconds over the generated first ten: the most that could be
reached.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.watch import sharpness
from keyface import Plan
from tools.media import FPS
from tools.stats import correlation
from toy.evaluation.films import face_of, loaded, made, make_film, make_truth
from toy.evaluation.judges import EYE_OPEN, JAW, Judges, to_tensor
from toy.evaluation.report import row, write_flicker
from toy.evaluation.stats import AROUND, change
from toy.world import Clip, make_clip

SEEDS, SECONDS = 72_000_000, 60
FIRST, LAST = slice(0, 10 * FPS), slice(-10 * FPS, None)
PLOTTED = slice(20 * FPS, 40 * FPS)
NOTE = f"""\
Films of {SECONDS} s: every column over the *generated* first 10 s. Distance: of the judge's
  embedding from the drawn person's mean. Sharpness: mean absolute Laplacian, over the true
  frames'. Control: another's film; for sharpness the average of the true frames; at keyframes
  every other segment from the true film. Change: mean absolute difference of the frames before and
  after a keyframe to it, over that of the ten other pairs around it."""


@dataclass
class Course:
    """What is seen of a film in each of its N frames."""

    jaw: np.ndarray                                        # (N,)
    opening: np.ndarray                                    # (N,): of the eyes
    faces: np.ndarray                                      # (N, 64): unit vectors
    sharpness: np.ndarray                                  # (N,)
    change: np.ndarray                                     # (N - 1,): to the next frame, of 255


def follow(judges: Judges, video: np.ndarray) -> Course:
    """A film (N, H, W, 3), uint8."""
    states, faces, sharp = [], [], []
    for part in np.split(video, range(250, len(video), 250)):
        images = to_tensor(part)
        states.append(judges.states(images).numpy())
        faces.append(judges.identity(images).numpy())
        sharp.append(sharpness(images).numpy())
    states, faces, sharp = map(np.concatenate, (states, faces, sharp))
    return Course(states[:, JAW], states[:, EYE_OPEN], faces, sharp, change(video))


def joints(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Keyframes of a film, and those of them at which a group of segments ends and one begins."""
    keys = np.arange(plan.spacing, plan.total - 1, plan.spacing)
    return keys, keys[keys % plan.stride == 0]


def long_rows(clips: list[Clip], seen: dict[str, list[Course]], plan: Plan) -> list[dict]:
    """`seen`: the columns of the table, and the controls "another" (film), "average" (of the true
    frames) and "spliced" (every other segment cut in from the true film)."""
    people = [s.faces.mean(0) / np.linalg.norm(s.faces.mean(0)) for s in seen["drawn"]]

    def jaw(s: Course, i: int, here: slice) -> float:
        return correlation(s.jaw[here], clips[i].state[here, JAW])

    def distance(s: Course, i: int, here: slice) -> float:
        return 1 - (s.faces[here] @ people[i]).mean()

    def sharpness(s: Course, i: int, here: slice) -> float:
        return s.sharpness[here].mean() / seen["ceiling"][i].sharpness[here].mean()

    def lasting(of: Callable) -> Callable:
        first = [of(s, i, FIRST) for i, s in enumerate(seen["generated"])]
        return lambda films: np.array([(of(s, i, LAST), first[i]) for i, s in enumerate(films)])

    rows = []
    for name, of, aim, control in (
            ("correlation of the jaw", jaw, "≥ .9", "another"),
            ("distance from the person", distance, "≤ 1.1", "another"),
            ("sharpness", sharpness, ".9 to 1.1", "average")):
        rows.append(row(f"{name}, last 10 s of {SECONDS} against the first", aim, "ratio", seen,
                        lasting(of), control=control))
        rows[-1]["first, last"] = {
            column: [float(np.mean([of(s, i, here) for i, s in enumerate(seen[column])]))
                     for here in (FIRST, LAST)] for column in ("generated", "ceiling")}


    def jump(at: np.ndarray) -> Callable:
        near = np.add.outer(at, AROUND).ravel()
        near = near[near < plan.total - 1]                 # as much as speech moves there anyway
        return lambda films: np.array([(s.change[[at - 1, at]].mean(), s.change[near].mean())
                                       for s in films])

    return rows + [row(f"change from frame to frame at {name}, against that around them",
                       "≤ the ceiling", "ratio", seen, jump(at), control="spliced",
                       still="none")                       # where nothing moves it is 0 / 0
                   for name, at in zip(("keyframes", "borders of groups"), joints(plan))]


def measure(pool: Executor, weights: Path, judges: Judges, count: int, picture: Path
            ) -> tuple[list[dict], list[str], dict[str, list[np.ndarray]]]:
    """Rows and facts of the table from `count` films, and how far eyes are open in each, by column;
    draws the first one's flicker."""
    size, plan = loaded(weights).size, loaded(weights).plan(SECONDS * FPS)
    clips = [make_clip(SEEDS + i, "test", SECONDS, "speech") for i in range(count)]
    truths = made(pool, make_truth, [(weights, clip) for clip in clips], "true minutes")
    films = made(pool, make_film, [(weights, face_of(clip, size, 0), clip.wave, clip.emotion, i)
                                   for i, clip in enumerate(clips)], "minutes")
    from_truth = -(-np.arange(plan.total) // plan.spacing) % 2 == 1
    names = ("drawn", "ceiling", "still", "generated", "average", "spliced")
    seen: dict[str, list[Course]] = {name: [] for name in names}
    for videos, (film, _) in zip(truths, films):
        videos["generated"] = film
        videos["average"] = videos["ceiling"].mean(0, keepdims=True).round().astype(np.uint8)
        videos["spliced"] = np.where(from_truth[:, None, None, None], videos["ceiling"], film)
        for name in names:
            frames = np.repeat(videos[name], plan.total // len(videos[name]), axis=0)
            seen[name].append(follow(judges, frames))
    seen["another"] = seen["generated"][1:] + seen["generated"][:1] if count > 1 else []
    rows = long_rows(clips, seen, plan)

    def levels(column: str) -> str:
        return ", ".join("{:.2f} and {:.2f}".format(*r["first, last"][column]) for r in rows[:3])

    steps = [np.mean([s.change.mean() for s in seen[name]]) for name in ("generated", "ceiling")]
    facts = [NOTE, (
        "Generated, first and last 10 s: correlation, distance and sharpness "
        f"{levels('generated')}; true frames: {levels('ceiling')}."), (
        f"Mean difference of consecutive frames: {steps[0]:.2f} of 255, in truth {steps[1]:.2f}.")]
    write_flicker(picture, {"generated": seen["generated"][0].change,
                            "truth": seen["ceiling"][0].change}, *joints(plan), PLOTTED)
    return rows, facts, {
        name: [s.opening for s in seen[name]] for name in ("generated", "ceiling", "drawn")}
