"""The paper's metrics for any videos: `python -m evaluation GENERATED --truth TRUE`.

Each is a video or a folder of videos, which are paired by name (a.mp4 with a.mov). A table is
printed and written to --out (evaluation.md, .json), with curves over time (curves.csv, .png). In
brackets stand 95 % intervals: over n videos (of two numbers the second is of the true ones), for
a single video's values by frame over parts of two seconds, for a slope over means of ten seconds.

Faces as this project draws them (toy/) are told from others by the shipped autoencoder, and are
looked at by the toy world's judges. For others give `--lip-reader FILE.pth` (auto-avsr's
vsr_trlrs2lrs3vox2avsp_base.pth), beside each video NAME.landmarks.npy (frames, 68 points, x and y,
in pixels as shown, 25 a second) or `pip install -e ".[lips]"`, and `--features inception`. NAME.png
beside a video is the picture it was made from, NAME.crop.csv (left,top,side) its square, and a
vocalisation in its name (laugh_3.mp4) is looked for. What cannot be measured is told, with why.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.lipreader import LipReader
from evaluation.mouths import LEAST
from evaluation.watch import Seen, inception, lip_features, watch
from tools import frechet
from tools.checkpoint import read_json, save_text
from tools.cli import WEIGHTS, InputError, Parser, make_folder, run, scratch, warn
from tools.figures import write_confusion, write_seconds
from tools.media import FPS, read_image, videos_in
from tools.prepare import blocks_of, first_frames, square_of
from tools.stats import best_lag, bootstrap, correlation, counted, figure, show, slope, wilson
from toy.evaluation.judges import SIZE, Judges, are_drawn, lip_limits, to_tensor
from toy.vocalisations import KINDS

COLUMNS = ("generated", "truth")
TEN, HOP, PART = 10 * FPS, 5, 2 * FPS     # frames; windows slide by HOP, PART are resampled
OPEN, STILL = 0.05, 0.01  # of a mouth's opening: open above; at rest if it deviates by less


def paired(generated: Path, truth: Path | None) -> list[tuple[Path, Path | None]]:
    """What is compared with what. Two files are a pair, whatever their names are."""
    ours = videos_in(generated)
    if not truth:
        return [(path, None) for path in ours.values()]
    if not generated.is_dir() and not truth.is_dir():
        return [(generated, truth)]
    theirs = videos_in(truth)
    if alone := sorted(ours.keys() ^ theirs.keys()):
        if not ours.keys() & theirs.keys():
            raise InputError(f"--truth: no video of {truth} is named like one of {generated}")
        warn(f"{len(alone)} videos left out, whose names are on one side only: "
             f"{', '.join(alone[:5])}{', ...' * (len(alone) > 5)}")
    return [(ours[name], theirs[name]) for name in ours if name in theirs]


def given_picture(path: Path, truth: Path | None) -> Tensor | None:
    """NAME.png beside a video, else the truth's first frame: (1, 3, SIZE, SIZE) in [-1, 1]."""
    for each in (path, truth):
        if each and (picture := each.with_suffix(".png")).exists():
            return to_tensor(read_image(picture, SIZE))[None]
    return to_tensor(next(blocks_of(truth, SIZE, 1))) if truth else None


# ---- The metrics ---------------------------------------------------------------------------------

class Measured:
    """The table in the making, of `pairs` of a video and the true one: `rows`, what was `left` out
    and why, and the `curves` of videos with a value a second, by name and path. `judges` are given
    where faces are drawn."""

    def __init__(self, pairs: list[tuple[Seen, Seen | None]], judges: Judges | None):
        self.pairs, self.judges = pairs, judges
        self.both = [pair for pair in pairs if pair[1]]
        self.rows, self.left, self.curves = [], [], {}
        if odd := sum(len(a.sharpness) != len(b.sharpness) for a, b in self.both):
            warn(f"{odd} videos are not as long as the truth; mouths are compared where both last")

    def row(self, metric: str, better: str, of: Callable[[Seen, Seen | None], float | np.ndarray],
            estimate: Callable = bootstrap, without: str = "no video allows it") -> None:
        """A metric of each video beside the true one, or its values along time, nan where it has
        none; for the column "truth" the true one is both. `without` says why no video has it."""
        found = {"metric": metric, "better": better}
        for name, column in zip(COLUMNS, (self.pairs, [(true, true) for _, true in self.both])):
            values = [v for pair in column if not np.isnan(v := np.atleast_1d(of(*pair))).any()]
            table = counted([v.mean() for v in values])
            if len(values) == 1:
                parts = np.array_split(values[0], max(1, len(values[0]) // PART))
                table = np.array([(part.sum(), len(part)) for part in parts])
            if values:
                found[name] = figure(estimate(table), len(values))
        if "generated" in found:
            self.rows.append(found)
        else:
            self.left.append(f"{metric}: {without}")

    def along(self, name: str, values: dict[Path, np.ndarray], frames: int = FPS) -> None:
        """A curve for curves.csv and curves.png: means of so many values."""
        self.curves[name] = {path: v[:len(v) // frames * frames].reshape(-1, frames).mean(1)
                             for path, v in values.items()}

    def lip_score(self, name: str, reader: LipReader | None) -> None:
        """The mean cosine of the lip reader's features, over the common frames of both videos."""
        found, without = {}, Counter()
        for ours, true in self.both:
            n = min(len(ours.sharpness), len(true.sharpness))
            if n < LEAST:
                without[f"less than {LEAST} frames"] += 1
                continue
            if reader is None:
                both = ([self.judges.lips(torch.from_numpy(s.states[:n]))[1]] for s in (ours, true))
            elif ours.points is None or true.points is None:
                without["no face, or neither NAME.landmarks.npy beside them nor face-alignment "
                        '(pip install -e ".[lips]")'] += 1
                continue
            else:
                both = (lip_features(s, n, reader) for s in (ours, true))
            found[ours.path] = torch.cat([torch.cosine_similarity(*x) for x in zip(*both)]).numpy()
        self.left += [f"LipScore of {count} videos: {reason}" for reason, count in without.items()]
        self.row(f"LipScore ({name})", "higher", lambda s, _: found.get(s.path, np.nan))
        self.along("LipScore", found)

    def set_distance(self, name: str, features: Callable[[Seen], np.ndarray]) -> np.ndarray:
        """Of all videos to all of the truth, whose moments it returns; of its halves as a floor."""
        ours, true = ([sum(frechet.moments(features(s)) for s in column[i::8])  # up to 33 MB each
                       for i in range(min(8, len(column)))] for column in zip(*self.both))
        n = [int(sum(x)[-1, -1]) if x else 0 for x in (ours, true, true[::2], true[1::2])]
        if min(n[:2]) < 2:
            self.left.append(f"{name}: too short")
        else:
            found = figure(frechet.with_interval(ours, true), len(self.both))
            self.rows.append({"metric": f"{name}, {n[0]:,} against {n[1]:,}", "better": "lower",
                              "generated": found})
        if min(n[2:]) > 1:
            floor = (frechet.distance(sum(true[::2]), sum(true[1::2])),) * 3
            self.rows.append({"metric": f"halves of the truth, {n[2]:,} against {n[3]:,}",
                              "better": "-", "truth": figure(floor, len(self.both))})
        else:
            self.left.append(f"halves of the truth, {name}: it is too short or one video")
        return sum(true)

    def distances(self, network: str) -> None:
        whole = self.set_distance(f"Frechet distance of frames ({network})", lambda s: s.features())
        windows = {s.path: frechet.over_time(s.features(), whole, FPS, HOP)
                   for pair in self.both for s in pair}
        self.along("distance in 1 s", windows, FPS // HOP)
        self.row("the same in a window of a second, mean", "lower", lambda s, _:
                 windows[s.path].repeat(HOP) if len(windows[s.path]) else np.nan)  # by frame, too
        ten = TEN // HOP
        tens = [w[:len(w) // ten * ten].reshape(-1, ten).mean(1)
                for s, _ in self.both if len(w := windows[s.path]) >= 3 * ten]
        if tens:
            self.rows.append({"metric": "its slope, a minute", "better": "0",
                              "generated": figure(slope(tens, 1 / 6), len(tens))})
        else:
            self.left.append("the slope of the distance: no video lasts 31 seconds")
        if self.judges:
            self.set_distance("Frechet distance of 16-frame clips (toy)", lambda s: (
                self.judges.over_clips(torch.from_numpy(s.states)).numpy()))
        else:
            self.left.append("the distance of clips (FVD): its features know drawn faces alone")

    def sync(self) -> None:
        """How the mouths follow those of the truth, and the sound."""
        def against(other: Callable, measure: Callable, s: Seen, true: Seen | None) -> float:
            x, y = s.opening, other(s, true)
            n = 0 if x is None or y is None else min(len(x), len(y))
            still = n and x[:n].std() < STILL  # what moves is noise: of the judge, of the encoding
            return measure(x[:n] * (not still), y[:n]) if n > FPS else np.nan

        for name, other, without in (
                ("the truth's", lambda s, true: true and true.opening,
                 "no video longer than a second has a true one and mouths (landmarks) in both"),
                ("loudness", lambda s, _: s.loudness, "no video over a second has both")):
            self.row(f"opening of the mouth, correlation with {name}", "higher",
                     partial(against, other, correlation), without=without)
            self.row(f"opening of the mouth, frames after {name}, up to 8", "0",
                     partial(against, other, best_lag), without=f"{without}, or it is still")

    def lip_leak(self) -> None:
        silent = [s.path for pair in self.pairs for s in pair if s and s.opening is not None
                  and s.loudness is not None and not s.loudness.any()]
        closed = silent and self.judges and lip_limits(
            self.judges, read_json(WEIGHTS / "config.json")["size"])["closed below"]
        self.row("LipLeak: open mouths to silent sound", "lower", lambda s, _: (
            s.opening > (closed if s.points is None else OPEN) if s.path in silent else np.nan),
            without="no video with a mouth has silent sound")

    def first_and_last(self, name: str, better: str, curve: str) -> None:
        self.along(name, {s.path: getattr(s, curve) for pair in self.pairs for s in pair if s})
        self.row(name, better, lambda s, _: getattr(s, curve),
                 without="there is neither a picture beside it (NAME.png) nor --truth")
        for which, here in (("first", slice(TEN)), ("last", slice(-TEN, None))):
            self.row(f"{name}, {which} ten seconds", better, lambda s, _, here=here: (
                getattr(s, curve)[here] if len(s.sharpness) >= 2 * TEN else np.nan),
                without="no video of twenty seconds allows it")

    def vocalisations(self, picture: Path) -> None:
        """What is seen in videos whose names hold a vocalisation; draws what was taken for what."""
        def asked(s: Seen) -> str | None:
            name = "-" + s.path.stem.lower().replace("_", "-").replace(" ", "-")
            return next((kind for kind in KINDS if re.search(f"-{kind}(?![a-z])", name)), None)

        seen = {s.path: (kind, self.judges.vocalisation(torch.from_numpy(s.states)))
                for pair in self.pairs if (kind := asked(pair[0])) for s in pair if s}
        self.row("NSV accuracy", "higher", lambda s, _: len({*seen[s.path]}) == 1
                 if s.path in seen else np.nan, wilson, "no video is named after a vocalisation")
        picture.unlink(missing_ok=True)        # of an earlier run
        if answers := [seen[s.path] for s, _ in self.pairs if s.path in seen]:
            write_confusion(picture, answers, list(KINDS), [*KINDS, "speech"])

    def table(self) -> str:
        lines = [("metric", "better", *COLUMNS, "n"), ("---",) * 5]
        lines += [(r["metric"], r["better"], *(show(r.get(c)) for c in COLUMNS), ", ".join(
            dict.fromkeys(str(r[c]["n"]) for c in COLUMNS if c in r))) for r in self.rows]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n" + "".join(
            f"- Left out: {line}.\n" for line in self.left)


# ---- The command ---------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> None:
    first, *_, last = __doc__.split("\n\n")
    parser = Parser(prog="python -m evaluation", description=first, epilog=last)
    add = parser.add_argument
    add("generated", type=Path, help="a video, or a folder of videos")
    add("--truth", type=Path, help="the true one or ones, of the same names")
    add("--lip-reader", help="toy, or auto-avsr's FILE.pth (default: toy where faces are drawn)")
    add("--features", choices=("toy", "inception"),
        help="of Frechet distances (default: toy where faces are drawn)")
    add("--out", type=Path, default=Path("out/evaluation"), help="default out/evaluation")
    args = parser.parse_args(argv)
    paths = paired(args.generated, args.truth)
    size = read_json(WEIGHTS / "config.json")["size"]
    firsts = to_tensor(first_frames((path for path, _ in paths[:9]), size))
    drawn = len(firsts) > 0 and are_drawn(WEIGHTS, firsts)
    if not drawn and "toy" in (args.lip_reader, args.features):
        warn("these faces look unlike drawn ones; what the toy judges say may mean nothing")
        drawn = True
    judges = Judges.load(WEIGHTS / "judges.safetensors") if drawn else None
    named = args.lip_reader not in (None, "toy")
    reader = LipReader.load(Path(args.lip_reader)) if named else None
    embed = inception() if args.features == "inception" else None
    make_folder(args.out)
    with scratch() as folder:
        pairs = []
        for pair in tqdm(paths, "videos", disable=None):
            try:
                picture = given_picture(*pair) if judges else None
                face = None if picture is None else judges.identity(picture)[0]
                pairs.append(tuple(path and watch(
                    path, square_of(pair[0])[2], Path(folder, f"{len(pairs)}_{column}"), judges,
                    embed, face, named) for path, column in zip(pair, COLUMNS)))
            except InputError as error:
                warn(f"left out: {error}")
        if not pairs:
            raise InputError(f"{args.generated}: no video of it could be measured")
        found = Measured(pairs, judges)
        if not found.both:
            found.left.append("LipScore and Frechet distances: no --truth to compare with")
        elif judges or reader:
            found.lip_score("toy" if reader is None else args.lip_reader, reader)
        else:
            found.left.append("LipScore: the faces are not drawn ones; give --lip-reader FILE.pth")
        if found.both and (judges or embed):
            found.distances("inception" if embed else "toy")
        elif found.both:
            found.left.append("Frechet distances: no drawn faces; give --features inception")
        found.sync()
        try:
            found.lip_leak()
        except InputError as error:  # which lips are closed is learned from clips that are spoken
            found.left.append(f"LipLeak: {error}")
        if judges:
            found.vocalisations(args.out / "confusion.png")
            found.first_and_last("likeness", "higher", "likeness")
        else:
            found.left.append("identity and NSV accuracy: the judges know drawn faces alone")
        found.first_and_last("sharpness", "as the truth", "sharpness")
    save_text(args.out / "evaluation.md", found.table())
    save_text(args.out / "evaluation.json", json.dumps(
        {"rows": found.rows, "left out": found.left}, indent=1))
    write_seconds(args.out / "curves", found.curves, *(
        {s.path for s in column if s} for column in zip(*pairs)))
    print(f"{found.table()}\nwrote {args.out}/evaluation.md, .json, and curves.csv, .png")


if __name__ == "__main__":
    sys.exit(run(main))
