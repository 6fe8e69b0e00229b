"""Does memory grow with the length of a film? `python bench/memory.py`, in the repository's root.

Animates the sound of assets/, repeated, with the shipped weights and one step a stage, which takes
the same memory as ten, and reads this process' resident memory at every group of segments. The
first minute fills caches; from the second to the last it must not grow. Linux only.
"""

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from keyface import KeyFace
from tools.cli import Parser, number, run
from tools.media import FPS, SAMPLE_RATE, read_audio


def resident() -> float:
    """Memory of this process in MB, shared libraries included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv: list[str] | None = None) -> None:
    parser = Parser("bench/memory.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=number(int, 3, 1000), default=10,
                        help="of sound, at least 3: what it grows by after the second (default 10)")
    minutes = parser.parse_args(argv).minutes

    model = KeyFace.load(ROOT / "weights" / "tiny")
    wave = np.resize(read_audio(ROOT / "assets" / "speech.flac"), minutes * 60 * SAMPLE_RATE)
    plan = model.plan(minutes * 60 * FPS)
    group, began = plan.stride, time.monotonic()
    samples: list[list[float]] = [[] for _ in range(minutes)]
    print("minute   memory (MB)   seconds since the start")
    for i, _ in enumerate(model.animate(ROOT / "assets" / "face.png", wave, steps=1)):
        minute, frame = divmod(i, 60 * FPS)
        if i % group == group // 2:                        # its networks have run, half is decoded
            samples[minute].append(resident())
        if frame == 60 * FPS - 1:
            print(f"{minute + 1:6} {max(samples[minute]):13.1f} {time.monotonic() - began:18.0f}",
                  flush=True)
    growth = max(samples[-1]) - max(samples[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"growth_mb={growth:.1f} peak_mb={peak:.1f} minutes={minutes}")


if __name__ == "__main__":
    sys.exit(run(main))
