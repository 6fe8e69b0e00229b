"""Makes the drawn world's weights from nothing, in one command: `python -m toy.recipe --out DIR`.

A recipe is a list of phases: autoencoder, audio encoders, judges, keyframes, interpolation. At the
end the weights are evaluated (`python -m toy.evaluation`, into DIR/results). Each phase is a
command of this project that anybody can give by hand, for a number of steps that follows from
--hours. The judges alone always learn for the same number of steps, since they measure the others.
What is finished is written to DIR/recipe.json, so the same command goes on after any interruption,
in the middle of a phase too (the judges begin anew). A finished phase needs only the weights folder
that it leaves: it can be carried to another machine and continued there. The last lines of output
are the weights' card, DIR/README.md.

Hours are those of processors (user and system), of a GPU those of the clock. What a phase took
before it was killed is not counted; a signal ends it in good order.

`--until-jaw .8` is a race: it says how many seconds the phases took by the clock, and whether in
films of 20 validation clips the jaw then correlates with the truth so well. Choose --hours
yourself: the aim is to get there with as few as possible.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tools.checkpoint import hashes, load_metadata, read_json, save_text
from tools.cli import (
    CORES,
    HERE,
    InputError,
    Parser,
    forget_signals,
    make_folder,
    number,
    remember_signals,
    run,
)
from tools.prepare import DRAWN_CLIPS
from tools.stats import correlation
from toy.evaluation.films import face_of, loaded, make_film
from toy.evaluation.judges import JAW, Judges, to_tensor
from toy.world import make_clip

VALIDATION = 75_000_000  # first seed of the clips of --until-jaw


@dataclass(frozen=True)
class Phase:
    """A part of the recipe. `words` are its command after "python", without --steps and --out, and
    with DIR for the weights folder; `hours` are core hours on the machine of the shipped weights,
    `steps` those of that time."""

    name: str
    words: tuple[str, ...]
    steps: int
    hours: float
    part: str  # the file of weights that it writes, and the name of its state for --resume
    judging: bool = False  # always has all its steps, in one process


AUTOENCODER = Phase("autoencoder", ("-m", "toy.train_vae", "--size", "128"), 9000, 2.0, "vae")
WAVLM = Phase("WavLM", ("-m", "toy.train_encoders", "--part", "wavlm"), 9000, 2.1, "wavlm")
BEATS = Phase("BEATs", ("-m", "toy.train_encoders", "--part", "beats"), 2500, .5, "beats")
JUDGES = Phase("judges", ("-m", "toy.evaluation.judges"), 8250, .24, "judges", judging=True)
# Either network has three more rounds with half the rate and the windows in another order, from the
# average of its weights: so no phase is longer than two hours of two slow cores.
SECOND, THIRD, FOURTH = (("--init", "DIR", "--seed", seed) for seed in "123")
KEYFRAMES = Phase("keyframes", ("train_keyframe.py",), 6000, 2.0, "keyframe")  # and their clips
BETWEEN = Phase("interpolation", ("train_interp.py",), 3000, .7, "interp")  # begins from keyframes
KEYFRAMES_2 = Phase("keyframes again", ("train_keyframe.py", *SECOND, "--lr", "1e-3"),
                    2500, .7, "keyframe")
BETWEEN_2 = Phase("interpolation again", ("train_interp.py", *SECOND, "--lr", "5e-4"),
                  4000, 1.0, "interp")
KEYFRAMES_3 = Phase("keyframes once more", ("train_keyframe.py", *THIRD, "--lr", "1e-3"),
                    2500, .7, "keyframe")
BETWEEN_3 = Phase("interpolation once more", ("train_interp.py", *THIRD, "--lr", "5e-4"),
                  3000, .7, "interp")
KEYFRAMES_4 = Phase("keyframes a fourth time", ("train_keyframe.py", *FOURTH, "--lr", "1e-3"),
                    2500, .7, "keyframe")
BETWEEN_4 = Phase("interpolation a fourth time", ("train_interp.py", *FOURTH, "--lr", "5e-4"),
                  3000, .7, "interp")
PHASES = (AUTOENCODER, WAVLM, BEATS, JUDGES, KEYFRAMES, BETWEEN, KEYFRAMES_2, BETWEEN_2,
          KEYFRAMES_3, BETWEEN_3, KEYFRAMES_4, BETWEEN_4)
HOURS = sum(phase.hours for phase in PHASES)


# ---- what was done so far: DIR/recipe.json ------------------------------------------------------


def load_record(out: Path) -> dict:
    """{phase: {"steps", "core_hours", "hours", "processes", "done", "version", "machine", and at
    its end "figures"}}. Raises InputError where `out` holds weights that no recipe made."""
    path = out / "recipe.json"
    if not path.exists():
        if found := [f"{each.part}.safetensors" for each in PHASES
                     if (out / f"{each.part}.safetensors").exists()]:
            raise InputError(f"--out: {out} holds {found[0]}, which no recipe made and this one "
                             "would replace; give another folder")
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or not all(isinstance(each, dict) for each in record.values()):
        raise InputError(f"{path}: not a record of this program; remove it to begin anew")
    return record


def save_record(out: Path, record: dict) -> None:
    save_text(out / "recipe.json", json.dumps(record, indent=1) + "\n")


def machine() -> str:
    """What computes, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{CORES} cores of {names[0] if names else platform.processor() or 'a CPU'}"


# ---- a phase ------------------------------------------------------------------------------------


def steps(phase: Phase, hours: float) -> int:
    """The steps of a phase in a recipe of so many core hours."""
    return phase.steps if phase.judging else max(1, round(phase.steps * hours / HOURS))


def command(phase: Phase, args: Namespace, begun: bool) -> list[str]:
    """The command of a phase, which goes on if it was `begun` and has kept its state."""
    launcher = [sys.executable]
    if args.processes > 1 and not phase.judging:
        launcher += ["-m", "tools.processes", "--standalone", "--nproc_per_node",
                     str(args.processes)]
    words = [word.replace("DIR", str(args.out)) for word in phase.words]
    if begun and any(args.out.glob(f"{phase.part}.state*")):
        if "--init" in words:  # what it began from is in the state
            at = words.index("--init")
            del words[at:at + 2]
        words.append("--resume")
    if phase.part in ("keyframe", "interp"):  # all learn from the same clips
        words += ["--clips", str(max(32, round(DRAWN_CLIPS * min(1, args.hours / HOURS))))]
    return [*launcher, *words, "--steps", str(steps(phase, args.hours)), "--out", str(args.out)]


def wait(child: subprocess.Popen, signals: list[int]) -> int:
    """The exit status of a command, to which a signal is handed on, so that it saves first."""
    told = False
    while child.poll() is None:
        if signals and not told:
            child.terminate()
            told = True
        time.sleep(.2)
    return child.returncode


def work(phase: Phase, args: Namespace, record: dict, signals: list[int]) -> bool:
    """Runs a phase, or what is left of it, and keeps account of its time. Returns whether it is
    done. Raises InputError if the command failed by itself."""
    begun = phase.name in record
    words = command(phase, args, begun)
    entry = record.setdefault(phase.name, {"core_hours": 0.0, "hours": 0.0, "machine": machine()})
    processes = 1 if phase.judging else args.processes
    entry |= {"done": False, "steps": steps(phase, args.hours), "processes": processes}
    if machine() not in entry["machine"].split(" and "):
        entry["machine"] += f" and {machine()}"
    if not begun:  # an earlier phase of the same part leaves its state, which is not this one's
        for left in args.out.glob(f"{phase.part}.state*"):
            left.unlink()
    save_record(args.out, record)
    print(f"\n== {phase.name}: {' '.join(words[1:])}", flush=True)
    start, before = time.monotonic(), os.times()
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # threads that wait would count, too
    status = wait(subprocess.Popen(words, cwd=HERE, env=environment), signals)
    after, clock = os.times(), time.monotonic() - start
    seconds = sum(after[2:4]) - sum(before[2:4])  # of children: user and system
    if torch.cuda.is_available():
        seconds = clock * processes
    entry["core_hours"] = round(entry["core_hours"] + seconds / 3600, 3)
    entry["hours"] = round(entry["hours"] + clock / 3600, 3)
    if status == 0:
        # The next phase of this part begins another table, and other pictures: these stay.
        log = args.out / "log" / phase.name.replace(" ", "_")
        make_folder(log)
        for path in args.out.glob(f"{phase.part}[._]*"):
            if path.suffix in (".csv", ".png"):
                shutil.copy(path, log)
        header = load_metadata(args.out / f"{phase.part}.safetensors")
        entry |= {"done": True, "version": json.loads(header.get("version", '""')),
                  "figures": json.loads(header.get("figures", "{}"))}
    save_record(args.out, record)
    if status and not signals:
        raise InputError(f"{phase.name} ended with exit status {status}; what it said is above, "
                         "and the same command goes on from here")
    return entry["done"]


# ---- how good it is -----------------------------------------------------------------------------


def jaw(weights: Path, clips: int = 20) -> float:
    """The judged jaw's correlation with the truth, a mean over films of clips of the train split
    that no training has seen: people and words like those it learned from, so that the test split
    stays untouched."""
    judges = Judges.load(weights / "judges.safetensors")
    model, found = loaded(weights), []
    for clip in (make_clip(VALIDATION + i, "train", 4, "speech") for i in range(clips)):
        video, _ = make_film(weights, face_of(clip, model.size, 0), clip.wave, clip.emotion, 0)
        states = judges.states(to_tensor(video)).numpy()
        found.append(correlation(states[:, JAW], clip.state[:, JAW]))
    return float(np.mean(found))


def evaluated(out: Path) -> bool:
    """Whether DIR/results is of the weights that are there now."""
    path = out / "results" / "evaluation.json"
    return path.exists() and read_json(path).get("sha256") == hashes(out)


# ---- the card -----------------------------------------------------------------------------------


def card(out: Path, record: dict) -> str:
    """The text of DIR/README.md: what was done, in how long, and where its figures stand."""
    lines = ["# Weights of the drawn world", "",
             ("Made by `python -m toy.recipe` from nothing: from drawings and synthetic voices "
             "that follow from seeds. No photograph, no recorded voice and no pretrained weight "
             "went into them."), "",
             "| phase | steps | core hours | by the clock | processes | code | figures at end |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for phase in PHASES:
        if entry := record.get(phase.name):
            figures = entry.get("figures", {})
            said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            lines.append(f"| {phase.name} | {entry['steps']} | {entry['core_hours']:.2f} | "
                         f"{entry['hours']:.2f} | {entry['processes']} | {entry['version']} | "
                         f"{said} |")
    total = sum(entry["core_hours"] for entry in record.values())
    machines = sorted({entry["machine"] for entry in record.values()})
    lines += ["", (f"In all {total:.1f} core hours, on {' and '.join(machines)}. The figures are "
                   "of each training's own held-out material: `val_1` and `val_10` are the means "
                   "of (D - x0)^2 at sigma 1 and 10, `other_audio` means with another clip's "
                   "sound. Those of films, which --until-jaw leaves out, stand in "
                   "results/evaluation.md.")]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m toy.recipe", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="weights folder")
    parser.add_argument("--hours", type=number(float, .01, 10**4), default=HOURS, help="core hours "
                        "of a machine like that of the shipped weights (default: about "
                        f"{HOURS:.0f})")
    units = torch.cuda.device_count() or CORES
    parser.add_argument("--processes", type=int, choices=(1, 2, 4), help="that share each batch, "
                        "one a core or GPU (default: as many as there are)",
                        default=max(n for n in (1, 2, 4) if n <= max(1, units)))
    parser.add_argument("--until-jaw", type=number(float, 0, 1), metavar="R",
                        help="instead of the evaluation say whether the jaw's correlation is R")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    make_folder(args.out)
    record, signals = load_record(args.out), remember_signals()
    for phase in PHASES:
        entry = record.get(phase.name)
        if entry and entry["steps"] != steps(phase, args.hours):
            raise InputError(f"--hours: {phase.name} in {args.out} is of another number of hours; "
                             "give that again, or another --out")
    done = all(not signals and (record.get(phase.name, {}).get("done")
                                or work(phase, args, record, signals)) for phase in PHASES)
    if signals or not done:
        return
    if args.until_jaw is not None:
        forget_signals()
        seconds = 3600 * sum(entry["hours"] for entry in record.values())
        reached = jaw(args.out)
        print(f"jaw={reached:.3f} seconds={seconds:.0f} processes={args.processes}")
        if not reached >= args.until_jaw:
            raise InputError(f"--until-jaw: {reached:.3f} is less than {args.until_jaw:g}; give "
                             "more --hours, and another --out")
    elif not evaluated(args.out):
        words = [sys.executable, "-m", "toy.evaluation", "--weights", str(args.out), "--out",
                 str(args.out / "results")]
        status = wait(subprocess.Popen(words, cwd=HERE), signals)
        if signals:
            return
        if status:
            raise InputError(f"the evaluation ended with exit status {status}; what it said is "
                             "above")
    text = card(args.out, record)
    save_text(args.out / "README.md", text)
    print(f"\n{text}")


if __name__ == "__main__":
    sys.exit(run(main))
