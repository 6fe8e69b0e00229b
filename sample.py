"""A talking face from one picture and a sound: the command line of KeyFace.

`python sample.py` animates the picture and the sound that come with the project, and writes
out/sample.mp4 and a contact sheet of it, out/sample.png. Everything can be replaced by options.
The work is done by `keyface.KeyFace.animate`; here is what stands around it.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

if __name__ == "__main__":      # until `cli.run`: the imports below may take a second
    for each in signal.SIGINT, signal.SIGTERM:
        signal.signal(each, lambda number, _: os._exit(128 + number))

import numpy as np
from tqdm import tqdm

from emotion import emotion_curve
from tools import cli, media
from tools.cli import InputError
from tools.media import FPS, SAMPLE_RATE

IMAGE, AUDIO = cli.HERE / "assets" / "face.png", cli.HERE / "assets" / "speech.flac"
EMOTION = "0:neutral 1.5:neutral 3:happy 5:happy 7:sad"     # made for the sound above, only for it


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked as far as that needs no file."""
    parser = cli.Parser("sample.py", description=__doc__.split("\n\n")[0])
    weight = cli.number(float, -100, 100)
    add = parser.add_argument
    add("--image", type=Path, default=IMAGE, help="the face: a picture of any size")
    add("--audio", type=Path, help="what it says: any sound, or a video with sound")
    add("--out", type=Path, default=Path("out/sample.mp4"), help="the video to write, .mp4")
    add("--weights", type=Path, default=cli.WEIGHTS, help='folder of weights, or of the released '
        'model\'s published files; "released": these, downloaded once')
    add("--list-weights", action="store_true", help="list the published files, and leave")
    add("--emotion", help='a name, "V,A" (valence, arousal in -1..1), "0:neutral 2.5:happy '
        '6:-0.8,-0.3", or a CSV of seconds,valence,arousal; default neutral')
    add("--steps", type=cli.number(int, 1, 1000), help="of the sampler; 10: the paper's 11 levels")
    add("--id-guidance", type=weight, help="weight of the identity in keyframes")
    add("--audio-guidance", type=weight, help="weight of the sound in keyframes")
    add("--autoguidance", type=weight, help="weight of the good over the bad model between them")
    add("--size", type=cli.number(int, 16, 4096), help="side of the video in pixels, even")
    add("--seed", type=cli.number(int, 0, 10**18), default=0, help="another seed, another take")
    add("--device", help="cpu, cuda, cuda:1, mps; default: the GPU if there is one")
    add("--low-memory", action="store_true",
        help="slower: each part is on the GPU only while it works")
    add("--sheet", type=Path, help="contact sheet to write, .png; default: beside the video")
    words = sys.argv[1:] if argv is None else argv
    for i, (option, value) in enumerate(pairwise(words)):
        if option == "--emotion" and value[:1] == "-" and value[:2] != "--":
            # "-0.8,-0.3" would be taken for an option.
            words = [*words[:i], f"{option}={value}", *words[i + 2:]]
    args = parser.parse_args(words)
    if args.size is not None and args.size % 2:
        raise InputError(f"--size: {args.size} is odd; H.264 needs an even number")
    if not args.out.name:
        raise InputError(f"--out: {args.out} is a folder; name a file, .mp4")
    args.sheet = args.sheet or args.out.with_suffix(".png")
    return args


def pick_device(name: str | None) -> str:
    """The device asked for, if it is there; by default the GPU, else the CPU."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(),
             "mps": int(torch.backends.mps.is_available())}
    if not (index or "0").isdecimal() or int(index or 0) >= there.get(kind, 0):
        found = [name for name, count in there.items() if count]
        raise InputError(f'--device: "{name}" is not here; there is {", ".join(found)}')
    return f"{kind}:{int(index)}" if index and kind != "cpu" else kind


# ------------------------------------------------------------------------------------- the program

class Progress:
    """One bar on stderr for each stage that reports itself."""

    def __init__(self):
        self.bars: dict[str, tqdm] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.bars:
            self.bars[stage] = tqdm(desc=f"{stage:9}", total=total, position=len(self.bars),
                                    unit="step", mininterval=0.5)
        self.bars[stage].update(done - self.bars[stage].n)

    def close(self) -> None:
        for bar in self.bars.values():
            bar.close()


def keep(frames: Iterable[np.ndarray], wanted: set[int],
         kept: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
    """Hands the frames on, and keeps copies of those wanted."""
    for i, frame in enumerate(frames):
        if i in wanted:
            kept[i] = frame.copy()
        yield frame


def main(argv: list[str] | None = None) -> None:
    """Parses, checks every input before the slow work, samples, writes, and says what it did."""
    args = arguments(argv)
    if args.list_weights:
        from tools import released

        return print(released.listing("released" if args.weights == cli.WEIGHTS else args.weights))
    audio = args.audio or AUDIO
    emotion = args.emotion if args.emotion is not None else "neutral" if args.audio else EMOTION
    for option, path in (("--image", args.image), ("--audio", audio)):
        try:
            same = path.exists() and path.resolve() in (args.out.resolve(), args.sheet.resolve())
        except (OSError, RuntimeError) as error:    # no right to look, a name too long, a loop
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{option} {path}, --out {args.out}: {reason}") from None
        if same:
            raise InputError(f"{option}: {path} would be overwritten; choose another --out")
    wave = media.read_audio(audio)
    picture = media.read_image(args.image)
    curve = emotion_curve(emotion, media.frame_count(len(wave)))                    # (N, 2)
    cli.check_output(args.out, (".mp4",), "--out")
    cli.check_output(args.sheet, (".png",), "--sheet")

    # Only now: torch takes seconds to load, and mistakes are to be told at once.
    from tools import figures, released

    device = pick_device(args.device)
    model = released.load(args.weights, device, args.low_memory)
    config, size = model.config, args.size or max(model.size, 256)
    settings = {name: getattr(config, name) if getattr(args, name) is None else getattr(args, name)
                for name in ("steps", "id_guidance", "audio_guidance", "autoguidance")}
    if model.interp_bad is None:
        del settings["autoguidance"]        # there is no bad model to be guided away from
    print(f"image    {args.image}\naudio    {audio} ({len(wave) / SAMPLE_RATE:.2f} s)\n"
          f"emotion  {emotion}\nweights  {args.weights} on {device}\nsettings "
          + ", ".join(f"{name} {value:g}" for name, value in settings.items())
          + f", seed {args.seed}", flush=True)

    began, identity = time.perf_counter(), media.read_image(picture, model.size)
    if strange := model.unlike(identity):
        print(f"sample.py: warning: --image {args.image}: {strange}", file=sys.stderr)
    kept: dict[int, np.ndarray] = {}
    with closing(Progress()) as progress:
        frames = model.animate(identity, wave, emotion, seed=args.seed, progress=progress,
                               **settings)
        frames = keep(frames, set(figures.sheet_frames(len(curve))), kept)
        count = media.write_video(args.out, frames, wave, size)
    figures.write_sheet(args.sheet, identity, kept, wave, curve)
    print(f"wrote    {args.out} ({count} frames of {size} x {size} at {FPS} fps, synthetic)\n"
          f"         {args.sheet} (contact sheet)\n"
          f"in       {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    sys.exit(cli.run(main))
