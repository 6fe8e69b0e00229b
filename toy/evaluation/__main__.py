"""Measures a trained model in the toy world, where the truth about every frame is known.

`python -m toy.evaluation` animates people, sentences and voices of the test split, lets the judges
(judges.py) look at the films, prints a table and writes it to results/, with a contact sheet, a
plot of jaws and one of flicker. Beside each figure stand what a model that knows nothing would get
(control, and frozen: a picture that stands still), what the best possible one would (ceiling: the
true frames after the autoencoder), and what the judge makes of the drawings themselves, which is
its own error. Films are (N, H, W, 3), judged (N, 17); films of minutes are in longfilm.py.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from evaluation.watch import sharpness
from keyface import KeyFace
from tools import cli
from tools.checkpoint import code_version, hashes, save_text
from tools.cli import WEIGHTS, number
from tools.media import FPS
from tools.stats import best_lag, bootstrap, correlation, counted, wilson
from toy.evaluation import longfilm
from toy.evaluation.films import face_of, loaded, made, make_film, make_truth, workers
from toy.evaluation.judges import EYE_OPEN, JAW, JUDGED, Judges, lip_limits, to_tensor
from toy.evaluation.report import describe, row, write_jaws, write_sheet
from toy.evaluation.stats import (
    BLINK,
    OPEN,
    SMEARED,
    blinks,
    moments,
    pooled_correlation,
    smeared,
)
from toy.faces import elsewhere, random_identity
from toy.train_vae import eyes, mouth, psnr
from toy.voices import VISEME_CLASSES
from toy.world import KINDS, Clip, frames, make_clip, to_bytes

SPEECH_SEEDS, OTHER_SEEDS, GALLERY = 70_000_000, 71_000_000, 100
SHOWN = 4                                                  # clips on the sheet and in the plot
WIDTH, ROUNDING, VALENCE, AROUSAL = (
    JUDGED.index(name) for name in ("width", "rounding", "valence", "arousal"))


# ---- What the judges see -------------------------------------------------------------------------

@dataclass
class Seen:
    states: np.ndarray                                     # (N, 17): the columns of JUDGED
    face: np.ndarray                                       # (64,): mean embedding
    event: str                                             # "speech" or one of KINDS
    sharpness: np.ndarray                                  # (N, 3): whole pictures, eyes, mouths
    eyes: np.ndarray                                       # (N, 2, 4), see `Judges.eyes`


def watch(judges: Judges, video: np.ndarray, n_frames: int | None = None) -> Seen:
    """A film (N, H, W, 3), uint8, or one picture that stands still for n_frames."""
    images = to_tensor(video)
    states, n = judges.states(images), n_frames or -1
    sharp = torch.stack([sharpness(part) for part in (images, eyes(images), mouth(images))], 1)
    single = judges.eyes(images, states).expand(n, 2, 4).numpy()
    states = states.expand(n, -1)
    return Seen(states.numpy(), judges.identity(images).mean(0).numpy(),
                judges.vocalisation(states), sharp.expand(n, 3).numpy(), single)


def watch_truth(pool: Executor, weights: Path, judges: Judges, clips: list[Clip]
                ) -> tuple[dict[str, list[Seen]], np.ndarray]:
    """What is seen of each clip's "drawn", "ceiling" and "still" film; and PSNR (n, 2, 2), of the
    autoencoder and of the mean frame, of whole pictures and of mouths."""
    seen, quality = {"drawn": [], "ceiling": [], "still": []}, []
    for videos in made(pool, make_truth, [(weights, clip) for clip in clips], "true films"):
        for name, video in videos.items():
            seen[name].append(watch(judges, video, len(videos["drawn"])))
        true, decoded = to_tensor(videos["drawn"]), to_tensor(videos["ceiling"])
        mean = true.mean(0, keepdim=True).expand_as(true)
        quality.append([(psnr(x, true), psnr(mouth(x), mouth(true))) for x in (decoded, mean)])
    return seen, np.array(quality)


def errors(seen: list[Seen], clips: list[Clip]) -> np.ndarray:
    """Root mean square error of each of JUDGED, (17,)."""
    true = np.concatenate([np.concatenate([c.state, c.emotion], 1) for c in clips])
    return np.sqrt(np.square(np.concatenate([s.states for s in seen]) - true).mean(0))


def other_curve(clips: list[Clip]) -> int:
    """How many clips further on the foreign curve comes from: where the own and the foreign curves
    have the least to do with each other, as 40 pairs may agree by chance (r of .2)."""
    def likeness(shift: int) -> float:
        pairs = list(zip(clips, clips[shift:] + clips[:shift]))
        return max(abs(pooled_correlation(sum(moments(a.emotion[:, i], b.emotion[:, i])
                                              for a, b in pairs))) for i in (0, 1))
    return min(range(2, len(clips)), key=likeness)


# ---- The table -----------------------------------------------------------------------------------

def speech_rows(clips: list[Clip], given: list[Clip], seen: dict[str, list[Seen]],
                gallery: np.ndarray, limits: dict[str, float]) -> list[dict]:
    """`given` are the clips whose curves went into the control films."""
    def on_clips(f: Callable[[Seen, Clip], object], truth: list[Clip] = clips) -> Callable:
        return lambda videos: np.array([f(s, c) for s, c in zip(videos, truth)], np.float64)

    def along(column: int) -> Callable:
        curves = on_clips(lambda s, c: correlation(s.states[:, column], c.state[:, column]))
        return lambda videos: counted(curves(videos))

    def emotion(column: int, truth: list[Clip]) -> Callable:
        return on_clips(lambda s, c: moments(s.states[:, column], c.emotion[:, column - VALENCE]),
                        truth)

    def motion(videos: list[Seen]) -> np.ndarray:
        """Against the truth as seen after the autoencoder; that against the drawn one; that against
        the true numbers."""
        below = {id(seen["ceiling"]): [s.states for s in seen["drawn"]],
                 id(seen["drawn"]): [c.state for c in clips]}
        truth = below.get(id(videos), [s.states for s in seen["ceiling"]])
        return counted([s.states[:, JAW].std() / t[:, JAW].std() for s, t in zip(videos, truth)])

    def frames_of(name: str, fits: Callable[[np.ndarray], np.ndarray]) -> Callable:
        def hits(s: Seen, c: Clip) -> tuple[float, float]:
            here = c.viseme == VISEME_CLASSES.index(name)
            return fits(s.states[here, JAW]).sum(), here.sum()
        return on_clips(hits)

    in_time = on_clips(lambda s, c: (best_lag(s.states[:, JAW], c.state[:, JAW]) == 0, 1))
    taken = on_clips(lambda s, _: (s.event != "speech", 1))

    def right_face(videos: list[Seen]) -> np.ndarray:
        nearest = (np.stack([s.face for s in videos]) @ gallery.T).argmax(1)
        return counted(nearest == np.arange(len(videos)))

    pooled = partial(bootstrap, statistic=pooled_correlation)
    rows = [row(f"{JUDGED[column]}, correlation over time", aim, "r", seen, along(column))
            for column, aim in ((JAW, "≥ .80, control < .15, ceiling ≥ .97"),
                                (WIDTH, "≥ .65, ceiling ≥ .95"),
                                (ROUNDING, "≥ .70, ceiling ≥ .95"))]
    rows += [
        row("size of the jaw's motion, against the truth's", ".8 to 1.2", "ratio", seen, motion),
        row("clips in which jaw and truth agree best at lag 0", "≥ 90 %", "%", seen, in_time,
            wilson),
        row("frames of m, b, p with closed lips", "≥ 80 %", "%", seen,
            frames_of("m b p", lambda jaw: jaw < limits["closed below"])),
        row("frames of open vowels with an open mouth", "≥ 80 %", "%", seen,
            frames_of("ah", lambda jaw: jaw > limits["open above"]))]
    for column, aim in ((VALENCE, "≥ .85, control < .15, ceiling ≥ .95"),
                        (AROUSAL, "≥ .85, control < .15")):
        name = JUDGED[column]
        rows += [row(f"{name}, correlation with the curve asked for", aim, "r", seen,
                     emotion(column, clips), pooled),
                 row(f"{name}, the same to another clip's sound", "≥ .85", "r",
                     {"generated": seen["control"]}, emotion(column, given), pooled)]
    return rows + [
        row(f"the right face among {len(gallery)}", "≥ 95 %", "%", seen, right_face, wilson,
            control="stranger"),
        row("speech taken for a vocalisation", "≤ 10 %", "%", seen, taken, wilson, control="none")]


def distance_of_irises(s: Seen, given: Seen) -> tuple[float, int]:
    """In CIELAB from those of the given picture: summed over open eyes, and how many these are."""
    here = s.eyes[..., 0] > OPEN                                            # (N, 2)
    return np.linalg.norm((s.eyes - given.eyes[:1])[here, 1:], axis=-1).sum(), here.sum()


def eye_rows(seen: dict[str, list[Seen]]) -> list[dict]:
    """Of each eye by itself, every column over the ceiling's."""
    def apart(s: Seen, _: int) -> float:
        return np.abs(np.diff(s.eyes[..., 0])).mean()

    def other_colour(s: Seen, i: int) -> float:
        distance, count = distance_of_irises(s, seen["still"][i])
        return distance / count if count else np.nan

    def over_ceiling(of: Callable[[Seen, int], float]) -> Callable:
        ceiling = [of(s, i) for i, s in enumerate(seen["ceiling"])]

        def pairs(videos: list[Seen]) -> np.ndarray:
            found = np.array([(of(s, i), ceiling[i]) for i, s in enumerate(videos)])
            found[np.isnan(found).any(1)] = 0              # a clip without open eyes does not count
            return found
        return pairs

    return [row("left against right eye's opening, mean difference over the ceiling's",
                "≤ 1.5", "ratio", seen, over_ceiling(apart), control="none"),
            row("irises' distance from the given picture's in CIELAB, over the ceiling's",
                "≤ 1.5", "ratio", seen, over_ceiling(other_colour), control="stranger",
                still="none")]


def sharpness_rows(seen: dict[str, list[Seen]], nsv: dict[str, list[Seen]], spacing: int
                   ) -> list[dict]:
    """How sharp eyes and mouths are, and how many frames between keyframes are smeared."""
    def over_ceiling(part: int) -> Callable:
        return lambda videos: np.array([
            [x.sharpness[:, part].mean() for x in pair] for pair in zip(videos, seen["ceiling"])])

    def smear(videos: list[Seen]) -> np.ndarray:
        return np.array([smeared(s.sharpness[:, 0], spacing) for s in videos], np.float64)

    rows = [row(f"sharpness of {name}, over the ceiling's", "≥ .95", "ratio", seen,
                over_ceiling(part), control="none") for part, name in ((1, "eyes"), (2, "mouths"))]
    kinds = ("speech", seen), ("vocalisations", nsv)
    return rows + [row(f"frames smeared between keyframes, {name}", "≤ 1 %", "%", films, smear,
                       control="none", still="none") for name, films in kinds if films["generated"]]


def blink_rows(openings: dict[str, list[np.ndarray]], where: str) -> list[dict]:
    """`openings`: of each film's eyes, (N,), by column of the table."""
    def a_minute(films: list[np.ndarray]) -> np.ndarray:
        return np.array([(len(blinks(x)), len(x) / FPS / 60) for x in films])

    def length(films: list[np.ndarray]) -> np.ndarray:
        return np.array([(sum(blinks(x)), len(blinks(x))) for x in films], np.float64)

    aim, blinking = "within 20 % of the ceiling", {
        name: films for name, films in openings.items() if any(map(blinks, films))}
    return [row(f"blinks a minute, {where}", aim, "", openings, a_minute, control="none"),
            row(f"frames of a blink, {where}", aim, "", blinking, length, control="none")]


# ---- The command, in the order of its steps ------------------------------------------------------

@dataclass
class Material:
    """What is filmed. The clips `heard` and `given` lend the control films of speech their sound
    and their curves; vocalisations come in turns, one of each kind after the other."""
    speech: list[Clip]
    heard: list[Clip]
    given: list[Clip]
    nsv: list[Clip]
    kinds: tuple[str, ...]                                 # of each clip of nsv
    faces: list[np.ndarray]                                # identity frames of speech, then of nsv


@dataclass
class Watched:
    """What came of it: what the judges saw, by column of the table, and some films to show."""
    speech: dict[str, list[Seen]]
    nsv: dict[str, list[Seen]]
    quality: np.ndarray                                    # PSNR (n, 2, 2), see `watch_truth`
    cost: list[float]                                      # seconds of a core for 1 s of each film
    kept: dict[int, np.ndarray]                            # films by their number
    long_rows: list[dict]
    long_facts: list[str]
    long_openings: dict[str, list[np.ndarray]]             # of the eyes of films of a minute


def options(argv: list[str] | None) -> Namespace:
    parser = cli.Parser("python -m toy.evaluation", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--weights", type=Path, default=WEIGHTS, help="folder of a trained model")
    add("--quick", action="store_true", help="12 clips of speech, nothing else")
    add("--clips", type=number(int, 4, 1000), help="of speech, 4 s each (default 40)")
    add("--nsv", type=number(int, 0, 100), help="of each vocalisation, 3 s each (default 10)")
    add("--long", type=number(int, 0, 100), help="films of a minute (default 5)")
    add("--out", type=Path, default=Path("results"), help="folder to write to (default results)")
    args = parser.parse_args(argv)
    for name, whole, quick in (("clips", 40, 12), ("nsv", 10, 0), ("long", 5, 0)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else whole)
    return args


def material(clip_count: int, each: int, size: int) -> Material:
    """So many clips of speech, and of each vocalisation, with identity frames of that size."""
    speech = [make_clip(SPEECH_SEEDS + i, "test", 4.0, "speech") for i in range(clip_count)]
    kinds = KINDS * each
    nsv = [make_clip(OTHER_SEEDS + i, "test", 3.0, kind) for i, kind in enumerate(kinds)]
    shift = other_curve(speech)
    return Material(speech, speech[1:] + speech[:1], speech[shift:] + speech[:shift], nsv, kinds,
                    [face_of(clip, size, 0) for clip in speech + nsv])


def make_and_watch(found: Material, args: Namespace, judges: Judges, processes: int) -> Watched:
    """Makes all films in so many processes, and lets the judges look at each. Films are numbered:
    speech, the controls of speech, vocalisations. Only those that are shown are kept."""
    count, speech, nsv = len(found.speech), found.speech, found.nsv
    films = [*zip(found.faces, speech, speech), *zip(found.faces, found.heard, found.given)]
    films += zip(found.faces[count:], nsv, nsv)
    tasks = [(args.weights, face, sound.wave, curve.emotion, i)
             for i, (face, sound, curve) in enumerate(films)]
    shown = {*range(SHOWN), *range(count, count + SHOWN)}
    shown |= set(range(2 * count, 2 * count + len(KINDS)))              # one of each vocalisation
    watched, cost, kept = [], [], {}
    with workers(processes) as pool:
        seen, quality = watch_truth(pool, args.weights, judges, speech)
        nsv_seen = watch_truth(pool, args.weights, judges, nsv)[0] if nsv else {}
        for i, (video, seconds) in enumerate(made(pool, make_film, tasks, "films")):
            watched.append(watch(judges, video))
            cost.append(seconds)
            if i in shown:
                kept[i] = video
        long_rows, long_facts, long_openings = longfilm.measure(
            pool, args.weights, judges, args.long, args.out / "flicker.png",
        ) if args.long else ([], [], {})
    seen["generated"], seen["control"] = watched[:count], watched[count:2 * count]
    seen["stranger"] = seen["generated"][1:] + seen["generated"][:1]
    nsv_seen["generated"] = watched[2 * count:]
    nsv_seen["control"] = nsv_seen["generated"][1:] + nsv_seen["generated"][:1]     # another kind's
    return Watched(seen, nsv_seen, quality, cost, kept, long_rows, long_facts, long_openings)


def seconds_of_eight(model: KeyFace, seed: int) -> float:
    """How long a film of 8 s takes this process, with all its threads."""
    clip, began = make_clip(seed, "test", 8.0, "speech"), time.perf_counter()
    for _ in model.animate(face_of(clip, model.size, 0), clip.wave, clip.emotion):
        pass
    return time.perf_counter() - began


def gallery_of(judges: Judges, clips: list[Clip], size: int) -> np.ndarray:
    """Embeddings (100, 64) of the clips' people, each in another pose and other clothes before
    another background, then of strangers."""
    rng, generator = np.random.default_rng(SPEECH_SEEDS), torch.Generator().manual_seed(0)
    heads = [clip.identity for clip in clips]
    heads += [random_identity(rng) for _ in range(GALLERY - len(clips))]
    people = elsewhere(torch.from_numpy(np.stack(heads)), generator).numpy()
    return np.stack([watch(judges, face_of(replace(clips[0], seed=i, identity=person), size, 1)[
        None]).face for i, person in enumerate(people)])


def openings(seen: dict[str, list[Seen]]) -> dict[str, list[np.ndarray]]:
    return {name: [s.states[:, EYE_OPEN] for s in films] for name, films in seen.items()}


def speech_facts(found: Material, seen: dict[str, list[Seen]], limits: dict[str, float]
                 ) -> list[str]:
    """What is to be known beside the table about the films of speech and their judges."""
    alike = np.nanmean([correlation(b.state[:, JAW], a.state[:, JAW])
                        for a, b in zip(found.speech, found.heard)])
    drawn, decoded = (errors(seen[column], found.speech) for column in ("drawn", "ceiling"))
    true = [blinks(clip.state[:, EYE_OPEN]) for clip in found.speech]
    count, shut = sum(map(len, true)), sum(map(sum, true))
    minutes = sum(len(clip.state) for clip in found.speech) / FPS / 60
    pairs = list(zip(seen["ceiling"], seen["still"]))
    apart = np.mean([np.abs(np.diff(s.eyes[..., 0])).mean() for s, _ in pairs])
    colour = np.divide(*np.sum([distance_of_irises(s, given) for s, given in pairs], 0))
    return [
        f"A blink: frames in a row whose judged eyes are open less than {BLINK}.",
        f"In true speech {count / minutes:.1f} a minute of {shut / max(1, count):.2f} frames each.",
        f"Smeared: mean absolute Laplacian below {SMEARED} of the mean of both keyframes around.",
        (f"Ceiling's eyes: |left - right| opening {apart:.3f}; irises (of eyes open more than "
         f"{OPEN}) {colour:.1f} from the given picture. Control: strangers."),
        f"Closed lips: judged jaw below {limits['closed below']:.2f}, as in 95 % of drawn m, b, p.",
        f"Open mouth: above {limits['open above']:.2f}, as in 95 % of drawn open vowels.",
        "Both limits are of other clips.",
        f"True jaws of clips paired as in the control correlate by {alike:.2f} (all begin silent).",
        "Curves are paired so that they correlate least.",
        "Root mean square error of the judges, drawn / decoded: " + ", ".join(
            f"{JUDGED[i]} {drawn[i]:.3f} / {decoded[i]:.3f}"
            for i in (JAW, WIDTH, ROUNDING, VALENCE, AROUSAL)) + "."]


def quality_and_cost_rows(watched: Watched, wall: float, processes: int) -> list[dict]:
    rows = [row(f"autoencoder: PSNR of {name}", "≥ 32 dB", "dB",
                {"ceiling": list(decoded), "control": list(mean)}, counted)
            for name, (decoded, mean) in zip(("whole pictures", "mouths"), watched.quality.T)]
    return rows + [
        row(f"seconds for 8 s of video, on {processes} cores", "< 30", "s",
            {"generated": [wall]}, counted),
        row("seconds of one core for 1 s of video", "< 7.5", "s", {"generated": watched.cost},
            counted)]


def write_pictures(out: Path, found: Material, watched: Watched, size: int) -> None:
    """The contact sheets of speech and of vocalisations, and the plot of jaws."""
    def truth(clip: Clip) -> np.ndarray:
        return to_bytes(frames(clip, np.arange(len(clip.state)), size))

    count, kept, seen = len(found.speech), watched.kept, watched.speech
    write_sheet(out / "sheet.webp", found.faces[:SHOWN], [
        {"truth": truth(clip), "generated": kept[i], "another's sound": kept[count + i]}
        for i, clip in enumerate(found.speech[:SHOWN])])
    if found.nsv:
        write_sheet(out / "vocalisations.webp", found.faces[count:count + len(KINDS)], [
            {f"{kind}, truth": truth(clip), "generated": kept[2 * count + i]}
            for i, (kind, clip) in enumerate(zip(KINDS, found.nsv))])
    write_jaws(out / "jaw.png", [
        {"truth": clip.state[:, JAW], "generated": seen["generated"][i].states[:, JAW],
         "another's sound": seen["control"][i].states[:, JAW]}
        for i, clip in enumerate(found.speech[:SHOWN])])


def main(argv: list[str] | None = None) -> None:
    args = options(argv)
    began, model = time.monotonic(), loaded(args.weights)
    path = args.weights / "judges.safetensors"
    judges = Judges.load(path)
    cli.make_folder(args.out)
    processes = torch.get_num_threads()
    torch.set_num_threads(1)                 # else it and the processes stand in each other's way
    found = material(args.clips, args.nsv, model.size)
    watched = make_and_watch(found, args, judges, processes)
    torch.set_num_threads(processes)
    wall = seconds_of_eight(model, SPEECH_SEEDS + args.clips)

    limits = lip_limits(judges, model.size)
    gallery = gallery_of(judges, found.speech, model.size)
    rows = speech_rows(found.speech, found.given, watched.speech, gallery, limits)
    facts = speech_facts(found, watched.speech, limits)
    answers = {kind: [s.event for s, k in zip(watched.nsv["generated"], found.kinds) if k == kind]
               for kind in found.kinds}
    if found.nsv:
        rows.insert(-1, row(
            "kind of vocalisation, of 7 and speech", "≥ 60 %", "%", watched.nsv,
            lambda videos: counted([s.event == k for s, k in zip(videos, found.kinds)]), wilson))
        facts.append("Vocalisations recognised: " + ", ".join(
            f"{kind} {events.count(kind)} of {args.nsv}" for kind, events in answers.items()) + ".")
    rows += eye_rows(watched.speech) + blink_rows(openings(watched.speech), "speech")
    rows += sharpness_rows(watched.speech, watched.nsv, model.config.keyframe.spacing)
    if watched.long_openings:
        rows += blink_rows(watched.long_openings, "films of a minute")
    rows += watched.long_rows + quality_and_cost_rows(watched, wall, processes)

    text = describe(rows, facts + watched.long_facts)
    save_text(args.out / "evaluation.md", text)
    write_pictures(args.out, found, watched, model.size)
    # The last of all: where it is, the rest is, too.
    save_text(args.out / "evaluation.json", json.dumps(
        {"weights": str(args.weights), "version": code_version(),
         "sha256": hashes(args.weights), "limits": limits, "rows": rows, "answers": answers,
         "seconds": time.monotonic() - began}, indent=1))
    print(f"{text}\nwrote {args.out}/evaluation.md, evaluation.json and pictures beside them")


if __name__ == "__main__":
    sys.exit(cli.run(main))
