"""What a claim is made of, and how models are compared (see __main__.py for the command).

`measure` animates people, sentences and voices of the test split with one model and one setting,
and keeps a few numbers of each clip; `compare` sets two models side by side, clip by clip;
`verdict` says what their difference shows. All of it is plain numbers, which `Kept` writes to a
file as they come, so that an interrupted command goes on where it was.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from evaluation.watch import sharpness
from stage import Config
from tools import frechet
from tools.checkpoint import code_version, hashes, load_config, read_json, save_text
from tools.cli import InputError
from tools.media import FPS
from tools.stats import bootstrap, correlation, counted, figure, interval, show
from toy.evaluation.films import face_of, loaded, made, make_truth, workers
from toy.evaluation.judges import JUDGED, Judges, to_tensor
from toy.evaluation.stats import smeared
from toy.vocalisations import KINDS
from toy.world import Clip, make_clip

SPEECH_SEEDS, OTHER_SEEDS = 77_000_000, 78_000_000         # of clips that nothing else looks at
SPEECH, OTHER = 4.0, 3.0                                   # seconds of a clip
REPRODUCED, NOT = "reproduced", "not reproduced"
NONE, UNDECIDED = "no difference seen", "undecided"        # of what is to differ; to be alike
# What `measure` finds of each clip and which way is better.
BETTER = {"jaw": "higher", "width": "higher", "rounding": "higher", "LipScore": "higher",
          "sharpness": "higher", "likeness": "higher", "smeared": "lower", "seconds": "lower",
          "NSV": "higher", "distance": "lower"}


@dataclass(frozen=True)
class Claim:
    """One line of the paper and how it is put to the test.

    `measure` brings every number through `Kept.part`; `judge` turns these into a verdict, what is
    seen in a sentence, and a table in Markdown; `draw` writes one PNG. Both of these see the parts
    alone, so that they can be done again without measuring."""

    name: str
    says: str                                              # the paper
    rule: str                                              # of the verdict, in a sentence
    measure: Callable[["Kept"], None]
    judge: Callable[[dict], tuple[str, str, str]]
    draw: Callable[[Path, dict], None]


class Kept:
    """The parts of a claim's figures, kept in NAME.parts.json as they come; NAME.json has them when
    the claim is finished. Parts that were measured with other weights do not count. Raises
    InputError rather than have another number of clips replace a result, or a half of one."""

    def __init__(self, path: Path, weights: Path, clips: int):
        self.path, self.weights, self.clips = path, weights, clips
        self.made_with = {"weights": fingerprint(weights), "clips": clips}
        self.parts, self.finished = {}, False
        self.version = ""                                  # of the code that measured all parts
        for each in (self.unfinished, path):
            found = read_json(each) if each.exists() else {}
            made_with = found.get("made with", {})
            if made_with.get("weights") == self.made_with["weights"] and (
                    made_with.get("clips") != clips):
                raise InputError(f"--clips: {each} has {made_with.get('clips')} films of each "
                                 "setting; give that number, or another --out")
            if made_with == self.made_with:
                self.parts = found["parts"] | self.parts
                self.finished = each == path
                if not self.unfinished.exists():
                    self.version = found.get("version", "")

    @property
    def unfinished(self) -> Path:
        return self.path.with_suffix(".parts.json")

    def part(self, name: str, of: Callable[[], object]) -> object:
        """What `of` returns, in JSON's types; it is called only where it has not been before."""
        if name not in self.parts:
            self.parts[name], self.version = of(), ""
            save_text(self.unfinished, json.dumps({"made with": self.made_with,
                                                   "parts": self.parts}))
        return self.parts[name]

    def bind(self, names: Sequence[str], folder: Path) -> None:
        """Says that films of these names are made with the weights in `folder`. Those that were
        made with others, of the same training on another machine, are forgotten."""
        key = f"weights of {names[0]}"
        if self.parts.get(key, fingerprint(folder)) != fingerprint(folder):
            self.parts = {part: found for part, found in self.parts.items()
                          if part != key and part.rpartition(" ")[0] not in names}
        self.part(key, lambda: fingerprint(folder))

    def finish(self, **result: object) -> None:
        version = self.version or code_version()
        save_text(self.path, json.dumps({"made with": self.made_with, "version": version, **result,
                                         "parts": self.parts}))
        self.unfinished.unlink(missing_ok=True)


@cache
def fingerprint(weights: Path) -> str:
    """Of what is in a weights folder."""
    text = (weights / "config.json").read_text() + repr(hashes(weights))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---- Films and what is seen of them --------------------------------------------------------------

@dataclass
class Look:
    """What is kept of a film of N frames."""

    states: np.ndarray                                     # (N, 17): the columns of JUDGED
    faces: np.ndarray                                      # (N, 64): unit vectors
    features: np.ndarray                                   # (N, 224), for Frechet distances
    sharpness: np.ndarray                                  # (N,)
    seconds: float = 0.0                                   # of a core, for a second of film


@cache
def judges_of(path: Path) -> Judges:
    return Judges.load(path)


@cache
def pool() -> ProcessPoolExecutor:
    """The processes that make films, as many as there are threads; they live as long as this."""
    return workers(torch.get_num_threads())


def look(judges: Judges, frames: Iterable[np.ndarray]) -> Look:
    """At a film of frames (H, W, 3), a hundred at a time, so that it may be of any length."""
    frames, found = iter(frames), []
    while piece := list(islice(frames, 100)):
        images = to_tensor(np.stack(piece))
        found.append([x.numpy() for x in (*judges.look(images), sharpness(images))])
    return Look(*map(np.concatenate, zip(*found)))


def watch_film(weights: Path, judges: Path, clip: Clip, settings: dict) -> Look:
    """The clip's person, first seen in another emotion and pose, with its sound and emotion."""
    model, began = loaded(weights), time.process_time()
    video = list(model.animate(face_of(clip, model.size, 0), clip.wave, clip.emotion,
                               seed=clip.seed, **settings))
    spent = time.process_time() - began
    return replace(look(judges_of(judges), video), seconds=spent * FPS / len(video))


def watch_truth(weights: Path, clip: Clip) -> tuple[Look, Look]:
    """The clip as it is drawn, and after the autoencoder."""
    judges, films = judges_of(weights / "judges.safetensors"), make_truth(weights, clip)
    return tuple(look(judges, films[name]) for name in ("drawn", "ceiling"))


@cache
def truth(weights: Path, clips: int, nsv: int, seconds: float) -> tuple[list[Clip], list, list]:
    """The clips of speech and then `nsv` of each vocalisation, and both looks at their truth."""
    made_of = [(SPEECH_SEEDS + i, "test", seconds, "speech") for i in range(clips)]
    made_of += [(OTHER_SEEDS + i, "test", OTHER, kind) for i, kind in enumerate(KINDS * nsv)]
    found = [make_clip(*each) for each in made_of]
    tasks = [(weights, clip) for clip in found]
    return found, *zip(*made(pool(), watch_truth, tasks, "truth"))


# ---- Measuring and comparing ---------------------------------------------------------------------

def measure(weights: Path, clips: int, settings: dict | None = None, nsv: int = 0,
            seconds: float = SPEECH, shipped: Path | None = None) -> dict[str, list]:
    """Figures of one model on so many clips of `seconds` of speech and `nsv` of each vocalisation.

    weights: a folder as `KeyFace.load` reads it; settings: of `KeyFace.animate` (steps,
    id_guidance, audio_guidance, autoguidance), others as its config says; shipped: the folder of
    the judges and of the truth's autoencoder, by default the same. Returns, by the names of BETTER,
    a value for each clip, None where it has none:

    - jaw, width, rounding: correlation along time with the true numbers;
    - LipScore: mean cosine of the toy lip reader's features to those of the drawn film;
    - sharpness: mean absolute Laplacian over that of the true film after the autoencoder;
    - likeness: mean cosine of the judge's embedding to the mean one of the drawn film;
    - smeared: share of frames less sharp than the keyframes around them;
    - seconds: of one core, for a second of film;
    - NSV: 1 where a vocalisation is recognised, for clips of these alone;
    - distance: of the frames of all clips of speech from the drawn ones (Frechet), and then the
      same without each eighth of the clips, from which its interval comes.
    """
    shipped = shipped or weights
    tasks = [(weights, shipped / "judges.safetensors", clip, settings or {})
             for clip in truth(shipped, clips, nsv, seconds)[0]]
    seen = list(made(pool(), watch_film, tasks, ", ".join(
        f"{name} {value:g}" for name, value in (settings or {}).items()) or "films"))
    spacing = load_config(Config, weights).keyframe.spacing
    return figures_of(seen, spacing, shipped, clips, nsv, seconds)


def measure_ceiling(weights: Path, clips: int, nsv: int = 0, seconds: float = SPEECH
                    ) -> dict[str, list]:
    """The same of the drawn clips after the autoencoder, the best that its models can do."""
    films, spacing = (weights, clips, nsv, seconds), load_config(Config, weights).keyframe.spacing
    return figures_of(truth(*films)[2], spacing, *films) | {"seconds": []}


def measure_strangers(weights: Path, clips: int, nsv: int = 0, seconds: float = SPEECH
                      ) -> dict[str, list]:
    """The same of these films, each of which is taken for the one before it: what is reached
    without hearing anything."""
    def turned(seen: Sequence[Look]) -> list[Look]:
        return [*seen[1:], *seen[:1]]

    films, spacing = (weights, clips, nsv, seconds), load_config(Config, weights).keyframe.spacing
    seen = truth(*films)[2]
    found = figures_of([*turned(seen[:clips]), *turned(seen[clips:])], spacing, *films)
    return {name: values if name in ("jaw", "width", "rounding", "LipScore", "NSV") else []
            for name, values in found.items()}


def figures_of(seen: Sequence[Look], spacing: int, weights: Path, clips: int, nsv: int,
               seconds: float) -> dict:
    """What `measure` returns, of films of the clips of `truth` with keyframes so far apart."""
    films, drawn, ceiling = truth(weights, clips, nsv, seconds)
    known = judges_of(weights / "judges.safetensors")
    speech = list(zip(films[:clips], seen, drawn, ceiling))

    def lip_score(s: Look, true: Look) -> float:
        ours, theirs = (known.lips(torch.from_numpy(x.states))[1] for x in (s, true))
        return torch.cosine_similarity(ours, theirs).mean().item()

    def smear(s: Look) -> float:
        hits, count = smeared(s.sharpness, spacing)
        return hits / count if count else np.nan

    found = {name: [correlation(s.states[:, i], clip.state[:, i]) for clip, s, *_ in speech]
             for i, name in enumerate(JUDGED) if name in BETTER}
    found["LipScore"] = [lip_score(s, true) for _, s, true, _ in speech]
    found["sharpness"] = [s.sharpness.mean() / c.sharpness.mean() for _, s, _, c in speech]
    found["likeness"] = [(s.faces @ person(true)).mean() for _, s, true, _ in speech]
    found["smeared"] = [smear(s) for _, s, *_ in speech]
    found["seconds"] = [s.seconds for _, s, *_ in speech]
    found["NSV"] = [float(known.vocalisation(torch.from_numpy(s.states)) == kind)
                    for s, kind in zip(seen[clips:], KINDS * nsv)]
    found["distance"] = frechet.jackknife(*([frechet.moments(s.features) for s in column]
                                            for column in (seen[:clips], drawn[:clips])))
    return {name: [None if np.isnan(x) else round(float(x), 6) for x in values]
            for name, values in found.items()}


def person(seen: Look) -> np.ndarray:
    """The mean embedding of a film's face, a unit vector (64,)."""
    mean = seen.faces.mean(0)
    return mean / np.linalg.norm(mean)


def compare(ours: list[dict], theirs: list[dict], name: str) -> dict:
    """By how much `ours` is higher than `theirs` in one of BETTER, clip by clip, with its 95 %
    interval. Each is a list of what `measure` returned of the same clips, one a seed of training.
    Each of ours is paired with each of theirs: {"value", "low", "high", "n", "each"}, where "each"
    holds the difference of each pair. What a seed can do shows in how far these are apart."""
    a, b = (np.array([each[name] for each in side], np.float64) for side in (ours, theirs))
    apart = (a[:, None] - b).reshape(-1, a.shape[1])       # (pairs, clips)
    mean = apart.mean(0)                                   # (clips,)
    if name == "distance":                                 # the whole, then parts left out
        found, n = interval(mean), len(ours[0]["jaw"])
        each = apart[:, 0]
    else:
        found, n = bootstrap(counted(mean)), int((~np.isnan(mean)).sum())
        each = np.nanmean(apart, 1)
    return figure(found, n) | {"each": each.tolist()}


def value(found: list[dict], name: str) -> dict:
    """One of BETTER as a `figure` with its interval, averaged over what `measure` returned."""
    return compare(found, [found[0] | {name: [0] * len(found[0][name])}], name)


def verdict(difference: dict, better: str = "higher", margin: float = 0.0) -> str:
    """Of a claim that a difference of `compare` is `better` than -margin: it is reproduced if the
    whole interval lies above -margin, and each pair too; it is not if all of these lie below. Else
    no difference is seen, or, with a margin, it is undecided whether two things are alike."""
    sign = 1 if better == "higher" else -1
    found = [sign * x for x in (difference["low"], difference["high"], *difference["each"])]
    if difference["n"] < 2:                                # one film has no interval
        return UNDECIDED
    if min(found) > -margin:
        return REPRODUCED
    return NOT if max(found) < -margin else UNDECIDED if margin else NONE


def together(verdicts: Iterable[str]) -> str:
    """Of a claim of several parts: it is reproduced if all are, and is not if one is not."""
    found = set(verdicts)
    return next(each for each in (NOT, UNDECIDED, NONE, REPRODUCED) if each in found)


def cells(found: list[dict], names: Iterable[str]) -> list[str]:
    """Those of BETTER, averaged over what `measure` returned, for a table."""
    return [show(value(found, name) if found[0][name] else None) for name in names]


def markdown(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *rows))
