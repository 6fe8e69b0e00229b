"""Variants of the shipped model: what is changed, and how they are trained (trained.py says why).

A *variant* is the model of the weights folder with a few fields of its config.json changed. Of it
one stage or both are trained anew, for the same number of steps on as many clips; the rest stays
as it is in the weights folder. Keyframes always begin from nothing, so that no variant has to
unlearn what it is to do without. Interpolation begins from keyframes: from its own variant's where
these are trained, too, else from the shipped ones.

Everything lies in runs/claims, so that an interrupted command goes on and nothing is trained twice:

    0f3c91d2/               for these weights, drawings, STEPS, CLIPS and FRAMES (else all anew)
        clips_13/           the drawn world, for windows of this spacing
        blank/ finished/    what trainings begin from: no keyframes, or the shipped ones
        keyframe-shipped-0/ interp-shipped-own-0/ interp-shipped-0/ interp-shipped-x2-0/ ...
                            trainings by seed, the last two from `finished`, one twice as long
        films-sounds-without_beats-0/ ...     the weights folder that is put together of them
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from stage import Config
from tools.checkpoint import from_dict, header_number, load_config, overlaid, save_config
from tools.cli import HERE, InputError, forget_signals, make_folder, remember_signals, replacing
from tools.prepare import DrawnWorld, fingerprint, prepare
from toy.recipe import wait

FOLDER = HERE / "runs" / "claims"
CLIPS = 1200  # to learn from, with two windows of keyframes and three segments each
PROCESSES = 2  # trainings at a time, of one thread each
STEPS = 1600  # of a stage: 20 to 50 minutes of a core
FRAMES = 56  # a step: windows of 14 frames come four at a time, longer ones fewer


# ---- what is trained -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A model: what is changed of config.json."""

    name: str
    changes: dict = field(default_factory=dict, hash=False)

    def config(self, weights: Path) -> Config:
        """That of a weights folder, changed. Raises ValueError where it contradicts itself."""
        values = json.loads(json.dumps(asdict(load_config(Config, weights))))
        return from_dict(Config, overlaid(values, self.changes), self.name).check()


def both(**changes: object) -> dict:
    """The same change of both stages."""
    return {"keyframe": changes, "interp": changes}


SHIPPED = Variant("shipped")
# Its keyframes are consecutive frames, each window told the last frame of the one before.
CHAINED = Variant("chained", {"keyframe": {"spacing": 1}, "interp": {"frames": 2}})
DEAF_TO_WORDS = Variant("without_wavlm", both(without="wavlm"))
DEAF_TO_EVENTS = Variant("without_beats", both(without="beats"))
# Whatever else had a weight would take from the mouth's share in the one and not in the other.
LOWER = Variant("lower", {"interp": {"lambda_eyes": 1.0}})
EVEN = Variant("even", {"interp": {"lambda_eyes": 1.0, "lambda_lower": 1.0}})
LATENT_ONLY = Variant("pixels_0", {"keyframe": {"pixel_weight": 0.0}})
MASK_ONLY = Variant("mask_only", {"interp": {"blend": False}})
CLOSE, FAR = (Variant(f"spacing_{s}", {"keyframe": {"spacing": s}, "interp": {"frames": s + 1}})
              for s in (7, 26))


def clips_in(folder: Path, config: Config) -> Path:
    return folder / f"clips_{config.keyframe.spacing}"


@dataclass(frozen=True)
class Training:
    """Of one stage of a variant, from one seed, for `times` STEPS. Interpolation begins from the
    shipped keyframes, or, where it is its `own`, from those of the same variant and seed."""

    stage: str
    variant: Variant
    seed: int = 0
    own: bool = False
    times: int = 1

    @property
    def name(self) -> str:
        longer = f"-x{self.times}" * (self.times > 1)
        return f"{self.stage}-{self.variant.name}{'-own' * self.own}{longer}-{self.seed}"

    @property
    def begins(self) -> str:
        """The folder it begins from."""
        if self.stage == "keyframe":
            return "blank"
        return replace(self, stage="keyframe", own=False).name if self.own else "finished"

    def finished(self, folder: Path) -> bool:
        path = folder / self.name / f"{self.stage}.safetensors"
        return path.exists() and (header_number(path, "step") or 0) >= self.times * STEPS

    def command(self, folder: Path, config: Config) -> list[str]:
        """What begins it, or goes on with it where it has kept its state."""
        out = folder / self.name
        words = [sys.executable, f"train_{self.stage}.py", "--out", str(out),
                 "--data", str(clips_in(folder, config)), "--steps", str(self.times * STEPS),
                 "--seed", str(self.seed),
                 "--batch", str(FRAMES // getattr(config, self.stage).frames)]
        if any(out.glob(f"{self.stage}.state*")):
            return [*words, "--resume"]
        return [*words, "--init", str(folder / self.begins), "--config",
                str(folder / f"{self.variant.name}.json")]


def chain(stages: tuple[str, ...], variant: Variant, seed: int = 0, times: int = 1
          ) -> list[Training]:
    """Those of one model, in their order."""
    return [Training(stage, variant, seed, stage == "interp" and "keyframe" in stages, times)
            for stage in stages]


# ---- training it ---------------------------------------------------------------------------------


@cache
def folder_for(weights: Path) -> Path:
    """The folder of all that begins from the frozen parts and keyframes of a weights folder, and
    is trained in the same way, on the same clips."""
    config = load_config(Config, weights)
    found = hashlib.sha256((weights / "keyframe.safetensors").read_bytes())
    found.update((weights / "config.json").read_bytes())
    found.update(repr((STEPS, CLIPS, FRAMES)).encode())
    found.update((fingerprint(weights, config) + DrawnWorld(CLIPS, config).key(0)).encode())
    return FOLDER / found.hexdigest()[:8]


def put_together(out: Path, config: Config, parts: dict[str, Path]) -> Path:
    """A weights folder, of parts by the folders that they come from."""
    make_folder(out)
    for name, source in parts.items():
        with replacing(out / f"{name}.safetensors") as temporary:
            shutil.copyfile(source / f"{name}.safetensors", temporary)
    save_config(config, out)
    return out


def prepared(wanted: set[Variant], weights: Path, folder: Path) -> None:
    """What trainings of these variants read: clips, the folders they begin from, and configs."""
    config = load_config(Config, weights)
    frozen = dict.fromkeys(config.frozen(), weights)
    put_together(folder / "blank", config, frozen)
    put_together(folder / "finished", config, frozen | {"keyframe": weights})
    for variant in wanted:
        config = variant.config(weights)
        with replacing(folder / f"{variant.name}.json") as temporary:
            temporary.write_text(json.dumps(asdict(config), indent=1))
        prepare(DrawnWorld(CLIPS, config), clips_in(folder, config), weights, PROCESSES)


def train(chains: list[list[Training]], weights: Path) -> None:
    """Carries out those trainings that are not finished, the chains PROCESSES at a time. A signal
    stops them where --resume goes on. Raises InputError where a training ends by itself, after the
    other chains have come to their ends."""
    folder = folder_for(weights)
    chains = [[each for each in chain if not each.finished(folder)] for chain in chains]
    if not any(chains):
        return
    prepared({training.variant for chain in chains for training in chain}, weights, folder)
    signals = remember_signals()

    def run(chain: list[Training]) -> None:
        for training in chain:
            if signals:
                return
            words = training.command(folder, training.variant.config(weights))
            log = folder / f"{training.name}.log"
            print(f"{training.name}: {' '.join(words[1:])} >> {log}", flush=True)
            with open(log, "a") as file:
                status = wait(subprocess.Popen(words, cwd=HERE, stdout=file, stderr=file,
                                               env=os.environ | {"OMP_NUM_THREADS": "1"}), signals)
            if status and not signals:
                raise InputError(f"{training.name}: ended with exit status {status}; what it said "
                                 f"is in {log}, and the same command goes on from there")
            if training.finished(folder):
                for left in (folder / training.name).glob(f"{training.stage}.state*"):
                    left.unlink()  # of no use any more, and large

    with ThreadPoolExecutor(PROCESSES) as threads:
        ends = [threads.submit(run, chain) for chain in chains]
    if signals:
        sys.exit(128 + signals[0])
    forget_signals()
    for end in ends:
        end.result()  # which raises what was raised there


def films_of(name: str, chain: list[Training], weights: Path) -> Path | None:
    """The weights folder that has what was trained in a chain, and all else as in `weights`; None
    where the chain is not finished."""
    folder, variant, seed = folder_for(weights), chain[0].variant, chain[0].seed
    if not all(training.finished(folder) for training in chain):
        return None
    config = variant.config(weights)
    parts = dict.fromkeys([*config.frozen(), "keyframe", "interp", "interp_bad"], weights)
    parts |= {training.stage: folder / training.name for training in chain}
    parts["interp_bad"] = parts["interp"]  # autoguidance: an early state of the same training
    parts = {part: source for part, source in parts.items()
             if (source / f"{part}.safetensors").exists()}
    return put_together(folder / f"films-{name}-{variant.name}-{seed}", config, parts)
