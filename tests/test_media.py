"""Sound and video in and out: what is used with a warning, one clock for both, one channel out of
many, and the user's own sound in the film."""

import re
import struct
import subprocess
import wave as wav_file

import imageio_ffmpeg
import numpy as np
import pytest

from tools import cli, media

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
RATE = 16000


def ffmpeg(*options):
    subprocess.run([FFMPEG, "-v", "error", "-y", *options], check=True)
    return options[-1]


def report(path):
    """What ffmpeg says of a file."""
    return subprocess.run([FFMPEG, "-i", path], check=False, capture_output=True, text=True).stderr


def write_wav(path, *channels):
    with wav_file.open(str(path), "wb") as file:
        file.setparams((len(channels), 2, RATE, 0, "NONE", ""))
        file.writeframes(np.rint(np.stack(channels, 1) * 32767).astype("<i2").tobytes())
    return path


def tone(seconds, pitch=440):
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(RATE * seconds)) / RATE)


def rms(wave):
    return float(np.sqrt(np.mean(np.square(wave))))


def picture(value=0):
    return np.full((32, 32, 3), value, np.uint8)


@pytest.fixture
def heard(capsys):
    """Reads a sound; returns it and the warnings it gave."""
    def heard(path):
        wave = media.read_audio(path)
        said = capsys.readouterr().err.splitlines()
        assert all(f"warning: {path}: " in line for line in said)
        return wave, said
    return heard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tone of 4 seconds, and a film of 4 with a flash and a beep from 2.0 to 2.2."""
    folder = tmp_path_factory.mktemp("media")
    write_wav(folder / "tone.wav", tone(4))
    beep = np.where(np.arange(4 * RATE) // 3200 == 10, tone(4), 0)
    frames = [picture(255 * (50 <= i < 55)) for i in range(100)]
    media.write_video(folder / "film.mp4", frames, beep, 64)
    return folder


# ----------------------------------------------------------------------------------- whole, damaged

def test_whole_sound_is_used(folder, tmp_path, heard):
    """A header that states more than a copied part, tracks of unequal length, and a late start."""
    tone_file, long = folder / "tone.wav", write_wav(tmp_path / "long.wav", tone(9))
    whole = ffmpeg("-i", long, tmp_path / "whole.flac")
    wave, said = heard(ffmpeg("-i", whole, "-t", "2", "-c", "copy", tmp_path / "head.flac"))
    assert 1.9 < len(wave) / RATE < 2.4
    assert len(said) == 1 and "of 9.00 s of sound can be used" in said[0]

    two = ffmpeg("-i", tone_file, "-i", long, "-map", "0", "-map", "1", tmp_path / "two.m4a")
    (tmp_path / "x.srt").write_text("1\n00:00:01,000 --> 00:00:20,000\nhello\n")
    subtitle = ffmpeg("-i", tone_file, "-i", tmp_path / "x.srt", "-map", "0", "-map", "1",
                      tmp_path / "subtitle.mkv")
    late = [ffmpeg("-itsoffset", "1", "-i", tone_file, "-c:a", "libopus",
                   tmp_path / f"late.{ending}") for ending in ("mka", "webm", "ogg")]
    for path in (two, subtitle, *late):
        wave, said = heard(path)
        assert not said
        assert abs(len(wave) / RATE - 4) < 0.1, path        # alone it begins with its first sample
        assert rms(wave[:1600]) > 0.3, path


@pytest.mark.parametrize("ending", ["wav", "mp3", "flac", "webm", "mp4", "ogg", "cover.mp3"])
def test_of_cut_off_sound_the_rest_is_used(folder, tmp_path, heard, ending):
    options = ["-movflags", "+faststart"] if ending == "mp4" else []
    if ending == "cover.mp3":
        cover = ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", "1",
                       tmp_path / "cover.png")
        options = ["-i", cover, "-map", "0:a", "-map", "1:v", "-disposition:v", "attached_pic"]
    path = ffmpeg("-i", folder / "tone.wav", *options, tmp_path / f"sound.{ending}")
    wave, said = heard(path)
    assert len(wave) > 62000 and not said
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 4 // 5])
    wave, said = heard(path)
    assert 1.9 < len(wave) / RATE < 3.7
    assert rms(wave[8000:30000]) > 0.3
    if ending == "ogg":                     # a page that is cut off is dropped without a word
        assert not said
    else:
        assert len(said) == 1
        assert re.search(rf"cut off or damaged; {len(wave) / RATE:.2f} .*s of sound", said[0])


def test_damage_within_and_promises_of_more_are_told(folder, tmp_path, heard):
    data = (folder / "tone.wav").read_bytes()
    (tmp_path / "more.wav").write_bytes(data[:40] + struct.pack("<I", 2**25) + data[44:])
    wave, said = heard(tmp_path / "more.wav")
    assert len(wave) == 4 * RATE and len(said) == 1
    path = ffmpeg("-i", folder / "tone.wav", tmp_path / "holes.flac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2:len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    wave, said = heard(path)
    assert len(wave) > 3.5 * RATE and len(said) == 1 and "damaged" in said[0]


def test_a_cut_off_film_is_used(folder, tmp_path, capsys):
    data = (folder / "film.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:len(data) * 9 // 10])
    count = sum(map(len, media.video_blocks(tmp_path / "cut.mp4", 32)))
    assert 50 < count <= 100
    assert capsys.readouterr().err.count(f"cut.mp4: cut off or damaged; {count} frames") == 1


# ---------------------------------------------------------------------------------------- the clock

def test_pixels_that_are_not_square_and_those_of_hdr(tmp_path, capsys):
    """48 x 64 pixels that are shown as 64 x 64, the upper quarter white, in the colours of HDR."""
    path = tmp_path / "wide.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=black:s=48x64:d=0.2,drawbox=h=16:t=fill:c=white,"
           "setsar=4/3,setparams=color_trc=smpte2084", "-c:v", "libx264", "-qp", "0", path)
    assert media.video_shape(path) == (64, 64, 25.0)
    frame = next(media.video_blocks(path, 64))[0, :, :, 0] > 128
    assert frame[:15].all() and not frame[17:].any()
    list(media.video_blocks(path, 64))
    assert "wide.mp4: is HDR and used as if it were not" in capsys.readouterr().err


@pytest.mark.parametrize("ending, late, track", [
    *((ending, late, track) for ending in ("mp4", "mkv", "ts")
      for late, track in ((0, "a"), (0.4, "a"), (0.4, "v"))), ("mp4", 1, "a"), ("mp4", 1, "v")])
def test_sound_and_pictures_share_a_clock(folder, tmp_path, capsys, ending, late, track):
    film, other = folder / "film.mp4", "v" if track == "a" else "a"
    path = ffmpeg("-i", film, "-itsoffset", str(late), "-i", film, "-map", f"0:{other}",
                  "-map", f"1:{track}", "-c", "copy", tmp_path / f"film.{ending}")

    def times(path):
        wave, frames = media.read_audio(path), np.concatenate([*media.video_blocks(path, 32)])
        return (np.argmax(np.abs(wave) > 0.2) / media.FRAME_SAMPLES,
                np.argmax(frames.mean((1, 2, 3)) > 100), wave, frames)

    beep, flash, wave, frames = times(path)
    # An MPEG-TS begins with the samples that the encoder put before the first.
    slack = 2.5 if ending == "ts" else 1
    assert abs(beep - 50 - 25 * late * (track == "a")) <= slack
    assert abs(flash - 50 - 25 * late * (track == "v")) <= slack
    assert abs(beep - flash - 25 * late * (1 if track == "a" else -1)) <= 1
    assert abs(len(wave) / 640 - 100 - 25 * late * (track == "a")) < 4
    assert abs(len(frames) - 100 - 25 * late * (track == "v")) < 4

    # A film made to this sound has it at the same time.
    frames = [picture(255 * (beep <= i < beep + 5)) for i in range(media.frame_count(len(wave)))]
    made = tmp_path / "made.mp4"
    assert media.write_video(made, frames, wave, 64, path) == len(frames)
    again, flash, copied, pictures = times(made)
    assert abs(again - beep) < 0.1 and abs(flash - beep) <= 1
    assert len(pictures) == len(frames) and abs(len(copied) - len(wave)) <= 640
    assert not capsys.readouterr().err


# ------------------------------------------------------------------------------------- the channels

def test_opposite_channels_are_heard(tmp_path, heard):
    wave, said = heard(write_wav(tmp_path / "opposite.wav", tone(1), -tone(1)))
    assert rms(wave) == pytest.approx(rms(tone(1)), rel=1e-3)
    assert len(said) == 1 and "channel 1, which is used alone" in said[0]
    wave, said = heard(write_wav(tmp_path / "left.wav", tone(1), 0 * tone(1)))
    assert np.abs(wave - tone(1) / 2).max() < 1e-3 and not said


@pytest.mark.parametrize(("at", "gain"), [(0, 0.5), (2, 0.5 ** 0.5), (4, 0.5 ** 1.5)])
def test_a_voice_in_surround_sound_is_heard(tmp_path, heard, at, gain):
    channels = 6 * [0 * tone(1)]
    channels[at] = tone(1)
    channels[3] = tone(1, 60)                   # low effects, which are not listened to
    plain = write_wav(tmp_path / "plain.wav", *channels)
    for path in (plain, ffmpeg("-i", plain, tmp_path / "film.mka")):
        wave, said = heard(path)
        assert rms(wave) == pytest.approx(gain * rms(tone(1)), rel=0.1) and not said


def test_silence_is_told(tmp_path, heard):
    wave, said = heard(write_wav(tmp_path / "silence.wav", np.zeros(RATE)))
    assert len(wave) == RATE and not wave.any()
    assert len(said) == 1 and "silent throughout" in said[0]


def test_the_default_track_is_taken(tmp_path, heard):
    quiet = write_wav(tmp_path / "quiet.wav", 0.1 * tone(2))
    loud = write_wav(tmp_path / "loud.wav", tone(2))
    inputs = ["-i", quiet, "-i", loud, "-map", "0", "-map", "1", "-c:a", "flac"]
    for which, level in ((0, 0.1), (1, 1)):
        path = ffmpeg(*inputs, "-disposition:a", "0", f"-disposition:a:{which}", "default",
                      tmp_path / f"{which}.mkv")
        assert rms(heard(path)[0]) == pytest.approx(level * rms(tone(2)), rel=0.01)
        media.write_video(tmp_path / "film.mp4", 50 * [picture()], tone(2), 64, path)
        assert rms(heard(tmp_path / "film.mp4")[0]) == pytest.approx(level * rms(tone(2)), rel=0.1)


# --------------------------------------------------------------------------------- the film's sound

@pytest.mark.parametrize(("name", "options", "wanted"), [
    ("x.m4a", ["-ar", "44100", "-ac", "2"], "aac .*44100 Hz, stereo"),
    ("x.mp3", ["-ar", "44100", "-ac", "2"], "mp3 .*44100 Hz, stereo"),
    ("x.mp3", ["-ar", "8000"], "aac .*8000 Hz, mono"),      # which an MP4 cannot hold as MP3
    ("x.wav", ["-ar", "48000", "-ac", "2"], "aac .*48000 Hz, stereo"),
    ("x.flac", ["-ar", "192000"], "aac .*96000 Hz, mono"),
    ("x.wma", [], "aac .*16000 Hz, mono"),
    ("x.webm", ["-ac", "6"], "aac .*48000 Hz, 5.1")])
def test_the_film_keeps_the_users_sound(folder, tmp_path, capsys, name, options, wanted):
    path = ffmpeg("-i", folder / "tone.wav", "-metadata", "title=private", *options,
                  tmp_path / name)
    wave, film = media.read_audio(path), tmp_path / "film.mp4"
    frames = media.frame_count(len(wave)) * [picture()]
    assert media.write_video(film, frames, wave, 64, path) == len(frames)
    said = report(film)
    assert re.search(f"Audio: {wanted}", said), said
    assert "private" not in said
    copied = media.read_audio(film)
    assert abs(len(copied) - len(wave)) <= 640
    middle = slice(16000, 48000)
    assert np.corrcoef(copied[middle], wave[middle])[0, 1] > 0.98         # not a sample late
    assert not capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["film.mp4", name])


def test_copied_sound_is_the_same_packets(folder, tmp_path):
    path = ffmpeg("-i", folder / "tone.wav", "-b:a", "96k", tmp_path / "sound.m4a")
    media.write_video(tmp_path / "film.mp4", 100 * [picture()], tone(4), 64, path)
    raw = [ffmpeg("-i", each, "-map", "0:a", "-c", "copy", tmp_path / f"{i}.aac").read_bytes()
           for i, each in enumerate((path, tmp_path / "film.mp4"))]
    assert raw[0] == raw[1]


def test_film_of_an_array(tmp_path):
    """Colours say what they are; sound beyond 1 is clipped, not wrapped around."""
    film = tmp_path / "film.mp4"
    media.write_video(film, (picture() for _ in range(25)), 2 * tone(1) + 0.2, 64)
    said = report(film)
    assert re.search(r"yuv420p\(tv, bt709[,)]", said), said
    assert "16000 Hz, mono" in said
    wave = media.read_audio(film)
    assert np.corrcoef(wave, np.clip(2 * tone(1) + 0.2, -1, 1))[0, 1] > 0.98


@pytest.mark.parametrize(("frames", "size", "line"), [
    ([picture()], 63, "film.mp4: .*63 x 63.*even"), ([], 64, "film.mp4: no frames"),
    ([picture()], 0, "film.mp4: .*even")])
def test_films_that_cannot_be_are_refused(tmp_path, frames, size, line):
    with pytest.raises(cli.InputError, match=line):
        media.write_video(tmp_path / "film.mp4", frames, tone(0.04), size)
    assert not list(tmp_path.iterdir())
