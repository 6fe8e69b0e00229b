"""Do the shipped weights' mouths follow real voices?

`python bench/real_speech.py FILES...` asks it of recordings, which do not say what the true mouth
did. But a jaw opens with the loudness of a voice. So: make a film of each sound, let the judge read
the jaw of every frame, and correlate it with the loudness. In the drawn world the true jaw and this
loudness correlate by 0.79, best at lag 0 (60 clips of the train split); the measure was chosen
there, before any recording.

Both curves are autocorrelated: unrelated ones correlate by chance, far more than independent frames
would. The same two curves, one turned in a circle against the other, show how much: a turn keeps
the rhythm of each and undoes what they share. Of N frames there are N turns, that by 0 among them;
p is the share of turns that correlate at least as much as it. This is exact where every place in
the circle is alike as a beginning; it nearly is, for a sound between two pauses or cut from the
middle of talk. Beside it stands p by the turns of 0.5 s and more alone. That is the looser test: a
chance peak is as broad as a true one, and without its own slopes to compare it with, simulated
unrelated curves of 140 to 400 frames had p < .01 in 1.4 to 7 % of cases.

Files are pooled by the mean of Fisher's z, against turns of all files drawn independently. In the
column "other's" is the jaw with the next file's loudness: a control that cannot know.
"""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                              # run as a script, it finds the project

from tools import cli, media
from tools.cli import IMAGE, WEIGHTS, InputError, number
from tools.media import FRAME_SAMPLES, SAMPLE_RATE
from tools.stats import best_lag, correlation

SHORTEST = 3.0                                             # seconds: below, too few turns
BAND = 500, 3000                                           # Hz
DRAWS = 10_000
FAR = round(0.5 * media.FPS) + 1                           # frames: no turn is shorter than 0.5 s


# ---- Statistics ----------------------------------------------------------------------------------

def loudness(wave: np.ndarray) -> np.ndarray:
    """Sound (L,) at 16 kHz -> (ceil(L / 640),), one number a frame, the loudest 1.

    Stevens' law, power to the 0.3, of the 80 ms around the middle of the frame. Only of the band in
    which open vowels are loud: hiss needs no open mouth, and hum comes through lips that are shut.
    All zeros for a sound with nothing there.
    """
    n = media.frame_count(len(wave))
    spectrum, hz = np.fft.rfft(wave), np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    spectrum[(hz < BAND[0]) | (hz >= BAND[1])] = 0
    half = FRAME_SAMPLES // 2
    power = np.pad(np.fft.irfft(spectrum, len(wave)),
                   (half, n * FRAME_SAMPLES - len(wave) + half)).reshape(n + 1, -1) ** 2
    early, late = np.hanning(2 * FRAME_SAMPLES).reshape(2, -1) / FRAME_SAMPLES
    power = power[:-1] @ early + power[1:] @ late                                       # (N,)
    if power.max() < 1e-10:                                # a 16 bit recorder's own noise is louder
        return np.zeros(n)
    return (power / power.max()) ** 0.3


def turned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of x (N,) with y (N,) turned by 0, 1, ... N - 1 frames: (N,); 0 if one stands
    still."""
    x, y = ((c - c.mean()) / max(c.std(), 1e-6) for c in (x, y))
    return np.fft.irfft(np.fft.rfft(x) * np.fft.rfft(y).conj(), len(x)) / len(x)


def far(turns: np.ndarray) -> np.ndarray:
    """Of `turned` (N,) the first, which is the observed value, and the turns of 0.5 s and more."""
    return np.concatenate([turns[:1], turns[FAR:len(turns) - FAR + 1]])


def p_value(turns: np.ndarray) -> float:
    """Share of correlations (N,) no less than the first, which is one of them: 1/N to 1."""
    return float((turns >= turns[0] - 1e-9).mean())


def pooled(files: list[np.ndarray], seed: int = 0) -> tuple[float, float]:
    """Correlations (N,) of each file, the observed one first -> their common correlation (by the
    mean of Fisher's z), and its p among DRAWS random turns of all of them."""
    rng = np.random.default_rng(seed)
    z = [np.arctanh(turns.clip(-1 + 1e-9, 1 - 1e-9)) for turns in files]
    observed = sum(curve[0] for curve in z)
    drawn = sum(rng.choice(curve, DRAWS) for curve in z)                                # (DRAWS,)
    p = (1 + (drawn >= observed - 1e-9).sum()) / (1 + DRAWS)
    return float(np.tanh(observed / len(z))), float(p)


# ---- The program ---------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> None:
    """Checks every input before the slow work (InputError), makes the films, prints the table."""
    parser = cli.Parser("bench/real_speech.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("files", type=Path, nargs="+", help=f"sounds with a voice, of {SHORTEST:g} s or longer")
    add("--weights", type=Path, default=WEIGHTS, help="folder of a trained model and its judges")
    add("--image", type=Path, default=IMAGE, help="the face: a picture of any size")
    add("--seed", type=number(int, 0, 10**18), default=0, help="another seed, other takes")
    add("--out", type=Path, default=Path("out/real_speech"), help="folder to write the films to")
    args = parser.parse_args(argv)
    if len({path.resolve() for path in args.files}) < len(args.files):
        raise InputError("files: one is given twice, and would count twice")
    picture, waves, sounds = media.read_image(args.image), [], []
    for path in args.files:
        waves.append(media.read_audio(path))
        if len(waves[-1]) < SHORTEST * SAMPLE_RATE:
            raise InputError(f"{path}: {len(waves[-1]) / SAMPLE_RATE:.1f} s are too few to tell "
                             f"chance from sense; give {SHORTEST:g} s or more")
        sounds.append(loudness(waves[-1]))
        if not sounds[-1].any():
            raise InputError(f"{path}: is silent; give a sound with a voice")
    films = [args.out / f"{path.stem}.mp4" for path in args.files]
    if len({path.resolve() for path in args.files + films}) < len(args.files + films):
        raise InputError(f"--out: a film in {args.out} would overwrite a sound or another film")
    for film in films:
        cli.check_output(film, (".mp4",), "--out")

    from keyface import KeyFace  # only now: torch takes seconds to load, mistakes are told at once
    from toy.evaluation.judges import JAW, Judges, to_tensor

    model, judges = KeyFace.load(args.weights), Judges.load(args.weights / "judges.safetensors")
    jaws = []
    for i, wave in enumerate(tqdm(waves, "films")):
        frames = np.stack(list(model.animate(picture, wave, seed=args.seed)))        # (N, H, W, 3)
        jaws.append(judges.states(to_tensor(frames))[:, JAW].numpy())
        media.write_video(films[i], frames, wave, media.film_side(model.size))

    turns = [turned(jaw, sound) for jaw, sound in zip(jaws, sounds)]
    others = []
    for jaw, sound in zip(jaws, sounds[1:] + sounds[:1]):
        n = min(len(jaw), len(sound))
        others.append(correlation(jaw[:n], sound[:n]))
    width = max(6, *(len(path.stem) for path in args.files))
    print(f"{'file':{width}}  seconds  correlation      p  p >= 0.5 s  lag  other's")
    for i, path in enumerate(args.files):
        other = f"{others[i]:.2f}" if len(others) > 1 else "-"
        print(f"{path.stem:{width}} {len(waves[i]) / SAMPLE_RATE:8.1f} {turns[i][0]:12.2f}"
              f" {p_value(turns[i]):6.3f} {p_value(far(turns[i])):11.3f}"
              f" {best_lag(jaws[i], sounds[i], 10):4.0f} {other:>8}")
    (r, p), (_, far_p) = pooled(turns), pooled([far(t) for t in turns])
    print(f"{'pooled':{width}} {sum(map(len, waves)) / SAMPLE_RATE:8.1f} {r:12.2f} {p:6.4f}"
          f" {far_p:11.4f}\n\npooled_correlation={r:.3f} pooled_p={p:.4f} "
          f"pooled_p_half_second={far_p:.4f} files={len(turns)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
