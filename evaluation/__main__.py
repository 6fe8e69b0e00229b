"""The paper's metrics for any videos: `python -m evaluation GENERATED --truth TRUE`.

Both are a video each, or folders of videos that are paired by name (a.mp4 with a.mov). A table is
printed and written to --out (evaluation.md, evaluation.json), with curves over time (curves.csv, a
row a second; curves.png). In brackets stand 95 % intervals over the n videos.

What can be measured depends on what is shown. Faces as this project draws them (toy/) are told from
others by the shipped autoencoder, and are looked at by the toy world's judges; nothing else is
needed. For others give `--lip-reader FILE.pth` (vsr_trlrs2lrs3vox2avsp_base.pth of auto-avsr) and
beside each video NAME.landmarks.npy (frames, 68 points, x and y), or `pip install "keyface[lips]"`,
and `--features inception`. Beside a video may also lie its NAME.png, the picture it was made from;
and a name that holds a vocalisation (laugh_3.mp4) says what is to be seen in it. What cannot be
measured is left out, with a line that says why.
"""

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm import tqdm

from evaluation import frechet
from evaluation.lipreader import LipReader
from evaluation.mouths import LEAST
from evaluation.stats import best_lag, bootstrap, correlation, counted, slope, wilson
from evaluation.watch import Seen, inception, lip_features, to_tensor, watch
from tools.checkpoint import save_text
from tools.cli import WEIGHTS, InputError, Parser, make_folder, replacing, run, warn
from tools.figures import write_confusion, write_curves
from tools.media import FPS, read_image, video_blocks, video_shape
from toy.evaluation.judges import SIZE, Judges, are_drawn, closed_lips
from toy.vocalisations import KINDS

ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
COLUMNS = ("generated", "truth")
TEN = 10 * FPS            # frames in ten seconds
OPEN = 0.05               # opening over width of the lips from which a mouth is open
Pair = tuple[Seen, Seen | None]


def found_videos(path: Path) -> dict[str, Path]:
    """The videos of a folder by their names without ending, or the one that is named."""
    if not path.is_dir():
        return {path.stem: path}
    found = {p.stem: p for p in sorted(path.iterdir()) if p.suffix.lower() in ENDINGS}
    if not found:
        raise InputError(f"{path}: holds no video; give a folder of {', '.join(ENDINGS)}")
    return found


def paired(generated: Path, truth: Path | None) -> list[tuple[Path, Path | None]]:
    """What is compared with what. Two files are a pair, whatever their names are."""
    if not truth:
        return [(path, None) for path in found_videos(generated).values()]
    ours, theirs = found_videos(generated), found_videos(truth)
    if not generated.is_dir() and not truth.is_dir():
        return [(generated, truth)]
    if alone := sorted(ours.keys() ^ theirs.keys()):
        warn(f"{len(alone)} videos left out, as their name is in one folder only: "
             f"{', '.join(alone[:5])}{', ...' * (len(alone) > 5)}")
    if len(alone) == len(ours | theirs):
        raise InputError(f"--truth: no video of {truth} is named like one of {generated}")
    return [(ours[name], theirs[name]) for name in ours if name in theirs]


def first_frame(path: Path) -> torch.Tensor:
    """(1, 3, SIZE, SIZE) in [-1, 1]."""
    return to_tensor(next(video_blocks(path, SIZE, length=1)))


def given_face(judges: Judges, path: Path, truth: Path | None) -> torch.Tensor | None:
    """The embedding (64,) of NAME.png beside a video, else of the truth's first frame."""
    for each in (path, truth):
        if each and (picture := each.with_suffix(".png")).exists():
            return judges.identity(to_tensor(read_image(picture, SIZE))[None])[0]
    return judges.identity(first_frame(truth))[0] if truth else None


# ---- The metrics: rows of the table. What cannot be measured is told in `left` -------------------

def figure(estimate: tuple[float, float, float], n: int) -> dict:
    return dict(zip(("value", "low", "high"), map(float, estimate))) | {"n": n}


def row(metric: str, better: str, of: Callable[[Seen, Seen | None], float], pairs: list[Pair],
        estimate: Callable = bootstrap) -> dict:
    """A metric of each video beside the true one, nan where it has none; for the column "truth" the
    true one is both."""
    found = {"metric": metric, "better": better}
    for name, column in zip(COLUMNS, (pairs, [(true, true) for _, true in pairs if true])):
        values = counted([of(*pair) for pair in column])
        if n := int(values[:, 1].sum()) if column else 0:
            found[name] = figure(estimate(values[values[:, 1] > 0]), n)
    return found


def lip_scores(pairs: list[Pair], judges: Judges | None, reader: LipReader | None, side: int,
               left: list[str]) -> dict[Path, np.ndarray]:
    """Cosines (N,) of the features of each pair's common frames, by the video's path."""
    found, short, faceless = {}, 0, 0
    for ours, true in pairs:
        n = min(len(ours.sharpness), len(true.sharpness))
        if n < LEAST:
            short += 1
        elif judges and not reader:
            a, b = (judges.lips(torch.from_numpy(s.states))[1][:n] for s in (ours, true))
            found[ours.path] = torch.cosine_similarity(a, b).numpy()
        elif ours.points is None or true.points is None:
            faceless += 1
        else:
            both = (lip_features(s.path, side, s.points[:n], reader) for s in (ours, true))
            found[ours.path] = np.concatenate(
                [torch.cosine_similarity(a, b).numpy() for a, b in zip(*both)])
    if short:
        left.append(f"LipScore of {short} videos of less than {LEAST} frames")
    if faceless:
        left.append(f"LipScore of {faceless} videos: no NAME.landmarks.npy beside them, and "
                    'face-alignment is not installed (pip install "keyface[lips]")')
    return found


def frechet_rows(name: str, ours: list[frechet.Moments], true: list[frechet.Moments]) -> dict:
    """The distance of two sets and, as its floor, that of two halves of the truth: of its videos."""
    found = {"metric": f"{name} ({sum(m.n for m in ours)} against {sum(m.n for m in true)})",
             "better": "lower",
             "generated": figure(frechet.with_interval(ours, true), len(ours))}
    if len(true) > 1:
        halves = frechet.distance(frechet.sum_of(true[::2]), frechet.sum_of(true[1::2]))
        found["truth"] = figure((halves,) * 3, 1)
    return found


def distances(pairs: list[Pair], judges: Judges | None, left: list[str]
              ) -> tuple[list[dict], dict[Path, np.ndarray]]:
    """Rows of the Frechet distances; and by path those of every second of a video (seconds,)."""
    parts = [[frechet.Moments.of(s.features) for s in column] for column in zip(*pairs)]
    whole = frechet.sum_of(parts[1])
    windows = {s.path: frechet.over_time(s.features, whole, FPS) for pair in pairs for s in pair}
    rows = [frechet_rows("Frechet distance of frames", *parts),
            row("the same in a window of a second", "lower", lambda s, _: windows[s.path].mean()
                if len(windows[s.path]) else np.nan, pairs)]
    tens = [w[:len(w) // 10 * 10].reshape(-1, 10).mean(1) for w in (
        windows[ours.path] for ours, _ in pairs)]
    if tens := [each for each in tens if len(each) > 2]:
        rows.append({"metric": "its slope, a minute", "better": "0",
                     "generated": figure(slope(tens, 1 / 6), len(tens))})
    else:
        left.append("the slope of the distance: no video lasts 30 seconds")
    if judges is None:
        left.append("the distance of 16-frame clips (FVD): its features know drawn faces alone")
        return rows, windows
    clips = [[frechet.Moments.of(judges.over_clips(torch.from_numpy(s.states)).numpy())
              for s in column] for column in zip(*pairs)]
    return [*rows, frechet_rows("Frechet distance of 16-frame clips", *clips)], windows


def mouth_rows(pairs: list[Pair], judges: Judges | None, left: list[str]) -> list[dict]:
    """LipLeak and how mouths follow the truth's and the sound."""
    def against(measure: Callable, other: Callable[[Seen], np.ndarray | None]) -> Callable:
        def of(s: Seen, true: Seen | None) -> float:
            y = other(s, true)
            n = 0 if y is None or s.opening is None else min(len(s.opening), len(y))
            return measure(s.opening[:n], y[:n]) if n > 25 else np.nan
        return of

    rows = []
    for name, other in (("the truth's", lambda s, true: true and true.opening),
                        ("the loudness", lambda s, true: s.loudness)):
        rows += [row(f"mouth's opening, correlation with {name}", "higher",
                     against(correlation, other), pairs),
                 row(f"mouth's opening, frames after {name}", "0", against(best_lag, other), pairs)]
    if not any(s.silent for s, _ in pairs):
        left.append("LipLeak: no video has silent sound")
        return rows
    closed = closed_lips(judges) if judges else None

    def leak(s: Seen, _) -> float:
        limit = OPEN if s.points is not None else closed
        return (s.opening > limit).mean() if s.silent and s.opening is not None else np.nan
    return [*rows, row("LipLeak: open mouths to silent sound", "lower", leak, pairs)]


def first_and_last(name: str, better: str, curve: str, pairs: list[Pair]) -> list[dict]:
    return [row(f"{name}, {which} ten seconds", better,
                lambda s, _, here=here: getattr(s, curve)[here].mean(), pairs)
            for which, here in (("first", slice(TEN)), ("last", slice(-TEN, None)))]


def vocalisations(pairs: list[Pair], judges: Judges, out: Path, left: list[str]) -> list[dict]:
    """Which vocalisation is seen in the videos whose names hold one; draws the confusions."""
    def asked(s: Seen) -> str | None:
        return next((kind for kind in KINDS if kind in s.path.stem.lower()), None)

    named = [pair for pair in pairs if asked(pair[0])]
    if not named:
        left.append(f"NSV accuracy: no video's name holds one of {', '.join(KINDS)}")
        return []
    seen = {id(s): judges.vocalisation(torch.from_numpy(s.states))
            for pair in named for s in pair if s}
    columns, counts = [*KINDS, "speech"], np.zeros((len(KINDS), len(KINDS) + 1), int)
    for s, _ in named:
        counts[KINDS.index(asked(s)), columns.index(seen[id(s)])] += 1
    write_confusion(out / "confusion.png", counts, list(KINDS), columns, "vocalisations")
    return [row("NSV accuracy", "higher", lambda s, _: seen[id(s)] == asked(s), named, wilson)]


# ---- What is written -----------------------------------------------------------------------------

def table(rows: list[dict]) -> str:
    def show(found: dict | None) -> str:
        if not found:
            return "-"
        interval = f" ({found['low']:.3g} to {found['high']:.3g})" * (found["n"] > 1)
        return f"{found['value']:.3g}{interval}"

    lines = [("metric", "better", *COLUMNS, "n"), ("---",) * 5]
    lines += [(r["metric"], r["better"], *(show(r.get(c)) for c in COLUMNS),
               str(r["generated"]["n"])) for r in rows if "generated" in r]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_course(out: Path, pairs: list[Pair], curves: dict[str, dict[Path, np.ndarray]]) -> None:
    """curves.csv, a row for each second of each video, and curves.png; `curves` have a value a
    second, by name and path."""
    with (replacing(out / "curves.csv") as temporary, temporary.open("w", newline="") as file):
        lines = csv.writer(file)
        lines.writerow(["video", "second", *curves])
        for s in (s for pair in pairs for s in pair if s):
            here = [curve.get(s.path, []) for curve in curves.values()]
            for second in range(max(map(len, here))):
                lines.writerow([s.path, second, *(f"{float(c[second]):.5g}" if second < len(c) else ""
                                                  for c in here)])
    panels = {}
    for name, curve in curves.items():
        panels[name] = [{"x": np.arange(len(y)), "y": y, "color": color, "lw": 1,
                         "alpha": 0.6, "label": label if i == 0 else None}
                        for column, color, label in ((1, "k", "truth"), (0, "C1", "generated"))
                        for i, pair in enumerate(pairs[:20]) if pair[column]
                        if len(y := curve.get(pair[column].path, []))]
    write_curves(out / "curves.png", {name: found for name, found in panels.items() if found})


def each_second(curve: np.ndarray) -> np.ndarray:
    return curve[:len(curve) // FPS * FPS].reshape(-1, FPS).mean(1)


def options(argv: list[str] | None) -> Namespace:
    parser = Parser(prog="python -m evaluation", description=__doc__.split("\n\n")[0])
    parser.add_argument("generated", type=Path, help="a video, or a folder of videos")
    parser.add_argument("--truth", type=Path, help="the true one or ones, of the same names")
    parser.add_argument("--lip-reader", help="toy, or auto-avsr's FILE.pth (default: toy where "
                                             "faces are drawn)")
    parser.add_argument("--features", choices=("toy", "inception"),
                        help="of Frechet distances (default: toy where faces are drawn)")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"),
                        help="folder to write to (default out/evaluation)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args, left = options(argv), []
    paths = paired(args.generated, args.truth)
    drawn = are_drawn(WEIGHTS, torch.cat([first_frame(path) for path, _ in paths[:9]]))
    if not drawn and "toy" in (args.lip_reader, args.features):
        warn("the faces look unlike the drawn ones that the toy judges know; their figures may mean "
             "nothing")
        drawn = True
    judges = Judges.load(WEIGHTS / "judges.safetensors") if drawn else None
    named = args.lip_reader not in (None, "toy")
    reader = LipReader.load(Path(args.lip_reader)) if named else None
    embed = inception() if args.features == "inception" else judges and judges.features
    make_folder(args.out)

    with TemporaryDirectory() as folder:
        pairs = []
        for i, (path, truth) in enumerate(tqdm(paths, "videos")):
            side = min(video_shape(path)[:2])
            face = given_face(judges, path, truth) if judges else None
            pairs.append(tuple(each and watch(each, side, Path(folder, f"{i}{j}"), judges, embed,
                                              face, named) for j, each in enumerate((path, truth))))
        rows, curves = measure(pairs, args, judges, reader, embed, side, left)
    text = table(rows) + "\n\n" + "".join(f"- Left out: {line}.\n" for line in left)
    save_text(args.out / "evaluation.md", text)
    save_text(args.out / "evaluation.json", json.dumps({"rows": rows, "left out": left}, indent=1))
    write_course(args.out, pairs, curves)
    print(f"{text}\nwrote {args.out}/evaluation.md, .json, curves.csv and pictures beside them")


def measure(pairs: list[Pair], args: Namespace, judges: Judges | None, reader: LipReader | None,
            embed: object, side: int, left: list[str]) -> tuple[list[dict], dict]:
    """All rows of the table, and the curves by name and path."""
    rows, curves, both = [], {}, args.truth is not None
    if not both:
        left.append("LipScore and Frechet distances: no --truth to compare with")
    elif judges or reader:
        scores = lip_scores(pairs, judges, reader, side, left)
        rows.append(row(f"LipScore ({'toy' if reader is None else args.lip_reader})", "higher",
                        lambda s, _: scores[s.path].mean() if s.path in scores else np.nan, pairs))
        curves["LipScore"] = {path: each_second(score) for path, score in scores.items()}
    else:
        left.append("LipScore: the faces are not drawn ones; give --lip-reader FILE.pth")
    if both and embed:
        found, curves["distance"] = distances(pairs, judges, left)
        rows += found
    elif both:
        left.append("Frechet distances: the faces are not drawn ones; give --features inception")
    rows += mouth_rows(pairs, judges, left)
    if judges:
        rows += vocalisations(pairs, judges, args.out, left)
        rows += first_and_last("likeness to the given picture", "higher", "likeness", pairs)
    else:
        left.append("identity and NSV accuracy: the judges know drawn faces alone")
    rows += first_and_last("sharpness", "the truth's", "sharpness", pairs)
    for name in ("sharpness", "likeness") if judges else ("sharpness",):
        curves[name] = {s.path: each_second(getattr(s, name)) for p in pairs for s in p if s}
    return rows, curves


if __name__ == "__main__":
    sys.exit(run(main))
