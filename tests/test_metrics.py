"""The metrics of evaluation/ where the answer is known: by a closed form, or because the videos are
the truth itself, moved, blurred, frozen, by another person."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from functools import partial

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from evaluation import __main__ as command
from evaluation import lipreader, mouths, watch
from stage import Config
from tools import cli, frechet, prepare
from tools.checkpoint import load_config
from tools.cli import WEIGHTS, InputError
from tools.media import FPS, loudness, video_shape, write_video, write_wav
from tools.stats import show, slope, student
from toy.evaluation.judges import SIZE, Judges, are_drawn, to_tensor
from toy.faces import REST, STATE, draw, random_identity
from toy.world import KINDS, frames, make_clip, to_bytes

LATE, FILMS = 3, ("truth", "late", "blurred", "frozen", "another")
JAW = STATE.index("jaw")


def blurred(video):
    """Each pixel the mean of 3 x 3."""
    wide = np.pad(video.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    h, w = video.shape[1:3]
    return sum(wide[:, i:i + h, j:j + w] for i in range(3) for j in range(3)).round() / 9


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Folders of the two same clips as each of FILMS; the first clip's sound is silent."""
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    for i in range(2):
        clip = make_clip(900 + i, "test", 2.4, "speech")
        n = len(clip.state)
        true = to_bytes(frames(clip, np.arange(n), SIZE))
        other = replace(clip, identity=random_identity(rng))
        videos = {"truth": true, "late": true[np.maximum(np.arange(n) - LATE, 0)],
                  "blurred": blurred(true).astype(np.uint8), "frozen": true[:1].repeat(n, 0),
                  "another": to_bytes(frames(other, np.arange(n), SIZE))}
        for name, video in videos.items():
            (folder / name).mkdir(exist_ok=True)
            write_video(folder / name / f"{i}.mp4", video, clip.wave * i, SIZE)
    return folder


@pytest.fixture(scope="module")
def seen(films, tmp_path_factory):
    """What is seen of each of the FILMS, beside the truth, and what is measured by that."""
    judges, out = Judges.load(WEIGHTS / "judges.safetensors"), tmp_path_factory.mktemp("features")

    def look(name, i):
        face = judges.identity(command.given_picture(films / name, films / "truth" / f"{i}.mp4"))[0]
        return watch.watch(films / name / f"{i}.mp4", SIZE, out / f"{name}{i}", judges,
                           None, face, False)

    true = [look("truth", i) for i in range(2)]
    found = {}
    for name in FILMS:
        pairs = list(zip([look(name, i) for i in range(2)] if name != "truth" else true, true))
        measured = command.Measured(pairs, judges)
        measured.lip_score("toy", None)
        measured.distances("toy")
        measured.sync()
        measured.first_and_last("likeness", "higher", "likeness")
        measured.first_and_last("sharpness", "as the truth", "sharpness")
        found[name] = {row["metric"].split(",")[0] if "Frechet" in row["metric"] else row["metric"]:
                       row["generated"]["value"] for row in measured.rows if "generated" in row}
    return found


def test_each_fault_moves_its_metric(seen):
    lips, late = "LipScore (toy)", "opening of the mouth, frames after the truth's, up to 8"
    far, clips = "Frechet distance of frames (toy)", "Frechet distance of 16-frame clips (toy)"
    likeness, sharp = "likeness", "sharpness"
    true = seen["truth"]
    assert true[lips] == pytest.approx(1, abs=1e-6)
    assert true[far] == pytest.approx(0, abs=1e-3) and true[clips] == pytest.approx(0, abs=1e-3)
    assert [seen[name][late] for name in ("truth", "late", "blurred", "another")] == [0, LATE, 0, 0]
    assert max(seen["frozen"][lips], seen["late"][lips]) < 0.9
    assert seen["blurred"][lips] > seen["late"][lips] < seen["another"][lips]
    assert max(seen["late"][far], 0.1 * true["the same in a window of a second, mean"]) < min(
        seen[name][far] for name in ("blurred", "frozen", "another"))
    assert seen["frozen"][clips] > seen["late"][clips]
    assert seen["another"][likeness] < 0.7 and seen["late"][likeness] > 0.9
    assert seen["blurred"][sharp] < 0.8 * true[sharp]
    follows = "opening of the mouth, correlation with the truth's"
    assert seen["another"][follows] > 0.8
    assert seen["frozen"][follows] == 0 and late not in seen["frozen"]  # it has no lag


def test_sharpness_of_waves():
    """The Laplacian of a wave along x of half a period a pixel is the wave, as neighbours left and
    right are its negative and those above and below it itself; of a ramp it is 0."""
    wave = torch.tensor([0.5, -0.5]).repeat(16).expand(1, 3, 32, 32)
    assert watch.sharpness(wave).item() == pytest.approx(0.5)
    assert watch.sharpness(torch.linspace(0, 1, 32).expand(1, 3, 32, 32)).item() < 1e-6


def test_the_command_measures_two_folders(films, tmp_path, capsys, monkeypatch):
    """On two folders: the table, the curves, a name that has no partner, a silent sound."""
    films.joinpath("truth", "alone.mp4").symlink_to(films / "truth" / "0.mp4")
    for name in ("frozen", "truth"):
        films.joinpath(name, "00.mp4").write_text("no video")
    monkeypatch.setattr(command, "lip_limits", lambda *_: {"closed below": 0.5})
    out = tmp_path / "out"
    assert cli.run(command.main, [str(films / "frozen"), "--truth", str(films / "truth"),
                                  "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "warning: 1 videos left out, whose names are on one side only: alone" in said.err
    assert "truth/00.mp4: empty, damaged or not a sound or video file" in said.err
    written = (out / "evaluation.md").read_text()
    assert "| LipScore (toy) | higher | " in written and said.out.startswith(written)
    found = json.loads((out / "evaluation.json").read_text())
    rows = {row["metric"]: row for row in found["rows"]}
    assert rows["LipLeak: open mouths to silent sound"]["generated"]["n"] == 1
    assert [row["truth"]["n"] for name, row in rows.items() if "halves of the" in name] == [2, 2]
    assert any(line.startswith("the slope") for line in found["left out"])
    assert len((out / "curves.csv").read_text().splitlines()) == 1 + 4 * 2
    assert (out / "curves.png").stat().st_size > 10_000
    for name in ("truth/alone.mp4", "truth/00.mp4", "frozen/00.mp4"):
        films.joinpath(name).unlink()


def test_what_is_no_drawn_face_is_left_out(tmp_path, capsys):
    """Coloured noise of 10 frames, without landmarks: each metric says why it is not there."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        noise = rng.integers(0, 255, (10, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        write_video(tmp_path / f"{name}.mp4", noise, np.zeros(10 * 640, np.float32), 64)
    assert cli.run(command.main, [str(tmp_path / "a.mp4"), "--truth", str(tmp_path / "b.mp4"),
                                  "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "no video over a second has both" in said
    for reason in ("LipScore: the faces are not drawn ones; give --lip-reader FILE.pth",
                   "give --features inception", "identity and NSV accuracy"):
        assert said.count(reason) == 1
    assert "| sharpness | as the truth | " in said
    assert "- Left out: sharpness, last ten seconds: no video of twenty seconds allows it." in said


@pytest.mark.parametrize("given, line", [
    (["nothing.mp4"], "nothing.mp4: no such file"),
    (["."], "holds no video; give a folder of .mp4"),
    (["text.mp4"], "text.mp4: empty, damaged or not a sound or video file"),
])
def test_bad_input_is_answered_in_one_line(tmp_path, monkeypatch, capsys, given, line):
    monkeypatch.chdir(tmp_path)
    if given == ["text.mp4"]:
        (tmp_path / "text.mp4").write_text("no film")
    assert cli.run(command.main, given) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == (2 if given == ["text.mp4"] else 1)  # and a count


def test_names_and_landmarks_that_do_not_fit(films, tmp_path, capsys):
    film = tmp_path / "film.mp4"
    shutil.copy(films / "truth" / "0.mp4", film)
    assert cli.run(command.main, [str(films / "late"), "--truth", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert re.search("--truth: no video of .* is named like one of .*late\n$", said), said
    look = partial(watch.watch, film, SIZE, tmp_path / "rows", None, None, None, True)
    landmarks = film.with_suffix(".landmarks.npy")
    for content, line in ((np.zeros((5, 68, 2)), "a second, but landmarks for 5; make them anew"),
                          (np.zeros((5, 2)), r"holds \(5, 2\); landmarks are \(T, 68, 2\)")):
        np.save(landmarks, content)
        with pytest.raises(InputError, match=line):
            look()
    landmarks.write_text("no array")
    with pytest.raises(InputError, match="film.landmarks.npy: no array"):
        look()


def test_without_voices_only_the_leak_is_left_out(films, tmp_path, monkeypatch, capsys):
    """Which lips are closed is learned from clips of the drawn world, that are spoken."""
    def mute(*_):
        raise InputError("the drawn world speaks with espeak-ng")

    monkeypatch.setattr(command, "lip_limits", mute)
    assert cli.run(command.main, [str(films / "frozen"), f"--out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "- Left out: LipLeak: the drawn world speaks with espeak-ng.\n" in said
    assert "| sharpness | as the truth | " in said


def test_an_open_mouth_to_silence_leaks(tmp_path):
    judges = Judges.load(WEIGHTS / "judges.safetensors")
    states = torch.from_numpy(np.tile(REST, (20, 1)))
    states[:8, JAW] = 0.5
    size = load_config(Config, WEIGHTS).size
    video = to_bytes(draw(torch.full((28,), 0.5), states, size))
    assert are_drawn(WEIGHTS, to_tensor(video))
    write_video(tmp_path / "a.mp4", video, np.zeros(20 * 640, np.float32), size)
    found = command.Measured([(watch.watch(tmp_path / "a.mp4", size, tmp_path / "x", judges, None,
                                           None, False), None)], judges)
    found.lip_leak()
    assert found.rows[0]["generated"]["value"] == pytest.approx(8 / 20, abs=0.051)


def test_the_parts_of_a_single_video_are_resampled():
    """As the mean of the four 0, 0, 1, 1, whose standard error is 1 / sqrt(12), by Student's t; of
    two videos these are taken, and of one value nothing is, so that no interval is shown."""
    along = np.repeat([0.0, 0, 1, 1], command.PART)
    found = command.Measured([(None, None)], None)
    found.row("one", "higher", lambda *_: along)
    found.row("value", "higher", lambda *_: 3.0)
    found.pairs = found.pairs * 2
    found.row("two", "higher", lambda *_: along)
    one, value, two = (row["generated"] for row in found.rows)
    assert (one["value"], one["n"], two["value"], two["n"]) == (0.5, 1, 0.5, 2)
    reach = 3.182 / math.sqrt(12)
    assert [one["low"], one["high"]] == pytest.approx([0.5 - reach, 0.5 + reach])
    assert two["low"] == two["high"] == 0.5
    assert show(one) == "0.5 (-0.419 to 1.42)" and show(value) == "3"


def long_film(n: int = 1250, **more: np.ndarray) -> watch.Seen:
    """What would be seen of a film of 50 seconds, of which only `more` matters."""
    sharp = more.pop("sharpness", np.ones(n))
    return replace(watch.Seen("film.mp4", SIZE, sharp, *[None] * 6), **more)


def test_the_first_and_the_last_ten_seconds():
    found = command.Measured([(long_film(likeness=np.linspace(1, 0, 1250)), None)], None)
    found.first_and_last("likeness", "higher", "likeness")
    whole, first, last = (row["generated"]["value"] for row in found.rows)
    assert [row["metric"] for row in found.rows[1:]] == [
        "likeness, first ten seconds", "likeness, last ten seconds"]
    assert (whole, first, last) == pytest.approx((0.5, 0.9, 0.1), abs=1e-3)


def test_the_slope_of_the_distance_is_a_minutes(monkeypatch):
    """Of windows whose distance is the second in which they begin."""
    monkeypatch.setattr(frechet, "over_time", lambda features, whole, window, hop: (
        np.arange(0, len(features) - window + 1, hop) / FPS))
    seen = long_film(features=lambda: np.random.default_rng(0).normal(size=(1250, 3)))
    found = command.Measured([(seen, seen)], None)
    found.distances("toy")
    rows = {row["metric"]: row for row in found.rows}
    assert rows["its slope, a minute"]["generated"]["value"] == pytest.approx(60)
    assert any(line.startswith("halves of the truth, Frechet distance of frames (toy): it is")
               for line in found.left)  # of one true film there are no two halves


def test_mouths_follow_the_sound_and_leak_by_landmarks():
    """An opening that is the loudness two frames later; then one that is open in 3 of 10 frames."""
    sound = np.random.default_rng(0).uniform(0, 1, 1250)
    found = command.Measured([(long_film(loudness=sound, opening=np.roll(sound, 2)), None)], None)
    found.sync()
    rows = {row["metric"]: row["generated"]["value"] for row in found.rows}
    assert rows["opening of the mouth, frames after loudness, up to 8"] == 2
    assert "opening of the mouth, correlation with the truth's | " not in found.table()
    assert abs(rows["opening of the mouth, correlation with loudness"]) < 0.1
    opening = np.tile([0.06] * 3 + [0.04] * 7, 125)
    silent = long_film(loudness=np.zeros(1250), opening=opening, points=np.zeros((1250, 68, 2)))
    found = command.Measured([(silent, None)], None)
    found.lip_leak()
    assert found.rows[0]["generated"]["value"] == pytest.approx(0.3)


def test_videos_of_another_rate_or_length_are_used(tmp_path, capsys):
    for name, rate, frames_ in (("a", 30, 45), ("b", 25, 30)):
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i",
                        f"testsrc=size=64x64:rate={rate}", "-frames:v", str(frames_), "-pix_fmt",
                        "yuv420p", str(tmp_path / f"{name}.mp4")], check=True)
    assert cli.run(command.main, [str(tmp_path / "a.mp4"), "--truth", str(tmp_path / "b.mp4"),
                                  "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert re.search("warning: .*a.mp4: has 30 frames a second and is looked at at 25", said)
    assert "warning: 1 videos are not as long as the truth" in said


def test_vocalisations_are_counted(tmp_path):
    class Judge:
        def vocalisation(self, states):
            return KINDS[int(states[0, 0])]

    def film(name, kind):
        states = np.full((5, 17), KINDS.index(kind), np.float32)
        return watch.Seen(tmp_path / name, SIZE, np.ones(5), *[None] * 3, states, None, None)

    pairs = [(film("laugh_1.mp4", "laugh"), None), (film("laugh_2.mp4", "yawn"), None),
             (film("Throat clear3.mp4", "throat-clear"), None), (film("gaspard.mp4", "gasp"), None)]
    found = command.Measured(pairs, Judge())
    found.vocalisations(tmp_path / "confusion.png")
    assert found.rows[0]["generated"]["value"] == pytest.approx(2 / 3)
    assert found.rows[0]["generated"]["n"] == 3
    pairs[0] = pairs[0][0], film("x.mp4", "laugh")  # the name of what is generated tells
    found = command.Measured(pairs, Judge())
    found.vocalisations(tmp_path / "confusion.png")
    assert found.rows[0]["truth"]["value"] == found.rows[0]["truth"]["n"] == 1
    assert found.table().splitlines()[2].endswith(" | 3, 1 |")
    assert (tmp_path / "confusion.png").exists()


# ---- The Frechet distance and the slope, against closed forms ------------------------------------

def test_frechet_distance():
    """Against eigenvalues of S_a S_b, and for what is only shifted and stretched along axes."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(2, 400, 12)) @ rng.normal(size=(2, 12, 12))
    a, b = mixed + rng.normal(size=(2, 1, 12))
    roots = np.sqrt(np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(0)).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() - 2 * roots
    expected += np.trace(np.cov(a.T) + np.cov(b.T))
    found = frechet.distance(frechet.moments(a), frechet.moments(b))
    assert found == pytest.approx(expected)
    assert frechet.distance(frechet.moments(a), frechet.moments(a)) == pytest.approx(0, abs=1e-8)
    parts = [[frechet.moments(piece) for piece in np.split(x, 10)] for x in (a, b)]
    value, low, high = frechet.with_interval(*parts)
    assert value == pytest.approx(expected) and low < value < high
    none = np.zeros((13, 13))                              # of a film too short to have any
    assert frechet.with_interval(*([none, *x] for x in parts)) == (
        pytest.approx((value, low, high)))
    ours = [none, *parts[0][1:]]                           # its partner stays in this pair
    assert frechet.jackknife(ours, parts[1])[1 + 1] == pytest.approx(frechet.distance(
        sum(ours[i] for i in range(10) if i % 8 != 1), sum(
            parts[1][i] for i in range(10) if i % 8 != 1)))
    assert len(frechet.jackknife([none, parts[0][0]], parts[1][:2])) == 2  # without it nothing is
    value, low, high = frechet.with_interval(parts[0][:1], parts[1][:1])
    assert low == value == high
    for hop, places in ((None, (0, 25)), (10, (0, 10, 20, 30))):
        windows = frechet.over_time(a[:60], frechet.moments(b), FPS, hop)
        assert windows == pytest.approx([frechet.distance(frechet.moments(a[i:i + FPS]),
                                                          frechet.moments(b)) for i in places])
    u, _ = np.linalg.qr(np.concatenate([np.ones((400, 1)), rng.normal(size=(400, 3))], 1))
    white = u[:, 1:] * np.sqrt(399)                        # mean 0, covariance 1, exactly
    assert frechet.distance(frechet.moments(white), frechet.moments(white * (1, 2, 3) + 2)) == (
        pytest.approx(0 + 1 + 4 + 3 * 4))


def test_students_t():
    """Within each of the numbers lie 95 % of its density, which is integrated here."""
    for k in (*range(1, 13), 19, 39, 300):
        t = student(k)
        x = np.linspace(-t, t, 20001)
        density = (1 + x**2 / k) ** (-(k + 1) / 2)
        whole = math.gamma(k / 2) / math.gamma((k + 1) / 2) * math.sqrt(k * math.pi)
        assert density.mean() * 2 * t / whole == pytest.approx(0.95, abs=4e-4)


def test_slope_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    y = 2 + 3 * np.arange(40) / 6 + rng.normal(size=40)
    (rise, _), covariance = np.polyfit(np.arange(40) / 6, y, 1, cov=True)
    value, low, high = slope([y], 1 / 6)
    assert value == pytest.approx(rise)
    reach = 2.0244 * covariance[0, 0]**0.5                 # Student's t, 38 degrees of freedom
    assert (low, high) == pytest.approx((rise - reach, rise + reach), rel=1e-3)
    assert slope([y, y + 100], 1 / 6)[0] == pytest.approx(rise)
    # Of three values one degree of freedom is left; those of 0, 1, 0 have an error of 1 / sqrt 3.
    assert slope([np.array([0, 1, 0])], 1.0) == pytest.approx((0, *(s * 12.706 / math.sqrt(3)
                                                                    for s in (-1, 1))))


def test_loudness_of_a_film(tmp_path, capsys):
    """A tone of amplitude .1 has .1 / sqrt(2), which is -23 dB; silence; then no file at all."""
    tone = 0.1 * np.sin(np.arange(50 * 640) * (2 * np.pi * 500 / 16000)).astype(np.float32)
    tone[25 * 640:] = 0
    write_wav(tmp_path / "tone.wav", tone)
    found = loudness(tmp_path / "tone.wav")
    assert found[:25] == pytest.approx(1 + 20 * np.log10(0.1 / np.sqrt(2)) / 60, abs=1e-3)
    assert len(found) == 50 and not found[25:].any()
    assert loudness(tmp_path / "none.mp4") is None
    assert "none.mp4: no such file" in capsys.readouterr().err


# ---- Mouths and the lip reader -------------------------------------------------------------------

def test_landmarks_beside_a_video(tmp_path, monkeypatch, capsys):
    """Of a wide video read at half its height; those without a face lie between others."""
    points = np.arange(10.0)[:, None, None] + np.zeros((10, 68, 2))
    points[[0, 4, 5, 9]] = np.nan
    np.save(tmp_path / "a.landmarks.npy", points)
    monkeypatch.setattr(prepare, "video_shape", lambda path: (160, 100, 25.0))
    found = mouths.landmarks(tmp_path / "a.mp4", 50)
    times = np.array([1, 1, 2, 3, 4, 5, 6, 7, 8, 8])
    assert found[:, 0, 0] == pytest.approx((times + 0.5 - 30) / 2 - 0.5)
    assert found[:, 5, 1] == pytest.approx((times + 0.5) / 2 - 0.5)
    (tmp_path / "a.crop.csv").write_text("left,top,side\n10,0,100\n")
    assert mouths.landmarks(tmp_path / "a.mp4", 50) == pytest.approx(
        found + np.array([10, 0]))                         # 20 pixels of the video
    np.save(tmp_path / "a.landmarks.npy", points * np.nan)
    assert mouths.landmarks(tmp_path / "a.mp4", 50) is None
    assert "a.mp4: no face in any frame; its mouth is left out" in capsys.readouterr().err
    np.save(tmp_path / "a.landmarks.npy", points[:, :5])
    with pytest.raises(cli.InputError, match=r"holds \(10, 5, 2\); landmarks are"):
        mouths.landmarks(tmp_path / "a.mp4", 50)


def test_opening_of_lips():
    points = np.zeros((1, 68, 2))
    points[0, 64, 0] = 40
    points[0, [67, 66, 65], 1] = 4, 6, 2                   # 4 on average, of a width of 40
    assert mouths.opening(points) == pytest.approx([0.1])


def test_a_published_lip_reader(tmp_path, capsys):
    """A small file of the published names: what is not used is named, what is missing refused."""
    config = lipreader.LipReaderConfig(4, 16, 2, 16, 1, 3)
    weights = {f"encoder.{k}": v for k, v in lipreader.LipReader(config).state_dict().items()}
    path = tmp_path / "vsr.pth"
    torch.save(weights | {"decoder.x": torch.zeros(1), "ctc.y": torch.zeros(1)}, path)
    loaded = lipreader.LipReader.load(path, config).state_dict()
    assert all(loaded[k.removeprefix("encoder.")].equal(v) for k, v in weights.items())
    assert "vsr.pth: left out, as LipScore does not use it: ctc.*, decoder.*" in (
        capsys.readouterr().err)
    torch.save({k: v for k, v in weights.items() if "after_norm" not in k}, path)
    with pytest.raises(cli.InputError, match="vsr.pth: not the weights .*missing: after_norm"):
        lipreader.LipReader.load(path, config)


def test_lip_score_by_landmarks(films, monkeypatch):
    """With a reader whose features are the crop's pixels, in pieces of 25 frames as in one."""
    n, points = 60, np.full((60, 68, 2), 32.0)
    points[:, list(mouths.STABLE)] = np.array(mouths.PLACES) / 4

    def film(name, frames=n, landmarks=points):
        return watch.Seen(films / name / "0.mp4", SIZE, np.zeros(frames), None, landmarks,
                          *[None] * 4)

    def score(ours):
        found = command.Measured([(ours, film("truth"))], None)
        found.lip_score("vsr.pth", lambda crops: crops.flatten(2))
        return found.rows[0]["generated"]["value"] if found.rows else found.left[0]

    other = score(film("another"))
    assert score(film("truth")) == pytest.approx(1) and other < score(film("late")) < 0.9999
    monkeypatch.setattr(watch, "READ", 25)
    assert score(film("another")) == pytest.approx(other, abs=1e-6)
    assert score(film("truth", 11)) == "LipScore of 1 videos: less than 12 frames"
    assert "1 videos: no face, or neither NAME.lan" in score(film("truth", landmarks=None))


def test_shape_of_a_video_that_is_shown_upright(tmp_path):
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", "color=s=64x32:r=25:d=1", plain], check=True)
    subprocess.run([*ffmpeg, "-display_rotation", "90", "-i", plain, "-c", "copy", turned],
                   check=True)
    assert video_shape(plain) == (64, 32, 25.0) and video_shape(turned) == (32, 64, 25.0)
