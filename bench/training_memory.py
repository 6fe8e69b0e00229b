"""Does `--describe` count the memory that a training takes? `python bench/training_memory.py`

Two steps of each stage at the size `small`, one window at a time, are made for real, on the CPU.
What the process grows by over the interpreter and its libraries is compared with the count.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

# In front: this folder has files named like the modules that they measure.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import cli
from tools.describe import Training, taken
from tools.scaling import named_config


def grown(name: str) -> int:
    """Bytes by which this process grows in two steps of the stage `name`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    training = Training(named_config("small"), name)
    for _ in range(2):
        training.passes(1)
        training.learn()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser("bench/training_memory.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--grow", choices=("keyframe", "interp"), help="only measure this stage")
    args = parser.parse_args(argv)
    if args.grow:
        return print(grown(args.grow))
    for name in ("keyframe", "interp"):
        # With this, glibc gives back at once what is free, and the peak holds no holes.
        said = subprocess.run([sys.executable, __file__, f"--grow={name}"], check=True,
                              env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},
                              capture_output=True, text=True).stdout
        counted, measured = taken(named_config("small"), name, 1).bytes, int(said)
        print(f"{name}: counted {counted / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB "
              f"({counted / measured - 1:+.1%})", flush=True)
        print(f"{name}_counted_to_measured={counted / measured:.4g}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
