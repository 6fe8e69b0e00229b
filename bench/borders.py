"""Does one see where two groups of segments meet? `python bench/borders.py`

Each film is made twice: from its beginning, and from the middle of its first group on. So the
borders of groups lie elsewhere, and every frame at one of them is in the other film a keyframe
within a group, to the same sound. What sound makes move there is the same in both, and a jump that
the border makes is left: a film alone cannot tell the two apart. Printed is how much such frames
differ from their neighbours, against the ten other pairs around: with the border there, without,
and in truth; and the first over the second, with its 95 % interval over clips.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                              # run as a script, it finds the project

from tools import cli
from tools.cli import WEIGHTS, number
from tools.media import FPS, FRAME_SAMPLES
from tools.stats import bootstrap
from toy.evaluation.stats import AROUND, change

SEEDS, SECONDS = 74_000_000, 44
NEXT = [-1, 0]                                             # pairs of frames that touch a border


def means(curve: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Of `change` (N - 1,), the mean next to the frames `borders`, and around them: (2,)."""
    return np.array([curve[np.add.outer(borders, pairs)].mean() for pairs in (NEXT, AROUND)])


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser("bench/borders.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--weights", type=Path, default=WEIGHTS, help="folder of a trained model")
    add("--clips", type=number(int, 1, 1000), default=6, help=f"of {SECONDS} s, each filmed twice")
    args = parser.parse_args(argv)

    import torch  # only now: it takes seconds to load, and mistakes are told at once

    from toy.evaluation.films import face_of, loaded, made, make_film, make_truth, workers
    from toy.world import make_clip

    model = loaded(args.weights)
    plan = model.plan(SECONDS * FPS)
    group = plan.stride                                    # frames
    later = plan.per_window // 2 * plan.spacing            # where the second film begins
    clips = [make_clip(SEEDS + i, "test", SECONDS, "speech") for i in range(args.clips)]
    films = [(args.weights, face_of(clip, model.size, 0), clip.wave[start * FRAME_SAMPLES:],
              clip.emotion[start:], i) for i, clip in enumerate(clips) for start in (0, later)]
    with workers(torch.get_num_threads()) as pool:
        curves = [change(video) for video, _ in made(pool, make_film, films, "films")]
        truths = [change(videos["drawn"]) for videos in
                  made(pool, make_truth, [(args.weights, clip) for clip in clips], "truth")]
    rows, count, last = [], 0, plan.total - len(AROUND)
    for whole, half, truth in zip(curves[::2], curves[1::2], truths):
        half = np.concatenate([np.full(later, np.nan), half])             # at the film's own times
        for with_border, without, first in ((whole, half, group), (half, whole, later + group)):
            borders = np.arange(first, last, group)
            count += len(borders)
            rows.append(np.concatenate([means(x, borders) for x in (with_border, without, truth)]))
    table = np.array(rows).reshape(len(clips), 2, 6).mean(1)              # (clips, 6)
    for i, name in enumerate(("with the border", "without", "truth")):
        next_to, around = table[:, 2 * i:2 * i + 2].mean(0)
        print(f"{name:16} {next_to:5.2f} next to it, {around:5.2f} around: {next_to / around:.2f}")
    ratio, low, high = bootstrap(table, lambda s: s[..., 0] / s[..., 1] / (s[..., 2] / s[..., 3]))
    print(f"border_over_inside={ratio:.3f} low={low:.3f} high={high:.3f} clips={args.clips} "
          f"borders={count}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
