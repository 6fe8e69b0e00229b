"""Do networks that were trained on a few videos follow the mouths in them?

`python bench/own_videos.py WEIGHTS VIDEOS...` films the first picture of each video with its own
sound, and once more with the next one's. The region of the mouth, in the middle of the lower half,
moves along a few directions; the first three principal components of its true pixels are taken, and
their curves over time are correlated with those of the film. Printed is the mean of the three,
weighted by their variance. With another sound a network that listens cannot know them.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from keyface import KeyFace
from tools.cli import InputError, Parser, pick_device, run
from tools.media import FRAME_SAMPLES, read_audio
from tools.prepare import blocks_of

COMPONENTS = 3


def mouths(frames: np.ndarray) -> np.ndarray:
    """The brightness of the mouth's region, every second pixel: (N, H, W, 3) uint8 -> (N, P)."""
    h = frames.shape[1]
    region = frames[:, round(.56 * h):round(.94 * h):2, round(.25 * h):round(.75 * h):2]
    return region.mean(-1, dtype=np.float32).reshape(len(frames), -1)


def follows(truth: np.ndarray, film: np.ndarray) -> float:
    """How the first principal components of the true mouths correlate over time in both videos."""
    n = min(len(truth), len(film))
    truth, film = mouths(truth[:n]), mouths(film[:n])
    centred = truth - truth.mean(0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    axes, weight = axes[:COMPONENTS].T, scale[:COMPONENTS] ** 2
    pairs = zip((centred @ axes).T, ((film - film.mean(0)) @ axes).T, strict=True)
    return float(np.average([np.corrcoef(a, b)[0, 1] for a, b in pairs], weights=weight))


def main(argv: list[str] | None = None) -> None:
    parser = Parser("bench/own_videos.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    args = parser.parse_args(argv)
    if len(args.videos) < 2:
        raise InputError("VIDEOS: give two or more, so that each can be given another one's sound")
    if len({path.resolve() for path in args.videos}) < len(args.videos):
        raise InputError("VIDEOS: one is given twice; another's sound would be its own")
    model = KeyFace.load(args.weights, pick_device(args.device))
    truths = [np.concatenate([*blocks_of(path, model.size, 1500)]) for path in args.videos]
    waves = [read_audio(path)[:len(truth) * FRAME_SAMPLES]
             for path, truth in zip(args.videos, truths, strict=True)]
    found = []
    for i, (path, truth) in enumerate(zip(args.videos, truths, strict=True)):
        own, other = (follows(truth, np.stack(list(model.animate(truth[0], wave))))
                      for wave in (waves[i], waves[(i + 1) % len(waves)]))
        found.append((own, other))
        print(f"{path.name}: {own:.2f} with its own sound, {other:.2f} with another's", flush=True)
    own, other = np.mean(found, axis=0)
    print(f"own={own:.3f} other={other:.3f} videos={len(found)}")


if __name__ == "__main__":
    sys.exit(run(main))
