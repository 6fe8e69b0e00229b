"""Does a training survive being killed? `python bench/kills.py`, in the repository's root.

Trains keyframes for a few steps and saves after every one: once undisturbed, then again, as often
as it takes, killed with SIGKILL at random moments, while it starts, learns or saves, and resumed
each time. What is left at the end is compared to the bit: weights, average, optimizer and counts.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.checkpoint import load_state
from tools.cli import Parser, number, run, scratch

TRAINING = """
import sys
import train_keyframe, training
from tools import cli
training.SAVE_EVERY = -1
sys.exit(cli.run(train_keyframe.main))
"""


def train(out: Path, steps: int, seconds: float | None = None, started: bool = False) -> bool:
    """Trains, on from what `out` holds; True if that was ended with SIGKILL after `seconds`, which
    count from the first step on if `started`."""
    command = [sys.executable, "-c", TRAINING, f"--out={out}", f"--steps={steps}", "--batch=1",
               "--clips=64", *["--resume"] * any(out.glob("keyframe.state*"))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        try:
            if started:
                any(" steps on " in line for line in process.stdout)  # reads up to this line
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return True
    if process.returncode:
        raise OSError(f"a training ended with {process.returncode}: {said}")
    return False


def digest(out: Path) -> str:
    """The SHA-256 of all that a training left, but for its clock."""
    state = load_state(out / "keyframe.state")
    del state["seconds"]
    hashed = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, dict):
            for name, each in value.items():
                hashed.update(str(name).encode())
                add(each)
        elif isinstance(value, Tensor):
            hashed.update(value.contiguous().numpy().tobytes())
        else:
            hashed.update(json.dumps(value).encode())

    add(state)
    add(dict(sorted(load_file(out / "keyframe.safetensors").items())))
    return hashed.hexdigest()


def main(argv: list[str] | None = None) -> None:
    parser = Parser("bench/kills.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=number(int, 1, 1000), default=20)
    parser.add_argument("--steps", type=number(int, 1, 10**5), default=30)
    args = parser.parse_args(argv)

    kills = in_saves = trainings = 0
    equal = True
    with scratch() as folder:
        whole, killed = folder / "whole", folder / "killed"
        train(whole, args.steps)
        expected = digest(whole)
        print(f"undisturbed: sha256={expected}\n"
              "kill   after (s)   since   state of step   while writing", flush=True)
        while kills < args.kills:
            # The other has the same windows, and nothing yet of the training itself.
            shutil.rmtree(killed, ignore_errors=True)
            shutil.copytree(whole, killed, ignore=lambda at, names: [
                name for name in names if at == str(whole) and name.startswith("keyframe")])
            while kills < args.kills:
                before = set(killed.glob(".keyface.*"))
                started = random.random() < 0.75
                seconds = random.uniform(0, 8)
                if not train(killed, args.steps, seconds, started):
                    break
                kills += 1
                in_saves += (saved := bool(set(killed.glob(".keyface.*")) - before))
                there = any(killed.glob("keyframe.state*"))
                step = load_state(killed / "keyframe.state")["step"] if there else 0
                print(f"{kills:4} {seconds:11.1f} {'step' if started else 'start':>7} {step:15} "
                      f"{'yes' if saved else 'no':>16}", flush=True)
            train(killed, args.steps)
            trainings += 1
            equal = equal and digest(killed) == expected
    print(f"kills={kills} in_saves={in_saves} trainings={trainings} steps={args.steps} "
          f"equal={equal}")


if __name__ == "__main__":
    sys.exit(run(main))
