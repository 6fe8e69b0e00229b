"""The claims for which something is trained: ablations, and the chained baseline of `long`.

A *variant* is the model of the weights folder with a few fields of its config.json changed. Of it
the stages that the claim is about are trained anew, for the same number of steps on the same clips;
the rest stays as it is in the weights folder. All keyframe models begin from one spatial half, which
knows how to draw a face from a single frame; all interpolation models from the finished keyframes.

Everything lies in runs/claims, so that an interrupted command goes on and nothing is trained twice:

    XXXXXXXX/               for these weights (other weights begin anew)
        clips_13/           the drawn world, for windows of this spacing
        blank/ spatial/ finished/       what trainings begin from
        keyframe-shipped-0/ keyframe-without_beats-0/ ...     a training: stage, variant, seed
        films-sounds-without_beats-0/ ...     the weights folder that is put together of them
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from stage import Config
from tools.checkpoint import (
    from_dict,
    header_number,
    load_config,
    overlaid,
    save_config,
)
from tools.cli import HERE, InputError, forget_signals, make_folder, remember_signals, replacing
from tools.figures import save_figure
from tools.prepare import DrawnWorld, prepare
from tools.prepare import fingerprint as of_frozen
from tools.stats import show
from toy.claims.measure import BETTER, Claim, Kept, compare, markdown, measure, together, value
from toy.claims.measure import verdict as verdict_of
from toy.recipe import wait

FOLDER = HERE / "runs" / "claims"
CLIPS = 600  # to learn from, with two windows of keyframes and three segments each
PROCESSES = 2  # trainings at a time, of one thread each
STEPS = {"keyframe": 2000, "interp": 2000}  # at most 40 minutes of a core
SPATIAL_STEPS = 600  # of the spatial half that all keyframe models begin from


# ---- what is trained -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A model: what is changed of config.json, and the folder that its keyframes begin from."""

    name: str
    changes: dict = field(default_factory=dict, hash=False)
    begins: str = "spatial"

    def config(self, weights: Path) -> Config:
        """That of a weights folder, changed. Raises ValueError where it contradicts itself."""
        values = json.loads(json.dumps(asdict(load_config(Config, weights))))
        return from_dict(Config, overlaid(values, self.changes), self.name).check()


def both(**changes: object) -> dict:
    """The same change of both stages."""
    return {"keyframe": changes, "interp": changes}


SHIPPED = Variant("shipped")
SPATIAL = Variant("spatial", begins="blank")  # half a model, for others to begin from
# Its keyframes are consecutive frames, each window told the last frame of the one before. It begins
# from finished keyframes, as interpolation does, so nobody can say that it was trained less.
CHAINED = Variant("chained", {"keyframe": {"spacing": 1}, "interp": {"frames": 2}}, "finished")
DEAF_TO_WORDS = Variant("without_wavlm", both(without="wavlm"))
DEAF_TO_EVENTS = Variant("without_beats", both(without="beats"))
EVEN = Variant("lower_1", {"interp": {"lambda_lower": 1.0}})
LATENT_ONLY = Variant("pixels_0", {"keyframe": {"pixel_weight": 0.0}})
MASK_ONLY = Variant("mask_only", {"interp": {"blend": False}})
CLOSE, FAR = (Variant(f"spacing_{s}", {"keyframe": {"spacing": s}, "interp": {"frames": s + 1}})
              for s in (7, 26))


@dataclass(frozen=True)
class Training:
    """Of one stage of a variant, from one seed."""

    stage: str
    variant: Variant
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.variant.name}-{self.seed}"

    def out(self, folder: Path) -> Path:
        return folder / ("spatial" if self.variant == SPATIAL else self.name)

    @property
    def steps(self) -> int:
        return SPATIAL_STEPS if self.variant == SPATIAL else STEPS[self.stage]

    def finished(self, folder: Path) -> bool:
        path = self.out(folder) / f"{self.stage}.safetensors"
        return path.exists() and (header_number(path, "step") or 0) >= self.steps

    def command(self, folder: Path, spacing: int) -> list[str]:
        """What begins it, or goes on with it where it has kept its state."""
        out, variant = self.out(folder), self.variant
        words = [sys.executable, f"train_{self.stage}.py", "--out", str(out), "--seed",
                 str(self.seed), "--steps", str(self.steps), "--data", str(folder / f"clips_{spacing}")]
        words += ["--spatial", "1"] * (variant == SPATIAL)
        if (out / f"{self.stage}.state").exists():
            return [*words, "--resume"]
        begins = "finished" if self.stage == "interp" else variant.begins
        return [*words, "--init", str(folder / begins), "--config",
                str(folder / f"{variant.name}.json")]


@dataclass(frozen=True)
class Ablation:
    """Variants, by the names they have in the table, and how they are compared."""

    name: str
    says: str
    rule: str
    stages: tuple[str, ...]  # that are trained
    variants: dict[str, Variant]
    tests: tuple[tuple[str, str, str], ...]  # a figure; which variant is said to be better; than which
    margin: float = 0.0  # by which it may be worse
    seeds: tuple[int, ...] = (0, 1)
    nsv: int = 0  # films of each vocalisation


ABLATIONS = (
    Ablation("sounds", "WavLM and BEATs together beat either alone (NSV accuracy falls from 42 to "
             "10 % without BEATs).", "LipScore is higher with both than with BEATs alone, and NSV "
             "accuracy is higher with both than with WavLM alone, in both seeds.",
             ("keyframe", "interp"),
             {"both": SHIPPED, "WavLM alone": DEAF_TO_EVENTS, "BEATs alone": DEAF_TO_WORDS},
             (("LipScore", "both", "BEATs alone"), ("NSV", "both", "WavLM alone")), nsv=10),
    Ablation("lower", "A larger weight on the lower half of the loss makes better lips.", "LipScore "
             "of films whose interpolation was trained with the shipped weight is higher than with "
             "weight 1, in both seeds.", ("interp",), {"as shipped": SHIPPED, "weight 1": EVEN},
             (("LipScore", "as shipped", "weight 1"),)),
    Ablation("pixels", "The pixel loss makes pictures sharper.", "Sharpness of films whose keyframe "
             "model was trained with it is higher than without, in both seeds (they begin from a "
             "spatial half that was trained with it).", ("keyframe",),
             {"on": SHIPPED, "off": LATENT_ONLY}, (("sharpness", "on", "off"),)),
    Ablation("spacing", "The distance of keyframes, 13 frames, is a trade.", "The Frechet distance "
             "is lower with 13 than with 7 and with 26.", ("keyframe", "interp"),
             {"7": CLOSE, "13": SHIPPED, "26": FAR},
             (("distance", "13", "7"), ("distance", "13", "26")), seeds=(0,)),
    Ablation("mask", "A learned embedding suffices for the frames that interpolation is to find.",
             "Without the linear blend of both ends LipScore and sharpness are at most .02 lower.",
             ("interp",), {"embedding alone": MASK_ONLY, "with blend": SHIPPED},
             (("LipScore", "embedding alone", "with blend"),
              ("sharpness", "embedding alone", "with blend")), margin=0.02, seeds=(0,)))


# ---- training it ---------------------------------------------------------------------------------


def folder_for(weights: Path) -> Path:
    """The folder of all that begins from the frozen parts and keyframes of a weights folder."""
    found = hashlib.sha256((weights / "keyframe.safetensors").read_bytes())
    found.update(of_frozen(weights, load_config(Config, weights)).encode())
    return FOLDER / found.hexdigest()[:8]


def put_together(out: Path, config: Config, parts: dict[str, Path]) -> Path:
    """A weights folder, of parts by the folders that they come from."""
    make_folder(out)
    for name, source in parts.items():
        with replacing(out / f"{name}.safetensors") as temporary:
            shutil.copyfile(source / f"{name}.safetensors", temporary)
    save_config(config, out)
    return out


def prepared(wanted: list[Training], weights: Path, folder: Path) -> None:
    """What the trainings read: clips, the folders they begin from, and their configs."""
    config = load_config(Config, weights)
    frozen = dict.fromkeys(config.frozen(), weights)
    put_together(folder / "blank", config, frozen)
    put_together(folder / "finished", config, frozen | {"keyframe": weights})
    for variant in {training.variant for training in wanted}:
        config = variant.config(weights)
        with replacing(folder / f"{variant.name}.json") as temporary:
            temporary.write_text(json.dumps(asdict(config), indent=1))
        prepare(DrawnWorld(CLIPS, config), folder / f"clips_{config.keyframe.spacing}", weights,
                PROCESSES)


def train(wanted: Iterable[Training], weights: Path) -> Path:
    """Carries out those trainings that are not finished, PROCESSES at a time; returns the folder
    that they are in. A signal stops them where --resume goes on. Raises InputError where one ends
    by itself."""
    folder = folder_for(weights)
    wanted = [each for each in wanted if not each.finished(folder)]
    half = Training("keyframe", SPATIAL)
    if any(t.stage == "keyframe" and t.variant.begins == "spatial" for t in wanted):
        wanted += [half] * (not half.finished(folder))
    if not wanted:
        return folder
    prepared(wanted, weights, folder)
    signals = remember_signals()

    def run(training: Training) -> None:
        if signals:
            return
        words = training.command(folder, training.variant.config(weights).keyframe.spacing)
        log = folder / f"{training.name}.log"
        print(f"{training.name}: {' '.join(words[1:])} >> {log}", flush=True)
        with open(log, "a") as file:
            status = wait(subprocess.Popen(words, cwd=HERE, stdout=file, stderr=file,
                                           env=os.environ | {"OMP_NUM_THREADS": "1"}), signals)
        if status and not signals:
            raise InputError(f"{training.name}: ended with exit status {status}; what it said is in "
                             f"{log}, and the same command goes on from there")
        if training.finished(folder):
            for left in training.out(folder).glob(f"{training.stage}.state*"):
                left.unlink()  # of no use any more, and large

    if half in wanted:
        run(half)
    with ThreadPoolExecutor(PROCESSES) as threads:
        list(threads.map(run, [training for training in wanted if training != half]))
    if signals:
        sys.exit(128 + signals[0])
    forget_signals()
    return folder


def films_of(name: str, variant: Variant, seed: int, stages: tuple[str, ...], weights: Path) -> Path:
    """The weights folder that has the trained stages of a variant, and all else as in `weights`."""
    folder, config = folder_for(weights), variant.config(weights)
    parts = dict.fromkeys([*config.frozen(), "keyframe", "interp", "interp_bad"], weights)
    for stage in stages:
        parts[stage] = Training(stage, variant, seed).out(folder)
    parts["interp_bad"] = parts["interp"]  # autoguidance: an early state of the same training
    parts = {part: source for part, source in parts.items()
             if (source / f"{part}.safetensors").exists()}
    return put_together(folder / f"films-{name}-{variant.name}-{seed}", config, parts)


def chained(weights: Path) -> Path | None:
    """The model that goes on from its own last frame, trained first where it is not there yet: a
    weights folder whose keyframes have spacing 1. Its interpolation is not used."""
    train([Training("keyframe", CHAINED)], weights)
    return films_of("long", CHAINED, 0, ("keyframe",), weights)


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
        verdicts.append(verdict_of(found, BETTER[name], ablation.margin))
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
        if BETTER[name] == "lower":
            axes.invert_xaxis()
    fig.suptitle("better to the right; bars: 95 % intervals over films, ticks: seeds; bold: judged",
                 fontsize=10)
    save_figure(path, fig, 100)


CLAIMS = tuple(Claim(a.name, a.says, a.rule, partial(measure_variants, a), partial(judge_variants, a),
                     partial(draw_variants, a)) for a in ABLATIONS)
