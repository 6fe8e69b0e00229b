"""The claims for which something is trained: ablations, and the chained baseline of `long`.

An ablation compares variants of the shipped model (variants.py), each trained from two seeds where
it says nothing else. The films of all are made of the same people, sentences and voices, in the
same way, and compared film by film.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from tools.figures import save_figure
from tools.stats import show
from toy.claims import variants
from toy.claims.measure import (
    BETTER,
    Claim,
    Kept,
    compare,
    markdown,
    measure,
    together,
    value,
    verdict,
)
from toy.claims.variants import SHIPPED, Training, Variant, films_of, train


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
    seeds: tuple[int, ...] = (0, 1)
    nsv: int = 0  # films of each vocalisation


ABLATIONS = (
    Ablation("sounds", "WavLM and BEATs together beat either alone (NSV accuracy falls from 42 to "
             "10 % without BEATs).", "LipScore is higher with both than with BEATs alone, and NSV "
             "accuracy is higher with both than with WavLM alone, in both seeds.",
             ("keyframe", "interp"),
             {"both": SHIPPED, "WavLM alone": variants.DEAF_TO_EVENTS,
              "BEATs alone": variants.DEAF_TO_WORDS},
             (("LipScore", "both", "BEATs alone"), ("NSV", "both", "WavLM alone")), nsv=10),
    Ablation("lower", "A larger weight on the lower half of the loss makes better lips.", "The "
             "LipScore of films whose interpolation was trained with the shipped weight is higher "
             "than with weight 1, in both seeds.",
             ("interp",), {"as shipped": SHIPPED, "weight 1": variants.EVEN},
             (("LipScore", "as shipped", "weight 1"),)),
    Ablation("pixels", "The pixel loss makes pictures sharper.", "Films whose keyframe model was "
             "trained with it are sharper than without, in both seeds (all begin from a spatial "
             "half that was trained with it).",
             ("keyframe",), {"on": SHIPPED, "off": variants.LATENT_ONLY},
             (("sharpness", "on", "off"),)),
    Ablation("spacing", "The distance of keyframes, 13 frames, is a trade.", "The Frechet distance "
             "is lower with 13 than with 7 and with 26.", ("keyframe", "interp"),
             {"7": variants.CLOSE, "13": SHIPPED, "26": variants.FAR},
             (("distance", "13", "7"), ("distance", "13", "26")), seeds=(0,)),
    Ablation("mask", "A learned embedding suffices for the frames that interpolation is to find.",
             "Without the linear blend of both ends LipScore and sharpness are at most .02 lower.",
             ("interp",), {"embedding alone": variants.MASK_ONLY, "with blend": SHIPPED},
             (("LipScore", "embedding alone", "with blend"),
              ("sharpness", "embedding alone", "with blend")), margin=0.02, seeds=(0,)))


# ---- measuring and comparing ---------------------------------------------------------------------


def part_name(label: str, seed: int) -> str:
    return f"{label}, seed {seed}"


def of_seeds(ablation: Ablation, parts: dict, label: str) -> list[dict]:
    return [parts[part_name(label, seed)] for seed in ablation.seeds]


def measure_variants(ablation: Ablation, kept: Kept) -> None:
    missing = [(label, variant, seed) for label, variant in ablation.variants.items()
               for seed in ablation.seeds if part_name(label, seed) not in kept.parts]
    train([Training(stage, variant, seed) for _, variant, seed in missing
           for stage in ablation.stages], kept.weights)
    for label, variant, seed in missing:
        films = films_of(ablation.name, variant, seed, ablation.stages, kept.weights)
        kept.part(part_name(label, seed), partial(
            measure, films, kept.clips, nsv=ablation.nsv,
            judges=kept.weights / "judges.safetensors"))


def figures(parts: dict) -> list[str]:
    """Those of BETTER that were measured."""
    return [name for name in BETTER if all(found[name] for found in parts.values())]


def judge_variants(ablation: Ablation, parts: dict) -> tuple[str, str, str]:
    verdicts, seen = [], []
    for name, best, other in ablation.tests:
        found = compare(*(of_seeds(ablation, parts, label) for label in (best, other)), name)
        verdicts.append(verdict(found, BETTER[name], ablation.margin))
        seeds = ", ".join(f"{each:.3g}" for each in found["each"])
        seen.append(f"{name}, {best} less {other}: {show(found)}, by seed {seeds}")
    names = figures(parts)
    rows = [[label, *(show(value(of_seeds(ablation, parts, label), name)) for name in names)]
            for label in ablation.variants]
    return together(verdicts), "; ".join(seen) + ".", markdown([ablation.name, *names], rows)


def draw_variants(ablation: Ablation, path: Path, parts: dict) -> None:
    """A panel for each figure, best to the right: a point and its interval for each variant, and a
    small one for each seed."""
    names, labels = figures(parts), list(ablation.variants)
    judged = {name for name, *_ in ablation.tests}
    fig = Figure(figsize=(14, 1.2 + 1.1 * len(labels)), layout="constrained")
    for axes, name in zip(fig.subplots(2, -(-len(names) // 2), sharey=True).flat, names):
        for y, label in enumerate(labels):
            found = value(of_seeds(ablation, parts, label), name)
            axes.plot([found["low"], found["high"]], [y, y], color=f"C{y}")
            axes.plot(found["value"], y, "o", color=f"C{y}")
            axes.plot(found["each"], [y + 0.2] * len(found["each"]), "|", color=f"C{y}")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(name, fontsize=10, fontweight="bold" if name in judged else "normal")
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
        if BETTER[name] == "lower":
            axes.invert_xaxis()
    fig.suptitle("better to the right; bars: 95 % intervals over films, ticks: seeds; bold: judged",
                 fontsize=10)
    save_figure(path, fig, 100)


# ---- the chained baseline -----------------------------------------------------------------------


def chained(weights: Path) -> Path | None:
    """The model that goes on from its own last frame, trained first where it is not there yet: a
    weights folder whose keyframes have spacing 1. Its interpolation is not used."""
    train([Training("keyframe", variants.CHAINED)], weights)
    return films_of("long", variants.CHAINED, 0, ("keyframe",), weights)


CLAIMS = tuple(Claim(a.name, a.says, a.rule, *(partial(function, a) for function in (
    measure_variants, judge_variants, draw_variants))) for a in ABLATIONS)
