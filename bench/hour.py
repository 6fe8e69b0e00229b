"""Is an hour of sound animated as well at its end as at its start? `python bench/hour.py`

Sixty people of the drawn world's test split speak for a minute each; the first one's face says it
all. The whole hour is encoded, group after group as the frames between keyframes hear it, and the
film's first and last minute are made, the last with `start=`. The judge reads the jaw of every
frame. Beside its correlation with the truth stands that with the truth of the other minute, which
it cannot know, and the lag at which jaw and truth agree best: sound that is a frame early or late
would show there.
"""

import resource
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                              # run as a script, it finds the project

from tools import cli
from tools.cli import WEIGHTS, number
from tools.media import FPS, FRAME_SAMPLES
from tools.stats import best_lag, correlation

SEEDS, MINUTE = 73_000_000, 60 * FPS                       # of the clips; frames
REACH = 5                                                  # frames of lag looked at


def in_step(jaws: list[np.ndarray], truths: list[np.ndarray]) -> np.ndarray:
    """Of each minute's jaw (N,): its correlation with the own and with the other minute's truth,
    and the lag in frames at which it fits its own best: (2, 3)."""
    return np.array([(correlation(jaw, own), correlation(jaw, other), best_lag(jaw, own, REACH))
                     for jaw, own, other in zip(jaws, truths, truths[::-1])])


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser("bench/hour.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--weights", type=Path, default=WEIGHTS, help="folder of a trained model and its judges")
    add("--minutes", type=number(int, 2, 600), default=60, help="of sound (default 60)")
    args = parser.parse_args(argv)

    import torch  # only now: it takes seconds to load, mistakes are told at once

    from keyface import KeyFace
    from toy.evaluation.films import face_of
    from toy.evaluation.judges import JAW, Judges, to_tensor
    from toy.world import COLUMN, make_clip

    model, judges = KeyFace.load(args.weights), Judges.load(args.weights / "judges.safetensors")
    clips = [make_clip(SEEDS + i, "test", 60, "speech") for i in range(args.minutes)]
    wave, emotion = (np.concatenate([getattr(c, name) for c in clips])
                     for name in ("wave", "emotion"))
    plan = model.plan(len(emotion))
    assert len(wave) == len(emotion) * FRAME_SAMPLES == args.minutes * MINUTE * FRAME_SAMPLES

    began, tokens = time.process_time(), 0
    for group in range(plan.groups):
        (first, _), *_, (_, last) = plan.segments(group)
        sound = model.interp_audio.encode(torch.from_numpy(wave), first, last + 1)
        assert sound.isfinite().all()
        tokens += len(sound) - (group > 0)                 # neighbours share a frame
    seconds = time.process_time() - began
    assert tokens >= plan.total
    print(f"{args.minutes} minutes: {plan.total} frames, {plan.keyframes} keyframes, "
          f"{plan.groups} groups; encoded in {seconds:.0f} s of one core", flush=True)

    starts, jaws = (0, plan.total - MINUTE), []
    for start in starts:
        film = model.animate(face_of(clips[0], model.size, 0), wave, emotion, start=start)
        frames = np.stack(list(islice(film, MINUTE)))                             # (1500, H, W, 3)
        jaws.append(judges.states(to_tensor(frames))[:, JAW].numpy())
    rows = in_step(jaws, [clips[i].state[:, COLUMN["jaw"]] for i in (0, -1)])
    print("minute   jaw and its truth   and the other minute's   lag of the best fit (frames)")
    for name, (own, other, lag) in zip(("first", "last"), rows):
        print(f"{name:6} {own:19.2f} {other:24.2f} {lag:30.0f}")
    (first, first_other, first_lag), (last, last_other, last_lag) = rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"first={first:.3f} last={last:.3f} first_other={first_other:.3f} "
          f"last_other={last_other:.3f} first_lag={first_lag:.0f} last_lag={last_lag:.0f} "
          f"encoding_s={seconds:.1f} peak_mb={peak:.0f} minutes={args.minutes}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
