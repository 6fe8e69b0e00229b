"""The evaluation's statistics against numpy's and against closed forms."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation.watch import sharpness
from keyface import Plan
from tools import stats
from toy.evaluation import __main__ as evaluation
from toy.evaluation import report
from toy.evaluation.__main__ import (
    Seen,
    blink_rows,
    errors,
    eye_rows,
    other_curve,
    sharpness_rows,
    speech_rows,
)
from toy.evaluation.longfilm import Course, joints, long_rows
from toy.evaluation.stats import blinks, moments, pooled_correlation, smeared
from toy.voices import VISEME_CLASSES


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_correlation_pooled_over_clips_is_that_of_all_their_frames(rng):
    x, y = rng.normal(3, 2, (2, 6, 50))
    y += 0.5 * x
    sums = np.stack([moments(a, b) for a, b in zip(x, y)])
    expected = np.corrcoef(x.ravel(), y.ravel())[0, 1]
    assert pooled_correlation(sums.sum(0)) == pytest.approx(expected, abs=1e-12)
    assert stats.correlation(x[0], y[0]) == pytest.approx(np.corrcoef(x[0], y[0])[0, 1])
    still = np.ones(50)
    assert stats.correlation(still, y[0]) == 0 == pooled_correlation(
        moments(still, y[0]))
    assert np.isnan(stats.correlation(x[0], still))


def test_bootstrap_of_a_mean_has_its_standard_error(rng):
    values = rng.normal(5, 2, 400)
    value, low, high = stats.bootstrap(stats.counted(values))
    error = values.std() / np.sqrt(400)
    assert value == pytest.approx(values.mean())
    assert low == pytest.approx(value - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.1 * error)


def test_bootstrap_of_few_holds_the_truth_in_95_of_100(rng):
    """Means of 12 normal numbers around 1: quantiles of .025 would hold it in 91."""
    found = [stats.bootstrap(stats.counted(rng.normal(1, 1, 12)), resamples=500)
             for _ in range(1500)]
    assert np.mean([low <= 1 <= high for _, low, high in found]) == pytest.approx(0.945, abs=0.015)


def test_bootstrap_of_a_correlation_follows_fishers_z(rng):
    x, noise = rng.normal(size=(2, 300, 1))          # each clip one frame: all are independent
    sums = np.stack([moments(a, b) for a, b in zip(x, 0.8 * x + 0.6 * noise)])
    value, low, high = stats.bootstrap(sums, pooled_correlation)
    reach = 1.96 / np.sqrt(297)
    expected = np.tanh(np.arctanh(value) + np.array([-reach, reach]))
    assert (low, high) == pytest.approx(tuple(expected), abs=0.015)


def test_clips_without_a_value_do_not_count():
    value, low, high = stats.bootstrap(stats.counted([1.0, np.nan, 2.0, np.nan]))
    assert value == 1.5 and high - value == value - low == pytest.approx(12.706 / 2)  # the mean's
    hits_of_frames = np.array([[3.0, 4.0], [0.0, 6.0]])
    assert stats.share(hits_of_frames.sum(0)) == 0.3


def test_wilsons_interval():
    value, low, high = stats.wilson(stats.counted([1.0] * 40))
    assert value == 1 and high == pytest.approx(1)
    assert low == pytest.approx(40 / (40 + 1.96**2))
    value, low, high = stats.wilson(stats.counted([1.0, 0.0] * 20))
    assert value == 0.5 == pytest.approx((low + high) / 2)


@pytest.mark.parametrize("late", [-3, 0, 5])
def test_lag_is_how_much_later_the_first_curve_is(rng, late):
    y = np.convolve(rng.normal(size=140), np.ones(5) / 5, "valid")
    x = np.roll(y, late) + 0.05 * rng.normal(size=len(y))
    assert stats.best_lag(x[10:110], y[10:110]) == late
    assert np.isnan(stats.best_lag(np.zeros(100), y[10:110]))
    assert np.isnan(stats.best_lag(y[10:110], np.zeros(100)))


@pytest.fixture
def speech(rng):
    """Six clips of 80 frames; what is seen of a model that is perfect on five and has three of its
    frames late on one, of one that knows nothing, of true and of still films."""
    clips = [SimpleNamespace(state=rng.random((80, 15)), emotion=rng.uniform(-1, 1, (80, 2)),
                             viseme=rng.permutation(20).repeat(4) % len(VISEME_CLASSES))
             for _ in range(6)]
    for clip in clips:                              # a mouth that moves slowly, as mouths do
        clip.state = np.apply_along_axis(np.convolve, 0, clip.state, np.ones(4) / 4, "same")
        clip.state[clip.viseme == VISEME_CLASSES.index("m b p"), 0] = 0
    faces = np.eye(64)

    def film(clip, face: int, late: int = 0, event: str = "speech") -> Seen:
        states = np.concatenate([np.roll(clip.state, late, 0), clip.emotion], 1)
        return Seen(states, faces[face], event, np.ones((80, 3)), None)

    seen = {"generated": [film(c, i, 3 * (i == 0), "laugh" if i == 1 else "speech")
                          for i, c in enumerate(clips)],
            "control": [film(c, i) for i, c in enumerate(clips[1:] + clips[:1])],
            "ceiling": [film(c, i) for i, c in enumerate(clips)],
            "drawn": [film(c, i) for i, c in enumerate(clips)],
            "still": [Seen(np.tile(film(c, i).states[:1], (80, 1)), faces[i], "speech",
                           np.ones((80, 3)), None)
                      for i, c in enumerate(clips)]}
    seen["stranger"] = seen["generated"][1:] + seen["generated"][:1]
    return clips, seen, faces[:10]


def test_the_table_tells_models_apart(speech):
    """Each column is what its name says, and n the number of clips."""
    clips, seen, gallery = speech
    given = clips[1:] + clips[:1]
    rows = speech_rows(clips, given, seen, gallery, {"closed below": 0.01, "open above": 0.05})
    by_name = {row["measure"]: row for row in rows}

    def values(start: str) -> list[float | None]:
        row = next(row for name, row in by_name.items() if name.startswith(start))
        assert {row[c]["n"] for c in report.COLUMNS if c in row} == {6}
        return [row[c]["value"] if c in row else None for c in report.COLUMNS]

    generated, control, still, ceiling, drawn = values("jaw, correlation")
    assert 5 / 6 < generated < 1 and abs(control) < 0.3 and still == 0
    assert ceiling == drawn == pytest.approx(1)
    assert values("clips in which") == [5 / 6, pytest.approx(0, abs=0.5), 0, 1, 1]
    assert values("size of the jaw")[2:] == pytest.approx([0, 1, 1])
    assert values("frames of m, b, p")[3:] == [1, 1] and values("frames of m, b, p")[0] < 1
    assert values("valence, correlation") == pytest.approx([1, 0, 0, 1, 1], abs=0.25)
    assert values("valence, the same")[0] == pytest.approx(1)  # control films had `given`'s emotion
    assert values("the right face") == [1, 0, 1, 1, 1]
    assert values("speech taken for") == [1 / 6, None, 0, 0, 0]
    alike = [SimpleNamespace(emotion=clip.emotion.copy()) for clip in clips]
    best = other_curve(alike)
    for clip, foreign in zip(alike, alike[best:] + alike[:best]):  # now the worst it can be
        foreign.emotion = clip.emotion
    assert other_curve(alike) != best
    assert errors(seen["drawn"], clips) == pytest.approx(np.zeros(17))


def test_control_films_are_of_other_sounds_curves_and_people(monkeypatch, tmp_path):
    """And the gallery shows the people in other clothes than the pictures films are made from."""
    found = evaluation.material(4, 1, 16)
    assert [clip.seed for clip in found.heard] == [clip.seed for clip in found.speech[1:]] + [
        found.speech[0].seed]
    shift = other_curve(found.speech)
    assert [clip.seed for clip in found.given] == [
        found.speech[(i + shift) % 4].seed for i in range(4)]
    asked = {}
    monkeypatch.setattr(evaluation, "workers", lambda _: nullcontext())
    monkeypatch.setattr(evaluation, "watch_truth", lambda *_: ({}, np.zeros(1)))
    monkeypatch.setattr(evaluation, "watch", lambda judges, video: video)

    def made(pool, function, tasks, what):
        asked.update((task[-1], task[1:-1]) for task in tasks)
        return ((number, 0.5) for *_, number in tasks)

    monkeypatch.setattr(evaluation, "made", made)
    args = SimpleNamespace(weights=None, long=0, out=tmp_path)
    watched = evaluation.make_and_watch(found, args, None, 1)
    assert watched.speech["generated"] == [0, 1, 2, 3] and watched.speech["control"] == [4, 5, 6, 7]
    assert watched.speech["stranger"] == [1, 2, 3, 0]
    kinds = len(found.nsv)
    assert watched.nsv["generated"] == list(range(8, 8 + kinds)) and kinds == len(found.kinds)
    assert watched.nsv["control"] == [*range(9, 8 + kinds), 8]
    for i in range(4):
        for number, wave, curve in ((i, found.speech[i], found.speech[i]),
                                    (4 + i, found.speech[(i + 1) % 4], found.given[i])):
            face, sound, emotion = asked[number]
            assert face is found.faces[i] and sound is wave.wave and emotion is curve.emotion
    for i, clip in enumerate(found.nsv):
        assert asked[8 + i][0] is found.faces[4 + i] and asked[8 + i][1] is clip.wave

    shown = []
    monkeypatch.setattr(evaluation, "face_of", lambda clip, size, which: shown.append(
        (clip.identity, which)) or np.zeros((16, 16, 3), np.uint8))
    monkeypatch.setattr(evaluation, "watch", lambda judges, video: SimpleNamespace(
        face=video[0].ravel()))
    assert evaluation.gallery_of(None, found.speech, 16).shape == (100, 16 * 16 * 3)
    people, which = zip(*shown)
    assert set(which) == {1}  # portraits of films are number 0
    own = np.stack([clip.identity for clip in found.speech])
    same = (np.stack(people)[:, None] == own).mean(2)  # (100, 4): share of what makes a person
    assert (np.diag(same) > 0.5).all() and (np.diag(same) < 1).all() and same[4:].max() < 0.5


def test_the_table_is_written_as_measured():
    row = report.row("closed lips", "≥ 80 %", "%", {"generated": [1]}, lambda _: np.array(
        [[0.7993, 1.0], [0.7993, 1.0]]))
    assert "| closed lips | ≥ 80 % | 79.9 % | 2 | - | - | - | - |" in (  # alike: no interval
        report.describe([row], ["A fact."]))
    assert report.show({"value": -0.001, "low": -0.2, "high": 0.2, "n": 9}, "r") == (
        "0.00 (-0.20 to 0.20)")


def test_films_that_drift_or_jump_are_told_from_those_that_last(rng):
    """Made-up courses: the generated ones get worse after half the time and jump at borders."""
    plan = Plan(1500)
    keys, borders = joints(plan)
    assert keys.tolist() == list(range(13, 1499, 13))
    assert borders.tolist() == list(range(182, 1499, 182))
    clips = [SimpleNamespace(state=rng.random((1500, 15))) for _ in range(3)]
    person, other = np.eye(64)[:2]

    def courses(jaw: float, far: float, sharp: float, jump: float) -> list[Course]:
        """`jaw`: its share of truth; `far`: the distance from the person."""
        late, change = np.arange(1500) >= 750, np.ones(1499)
        change[borders - 1] = change[borders] = jump
        far, sharp = (np.where(late, x, y) for x, y in ((far, 0.1), (sharp, 1.0)))
        faces = np.outer(1 - far, person) + np.outer(np.sqrt(1 - (1 - far) ** 2), other)
        noise = rng.random((len(clips), 1500))
        return [Course(np.where(late, jaw * c.state[:, 0] + (1 - jaw) * n, c.state[:, 0]),
                       np.ones(1500), faces, sharp, change) for c, n in zip(clips, noise)]

    seen = {"generated": courses(jaw=0.5, far=0.3, sharp=0.8, jump=8),
            "another": courses(jaw=0, far=0.9, sharp=1, jump=1),
            "ceiling": courses(jaw=1, far=0.1, sharp=1, jump=1)}
    seen["drawn"] = [Course(c.jaw, c.opening, np.tile(person, (1500, 1)), c.sharpness, c.change)
                     for c in seen["ceiling"]]
    jaw, far, sharp, at_keys, at_borders = long_rows(clips, seen, plan)
    assert jaw["generated"]["value"] == pytest.approx(0.5**0.5, abs=0.06)
    assert jaw["control"]["value"] == pytest.approx(0, abs=0.1)
    assert [far[c]["value"] for c in ("generated", "control", "ceiling", "drawn")] == (
        pytest.approx([3, 9, 1, 0]))
    assert sharp["generated"]["value"] == pytest.approx(0.8) and sharp["ceiling"]["value"] == 1
    assert sharp["first, last"]["generated"] == pytest.approx([1, 0.8])
    assert at_borders["generated"]["value"] == 8 and at_borders["ceiling"]["value"] == 1
    assert at_keys["generated"]["value"] == pytest.approx(1 + 7 * len(borders) / len(keys))
    assert {row["generated"]["n"] for row in (jaw, far, sharp, at_keys, at_borders)} == {3}


def test_blinks_are_runs_of_shut_eyes():
    opening = np.full(100, 0.7)
    opening[[0, 1, 20, 21, 22, 50, 99]] = 0.1       # at both ends, too
    opening[51] = 0.26                              # half shut is none
    assert blinks(opening) == [2, 3, 1, 1]
    assert blinks(np.ones(9)) == [] and blinks(np.zeros(9)) == [9]
    a_minute, length = blink_rows({"generated": [opening] * 3, "ceiling": [np.ones(100)] * 3}, "")
    assert a_minute["generated"]["value"] == pytest.approx(4 * 15)          # in 4 s
    assert length["generated"]["value"] == 7 / 4
    assert a_minute["ceiling"]["value"] == 0 and "ceiling" not in length


def test_frames_between_keyframes_that_are_blurred_are_counted():
    sharp = np.full(45, 1.5)
    sharp[::13] = 1, 2, 1, 2                        # so that the limit is 1.2
    sharp[[6, 12, 38]] = 1.19
    sharp[[7, 14]] = 1.21
    sharp[42] = 0                                   # after the last keyframe
    assert smeared(sharp, 13) == (3, 36)
    assert smeared(sharp[:13], 13) == (0, 0)
    noise = torch.rand(27, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise[[4, 5, 20]] = F.avg_pool2d(noise[[4, 5, 20]], 3, 1, 1)
    assert smeared(sharpness(noise).numpy(), 13) == (3, 24)


def test_eyes_that_differ_or_change_their_colour_show_in_the_table():
    """Of made-up eyes: generated ones differ by thrice as much and drift by twice as much."""
    def film(apart: float, drift: float, colour: float, sharp: float = 1, n: int = 40) -> Seen:
        eyes = np.zeros((n, 2, 4))
        eyes[..., 0] = 0.7 + apart * np.array([0, 1])
        eyes[..., 1:] = colour + drift * np.array([0.6, 0, 0.8])            # a distance of `drift`
        eyes[5] = [0, 99, 99, 99]                                           # shut: not looked at
        return Seen(np.zeros((n, 17)), np.eye(64)[0], "speech", sharp * np.ones((n, 3)), eyes)

    seen = {name: [film(*numbers, colour) for colour in (30, 50)] for name, numbers in {
        "generated": (0.3, 4), "ceiling": (0.1, 2), "drawn": (0.05, 1), "still": (0, 0)}.items()}
    seen["stranger"] = seen["generated"][::-1]
    apart, colour = eye_rows(seen)
    values = [apart[c]["value"] for c in ("generated", "ceiling", "drawn", "still")]
    assert values == pytest.approx([3, 1, 0.5, 0]) and apart["generated"]["n"] == 2
    assert [colour[c]["value"] for c in ("generated", "ceiling", "drawn")] == (
        pytest.approx([2, 1, 0.5]))
    assert colour["control"]["value"] > 10
    for name, parts in (("generated", [9, 1, 3]), ("ceiling", [5, 2, 4])):  # pictures, eyes, mouths
        seen[name] = [film(0, 0, 30, sharp=np.array(parts))] * 2
    eyes, mouths, smear = sharpness_rows(seen, {"generated": []}, 13)
    assert eyes["measure"].startswith("sharpness of eyes") and eyes["generated"]["value"] == 1 / 2
    assert mouths["generated"]["value"] == 3 / 4
    assert smear["generated"]["value"] == 0
