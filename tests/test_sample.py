"""The command line and its files: bad input is answered in one line, nothing is half-written."""

import os
import pydoc
import re
import signal
import struct
import subprocess
import sys
import time
import wave as wav_file
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import sample
from emotion import EMOTIONS, emotion_curve
from tools import cli, figures, media, released

ROOT = cli.HERE
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def write_wav(path, samples, rate=16000, channels=1):
    with wav_file.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(np.rint(np.asarray(samples) * 32767).astype("<i2").tobytes())
    return path


def float_wav(path, samples):
    data = np.asarray(samples, "<f4").tobytes()
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack(
        "<IHHIIHH", 16, 3, 1, 16000, 64000, 4, 32) + b"data" + struct.pack("<I", len(data)) + data)
    return path


def convert(source, target, *options):
    subprocess.run([FFMPEG, "-v", "error", "-y", "-i", source, *options, target], check=True)
    return target


def forbid(monkeypatch, name):
    """Takes away the right to read files of that name, even from root, who reads everything."""
    for place in ("builtins.open", "io.open", "pathlib.Path.open"):
        plain = pydoc.locate(place)

        def refuse(path, *args, plain=plain, **options):
            if str(path).endswith(f"/{name}"):
                raise PermissionError(13, "Permission denied", str(path))
            return plain(path, *args, **options)
        monkeypatch.setattr(place, refuse)


def tone(seconds):
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(16000 * seconds)) / 16000)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    write_wav(folder / "good.wav", tone(1))
    (folder / "empty.wav").touch()
    (folder / "garbage.mp3").write_bytes(noise.tobytes())
    float_wav(folder / "nan.wav", [0, np.nan, 0.5] * 400)
    float_wav(folder / "infinite.wav", [0, -np.inf, 0.5] * 400)
    write_wav(folder / "no samples.wav", [])
    write_wav(folder / "long.wav", tone(4))
    for ending in ("wav", "mp3", "flac", "webm", "mp4", "m4a", "ogg"):
        whole = folder / f"whole.{ending}"
        convert(folder / "long.wav", whole, *["-movflags", "+faststart"][:2 * (ending == "mp4")])
    whole = (folder / "whole.m4a").read_bytes()
    (folder / "cut.m4a").write_bytes(whole[:len(whole) * 4 // 5])
    Image.fromarray(noise).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:5000])
    Image.fromarray(noise).save(folder / "good.jpg")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:2000])
    Image.fromarray(noise).save(folder / "good.tif")
    (folder / "cut.tif").write_bytes((folder / "good.tif").read_bytes()[:100])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture")
    Image.new("L", (1, 200000)).save(folder / "thin.png")
    Image.new("1", (20000, 15000)).save(folder / "bomb.png")
    convert(folder / "good.png", folder / "silent film.mp4", "-pix_fmt", "yuv420p")
    (folder / "columns.csv").write_text("seconds,valence,arousal\n0,0,0\n1,0.5\n")
    (folder / "empty.csv").write_text("seconds,valence,arousal\n")
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    (folder / "good.csv").write_text("seconds,valence,arousal\n0,0,0\n\n1,0.5,-1\n")
    return folder


ASKED = []                  # what each film of `Model` was asked for: samples, emotion, settings


class Model:
    """Stands in for the real one: grey frames that know their number."""
    size, interp_bad, loaded = 64, None, None   # the last: how it was asked for
    config = SimpleNamespace(steps=10, id_guidance=1.5, audio_guidance=2, autoguidance=1)
    trouble = None          # raised after 5 frames

    def animate(self, image, audio, emotion, *, progress, **settings):
        ASKED.append((len(audio), emotion, settings))
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        for i in range(media.frame_count(len(audio))):
            progress("keyframes", i + 1, media.frame_count(len(audio)))
            if i == 5 and self.trouble:
                raise self.trouble
            yield np.full((64, 64, 3), 8 * i % 256, np.uint8)


@pytest.fixture
def run(files, tmp_path, monkeypatch, capsys):
    """Runs the command with the stand-in model; returns exit status and what it said on stderr."""
    def run(*flags, unlike=None, **options):
        monkeypatch.setattr(Model, "unlike", lambda *_: unlike, raising=False)
        monkeypatch.setattr(released, "load",
                            lambda *asked: setattr(Model, "loaded", asked) or Model())
        options = {"image": files / "good.png", "audio": files / "good.wav",
                   "out": tmp_path / "film.mp4", "device": "cpu", **options}
        argv = [f"--{name.replace('_', '-')}" for name in flags]
        argv += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()
                 if value is not None]
        status = cli.run(sample.main, argv)
        return status, capsys.readouterr().err
    return run


def test_the_film_is_the_one_that_was_asked_for(run, files, tmp_path, monkeypatch):
    own = {"steps": 10, "id_guidance": 1.5, "audio_guidance": 2, "seed": 0}
    for options, emotion, settings in (
            ({}, "neutral", own),
            ({"audio": None}, cli.EMOTION, own),        # the shipped sound's
            ({"emotion": "sad", "steps": 3, "seed": 5, "id_guidance": 0.0, "audio_guidance": 4.0,
              "size": 128}, "sad", {"steps": 3, "seed": 5, "id_guidance": 0, "audio_guidance": 4})):
        ASKED.clear()
        status, said = run(**options)
        samples = len(media.read_audio(options.get("audio", files / "good.wav") or cli.AUDIO))
        assert status == 0 and ASKED == [(samples, emotion, settings)], said
        side = options.get("size", 256)
        assert f"{side}x{side}" in probe(tmp_path / "film.mp4")[0]
        assert Model.loaded == (cli.WEIGHTS, "cpu", False)
    monkeypatch.setattr(Model, "interp_bad", object())  # there is something to be guided away from
    for asked, weight in ({}, 1), ({"autoguidance": 3.5}, 3.5):
        ASKED.clear()
        assert run("low_memory", **asked)[0] == 0 and Model.loaded[2] is True
        assert ASKED[0][2] == own | {"autoguidance": weight}


def test_a_strange_picture_is_told_and_animated(run, tmp_path):
    status, said = run(unlike="unlike anything")
    assert status == 0 and (tmp_path / "film.mp4").exists()
    assert re.search("(?m)^.*: warning: --image .*good.png: unlike anything$", said)


def probe(path):
    """What ffmpeg says of a file, and its number of frames."""
    done = subprocess.run([FFMPEG, "-i", path, "-map", "0:v", "-f", "null", "-"], check=True,
                          capture_output=True, text=True)
    return done.stderr, int(re.findall(r"frame= *(\d+)", done.stderr)[-1])


# --------------------------------------------------------------------------------------- good input

def test_writes_film_and_sheet(run, files, tmp_path):
    status, said = run(emotion=files / "good.csv")
    assert status == 0, said
    report, frames = probe(tmp_path / "film.mp4")
    assert frames == 25
    for wanted in ("h264", "yuv420p", "256x256", "25 fps", "Audio: aac", media.COMMENT):
        assert wanted in report
    data = (tmp_path / "film.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    picture = media.read_image(tmp_path / "film.sheet.png", crop=(0, 0, 500))
    assert picture.std() > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.mp4", "film.sheet.png"]
    assert "\r" not in said and said.count("keyframes: 25 steps\n") == 1      # no terminal
    mask = os.umask(0)
    os.umask(mask)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o666 & ~mask}


def test_what_was_not_named_is_not_replaced(run, tmp_path, monkeypatch):
    """Neither a sheet of another origin, nor a film in the default place; ours are, and named ones
    are."""
    sheet = tmp_path / "film.sheet.png"
    (tmp_path / "film.png").write_text("hers")
    sheet.write_text("hers")
    status, said = run()
    assert (status, said.count("\n")) == (2, 1)
    assert re.search("--sheet: .*film.sheet.png is there and was not written by .*; name", said)
    assert (sheet.read_text(), (tmp_path / "film.mp4").exists()) == ("hers", False)
    assert run("no_sheet")[0] == 0 and sheet.read_text() == "hers"
    assert run(sheet=sheet)[0] == 0 and cli.ours(sheet)
    assert run()[0] == 0                                # this time the sheet is ours
    assert (tmp_path / "film.png").read_text() == "hers"
    assert run("no_sheet", sheet=sheet)[0] == 2

    monkeypatch.chdir(tmp_path)
    film = tmp_path / "out" / "sample.mp4"
    film.parent.mkdir()
    film.write_text("hers")
    status, said = run(out=None)
    assert (status, film.read_text()) == (2, "hers") and "--out: out/sample.mp4 is there" in said
    assert run(out="out/sample.mp4")[0] == 0            # named
    assert run(out=None)[0] == 0                        # ours
    assert sorted(os.listdir(film.parent)) == ["sample.mp4", "sample.sheet.png"]


def test_a_link_is_followed(run, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("film.mp4", "film.sheet.png"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    for _ in range(2):                                  # the target is made, then replaced
        assert run()[0] == 0
        assert sorted(os.listdir(tmp_path / "disk")) == ["film.mp4", "film.sheet.png"]
        assert (tmp_path / "film.mp4").is_symlink() and (tmp_path / "film.sheet.png").is_symlink()


@pytest.mark.parametrize("samples", [640, 641, 16000, 20000])
def test_film_round_trip(tmp_path, samples):
    rng = np.random.default_rng(1)
    count = media.frame_count(samples)
    levels = rng.integers(40, 200, (count, 1, 1, 3), np.uint8)
    frames = np.broadcast_to(levels, (count, 64, 64, 3))
    sound = tone(samples / 16000).astype(np.float32)
    assert media.write_video(tmp_path / "film.mp4", frames, sound, 128) == count
    back = np.concatenate([*media.video_blocks(tmp_path / "film.mp4", 32)])
    assert back.shape == (count, 32, 32, 3)
    assert np.abs(back.mean((1, 2)) - levels[:, 0, 0]).max() < 8
    heard = media.read_audio(tmp_path / "film.mp4")
    if samples >= 16000:            # AAC needs a moment: compare the middle
        middle = slice(4000, samples - 4000)
        assert np.corrcoef(heard[middle], sound[middle])[0, 1] > 0.98


def test_sound_of_any_kind(files, tmp_path):
    assert len(media.read_audio(write_wav(tmp_path / "tiny.wav", tone(0.04)))) == 640
    for ending in ("wav", "mp3", "flac", "webm", "mp4", "m4a", "ogg"):
        path = convert(files / f"whole.{ending}", tmp_path / f"x.{ending}", "-ar", "48000")
        assert abs(len(media.read_audio(path)) - 64000) < 2000, ending
        assert len(media.read_audio(files / f"whole.{ending}")) > 62000, ending
    guessed = convert(files / "whole.mp3", tmp_path / "y.mp3", "-write_xing", "0", "-q:a", "9")
    assert len(media.read_audio(guessed)) > 62000               # no length in its header, either
    with open(tmp_path / "streamed.wav", "wb") as file:         # no length in its header
        subprocess.run([FFMPEG, "-v", "error", "-i", files / "good.wav", "-f", "wav", "-"],
                       check=True, stdout=file)
    assert len(media.read_audio(tmp_path / "streamed.wav")) == 16000
    loud = media.read_audio(np.array([3.0, -0.5]))
    assert loud.tolist() == [1, -0.5]


def test_pictures_of_any_kind(tmp_path, capsys):
    half = np.zeros((40, 40, 3), np.uint8)
    half[:, 20:] = (255, 102, 51)      # in the web palette

    def back(picture, name, **options):
        picture.save(tmp_path / name, **options)
        return media.read_image(tmp_path / name, 40).astype(int)

    picture = Image.fromarray(half)
    assert np.abs(back(picture, "a.png") - half).max() == 0
    assert np.abs(back(picture.convert("P"), "b.png") - half).max() < 40
    assert np.abs(back(picture.convert("CMYK"), "c.tif") - half).max() < 4
    grey = np.repeat(np.asarray(picture.convert("L"))[..., None], 3, 2)
    assert np.abs(back(picture.convert("L"), "d.png") - grey).max() == 0
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    assert np.abs(back(deep, "e.png") - grey).max() <= 1
    camera = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 16)
    for name in ("m.png", "m.tif"):                         # 12 bits of 16
        assert np.abs(back(camera, name) - grey).max() <= 1
    for white, name in ((1, "k.tif"), (255, "l.tif")):      # of numbers
        numbers = Image.fromarray(np.asarray(picture.convert("L"), np.float32) * (white / 255))
        assert np.abs(back(numbers, name) - grey).max() <= 1
    clear = Image.fromarray(np.dstack([half, half.any(2) * 255]).astype(np.uint8))
    assert back(clear, "f.png")[:, :20].min() == 255
    assert back(clear.convert("LA"), "g.png")[:, :20].min() == 255
    turned = Image.Exif()
    turned[0x0112] = 6                  # turn by a quarter, clockwise
    assert np.abs(back(picture, "h.png", exif=turned) - np.rot90(half, -1)).max() == 0
    plain, chunk = (tmp_path / "a.png").read_bytes(), b"eXIfno EXIF"     # goes after the header
    (tmp_path / "n.png").write_bytes(plain[:33] + struct.pack(">I", len(chunk) - 4) + chunk
                                     + struct.pack(">I", zlib.crc32(chunk)) + plain[33:])
    assert (media.open_image(tmp_path / "n.png") == half).all()
    assert re.search("n.png: its EXIF cannot be read .* is not turned", capsys.readouterr().err)
    black = Image.new("RGB", (40, 40))
    moving = back(picture, "i.gif", save_all=True, append_images=[black])
    assert np.abs(moving - half).max() < 40
    wide = Image.fromarray(np.pad(half, ((0, 0), (200, 100), (0, 0)), constant_values=255))
    assert back(wide, "j.png").shape == (40, 40, 3)


def test_the_part_of_a_picture_that_is_used(run, files, tmp_path, capsys):
    """The middle square, of which a line tells where much is cut away; or what --crop says."""
    tall = np.zeros((90, 30, 3), np.uint8)
    tall[10:30, 5:25] = 200
    Image.fromarray(tall).save(tmp_path / "tall.png")
    turned = Image.Exif()
    turned[0x0112] = 6                  # as a telephone stores it, lying
    Image.fromarray(np.rot90(tall)).save(tmp_path / "turned.png", exif=turned)
    for path in (tmp_path / "tall.png", tmp_path / "turned.png"):
        assert (media.read_image(path) == tall[30:60]).all()
        assert re.search(r"(tall|turned)\.png: of 30 x 90 pixels only the square of 30 in the mid.*"
                         r"--crop X,Y,SIDE \(this is 0,30,30\)\n$", capsys.readouterr().err)
        assert (media.read_image(path, 20, (5, 10, 20)) == 200).all()
    assert media.read_image(tall, crop=(10, 70, 20)).shape == (20, 20, 3)      # up to the corner
    for beyond in ((11, 70, 20), (10, 71, 20)):
        with pytest.raises(cli.InputError, match="reaches out of image"):
            media.read_image(tall, crop=beyond)
    media.read_image(files / "good.png")                # 80 x 60: a quarter is cut away, not more
    assert capsys.readouterr().err == ""
    status, said = run(image=tmp_path / "tall.png", crop="5,10,20")
    assert (status, "warning" in said) == (0, False), said
    status, said = run(image=tmp_path / "tall.png")
    assert (status, said.count("of 30 x 90 pixels")) == (0, 1)
    for value, reason in (("5,10,30", "--crop: 5,10,30 reaches out of .*tall.png, .* 30 x 90 pix"),
                          ("-5,0,20", '--crop: "-5,0,20" is not X,Y,SIDE; give whole numbers'),
                          ("0,0,0", "is not X,Y,SIDE"), ("middle", "is not X,Y,SIDE"),
                          ("0,0,1e9", "is not X,Y,SIDE")):
        status, said = run(image=tmp_path / "tall.png", crop=value)
        assert (status, said.count("\n")) == (2, 1) and re.search(reason, said), said
    with pytest.raises(cli.InputError, match="--crop: .*is not X,Y,SIDE"):
        sample.arguments(["--crop", "-5,0,20"])


@pytest.mark.parametrize("start, kind", [
    (b"\0\0\0\x18ftypheic", "a HEIC picture"), (b"\0\0\0\x18ftypmif1", "a HEIC picture"),
    (b"\0\0\0\x20ftypisom", "a video"), (b"\x1aE\xdf\xa3", "a video"),
    (b"\0\0\0\x18ftypM4A ", "a sound"), (b"ID3\4", "a sound"), (b"%PDF-1.7", "a PDF"),
    (b'<?xml version="1.0"?>\n<svg', "an SVG")])
def test_files_that_are_no_pictures_are_called_what_they_are(run, tmp_path, start, kind):
    (tmp_path / "picture").write_bytes(start + 99 * b"\0")
    status, said = run(image=tmp_path / "picture")
    assert (status, said.count("\n")) == (2, 1)
    assert re.search(f"picture: {kind}.*; give a PNG or JPEG that can be opened", said), said


@pytest.mark.parametrize(("emotion", "expected"), [
    ("Happy", [(0.85, 0.75)] * 3), ("-1,0.25", [(-1, 0.25)] * 3),
    ("0.04:neutral 0.08:1,-1", [(0, 0), (0, 0), (1, -1)]),
    ("0:neutral 0.08:1,-1 9:sad", [(0, 0), (0.5, -0.5), (1, -1)])])
def test_an_emotion_is_a_name_two_numbers_or_a_timeline(emotion, expected):
    assert np.allclose(emotion_curve(emotion, 3), expected)


def test_a_table_of_emotions_has_valence_before_arousal(files):
    expected = [(0, 0), (0.02, -0.04), (0.04, -0.08)]
    assert np.allclose(emotion_curve(files / "good.csv", 3), expected)


def test_an_emotion_may_begin_with_a_minus(capsys):
    assert sample.arguments(["--emotion", "-0.8,-0.3", "--seed", "3"]).emotion == "-0.8,-0.3"
    with pytest.raises(cli.InputError, match="--emotion: expected one argument"):
        sample.arguments(["--emotion", "--seed", "3"])


@pytest.mark.parametrize("wave", [np.ones(640, np.int16), np.ones((2, 640), np.float32)])
def test_arrays_that_are_no_sound(wave):
    with pytest.raises(cli.InputError, match="audio: .* expected, not"):
        media.read_audio(wave)


@pytest.mark.parametrize("shape", [(0, 0, 3), (64, 0, 3), (0, 64), (1, 200, 3)])
def test_arrays_that_are_no_picture(shape):
    with pytest.raises(cli.InputError, match="image: .* pixels cannot hold a face; give"):
        media.read_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("seconds", [0.04, 1, 8, 60, 3600])
def test_sheet_frames(seconds):
    numbers = figures.sheet_frames(round(25 * seconds))
    assert numbers[0] == 0
    assert len(numbers) == len(set(numbers)) <= 64
    assert numbers[-1] < 25 * seconds
    if seconds == 8:
        assert numbers == [round(12.5 * i) for i in range(16)]


@pytest.mark.parametrize("count", [1, 30, 31, 61, 100])
def test_a_sheet_of_keyframes_has_frames_between_them(count):
    grid = range(0, 13 * count, 13)
    numbers = figures.around(grid)
    assert len(numbers) <= 60 and sum(i in grid for i in numbers) == len(numbers) / 2


# ---------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize(("option", "value", "reason"), [
    *[("audio", name, reason) for name, reason in [
        ("missing.wav", "no such file"), ("empty.wav", "wav: .*empty"),
        ("garbage.mp3", "damaged|no sound"), ("nan.wav", "not finite"),
        ("no samples.wav", "no sound|decoded"), ("good.png", "no sound"),
        ("silent film.mp4", "no sound"), (".", "not a file"), ("cut.m4a", "cut off|damaged"),
        ("infinite.wav", "not finite")]],
    *[("image", name, reason) for name, reason in [
        ("missing.png", "No such file"), ("empty.png", "png: .*empty"),
        ("text.png", "not a picture"),
        ("cut.png", "cut off"), ("cut.jpg", "cut off"), ("cut.tif", "cut off"),
        ("thin.png", "1 x 200000"),
        (".", "directory"), ("bomb.png", "million pixels"), ("good.wav", "a sound"),
        ("whole.mp4", "a video")]],
    *[("emotion", name, reason) for name, reason in [
        ("columns.csv", "line 3"), ("empty.csv", "has no points"), ("binary.csv", "not a CSV"),
        ("missing.csv", "No such file")]]])
def test_bad_files(run, files, tmp_path, recwarn, option, value, reason):
    status, said = run(**{option: files / value})
    assert status == 2
    assert said.count("\n") == 1
    assert str(files / value) in said
    assert re.search(rf"({reason}).*(; |expected)", said), said         # and then what to do
    assert not [each for each in recwarn if each.category is UserWarning]   # a line more
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value", "reason"), [
    ("emotion", "hapy", "known: neutral, happy"), ("emotion", "1.5,0", "between -1 and 1"),
    ("emotion", "nan,0", "between -1 and 1"), ("emotion", "0.5", "two numbers"),
    ("emotion", "2:happy 1:sad", "rise"), ("emotion", "0:happy 0:sad", "rise"),
    ("emotion", "x:happy", "SECONDS:EMOTION"), ("emotion", "0:", "SECONDS:EMOTION"),
    *[("emotion", value, "nothing but spaces between them") for value in (
        "0:neutral, 2:happy", "0:neutral,2:happy", "0:neutral; 2:happy", "0: neutral 2: happy",
        "0:neutral happy")],
    ("emotion", "happy, sad", "known: neutral, happy"),
    ("emotion", "", "is empty; name an emotion, known: neutral"),
    ("steps", "0", "from 1"), ("steps", "many", "whole number"), ("steps", "2.5", "whole number"),
    ("id_guidance", "nan", "number"), ("audio_guidance", "inf", "number"),
    ("autoguidance", "high", "number"), ("size", "33", "even"), ("size", "0", "from 16"),
    ("seed", "-1", "from 0"), ("device", "cuda:99", "is not here"), ("device", "tpu", "not here"),
    ("out", "film.avi", "must end in .mp4"), ("out", "/proc/film.mp4", "cannot write"),
    ("sheet", "sheet.txt", "must end in .png"), ("colour", "red", "unrecognized")])
def test_bad_options(run, tmp_path, option, value, reason):
    status, said = run(**{option: value})
    assert status == 2
    assert said.count("\n") == 1
    assert f"--{option.replace('_', '-')}" in said
    assert reason in said
    assert not list(tmp_path.iterdir())


def test_out_is_a_folder_or_an_input(run, files, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    status, said = run(out=tmp_path / "folder.mp4")
    assert (status, "is a folder" in said) == (2, True)
    before = (files / "whole.mp4").read_bytes()
    status, said = run(audio=files / "whole.mp4", out=files / "whole.mp4")
    assert (status, "overwritten" in said) == (2, True)
    assert (files / "whole.mp4").read_bytes() == before
    before = (files / "good.png").read_bytes()
    status, said = run(sheet=files / "good.png")
    assert (status, "overwritten" in said) == (2, True)
    assert (files / "good.png").read_bytes() == before


def test_the_film_has_the_users_own_sound(run, files, tmp_path):
    """Not what the model hears of it."""
    sound = convert(files / "good.wav", tmp_path / "own.wav", "-ar", "48000", "-ac", "2")
    assert run(audio=sound)[0] == 0
    assert "48000 Hz, stereo" in probe(tmp_path / "film.mp4")[0]


def test_pipes_and_names_are_not_stumbled_over(run, tmp_path):
    """A pipe would be waited for; a folder has no name to end in .mp4; loops lead nowhere."""
    for option, name in (("image", "pipe.png"), ("audio", "pipe.wav"), ("emotion", "pipe.csv")):
        os.mkfifo(tmp_path / name)
        status, said = run(**{option: tmp_path / name})
        assert (status, said.count("\n")) == (2, 1) and name in said, said
    for option in ("image", "audio", "emotion"):
        status, said = run(**{option: 300 * "x" + ".csv"})
        assert (status, said.count("\n")) == (2, 1) and "File name too long" in said, said
    (tmp_path / "loop").symlink_to("loop")
    for out in (".", "/", tmp_path / "loop" / "film.mp4"):
        status, said = run(out=out)
        assert (status, said.count("\n")) == (2, 1) and "--out" in said, said
    long = f"{'x' * 240}.mp4"  # of 255 bytes that a name may have
    assert run(out=tmp_path / long)[0] == 0 and (tmp_path / long).exists()


def test_a_gap_in_the_sound_is_silence(files, tmp_path):
    """Recorders leave out times in which nothing came; what comes after stays at its own time."""
    path = convert(files / "long.wav", tmp_path / "gap.mkv", "-c:a", "pcm_s16le",
                   "-af", "aselect=lt(t\\,1)+gte(t\\,3)")
    wave, whole = media.read_audio(path), media.read_audio(files / "long.wav")
    edges = 2000                                                # a packet is left out as a whole
    assert abs(len(wave) - len(whole)) < edges
    assert np.abs(wave[:16000 - edges] - whole[:16000 - edges]).max() < 1e-3
    assert not wave[16000 + edges:48000 - edges].any()
    assert np.abs(wave[48000 + edges:] - whole[48000 + edges:len(wave)]).max() < 1e-3


def test_a_device_has_one_name():
    assert [cli.pick_device(name) for name in ("cpu", "cpu:0", "cpu:00")] == ["cpu"] * 3


@pytest.mark.parametrize("names, signs, stirring", [
    ("fear contempt", (1, 1), True), ("happy", (1, 1), False), ("surprised", (0, 1), True),
    ("angry disgusted", (-1, 1), True), ("sad", (-1, -1), True), ("bored", (-1, -1), False),
    ("calm", (1, -1), False)])
def test_named_emotions_lie_in_their_quadrants(names, signs, stirring):
    """Of valence and arousal, and which of them is larger; all are within the range."""
    for name in names.split():
        [[valence, arousal]] = emotion_curve(name, 1)
        assert (*np.sign([valence, arousal]), arousal > valence) == (*signs, stirring), name
    assert all(len(emotion_curve(name, 1)) == 1 for name in EMOTIONS)


# ------------------------------------------------------------------------------- trouble on the way

@pytest.mark.parametrize(("trouble", "status", "line"), [
    (OSError(28, "No space left on device"), 1, "No space left"),
    (OSError(28, "No space left on device"), 1, "film.mp4"),
    (MemoryError(), 1, "out of memory; close other programs"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
                  ": you tried to allocate 4000 bytes. Error code 12 (Cannot allocate memory)"), 1,
     "error: out of memory (4000 bytes more wanted); close other programs"),
    (torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB of "
        "which 1.05 GiB is free. Of the allocated memory 6 GiB is allocated by PyTorch"), 1,
     "error: the GPU is out of memory (2.50 GiB more wanted, 1.05 GiB of 7.79 GiB free); close"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), 1,
     "error: the GPU is out of memory; close"),
    (cli.InputError("weights: x"), 2, "weights: x")])
def test_nothing_left_after_trouble(run, tmp_path, monkeypatch, trouble, status, line):
    monkeypatch.setattr(Model, "trouble", trouble)
    (tmp_path / "film.mp4").write_text("an older film")
    ended, said = run()
    assert ended == status
    assert line in said.splitlines()[-1]
    assert "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]
    assert (tmp_path / "film.mp4").read_text() == "an older film"


def test_broken_ffmpeg_is_one_line(run, tmp_path, monkeypatch):
    popen = subprocess.Popen
    monkeypatch.setattr(media.subprocess, "Popen", lambda command, **options: popen(
        ["sh", "-c", "echo broken >&2; exit 3"] if "-crf" in command else command, **options))
    status, said = run()
    assert status == 1
    assert "ffmpeg failed: broken" in said.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "line"), [("-crf", "film.mp4: ffmpeg failed: killed by signal"),
                                             ("-f", "good.wav: ffmpeg was killed while it read")])
def test_killed_ffmpeg_is_one_line(run, tmp_path, monkeypatch, option, line):
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(
        ["sh", "-c", "kill -9 $$"] if option in command else command, **options))
    status, said = run()
    assert status == 1
    assert line in said.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_machine_without_ffmpeg_is_one_line(run, monkeypatch):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    status, said = run()
    assert (status, said.count("\n")) == (1, 1)
    assert "install ffmpeg" in said


def test_a_killed_worker_is_one_line(capsys):
    def main(argv):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(os._exit, 1).result()
    assert cli.run(main) == 1
    assert re.search("was killed, .* memory; try again.*\n$", capsys.readouterr().err)


def test_full_disk_is_one_line_that_names_the_file(tmp_path):
    """A limit on the size of files stands in for the disk."""
    script = f"""
import resource, sys, numpy as np
sys.path.insert(0, {str(ROOT)!r})
from tools import cli, media
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
frames = (np.zeros((64, 64, 3), np.uint8) for _ in range(25))
sys.exit(cli.run(lambda argv: media.write_video("film.mp4", frames, np.zeros(16000), 64)))
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "-c: error: cannot write film.mp4: File too large\n"
    assert not list(tmp_path.iterdir())


def test_closed_standard_output_is_one_line():
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tools import cli, media
sys.exit(cli.run(lambda argv: print("frames")))
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", script], check=False, stdout=write,
                          stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (
        1, "-c: error: standard output was closed before the end; let it be read to the end\n")


def test_signals_leave_nothing(tmp_path):
    """Also in the midst of a computation that no Python exception can interrupt. Each case is a
    process that is forked from one which has imported everything."""
    script = f"""
import hashlib, os, signal, sys, time, numpy as np
sys.path.insert(0, {str(ROOT)!r})
from tools import figures
from tools import cli, media
def frames(busy):
    while True:
        yield np.zeros((64, 64, 3), np.uint8)
        print("frame", flush=True)
        exec(busy)
for line in sys.stdin:
    folder, number, busy = line.split(maxsplit=2)
    if child := os.fork():
        print("child", child, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(folder)
    signal.signal(int(number), signal.SIG_DFL)          # after nohup it would be ignored
    sys.exit(cli.run(lambda argv: media.write_video("film.mp4", frames(busy), np.zeros(16000), 64)))
"""
    with subprocess.Popen([sys.executable, "-c", script], text=True, bufsize=1,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        def said(*wanted: str) -> dict[str, str]:
            """The number beside each of these words, once all of them have been said."""
            found = {}
            while not found.keys() >= {*wanted}:
                word, *number = process.stdout.readline().split()
                found[word] = "".join(number)
            return found

        nap, lock = "time.sleep(.02)", "hashlib.pbkdf2_hmac('md5', b'', b'', 10**9)"  # minutes
        for busy, number in ((nap, signal.SIGINT), (nap, signal.SIGTERM), (nap, signal.SIGHUP),
                             (lock, signal.SIGINT)):
            process.stdin.write(f"{tmp_path} {number:d} {busy}\n")
            child = int(said("child", "frame")["child"])
            assert os.listdir(tmp_path)
            os.kill(child, number)
            assert int(said("ended")["ended"]) == 128 + number
            for _ in range(100):        # until ffmpeg has ended, too
                if not os.listdir(tmp_path):
                    break
                time.sleep(0.05)
            assert not os.listdir(tmp_path)
        process.stdin.close()


def test_nohup_is_respected(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tools import cli
def main(argv):
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGHUP)
sys.exit(cli.run(main))
"""
    assert subprocess.run(["nohup", sys.executable, "-c", script], check=False, cwd=tmp_path,
                          capture_output=True).returncode == 0


def test_installed_without_the_clone(run, tmp_path, monkeypatch):
    """`pip install .` brings the modules along, but neither assets nor weights."""
    for option, name in (("image", "IMAGE"), ("weights", "WEIGHTS")):
        with monkeypatch.context() as patch:
            patch.setattr(cli, name, tmp_path / "site-packages" / name)
            status, said = run(**{option: tmp_path / "site-packages" / name})
        assert (status, said.count("\n")) == (2, 1)
        assert re.search(f"--{option}: the default .*site-packages.* is not there.* come with the "
                         r"clone alone; give .* \(pip install -e .\)$", said), said


def test_files_without_the_right_to_read_them(run, files, monkeypatch):
    for option, name in (("emotion", "good.csv"), ("image", "good.png")):  # each forbids one more
        forbid(monkeypatch, name)
        status, said = run(**{option: files / name})
        assert (status, said.count("\n")) == (2, 1)
        assert f"{name}: Permission denied; give" in said


@pytest.mark.parametrize("number, module", [(signal.SIGINT, "numpy.version"),
                                            (signal.SIGTERM, "torch.version")])
def test_signals_during_imports_leave_no_traceback(tmp_path, number, module):
    """A whole run, interrupted when it has imported `module` and goes on to what needs that."""
    with subprocess.Popen([sys.executable, "-X", "importtime", ROOT / "sample.py"], cwd=tmp_path,
                          stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.split()[-1] == module:
                break
        process.send_signal(number)
        rest = process.communicate(timeout=200)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in rest
    assert not list(tmp_path.rglob("*.*"))


def test_a_signal_while_sampling_leaves_nothing(files, tmp_path):
    """A whole run of the shipped model, interrupted after the first steps of its network."""
    command = [sys.executable, ROOT / "sample.py", "--audio", files / "good.wav"]
    with subprocess.Popen(command, cwd=tmp_path, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        said = ""
        while "keyframes" not in said:
            said += (letter := process.stderr.read(1))
            assert letter, said                     # else it has ended
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=200)
    assert process.returncode == 130
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("option, status, answer", [
    (["--steps", "none"], 2, "sample.py: error: --steps"), (["--help"], 0, "usage: sample.py")])
def test_help_and_mistakes_do_not_wait_for_torch(option, status, answer):
    done = subprocess.run([sys.executable, "-X", "importtime", ROOT / "sample.py", *option],
                          check=False, capture_output=True, text=True)
    imported = {line.split()[-1] for line in done.stderr.splitlines() if "|" in line}
    assert "tools.cli" in imported and "torch" not in imported
    assert done.returncode == status and answer in done.stdout + done.stderr
