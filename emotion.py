"""From emotion as a user writes it to valence and arousal of every video frame (paper: emotion).

In: a name, two numbers, a timeline or a CSV. Out: (N, 2) float32 in [-1, 1], one row for each of
the N video frames at 25 fps.
"""

import csv
import math
from pathlib import Path

import numpy as np

from tools.cli import InputError
from tools.media import FPS

# Emotions by name: valence, how pleasant it feels, and arousal, how much it stirs. Psychologists
# place emotions on this plane, where a path from one to another passes through sensible ones: so
# the models know no names, but two numbers a frame that may change along a video.
EMOTIONS = {
    "neutral": (0.0, 0.0),
    "happy": (0.85, 0.75),
    "angry": (-0.443, 0.908),
    "surprised": (0.0, 0.85),
    "sad": (-0.85, -0.35),
    "fear": (0.181, 0.949),
    "disgusted": (-0.8, 0.5),
    "contempt": (0.307, 0.535),
    "calm": (0.65, -0.5),
    "excited": (0.9, 0.9),
    "bored": (-0.6, -0.9),
}


def _emotion_value(text: str) -> tuple[float, float]:
    """(valence, arousal) of an emotion's name or of "V,A"."""
    if text.strip().lower() in EMOTIONS:
        return EMOTIONS[text.strip().lower()]
    try:
        valence, arousal = (float(number) for number in text.split(","))
    except ValueError:
        hint = ("two numbers V,A were expected" if text[:1] in "+-.0123456789"
                else f"known: {', '.join(EMOTIONS)}")
        raise InputError(f'--emotion: unknown emotion "{text}"; {hint}') from None
    return valence, arousal


def _emotion_points(emotion: str) -> tuple[list[tuple[float, float, float]], str]:
    """The points (seconds, valence, arousal) that a user wrote, and what messages name."""
    if emotion.lower().endswith(".csv"):
        try:
            if Path(emotion).is_fifo():  # a named pipe: reading it could wait for ever
                raise OSError(0, "not a file")
            rows = list(csv.reader(Path(emotion).read_text(encoding="utf-8-sig").splitlines()))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or "not a CSV text file"
            raise InputError(f"--emotion: {emotion}: {reason}; give one of seconds,valence,arousal"
                             ) from None
        points = []
        for number, row in enumerate(rows, 1):
            names = [name.strip().lower() for name in row]
            if not any(names) or number == 1 and names == ["seconds", "valence", "arousal"]:
                continue
            try:
                seconds, valence, arousal = map(float, row)
            except ValueError:
                raise InputError(f"--emotion: {emotion} line {number}: three numbers seconds,"
                                 "valence,arousal were expected") from None
            points.append((seconds, valence, arousal))
        return points, f"--emotion: {emotion}"
    if not emotion:
        raise InputError(f"--emotion: is empty; name an emotion, known: {', '.join(EMOTIONS)}")
    if ":" not in emotion:
        return [(0.0, *_emotion_value(emotion))], "--emotion"
    points = []
    for entry in emotion.split():
        seconds, _, value = entry.partition(":")
        try:
            if not value or ":" in value or value[-1] in ",;|":
                raise ValueError
            points.append((float(seconds), *_emotion_value(value)))
        except ValueError:
            raise InputError(f'--emotion: "{entry}" is not SECONDS:EMOTION; write such points with '
                             'nothing but spaces between them, as in "0:neutral 2.5:happy '
                             '6:-0.8,-0.3"') from None
    return points, "--emotion"


def emotion_curve(emotion: str | Path | np.ndarray, n_frames: int) -> np.ndarray:
    """Valence and arousal of each video frame, (n_frames, 2) float32 in [-1, 1].

    emotion: a name, "V,A", a timeline "0:neutral 2.5:happy 6:-0.8,-0.3", the path of a CSV of
    seconds,valence,arousal, or an array (n, 2) with one row a frame. Raises InputError for names,
    times or values that cannot be used.
    """
    if isinstance(emotion, np.ndarray):
        if emotion.ndim != 2 or emotion.shape[1] != 2 or not len(emotion):
            raise InputError(f"emotion: an array (frames, 2) was expected, not {emotion.shape}")
        where, values = "emotion", emotion[:n_frames]
        times = np.arange(len(values)) / FPS
    else:
        points, where = _emotion_points(str(emotion).strip())
        if not points:
            raise InputError(f"{where}: has no points; name an emotion or give seconds,valence,"
                             "arousal")
        times, values = np.array(points)[:, 0], np.array(points)[:, 1:]
        if not all(map(math.isfinite, times)) or not (np.diff(times) > 0).all():
            raise InputError(f"{where}: the times must be numbers that rise from point to point")
    if not (np.abs(values) <= 1).all():
        raise InputError(f"{where}: valence and arousal must lie between -1 and 1")
    # Emotion is linear between the points, and constant before the first and after the last.
    frame_times = np.arange(n_frames) / FPS
    curve = np.stack([np.interp(frame_times, times, column) for column in values.T], 1)
    return curve.astype(np.float32)
