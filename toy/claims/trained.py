"""The claims for which something is trained: ablations, and the chained baseline of `long`.

An ablation compares variants of the shipped model (variants.py), each trained from two seeds. Some
train all but the shipped variant from one seed only; the shipped one's two then show how much a
seed matters. The films of all are made of the same people, sentences and voices, in the same way,
and compared film by film. Interpolation is sampled without a bad model: a variant that learns more
slowly would have a worse one, and be guided more.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from tools.cli import InputError
from tools.figures import save_figure
from tools.media import FPS
from tools.stats import show
from toy.claims import variants
from toy.claims.measure import (
    BETTER,
    NOT,
    REPRODUCED,
    SPEECH,
    UNDECIDED,
    Claim,
    Kept,
    cells,
    compare,
    markdown,
    measure,
    measure_ceiling,
    measure_strangers,
    together,
    value,
    verdict,
)
from toy.claims.variants import CLIPS, PROCESSES, SHIPPED, STEPS, Variant, chain, films_of, train

SEEDS = 2  # that a variant is trained from
NSV = 10  # films of each vocalisation, where these are looked at


@dataclass(frozen=True)
class Ablation:
    """Variants, by the names they have in the table, and how they are compared."""

    name: str
    says: str
    rule: str
    stages: tuple[str, ...]  # that are trained
    variants: dict[str, Variant]
    tests: tuple[tuple[str, str, str], ...]  # figure, variant that is said to be better, the other
    margin: float = 0.0  # by which it may be worse
    seeds: int = SEEDS  # of all but the shipped variant, which always has SEEDS
    times: int = 1  # as many steps as others
    nsv: int = 0  # films of each vocalisation
    seconds: float = SPEECH  # of the films

    def seeds_of(self, label: str) -> range:
        return range(SEEDS if self.variants[label] == SHIPPED else self.seeds)

    def part(self, label: str, seed: int) -> str:
        return f"{label}, seed {seed}, {self.times * STEPS} steps on {CLIPS} clips"

    def of_seeds(self, parts: dict, label: str) -> list[dict]:
        return [parts[self.part(label, seed)] for seed in self.seeds_of(label)]

    def figures(self) -> list[str]:
        """Those of BETTER that are shown. Seconds are not: parts may come from several machines."""
        return [name for name in BETTER if name != "seconds" and (name != "NSV" or self.nsv)]


ABLATIONS = (
    Ablation("sounds", "WavLM and BEATs together beat either alone (NSV accuracy falls from 42 to "
             "10 % without BEATs).", "LipScore is higher with both than with BEATs alone, and NSV "
             "accuracy is higher with both than with WavLM alone, in each pair of seeds.",
             ("keyframe", "interp"),
             {"both": SHIPPED, "WavLM alone": variants.DEAF_TO_EVENTS,
              "BEATs alone": variants.DEAF_TO_WORDS},
             (("LipScore", "both", "BEATs alone"), ("NSV", "both", "WavLM alone")), nsv=NSV),
    Ablation("lower", "A larger weight on the lower half of the loss makes better lips.", "The "
             "LipScore of films whose interpolation was trained with a weight of 4 on that half, "
             "the shipped config's, is higher than with 1, in each pair of seeds. Eyes weigh 1 in "
             "both.",
             ("interp",), {"weight 4": variants.LOWER, "weight 1": variants.EVEN},
             (("LipScore", "weight 4", "weight 1"),)),
    Ablation("pixels", "The pixel loss makes pictures sharper.", "Films whose keyframe model was "
             "trained with it are sharper than without, in each pair of seeds; what is sharper "
             "than the truth counts as the truth.", ("keyframe",),
             {"on": SHIPPED, "off": variants.LATENT_ONLY},
             (("sharpness", "on", "off"),)),
    Ablation("spacing", "A spacing of 13 frames between keyframes is a compromise.", "The "
             "Frechet distance is lower with 13, from each of two seeds, than with 7 and with 26, "
             "each of one seed.",
             ("keyframe", "interp"),
             {"7": variants.CLOSE, "13": SHIPPED, "26": variants.FAR},
             (("distance", "13", "7"), ("distance", "13", "26")), seeds=1,
             seconds=13 * 26 / FPS),  # a window of the last; shorter films would end within it
    Ablation("mask", "A learned embedding suffices for the frames that interpolation is to find.",
             "Without the linear blend of both ends, from one seed, LipScore and sharpness (what "
             "is sharper than the truth counts as the truth) are at most .02 lower than with it, "
             "from each of two seeds, after trainings twice as long as those of other claims.",
             ("interp",), {"embedding alone": variants.MASK_ONLY, "with blend": SHIPPED},
             (("LipScore", "embedding alone", "with blend"),
              ("sharpness", "embedding alone", "with blend")), margin=0.02, seeds=1, times=2))


# ---- measuring and comparing ---------------------------------------------------------------------


def measure_variants(ablation: Ablation, kept: Kept) -> None:
    """Those that are trained already, for another claim, come first; then two by two, all of the
    first seed first, so that there is something to see soon."""
    of = {"nsv": ablation.nsv, "seconds": ablation.seconds}
    for name, function in (("ceiling", measure_ceiling), ("strangers", measure_strangers)):
        kept.part(name, partial(function, kept.weights, kept.clips, **of))

    def untrained(models: list[tuple]) -> list[tuple]:
        """Measures those that are trained, and returns the others."""
        found = [(name, films_of(ablation.name, trainings, kept.weights))
                 for name, trainings in models]
        for name, films in found:
            if films:
                kept.part(name, partial(measure, films, kept.clips, {"autoguidance": 1.0},
                                        shipped=kept.weights, **of))
        return [model for model, (_, films) in zip(models, found) if not films]

    missing = untrained([(name, chain(ablation.stages, variant, seed, ablation.times))
                         for seed in range(SEEDS) for label, variant in ablation.variants.items()
                         if seed in ablation.seeds_of(label)
                         and (name := ablation.part(label, seed)) not in kept.parts])
    for some in (missing[i:i + PROCESSES] for i in range(0, len(missing), PROCESSES)):
        try:
            train([trainings for _, trainings in some], kept.weights)
        except InputError:  # of one: the other is measured all the same
            untrained(some)
            raise
        untrained(some)


def capped(part: dict) -> dict:
    """What is sharper than the truth counts as the truth: more would be noise."""
    return part | {"sharpness": [min(x, 1.0) for x in part["sharpness"]]}


def judge_variants(ablation: Ablation, parts: dict) -> tuple[str, str, str]:
    """Nothing is decided where the one that is said to be better has not learned to hear."""
    verdicts, seen = [], []
    for name, best, other in ablation.tests:
        ours, theirs = ([capped(part) for part in ablation.of_seeds(parts, label)]
                        for label in (best, other))
        # A mouth at rest has a better LipScore than a stranger's, but follows nothing with its jaw.
        above = [compare(ours, [parts["strangers"]], heard) for heard in ("jaw", "LipScore")]
        deaf = any(min(each["low"], *each["each"]) <= 0 for each in above)
        found = compare(ours, theirs, name)
        said = UNDECIDED if deaf else verdict(found, BETTER[name], ablation.margin)
        pairs = ", ".join(f"{each:.3g}" for each in found["each"])
        seen.append(f"{name}, {best} minus {other}: {show(found)}, by pairs of seeds {pairs}: "
                    + said + f", for {best} moves its lips no better than a stranger" * deaf)
        verdicts.append(said)
    names = ablation.figures()
    for best, other in dict.fromkeys((best, other) for _, best, other in ablation.tests):
        pair = [ablation.of_seeds(parts, label) for label in (best, other)]
        also = [f"{name} {show(found)} ({'better' if said == REPRODUCED else 'worse'})"
                for name in names if (name, best, other) not in ablation.tests
                and (said := verdict(found := compare(*pair, name), BETTER[name]))
                in (REPRODUCED, NOT)]
        if also:
            seen.append(f"not judged, but different, {best} minus {other}: {', '.join(also)}")
    rows = [[label, str(len(found := ablation.of_seeds(parts, label))), *cells(found, names)]
            for label in ablation.variants]
    rows += [[name, "-", *cells([parts[name]], names)] for name in ("ceiling", "strangers")]
    table = markdown([ablation.name, "seeds", *names], rows)
    return together(verdicts), "; ".join(seen) + ".", table


def draw_variants(ablation: Ablation, path: Path, parts: dict) -> None:
    """A panel for each figure, best to the right: a point and its interval for each variant, and a
    small one for each seed; the ceiling is dotted."""
    names, labels = ablation.figures(), list(ablation.variants)
    judged = {name for name, *_ in ablation.tests}
    fig = Figure(figsize=(14, 1.2 + 1.1 * len(labels)), layout="constrained")
    panels = fig.subplots(2, -(-len(names) // 2), sharey=True).flat
    for axes in panels[len(names):]:
        axes.set_visible(False)
    for axes, name in zip(panels, names):
        for y, label in enumerate(labels):
            found = value(ablation.of_seeds(parts, label), name)
            axes.plot([found["low"], found["high"]], [y, y], color=f"C{y}")
            axes.plot(found["value"], y, "o", color=f"C{y}")
            axes.plot(found["each"], [y + 0.2] * len(found["each"]), "|", color=f"C{y}")
        if parts["ceiling"][name]:
            axes.axvline(value([parts["ceiling"]], name)["value"], color="k", ls=":", lw=1)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(name + ", axis reversed" * (BETTER[name] == "lower"), fontsize=10,
                       fontweight="bold" if name in judged else "normal")
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
        if BETTER[name] == "lower":
            axes.invert_xaxis()
    fig.suptitle("better to the right; bars: 95 % intervals over films, ticks: seeds; dotted: the "
                 "ceiling; bold: decides", fontsize=10)
    save_figure(path, fig, 100)


# ---- the chained baseline -----------------------------------------------------------------------


LONG_STEPS = 2 * STEPS  # of each of the two models


# Our model, and the one that goes on from its own last frame (its interpolation is not used): both
# from nothing, on the same clips and for as many steps in all.
FOR_LONG = (chain(("keyframe", "interp"), SHIPPED), chain(("keyframe",), variants.CHAINED, times=2))


CLAIMS = tuple(Claim(a.name, a.says, a.rule, *(partial(function, a) for function in (
    measure_variants, judge_variants, draw_variants))) for a in ABLATIONS)
