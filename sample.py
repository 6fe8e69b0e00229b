"""A talking face from one picture and a sound: the command line of KeyFace.

`python sample.py` animates the picture and the sound that come with the project, and writes
out/sample.mp4 and a contact sheet of it, out/sample.sheet.png. Everything can be replaced by
options. The work is done by `keyface.KeyFace.animate`; here is what stands around it.
"""

import argparse
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

# What takes time to load is imported in `main`: mistakes and signals are answered at once.
from tools import cli
from tools.cli import AUDIO, EMOTION, IMAGE, SETTINGS, InputError

OUT = Path("out/sample.mp4")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked as far as that needs no file."""
    parser = cli.Parser("sample.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--image", type=Path, default=IMAGE, help="the face: a picture of any size")
    add("--crop", type=cli.crop, metavar="X,Y,SIDE", help="the square of the picture to use, in "
        "its pixels: left, top, side; default: the largest in the middle")
    add("--audio", type=Path, help="what it says: any sound, or a video with sound")
    add("--out", type=Path, help=f"the video to write, .mp4; default {OUT}")
    add("--weights", type=Path, default=cli.WEIGHTS, help='folder of weights, or of the released '
        'model\'s published files; "released": these, downloaded once')
    add("--list-weights", action="store_true", help="list the published files, and exit")
    add("--emotion", help='a name, "V,A" (valence, arousal in -1..1), "0:neutral 2.5:happy '
        '6:-0.8,-0.3", or a CSV of seconds,valence,arousal; default neutral')
    helps = {"steps": "of the sampler; 10 visits the paper's 11 levels",
             "id_guidance": "weight of the identity in keyframes",
             "audio_guidance": "weight of the sound in keyframes",
             "autoguidance": "weight of the good over the bad model in interpolation",
             "size": "side of the video in pixels, even",
             "seed": "of the noise: another one makes another video"}
    for name, text in helps.items():
        add(f"--{name.replace('_', '-')}", type=SETTINGS[name], help=text,
            default=0 if name == "seed" else None)
    add("--device", help="cpu, cuda, cuda:1, mps; default: the GPU if there is one")
    add("--low-memory", action="store_true",
        help="slower: each part is on the GPU only while it works")
    sheet = parser.add_mutually_exclusive_group()
    sheet.add_argument("--sheet", type=Path, help="contact sheet to write, .png; default: beside "
                       "the video, NAME.sheet.png")
    sheet.add_argument("--no-sheet", action="store_true", help="write no contact sheet")
    words = sys.argv[1:] if argv is None else argv
    for i, (option, value) in reversed(list(enumerate(pairwise(words)))):
        if option in ("--emotion", "--crop") and value[:1] == "-" and value[:2] != "--":
            # "-0.8,-0.3" would be taken for an option.
            words = [*words[:i], f"{option}={value}", *words[i + 2:]]
    return parser.parse_args(words)


def check_files(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """The video and the sheet to write (None: no sheet). Raises InputError where one of them is an
    input, or where a file that comes with the project is missing."""
    out = args.out or OUT
    if not out.name:
        raise InputError(f"--out: {out} is a folder; name a file, .mp4")
    sheet = None if args.no_sheet else args.sheet or out.with_suffix(".sheet.png")
    inputs = {"--image": args.image, "--audio": args.audio or AUDIO}
    cli.check_apart(inputs, {"--out": out, **({"--sheet": sheet} if sheet else {})})
    for option, path in (*inputs.items(), ("--weights", args.weights)):
        cli.check_shipped(path, option)
    return out, sheet


class Progress:
    """A bar on stderr for each stage; a line where stderr is no terminal."""

    def __init__(self):
        self.bars: dict[str, object] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage not in self.bars:
            plain = not (sys.stderr and sys.stderr.isatty())
            if plain:
                print(f"{stage}: {total} steps", file=sys.stderr, flush=True)
            self.bars[stage] = tqdm(desc=f"{stage:9}", total=total, position=len(self.bars),
                                    unit="step", mininterval=0.5, disable=plain)
        self.bars[stage].update(done - self.bars[stage].n)

    def close(self) -> None:
        for bar in self.bars.values():
            bar.close()


def main(argv: list[str] | None = None) -> None:
    """Parses, checks every input before the slow work, samples, writes, and says what it did."""
    args = arguments(argv)
    if args.list_weights:
        from tools import released

        return print(released.listing("released" if args.weights == cli.WEIGHTS else args.weights))
    audio = args.audio or AUDIO
    emotion = args.emotion if args.emotion is not None else "neutral" if args.audio else EMOTION
    out, sheet = check_files(args)

    from emotion import emotion_curve
    from tools import media

    wave = media.read_audio(audio)
    picture = media.read_image(args.image, crop=args.crop)
    curve = emotion_curve(emotion, media.frame_count(len(wave)))                    # (N, 2)
    cli.check_output(out, (".mp4",), "--out", named=bool(args.out))
    if sheet:
        cli.check_output(sheet, (".png",), "--sheet", named=bool(args.sheet))

    # Only now: torch takes seconds to load, and mistakes are to be told at once.
    from tools import figures, released

    device = cli.pick_device(args.device)
    model = released.load(args.weights, device, args.low_memory)
    config, size = model.config, args.size or media.film_side(model.size)
    settings = {name: getattr(config, name) if getattr(args, name) is None else getattr(args, name)
                for name in ("steps", "id_guidance", "audio_guidance", "autoguidance")}
    if model.interp_bad is None:
        del settings["autoguidance"]        # there is no bad model to be guided away from
    print(f"image    {args.image}\naudio    {audio} ({len(wave) / media.SAMPLE_RATE:.2f} s)\n"
          f"emotion  {emotion}\nweights  {args.weights} on {device}\nsettings "
          + ", ".join(f"{name} {value:g}" for name, value in settings.items())
          + f", seed {args.seed}", flush=True)

    began, identity = time.perf_counter(), media.read_image(picture, model.size)
    if strange := model.unlike(identity):
        cli.warn(f"--image {args.image}: {strange}")
    # Frames come a group at a time, are written as they come, and are not kept, but for those that
    # the contact sheet shows.
    kept = {}                               # frames (H, W, 3) of the sheet
    with closing(Progress()) as progress:
        frames = model.animate(identity, wave, emotion, seed=args.seed, progress=progress,
                               **settings)
        frames = figures.keep(frames, figures.sheet_frames(len(curve)) if sheet else [], kept)
        count = media.write_video(out, frames, wave, size, sound=audio)
    print(f"wrote    {out} ({count} frames of {size} x {size} at {media.FPS} fps, synthetic)")
    if sheet:
        figures.write_sheet(sheet, identity, kept, wave, curve)
        print(f"         {sheet} (contact sheet)")
    print(f"in       {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    sys.exit(cli.run(main))
