"""Clips on disk: what stands in a cache, the windows that are cut from it, and what it refuses."""

import json
import pickle
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from conftest import films, numbered
from safetensors.torch import load_file
from test_sample import forbid

import data
from data import Clips
from keyface import KeyFace
from stage import Config
from tools import cli, prepare
from tools.checkpoint import load_config, save_config, save_part
from tools.cli import InputError
from tools.media import read_audio, video_blocks, write_video
from toy import world


def clips(cache: Path, frozen: Path, split: str = "train", **changes) -> Clips:
    """Read with scaled latents that are the unscaled ones."""
    stage = replace(load_config(Config, frozen).keyframe, **changes)
    return Clips(cache, split, stage, lambda z: z, frozen)


def test_a_shard_holds_what_the_frozen_networks_make_of_a_video(cache, frozen):
    shard = load_file(cache / "shards/1.mp4.000.safetensors")
    model, path = KeyFace.load_frozen(frozen), cache.parent / "films/1.mp4"
    video = np.concatenate([*video_blocks(path, 32)])
    images = torch.tensor(video).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = model.vae.encode(images)
    tokens = model.audio(torch.tensor(read_audio(path)))
    assert shard["times"].tolist() == list(range(45))
    for name, truth in (("mean", posterior.mean), ("logvar", posterior.logvar),
                        ("audio_tokens", tokens)):
        assert shard[name].dtype == torch.float16
        assert torch.allclose(shard[name].float(), truth, atol=5e-3), name
    assert np.allclose(shard["emotion"][[0, 1, 23, 40], 0], [0, 0.01, 0.23, 0.4], atol=1e-6)
    assert np.allclose(shard["emotion"][:, 1], -0.5)


def test_windows_are_of_one_moment_and_the_identity_of_another(cache, frozen):
    made = clips(cache, frozen)
    rows = [made.batch(4, step) for step in range(10)]
    firsts = set()
    for window in rows:
        times = window.emotion[..., 0] * 100  # (4, 4) of the films' making
        assert torch.allclose(times - times[:, :1], torch.arange(0, 40, 13.0).expand(4, 4),
                              atol=0.6)
        firsts |= set(times[:, 0].round().int().tolist())
        for frame in range(4):
            shades = (window.pictures(4, frame).mean((1, 2, 3)) + 1) * 127.5
            assert torch.allclose((shades - 40) / 2, times[:, frame], atol=1.5)
    assert len(firsts) > 5


def test_the_identity_is_a_frame_outside_of_the_window(cache, frozen, tmp_path):
    """In a cache whose latents are the numbers of the frames."""
    mine = numbered(cache, tmp_path / "mine")
    for window in (clips(mine, frozen, "test").batch(1, step) for step in range(10)):
        start, identity = (x.mean().item() for x in (window.latents[0, 0], window.identity))
        assert not start - 0.5 <= identity <= start + 39.5
        assert torch.allclose(window.emotion[0, 0, 0] * 100, torch.tensor(start), atol=0.1)
    longest = clips(mine, frozen, "test", frames=2, spacing=59)  # there is no frame outside
    inner = [longest.batch(1, step).identity.mean().round() for step in range(10)]
    assert 0 < min(inner) < max(inner) < 59


def test_latents_are_samples_of_the_posterior(cache, frozen):
    """They are scaled; (z - mean) / std over all values of many windows has mean 0 and variance 1,
    and is new in each epoch."""
    stage = load_config(Config, frozen).keyframe
    made, found = Clips(cache, "train", stage, lambda z: 3 * z, frozen), []
    for step in range(12):
        window = made.batch(4, step)
        for i, (path, rows) in enumerate(window.places):
            shard = load_file(path)
            mean, logvar = (shard[name][rows].float() for name in ("mean", "logvar"))
            found.append((window.latents[i] / 3 - mean) / torch.exp(0.5 * logvar))
    z = torch.stack(found)
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    assert len(z.flatten(1)[:, 0].unique()) == len(z)


def test_the_order_takes_every_clip_once_before_any_twice(cache, frozen):
    made = clips(cache, frozen)
    seen = [path.name[0] for step in range(4) for path, _ in made.batch(2, step).places]
    assert Counter(seen[:4]) == Counter(seen[4:]) == Counter("1234")
    again, whole = clips(cache, frozen).batch(2, 3), made.batch(2, 3)
    assert torch.equal(again.latents, whole.latents)
    parts = [made.batch(2, 3, slice(rank, None, 2)) for rank in range(2)]  # of two processes
    assert torch.equal(torch.cat([part.latents for part in parts]), whole.latents)
    single = made.singles(3, 0)
    assert single.latents.shape == (3, 1, 4, 8, 8) and single.audio_tokens.shape[1] == 1


def test_a_clip_comes_as_often_as_windows_go_into_it(cache, frozen):
    """Windows of 16 frames: three go into 48, two into less."""
    made = clips(cache, frozen, frames=2, spacing=15)
    seen = Counter(path.name[0] for step in range(3) for path, _ in made.batch(3, step).places)
    assert seen == {"1": 2, "2": 2, "3": 2, "4": 3}


def test_kinds_have_equal_weight(cache, frozen, tmp_path):
    mine = Path(shutil.copytree(cache, tmp_path / "mine"))
    manifest = json.loads((mine / "manifest.json").read_text())
    [laugh] = [clip for clip in manifest["clips"] if "2.mp4" in clip["shard"]]
    laugh["kind"] = "laugh"
    (mine / "manifest.json").write_text(json.dumps(manifest))
    made = clips(mine, frozen)
    batches = [[path.name[0] for path, _ in made.batch(4, step).places] for step in range(6)]
    seen = Counter(name for batch in batches for name in batch)
    assert seen["2"] == 12 and seen["1"] == seen["3"] == seen["4"] == 4
    # Each row sees both, for the pixel loss looks at the first rows of a batch alone.
    assert all({name == "2" for name in row} == {True, False} for row in zip(*batches))


def test_preparing_goes_on_where_it_stopped(frozen, tmp_path):
    folder, cache = films(tmp_path / "films", [16, 17, 18]), tmp_path / "cache"

    def made() -> dict[str, int]:
        prepare.prepare(prepare.Videos(folder, 32), cache, frozen, workers=1)
        return {p.name[0]: p.stat().st_mtime_ns for p in (cache / "shards").glob("*.safetensors")}

    before = made()
    assert made() == before and before.keys() == set("012")
    (cache / "shards/1.mp4.json").unlink()  # killed before it was written
    shard = cache / "shards/2.mp4.000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    after = made()
    assert {name for name in after if after[name] != before[name]} == {"1", "2"}
    films(folder, [20])
    last = made()
    assert {name for name in after if after[name] != last[name]} == {"0"}
    assert json.loads((cache / "manifest.json").read_text())["clips"][0]["frames"] == 20
    assert not list(cache.rglob(".*"))
    record = json.loads((cache / "shards/1.mp4.json").read_text())  # as if it could not be opened
    (cache / "shards/1.mp4.json").write_text(json.dumps(record | {
        "sha256": "", "clips": [], "left_out": "1.mp4: Permission denied"}))
    assert made().keys() == set("012")
    assert len(json.loads((cache / "manifest.json").read_text())["clips"]) == 3


def test_videos_that_cannot_be_used_are_listed_and_left_out(frozen, tmp_path, capsys):
    folder = films(tmp_path / "films", [60, 3, 45])
    (folder / "text.mp4").write_text("no video")
    write_video(folder / "mute.mp4", [np.zeros((64, 64, 3), np.uint8)] * 20,
                np.zeros(9, np.float32), 64)
    options = [str(folder), f"--out={tmp_path / 'cache'}", f"--init={frozen}"]
    assert cli.run(data.main, options) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].endswith("1 train clips, 0.0 minutes")
    assert "3 of 5 videos left out, as in 1.mp4: shorter than 15 frames" in said.err
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    assert manifest["left_out"].keys() == {"1.mp4", "mute.mp4", "text.mp4"}
    assert "not a sound or video file" in manifest["left_out"]["text.mp4"]
    with pytest.raises(InputError, match="none of 1 train clips is as long as a window, 66 frames"):
        clips(tmp_path / "cache", frozen, frames=6)
    (folder / "0.mp4").unlink()  # the next by name is held out
    assert cli.run(data.main, options) == 2
    assert "none of 1 videos to be measured on can be used, as in 1.mp4: shorter" in (
        capsys.readouterr().err)


@pytest.mark.parametrize("name, text, line", [
    ("0.csv", "valence,arousal\n0,0\n", "0.csv: rows of numbers under the names seconds,valence,"),
    ("0.csv", "seconds,valence,arousal\n0,0,\n", "0.csv: rows of numbers"),
    ("0.csv", "seconds,valence,arousal\n", "0.csv: rows of numbers"),
    ("0.csv", "seconds,valence,arousal\n1,0,0\n0,0,0\n", "0.csv: the seconds do not rise"),
    ("0.csv", "seconds,valence,arousal\n0,2,0\n", "0.csv: valence and arousal must lie between"),
    ("0.csv", "seconds,valence,arousal\n0,nan,0\n", "0.csv: rows of numbers"),
    ("0.crop.csv", "left,top,side\n1,2,-3\n", "0.crop.csv: one row of whole numbers"),
    ("0.crop.csv", "left,top,side\n1,2,3\n1,2,4\n", "0.crop.csv: one row of whole numbers"),
    ("0.crop.csv", "x,y\n1,2\n", "0.crop.csv: rows of numbers under the names left,top,side"),
])
def test_tables_that_cannot_be_used(tmp_path, name, text, line):
    for number in "01":
        (tmp_path / f"{number}.mp4").touch()
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=line):
        prepare.Videos(tmp_path, 64)


@pytest.mark.parametrize("names, pattern, line", [
    ([], None, "holds no videos"), (["a.mp4"], None, "holds 1 videos"),
    (["a_1.mp4", "a_2.mp4"], "^[a-z]", '"\\^\\[a-z\\]" finds one speaker only, a;'),
    (["a_1.mp4", "2.mp4"], "^[a-z]", "finds nothing in 2.mp4"),
    (["a.mp4", "b.mp4"], "(", "is no regular expression"),
])
def test_folders_and_patterns_that_cannot_be_used(tmp_path, names, pattern, line):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=line):
        prepare.Videos(tmp_path, 64, speakers=pattern)
    with pytest.raises(InputError, match="no such folder"):
        prepare.Videos(tmp_path / "nothing", 64)


def test_every_tenth_video_is_held_out_and_always_the_same_drawn_people(tmp_path):
    for i in range(21):
        (tmp_path / f"{i:02}.mp4").touch()
    source = prepare.Videos(tmp_path, 64)
    assert [i for i in range(21) if source.held_out(i)] == [0, 10, 20]
    few, many = (prepare.DrawnWorld(n, Config.tiny()) for n in (3, 50))
    ours, theirs = ({w.name(i) for i in range(len(w)) if w.held_out(i)} for w in (few, many))
    assert ours == theirs and not ours & {many.name(i) for i in range(50)}


def test_a_clip_is_of_the_kind_that_is_heard_longest(tmp_path):
    """But for speech; and a table that ends long before the video is refused."""
    folder, rows = films(tmp_path / "films", [60, 30]), []
    for t in range(60):
        kind = " speech" if t < 30 else "laugh " if t < 50 else "sigh"  # with spaces around
        rows.append(f"{t / 25},0,0,{kind}")
    table = folder / "0.csv"
    table.write_text("\n".join(["seconds,valence,arousal,kind", *rows]))
    source = prepare.Videos(folder, 32)
    assert [piece.kind for piece in source.pieces(0)] == ["laugh"]
    table.write_text("\n".join(["seconds,valence,arousal,kind", *rows[:20]]))
    with pytest.raises(InputError, match="0.csv: ends at 0.76 s of 2.4 or more; give rows up to"):
        list(source.pieces(0))


def test_nothing_is_left_of_a_video_that_is_refused_late(frozen, tmp_path, monkeypatch):
    """Its table ends in the second of three clips."""
    monkeypatch.setattr(prepare, "PIECE", 25)
    folder = films(tmp_path / "films", [30, 75, 30])
    lines = (folder / "1.csv").read_text().splitlines()
    (folder / "1.csv").write_text("\n".join(lines[:6]))
    manifest = prepare.prepare(prepare.Videos(folder, 32), tmp_path / "cache", frozen, workers=1)
    assert "1.csv: ends at 0.8 s" in manifest["left_out"]["1.mp4"]
    assert sorted(p.name for p in tmp_path.glob("cache/shards/*.safetensors")) == [
        "0.mp4.000.safetensors", "2.mp4.000.safetensors"]


@pytest.mark.parametrize("piece, whole", [(60, [60, 30]), (35, [35, 35, 20])])
def test_pictures_without_sound_are_left_out_and_it_is_said(tmp_path, capsys, monkeypatch, piece,
                                                            whole):
    """Once, also where the sound ends at the end of a piece."""
    monkeypatch.setattr(prepare, "PIECE", piece)
    folder = films(tmp_path / "films", [20, 90])
    table = (folder / "1.csv").read_text()
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(folder / "1.mp4"),
                    "-filter_complex", "[0:a]atrim=end=1.2[a]", "-map", "0:v", "-map", "[a]",
                    str(folder / "2.mp4")], check=True)
    (folder / "2.csv").write_text(table)
    source = prepare.Videos(folder, 32)
    lengths = [len(each.pictures) for each in source.pieces(1)]
    assert lengths == whole and capsys.readouterr().err == ""
    [only] = (len(each.pictures) for each in source.pieces(2))
    said = capsys.readouterr().err
    assert 29 <= only <= 33  # 1.2 s; the encoder pads its last block
    assert said.count("\n") == 1 and re.search(r"2.mp4: its sound ends at 1\.\d s; pictures", said)


def test_the_command_hands_on_what_it_is_asked_for(tmp_path, monkeypatch, frozen):
    """The source goes to other processes, too."""
    folder, asked = films(tmp_path / "films", [3, 4]), []
    monkeypatch.setattr(prepare, "prepare", lambda *given: asked.extend(given) or {"clips": []})
    data.main([str(folder), f"--out={tmp_path / 'cache'}", f"--init={frozen}", "--crop=8,4,32",
               "--speakers=.", "--workers=3"])
    source, *others = asked
    assert others == [tmp_path / "cache", frozen, 3]
    assert source.square == (8, 4, 32) and source.size == 32 and source.speakers == ["0", "1"]
    sent = pickle.loads(pickle.dumps(source))
    for mine, theirs in zip(source.pieces(1), sent.pieces(1), strict=True):
        assert np.array_equal(mine.pictures, theirs.pictures) and len(mine.pictures) == 4


def test_nobody_is_both_learned_from_and_held_out(tmp_path):
    for name in ("anna_1", "anna_2", "bert_1", "carl_1", "carl_2"):
        (tmp_path / f"{name}.mp4").touch()
    assert prepare.Videos(tmp_path, 64, speakers="^(x)?.*_").speakers  # whose group may be empty
    source = prepare.Videos(tmp_path, 64, speakers="^(.*)_")
    out = {source.name(i) for i in range(len(source)) if source.held_out(i)}
    assert out == {"anna_1.mp4", "anna_2.mp4"}


def test_the_square_of_a_video(tmp_path):
    """Of a picture whose left is black and whose right is white; a square that reaches out."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 255
    for number in "01":
        write_video(tmp_path / f"{number}.mp4", [picture] * 16, np.ones(16 * 640, np.float32), 64)
    (tmp_path / "1.crop.csv").write_text("left,top,side\n36,10,20\n")
    source = prepare.Videos(tmp_path, 16, square=(4, 10, 20))
    black, white = (next(iter(source.pieces(i))).pictures.mean() for i in range(2))
    assert black < 10 and white > 245
    (tmp_path / "1.crop.csv").write_text("left,top,side\n44,44,20\n")  # up to the corner
    assert next(iter(source.pieces(1))).pictures.mean() > 245
    for beyond in ("45,44,20", "44,45,20"):
        (tmp_path / "1.crop.csv").write_text(f"left,top,side\n{beyond}\n")
        with pytest.raises(InputError, match=f"the square {beyond} reaches out of the picture"):
            list(source.pieces(1))


def test_odd_videos_are_read_as_they_are_shown_and_heard(tmp_path):
    """Turned by a flag, with frames of unequal length, with 5.1 sound whose voice is in the centre,
    and with a tail that is cut off."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32] = 255  # white above
    times = np.arange(40 * 640) / 16000
    beep = (np.sin(2 * np.pi * 440 * times) * (times > 0.8) / 2).astype(np.float32)
    write_video(tmp_path / "plain.mp4", [picture] * 20 + [255 - picture] * 20, beep, 64)

    def made(name: str, *options: str, before: tuple = ()) -> None:
        words = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *before, "-i",
                 str(tmp_path / "plain.mp4"), *options, str(tmp_path / name)]
        subprocess.run(words, check=True)

    made("turned.mp4", "-c", "copy", before=("-display_rotation", "90"))
    made("uneven.mp4", "-vf", "select='eq(mod(n,4),1)+eq(n,0)+eq(n,39)'", "-fps_mode", "vfr")
    made("surround.mkv", "-c:v", "copy", "-af", "pan=5.1|FC=c0", "-c:a", "aac")
    made("cut.mkv", "-c:v", "libx264", "-g", "5", "-c:a", "copy")
    whole = (tmp_path / "cut.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[:len(whole) * 3 // 4])

    source = prepare.Videos(tmp_path, 32)
    pieces = {source.name(i): next(iter(source.pieces(i))) for i in range(len(source))}
    plain = pieces.pop("plain.mp4")
    turned = pieces.pop("turned.mp4").pictures[0]
    assert turned[:, :14].mean() > 240 and turned[:, 18:].mean() < 15  # white on the left
    assert 15 < len(pieces["cut.mkv"].pictures) < 40
    assert len(pieces["uneven.mp4"].pictures) == len(pieces["surround.mkv"].pictures) == 40
    for name, piece in pieces.items():
        above = piece.pictures[:, :14].mean((1, 2, 3))
        changed = int((above < 128).argmax())  # the frame that is the other way up
        assert changed == (21 if name == "uneven.mp4" else 20), name
        n = min(len(piece.wave), 38 * 640)
        heard = np.sqrt((piece.wave[14000:n] ** 2).mean() / (plain.wave[14000:n] ** 2).mean())
        assert 0.7 < heard < 1.5 and np.abs(piece.wave[:11000]).max() < 0.02, name


def test_long_videos_become_several_clips(frozen, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 25)
    source = prepare.Videos(films(tmp_path / "films", [16, 60], "al"), 32)
    manifest = prepare.prepare(source, tmp_path / "cache", frozen, workers=1)
    assert [clip["kind"] for clip in manifest["clips"]] == ["a", "l", "l"]
    first, second = (load_file(tmp_path / f"cache/shards/1.mp4.00{i}.safetensors")
                     for i in range(2))
    assert len(first["emotion"]) == len(second["emotion"]) == 25  # the rest is too short
    assert np.allclose(second["emotion"][0], (0.25, -0.5))
    wave = torch.tensor(read_audio(tmp_path / "films/1.mp4"))
    tokens = KeyFace.load_frozen(frozen).audio(wave)
    assert torch.allclose(second["audio_tokens"].float(), tokens[25:50], atol=5e-3)


def test_the_drawn_world_writes_the_same_shards(frozen, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "DRAWN_TEST", 1)
    source = prepare.DrawnWorld(1, load_config(Config, frozen))
    prepare.prepare(source, tmp_path, frozen, workers=1)
    made = clips(tmp_path, frozen)
    entry = json.loads((tmp_path / "manifest.json").read_text())["clips"][0]
    window = made.batch(1, 0)
    (path, rows), = window.places
    times = [entry["times"][row] for row in rows]
    assert np.diff(times).tolist() == [13, 13, 13]
    first = prepare.DRAWN_FIRST
    clip = world.make_clip(first, "train", 8, world.kind_of(first))
    truth = world.frames(clip, times, 32)
    shown = torch.cat([window.pictures(1, frame) for frame in range(4)])
    assert (shown - truth).abs().mean() < 0.025 < (shown - truth.roll(1, 0)).abs().mean()
    assert np.allclose(window.emotion[0], clip.emotion[times])
    interp = load_config(Config, frozen).interp
    inner = Clips(tmp_path, "train", interp, lambda z: z, frozen).batch(1, 0).places[0][1]
    assert np.diff([entry["times"][row] for row in inner]).tolist() == [1] * 13
    # A portrait is the identity frame wherever there is one, and never a frame to learn.
    shard = load_file(path)
    assert shard["times"].tolist().count(-1) == 2
    shard["mean"] = shard["times"][:, None, None, None].expand_as(shard["mean"]).half().contiguous()
    shard["logvar"].fill_(-30)
    save_part(path, shard, half=False)
    made = clips(tmp_path, frozen)
    assert all(made.batch(1, step).identity.round().eq(-1).all() for step in range(5))
    assert min(made.singles(1, step).latents.min() for step in range(20)) > -0.5


def test_caches_that_do_not_fit(cache, frozen, tmp_path, monkeypatch):
    mine = Path(shutil.copytree(cache, tmp_path / "mine"))
    text = (mine / "manifest.json").read_text()

    def refuses(line: str, weights: Path = frozen) -> None:
        with pytest.raises(InputError, match=line):
            clips(mine, weights)

    (mine / "manifest.json").write_text(text.replace('"version": 1', '"version": 0'))
    refuses("manifest.json: of another version; run python data.py ... --out .*mine --init")
    (mine / "manifest.json").write_text(text[:99])
    refuses("manifest.json: damaged; run")
    (mine / "manifest.json").write_text(text)
    other = Path(shutil.copytree(frozen, tmp_path / "other"))
    save_config(replace(load_config(Config, other), size=128), other)
    refuses("its pictures are of 32 pixels, those of .*other of 128; run", other)
    save_config(load_config(Config, frozen), other)
    vae = load_file(other / "vae.safetensors")
    save_part(other / "vae.safetensors", {k: v + 1 for k, v in vae.items()})
    refuses("made with another autoencoder or other audio encoders than those of .*other", other)
    shard = mine / "shards/3.mp4.000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:999])
    refuses("3.mp4.000.safetensors: missing or cut off; run")
    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(InputError, match="3.mp4.000.safetensors: damaged .*delete it and run"):
        [clips(mine, frozen).batch(4, step) for step in range(2)]
    forbid(monkeypatch, shard.name)
    with pytest.raises(PermissionError, match="3.mp4.000.safetensors"):
        [clips(mine, frozen).batch(4, step) for step in range(2)]
