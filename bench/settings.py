"""Which steps and which guidance are worth their time? `python bench/settings.py`

For each setting ten clips of four seconds are made, with people and sentences of the train split
that no training has seen, so that a choice made here leaves the test split untouched. Printed are
the judged jaw's correlation with the truth, the share of m, b, p with closed lips, sharpness over
that of the true film after the autoencoder, the difference of left and right eye's opening and the
distance of irises from the given picture's in CIELAB, both over the true film's, and the seconds by
the clock, on all cores, for a second of film, writing included; then those until the first frames,
which are a group. The limit below which a mouth counts as closed comes from drawn clips of the test
split; no model made them.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                              # run as a script, it finds the project

from evaluation.watch import sharpness
from stage import Config
from tools import cli
from tools.cli import WEIGHTS, number
from tools.media import FPS, film_side, write_video
from tools.stats import bootstrap, correlation, counted, share
from toy.evaluation.films import face_of, loaded, made, make_truth, workers
from toy.evaluation.judges import JAW, Judges, lip_limits, to_tensor
from toy.evaluation.stats import OPEN
from toy.voices import VISEME_CLASSES
from toy.world import Clip, make_clip

SEEDS, SECONDS, LONG = 76_000_000, 4, 12
STEPS = (10, 6, 4, 3)
SETTINGS = ("steps", "id_guidance", "audio_guidance", "autoguidance")
SHUT = VISEME_CLASSES.index("m b p")


def guidances(config: Config) -> dict[str, tuple[float, float, float]]:
    """Weights (identity, audio, bad model) by what they are: the config's, and with less of it."""
    w_id, w_audio, bad = config.id_guidance, config.audio_guidance, config.autoguidance
    return {"all": (w_id, w_audio, bad), "no bad model": (w_id, w_audio, 1),
            "audio": (1, w_audio, 1), "none": (1, 1, 1)}


def film(weights: Path, clip: Clip, settings: dict[str, float]) -> np.ndarray:
    model = loaded(weights)
    return np.stack(list(model.animate(face_of(clip, model.size, 0), clip.wave, clip.emotion,
                                       seed=clip.seed, **settings)))


def cost(weights: Path, clip: Clip, settings: dict[str, float]) -> tuple[float, float]:
    """Of one film on all cores, written, too: seconds a second of film, and to its first frame."""
    model, arrived = loaded(weights), []
    frames = model.animate(face_of(clip, model.size, 0), clip.wave, clip.emotion, **settings)

    def watched() -> Iterator[np.ndarray]:
        for frame in frames:
            arrived.append(time.perf_counter())
            yield frame

    began = time.perf_counter()
    with cli.scratch() as folder:
        write_video(folder / "film.mp4", watched(), clip.wave, film_side(model.size))
    return (time.perf_counter() - began) * FPS / len(clip.state), arrived[0] - began


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser("bench/settings.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--weights", type=Path, default=WEIGHTS, help="folder of a trained model")
    add("--clips", type=number(int, 1, 1000), default=10, help=f"of {SECONDS} s for each setting")
    args = parser.parse_args(argv)
    config = loaded(args.weights).config
    judges = Judges.load(args.weights / "judges.safetensors")
    closed = lip_limits(judges, config.size)["closed below"]
    clips = [make_clip(SEEDS + i, "train", SECONDS, "speech") for i in range(args.clips)]
    long = make_clip(SEEDS - 1, "train", LONG, "speech")

    def figures(videos: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Of a film of each clip: the jaw's correlation, frames of m, b, p with closed lips and how
        many there are, sharpness, difference of both eyes, irises' distance from the first's."""
        images = [to_tensor(video) for video in videos]
        states = [judges.states(each) for each in images]
        jaws = [each.numpy()[:, JAW] for each in states]
        shut = [jaw[c.viseme == SHUT] < closed for jaw, c in zip(jaws, clips)]
        return {"jaw": np.array([correlation(jaw, c.state[:, JAW])
                                 for jaw, c in zip(jaws, clips)]),
                "shut": np.array([(frames.sum(), len(frames)) for frames in shut]),
                "sharp": np.array([sharpness(each).mean() for each in images]),
                "eyes": np.array([eyes(*each) for each in zip(images, states, clips)])}

    def eyes(images: torch.Tensor, states: torch.Tensor, clip: Clip) -> tuple[float, float]:
        """The difference of both eyes' opening, and the distance of the irises of open ones from
        those of the given picture, means over the frames."""
        face = to_tensor(face_of(clip, config.size, 0)[None])
        given, seen = judges.eyes(face, judges.states(face)), judges.eyes(images, states)
        away = (seen - given)[seen[..., 0] > OPEN][:, 1:].norm(dim=-1)     # seen: (N, 2, 4)
        return (seen[:, 0, 0] - seen[:, 1, 0]).abs().mean().item(), away.mean().item()

    cost(args.weights, clips[0], {"steps": 1})             # of which the first is slower
    with workers(torch.get_num_threads()) as pool:
        true = made(pool, make_truth, [(args.weights, clip) for clip in clips], "truth")
        ceiling, first = figures([videos["ceiling"] for videos in true]), None
        print("jaw: correlation with the truth, and by how much it is more than in the first row, "
              "with a 95 % interval over films\n"
              f"{'steps':>5}  {'guidance':12}    jaw   more than above    m b p closed  "
              "sharpness  eyes  irises  seconds for one of film  first frame, s\n"
              f"       the ceiling   {ceiling['jaw'].mean():5.3f}{'':21}"
              f"{share(ceiling['shut'].sum(0)):12.1%}       1.00  1.00    1.00")
        for steps in STEPS:
            for name, weights in guidances(config).items():
                settings = dict(zip(SETTINGS, (steps, *weights)))
                asked = [(args.weights, clip, settings) for clip in clips]
                found = figures(list(made(pool, film, asked, f"{steps} {name}")))
                first = first or found
                more = bootstrap(counted(found["jaw"] - first["jaw"]))
                apart, colour = found["eyes"].mean(0) / ceiling["eyes"].mean(0)
                each, begins = cost(args.weights, long, settings)
                print(f"{steps:5}  {name:12}  {found['jaw'].mean():5.3f}  "
                      f"{more[0]:+.3f} ({more[1]:+.3f} to {more[2]:+.3f})  "
                      f"{share(found['shut'].sum(0)):9.1%}  "
                      f"{found['sharp'].mean() / ceiling['sharp'].mean():9.2f}  {apart:4.2f}  "
                      f"{colour:6.2f}  {each:23.2f}  "
                      f"{begins:14.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
