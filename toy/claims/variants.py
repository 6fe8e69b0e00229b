"""Variants of the shipped model: what is changed, and how they are trained (trained.py says why).

A *variant* is the model of the weights folder with a few fields of its config.json changed. Of it
one stage or both are trained anew, for the same number of steps on the same clips; the rest stays
as it is in the weights folder. All keyframe models begin from one spatial half, which knows how to
draw a face from a single frame; all interpolation models begin from the finished keyframes.

Everything lies in runs/claims, so that an interrupted command goes on and nothing is trained twice:

    0f3c91d2/               for these weights (others begin anew)
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
from pathlib import Path

from stage import Config
from tools.checkpoint import from_dict, header_number, load_config, overlaid, save_config
from tools.cli import HERE, InputError, forget_signals, make_folder, remember_signals, replacing
from tools.prepare import DrawnWorld, fingerprint, prepare
from toy.recipe import wait

FOLDER = HERE / "runs" / "claims"
CLIPS = 1200  # to learn from, with two windows of keyframes and three segments each
PROCESSES = 2  # trainings at a time, of one thread each
STEPS = {"keyframe": 2000, "interp": 2000}  # about 40 minutes of a core each
FRAMES = 56  # a step: windows of 14 frames come four at a time, longer ones fewer
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


def clips_in(folder: Path, config: Config) -> Path:
    return folder / f"clips_{config.keyframe.spacing}"


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

    def command(self, folder: Path, config: Config) -> list[str]:
        """What begins it, or goes on with it where it has kept its state."""
        out, variant, data = self.out(folder), self.variant, clips_in(folder, config)
        words = [sys.executable, f"train_{self.stage}.py", "--out", str(out), "--data", str(data),
                 "--steps", str(self.steps), "--seed", str(self.seed),
                 "--batch", str(FRAMES // getattr(config, self.stage).frames),
                 *["--spatial", "1"] * (variant == SPATIAL)]
        if (out / f"{self.stage}.state").exists():
            return [*words, "--resume"]
        begins = "finished" if self.stage == "interp" else variant.begins
        return [*words, "--init", str(folder / begins), "--config",
                str(folder / f"{variant.name}.json")]


# ---- training it ---------------------------------------------------------------------------------


def folder_for(weights: Path) -> Path:
    """The folder of all that begins from the frozen parts and keyframes of a weights folder."""
    found = hashlib.sha256((weights / "keyframe.safetensors").read_bytes())
    found.update(fingerprint(weights, load_config(Config, weights)).encode())
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
        prepare(DrawnWorld(CLIPS, config), clips_in(folder, config), weights, PROCESSES)


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
        words = training.command(folder, training.variant.config(weights))
        log = folder / f"{training.name}.log"
        print(f"{training.name}: {' '.join(words[1:])} >> {log}", flush=True)
        with open(log, "a") as file:
            status = wait(subprocess.Popen(words, cwd=HERE, stdout=file, stderr=file,
                                           env=os.environ | {"OMP_NUM_THREADS": "1"}), signals)
        if status and not signals:
            raise InputError(f"{training.name}: ended with exit status {status}; what it said is "
                             f"in {log}, and the same command goes on from there")
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


def films_of(name: str, variant: Variant, seed: int, stages: tuple[str, ...],
             weights: Path) -> Path:
    """The weights folder that has the trained stages of a variant, and all else as in `weights`."""
    folder, config = folder_for(weights), variant.config(weights)
    parts = dict.fromkeys([*config.frozen(), "keyframe", "interp", "interp_bad"], weights)
    for stage in stages:
        parts[stage] = Training(stage, variant, seed).out(folder)
    parts["interp_bad"] = parts["interp"]  # autoguidance: an early state of the same training
    parts = {part: source for part, source in parts.items()
             if (source / f"{part}.safetensors").exists()}
    return put_together(folder / f"films-{name}-{variant.name}-{seed}", config, parts)
