"""Where the time of a sample goes. `python bench/sample.py`, in the repository's root.

Makes the film of `python sample.py` (the shipped weights, picture and sound), or of the first
`--seconds` of its sound, and adds up the time inside each part and the evaluations of the networks:
an evaluation is one clip of 14 frames through a network once. The method needs, at each noise
level, three for a window of keyframes (guidance by identity and sound) and two for a segment
between two keyframes (the good model and the bad one).
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

# In front: this folder has files named like the modules that they measure.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.gpu_memory import build
from bench.unet import fill
from diffusion import keyframe_weights, schedule
from keyface import Config, KeyFace, Plan
from tools import released
from tools.cli import AUDIO, EMOTION, IMAGE, WEIGHTS, Parser, number, pick_device, run, scratch
from tools.media import (
    FPS,
    FRAME_SAMPLES,
    SAMPLE_RATE,
    film_side,
    frame_count,
    read_audio,
    read_image,
    write_video,
)


class Clock:
    """Seconds inside parts that do not contain each other, and what went into them, by name."""

    def __init__(self, device: str):
        # Work on a GPU goes on after the call that asked for it has returned.
        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        self.seconds: Counter[str] = Counter()
        self.items: Counter[str] = Counter()

    def part(self, name: str, work: Callable) -> Callable:
        """`work`, timed; the length of its first argument is added up in `items`."""
        def timed(first, *others):
            self.wait()
            began = time.perf_counter()
            result = work(first, *others)
            self.wait()
            self.seconds[name] += time.perf_counter() - began
            self.items[name] += len(first)
            return result
        return timed

    def making(self, name: str, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Hands the frames on; the time is that of making them, not of what is done with them."""
        began = time.perf_counter()
        for frame in frames:
            self.seconds[name] += time.perf_counter() - began
            yield frame
            began = time.perf_counter()


def needed(config: Config, frames: int, bad: bool) -> dict[str, int]:
    """Network evaluations that the method needs for a film of so many frames, by stage."""
    plan = Plan(frames, config.keyframe.spacing, config.keyframe.frames, config.dummy_first)
    levels = len(schedule(config.steps)) - 1
    told = sum(w != 0 for w in keyframe_weights(config.id_guidance, config.audio_guidance))
    guided = bad and config.autoguidance != 1
    return {"keyframes": told * levels * plan.windows,
            "interpolation": (1 + guided) * levels * (plan.keyframes - 1)}


def random_model(device: str) -> KeyFace:
    """The released model without its weights: time does not depend on their values."""
    model = build(Config(), device != "cpu", False, device)
    for part in model.parts().values():
        part.to_empty(device=device).requires_grad_(False).eval()
        fill(part)
    return model


def main(argv: list[str] | None = None) -> None:
    parser = Parser("bench/sample.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--random", action="store_true",
                        help="random weights of the released size; a GPU computes in bfloat16")
    parser.add_argument("--seconds", type=number(float, 0.04, 1e6), default=1e6,
                        help="use only so much of the sound")
    parser.add_argument("--device", help="default: the GPU if there is one")
    args = parser.parse_args(argv)

    device = pick_device(args.device)
    clock = Clock(device)
    wave = read_audio(AUDIO)[:round(args.seconds * SAMPLE_RATE)]
    count = frame_count(len(wave))
    began = time.perf_counter()
    model = random_model(device) if args.random else released.load(args.weights, device)
    loading = time.perf_counter() - began
    image = read_image(IMAGE, model.size)
    if device != "cpu":  # what a GPU does once, at its first call, is no part of the time
        for _ in model.animate(image, wave[:20 * FRAME_SAMPLES], EMOTION):
            pass

    stages = [("keyframes", model.keyframe), ("interpolation", model.interp)]
    if model.interp_bad is not None:
        stages.append(("interpolation", model.interp_bad))
    for name, stage in stages:
        stage.denoise = clock.part(name, stage.denoise)
    for hearing in {model.audio, model.interp_audio}:  # of the tiny model one and the same
        hearing.encode = clock.part("sound encoders", hearing.encode)
    model.vae.to_latents = clock.part("VAE encoding", model.vae.to_latents)
    model.vae.to_images = clock.part("VAE decoding", model.vae.to_images)

    began, busy = time.perf_counter(), time.process_time()
    frames = clock.making("making frames", model.animate(image, wave, EMOTION))
    with scratch() as folder:
        write_video(folder / "film.mp4", frames, wave, film_side(model.size))
    total, busy = time.perf_counter() - began, time.process_time() - busy
    made = clock.seconds.pop("making frames")
    clock.seconds["the rest of sampling"] = made - sum(clock.seconds.values())
    clock.seconds["writing"] = total - made

    video = count / FPS
    print(f"{video:.2f} s of video at {model.size} x {model.size} on {device}, after "
          f"{loading:.2f} s of loading\n\n{'part':22} seconds   share   a second of video")
    for name, seconds in clock.seconds.items():
        print(f"{name:22} {seconds:7.2f} {seconds / total:6.1%} {seconds / video:12.3f}")
    print(f"{'total':22} {total:7.2f}        {total / video:12.3f}\n")
    need = needed(model.config, count, model.interp_bad is not None)
    for name, evaluations in need.items():
        print(f"{name}: {clock.items[name]} evaluations, {evaluations} needed")

    done, wanted = sum(clock.items[name] for name in need), sum(need.values())
    figures = {"evaluations_per_second": done / video, "needed_per_second": wanted / video,
               "seconds_per_second": total / video, "cpu_seconds_per_second": busy / video}
    figures |= {f"{name.split()[-1].lower()}_share": seconds / total
                for name, seconds in clock.seconds.items()}
    print("\n" + " ".join(f"{name}={value:.3g}" for name, value in figures.items()))


if __name__ == "__main__":
    sys.exit(run(main))
