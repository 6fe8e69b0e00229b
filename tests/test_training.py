"""Training: data from a folder, the loop in process, and one whole run that is told to stop."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import training
from data import FolderSource, Windows, frozen_parts, make_windows, open_source, prepare
from keyface import Config, KeyFace
from stage import Stage
from tools import checkpoint
from tools.checkpoint import (
    load_config,
    load_metadata,
    load_part,
    load_state,
    save_config,
    save_part,
)
from tools.cli import InputError
from tools.media import write_video
from unet import UNetConfig

ROOT = Path(__file__).resolve().parents[1]
KEYFRAME = training.Recipe("keyframe", minutes=1e9, images=0, windows=8, per_clip=1, warmup=5,
                           learning_rate=4e-3)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> Path:
    """A folder with the frozen parts and config.json only, and a smaller network in it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("frozen")
    tiny = Config.tiny()
    small = {"model_channels": 16, "num_groups": 4, "num_head_channels": 16, "context_dim": 24}
    config = replace(
        tiny, keyframe=replace(tiny.keyframe, frames=4, unet=UNetConfig.tiny(**small)),
        interp=replace(tiny.interp,
                       unet=UNetConfig.tiny(in_channels=9, emotion_dim=0, **small)))
    torch.manual_seed(0)
    model = KeyFace(config)
    for name in frozen_parts(config):
        save_part(folder / f"{name}.safetensors", model.parts()[name].state_dict())
    save_config(config, folder)
    return folder


def windows(n: int = 4) -> Windows:
    g = torch.Generator().manual_seed(3)
    waves = torch.linspace(0, 12, 4 * 16 * 16).sin().view(4, 16, 16)  # all alike: easily learnt
    return Windows(waves.expand(n, 4, 4, 16, 16).half(),
                   torch.randn(n, 4, 16, 16, generator=g).half(),
                   torch.randn(n, 4, 2, 128, generator=g).half(),
                   torch.rand(n, 4, 2, generator=g),
                   torch.randint(256, (n, 4, 3, 64, 64), generator=g, dtype=torch.uint8))


class StopAfter(dict):
    """What a signal fills; true after the loop has looked at it so many times."""

    def __init__(self, steps: int):
        self.left = steps + 1

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def train(out: Path, steps: int, recipe: training.Recipe = KEYFRAME, resume: bool = False) -> dict:
    args = Namespace(out=out, init=None, resume=resume, seed=0, batch=4, steps=None, minutes=recipe.minutes,
                     lr=recipe.learning_rate)
    training.loop(0, 1, "", recipe, args, windows(), windows(2), torch.device("cpu"),
                  StopAfter(steps))
    return load_state(out / f"{recipe.name}.state")


def copy(frozen: Path, to: Path) -> Path:
    return Path(shutil.copytree(frozen, to))


def test_interpolation_starts_from_keyframes():
    config = Config.tiny()
    stage, keyframe = Stage(config.interp), Stage(config.keyframe)
    training.init_from_keyframes(stage, keyframe)
    ours, theirs = stage.state_dict(), keyframe.state_dict()
    first, label = "unet.input_blocks.0.0.weight", "unet.label_emb.0.0.weight"
    assert torch.equal(ours[first][:, :8], theirs[first]) and not ours[first][:, 8:].any()
    emotion = config.keyframe.unet.emotion_dim
    assert torch.equal(ours[label], theirs[label][:, emotion:])
    rest = set(ours) - {first, label, "learned_mask"}
    assert len(rest) > 100
    assert all(torch.equal(ours[name], theirs[name]) for name in rest)
    assert not ours["learned_mask"].any()


def test_loop_learns_saves_and_resumes_as_if_never_stopped(frozen, tmp_path):
    whole, parted = copy(frozen, tmp_path / "whole"), copy(frozen, tmp_path / "parted")
    once = train(whole, 24)
    assert once["step"] == 24
    header = load_metadata(whole / "keyframe.safetensors")
    header = {name: json.loads(value) for name, value in header.items()}
    assert header["step"] == 24 and header["config"]["frames"] == 4 and header["version"]

    train(parted, 12)
    twice = train(parted, 12, resume=True)
    assert twice["step"] == 24
    for kind in ("stage", "ema"):
        assert all(torch.equal(v, twice[kind][k]) for k, v in once[kind].items())

    args = Namespace(out=whole, init=None, resume=False, seed=0)
    stage = training.begin(KEYFRAME, args)[1]
    before = training.validate(stage.eval(), windows())
    load_part(whole / "keyframe.safetensors", stage)
    after = training.validate(stage, windows())
    assert all(np.isfinite(value) for value in after.values())
    assert after["val_1"] < 0.95 * before["val_1"]
    assert not list(whole.glob(".*"))


def test_end_of_training_shows_curves_and_sheet_and_keeps_the_bad_model(frozen, tmp_path):
    out = copy(frozen, tmp_path / "out")
    recipe = replace(KEYFRAME, name="interp", minutes=0.02, early=0.1)
    state = train(out, 10**6, recipe)
    lines = (out / "interp.csv").read_text().splitlines()
    assert lines[0].startswith("minutes,step,latent_loss") and len(lines) >= 2
    assert int(float(lines[-1].split(",")[1])) == state["step"]
    assert {p.name for p in out.iterdir()} >= {"interp_curves.png", "interp_sheet.png",
                                               "interp.safetensors", "interp_bad.safetensors"}
    more = Namespace(out=tmp_path / "more", init=out, resume=False, seed=0, batch=4, steps=None, minutes=1e9,
                     lr=1e-3)
    training.assemble(more)  # going on from there, the bad model stays what it was
    training.loop(0, 1, "", replace(recipe, early=0), more, windows(), windows(2),
                  torch.device("cpu"), StopAfter(3))
    assert {p.stem for p in more.out.glob("*.safetensors")} > {"interp", "interp_bad"}
    assert (more.out / "interp_bad.safetensors").read_bytes() == (
        out / "interp_bad.safetensors").read_bytes()


def test_an_autoencoder_trained_again_brings_its_own_statistics(frozen, tmp_path):
    out = copy(frozen, tmp_path / "out")
    vae = replace(load_config(Config, out).vae, latent_mean=(1.0, 2.0, 3.0, 4.0))
    save_part(out / "vae.safetensors", KeyFace(Config.tiny()).vae.state_dict(), config=asdict(vae))
    training.assemble(Namespace(out=out, init=None, resume=False))
    assert load_config(Config, out).vae == vae


def test_resume_without_a_state_or_with_another_config_is_refused(frozen, tmp_path):
    out = copy(frozen, tmp_path / "out")
    args = Namespace(out=out, init=None, resume=True, seed=0)
    with pytest.raises(InputError, match="keyframe.state does not exist"):
        training.begin(KEYFRAME, args)
    checkpoint.save_state(out / "keyframe.state", {"stage": {"a": torch.zeros(1)}})
    with pytest.raises(InputError, match="does not fit config.json"):
        training.begin(KEYFRAME, args)
    with pytest.raises(InputError, match="lacks vae, wavlm, beats"):
        training.assemble(Namespace(out=out, init=tmp_path / "nothing", resume=False))


@pytest.mark.parametrize("options, line", [
    (["--minutes", "0"], "--minutes must be a number greater than 0"),
    (["--minutes", "nan"], "--minutes must be a number greater than 0"),
    (["--seed", "-1"], "--seed must be from 0 to 1e9, --workers not negative"),
    (["--windows", "many"], "--windows: invalid int value: 'many'"),
])
def test_options(options, line, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_keyframe.py", *options])
    handlers = [signal.getsignal(number) for number in training.SIGNALS]
    assert training.run(KEYFRAME, "") == 2
    for number, handler in zip(training.SIGNALS, handlers):
        signal.signal(number, handler)
    assert capsys.readouterr().err == f"train_keyframe.py: error: {line}\n"


def test_batches_take_every_window_once_before_any_twice():
    data = windows(7)
    first = [data.batch(2, step, seed=5).identity for step in range(3)]
    assert len(torch.cat(first).flatten(1).unique(dim=0)) == 6
    assert torch.equal(first[2], data.batch(2, 2, seed=5).identity)
    assert len(data.batch(20, 11, seed=5)) == 7


def films(folder: Path, lengths: list[int]) -> Path:
    """Videos whose frame t is grey of brightness 40 + 2 t, with valence t / 100."""
    for number, n in enumerate(lengths):
        grey = (np.full((64, 64, 3), 40 + 2 * t, np.uint8) for t in range(n))
        write_video(folder / f"{number}.mp4", grey, np.zeros(640 * n, np.float32), 64)
        with open(folder / f"{number}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["seconds", "valence", "arousal"],
                                        *([t / 25, t / 100, -0.5] for t in range(n))])
    return folder


def test_folder_of_videos(frozen, tmp_path):
    folder = films(tmp_path, [60, 3, 45])
    source, held_out = (open_source(str(folder), split, 64) for split in ("train", "test"))
    assert not set(source.paths) & set(held_out.paths)
    assert len(source.paths) + len(held_out.paths) == 3
    clip = held_out.clip(0)
    assert len(clip.mood) == 60 and np.allclose(clip.mood[30], (0.3, -0.5))
    brightness = (clip.frames([0, 30, 59]).mean((1, 2, 3)) + 1) * 127.5
    assert np.allclose(brightness, (40, 100, 158), atol=3)

    window = list(range(10, 50, 13))
    for rng in map(np.random.default_rng, range(20)):
        shade = (float(clip.portrait(rng, window).mean() + 1) * 127.5 - 40) / 2
        assert shade < 9 or shade > 49 - 1  # outside the window's span

    model = training.load_frozen(frozen)
    made = make_windows(source, model, model.config.keyframe, range(4), seed=0, per_clip=2)
    assert len(made["latents"]) == 4  # two of each look at the long one, none of the short one
    assert made["pixels"].shape == (4, 4, 3, 64, 64) and made["tokens"].shape == (4, 4, 2, 128)
    times = (made["pixels"].float().mean((2, 3, 4)) - 40) / 2
    assert torch.allclose(times, made["mood"][..., 0] * 100, atol=1.5)


def test_folders_that_cannot_be_used(frozen, tmp_path):
    with pytest.raises(InputError, match="holds 0 videos"):
        FolderSource(tmp_path, "train", 64)
    folder = films(tmp_path, [3, 3])
    (folder / "0.csv").write_text("valence\n0.5\n")
    source = FolderSource(folder, "test", 64)
    with pytest.raises(InputError, match="0.csv: a row a frame is expected"):
        source.clip(0)
    config = load_config(Config, frozen).keyframe
    with pytest.raises(InputError, match="no train video is as long as a window, 40 frames"):
        prepare(tmp_path / "cache", FolderSource(folder, "train", 64), frozen, config, 1, workers=1)
    assert not list((tmp_path / "cache").iterdir())


def test_interpolation_hears_with_an_encoder_of_its_own(frozen, tmp_path):
    """The released way: wav2vec2 beside the same BEATs, frozen, too."""
    init, out = copy(frozen, tmp_path / "init"), tmp_path / "out"
    config = load_config(Config, init)
    config.interp_audio = replace(config.audio, speech="wav2vec2", mapping="released")
    save_config(config, init)
    args = Namespace(out=out, init=init, resume=False, seed=0)
    with pytest.raises(InputError, match="init: lacks wav2vec2 .safetensors"):
        training.assemble(args)
    torch.manual_seed(1)
    speech = KeyFace(config).interp_audio.speech.state_dict()
    save_part(init / "wav2vec2.safetensors", speech, half=False)
    training.assemble(args)
    recipe = replace(KEYFRAME, name="interp")
    model, stage, _ = training.begin(recipe, args)
    loaded = model.interp_audio.speech.state_dict()
    assert all(value.equal(loaded[name]) for name, value in speech.items())
    assert model.interp_audio.events is model.audio.events

    source = FolderSource(films(tmp_path, [30, 30]), "train", 64)
    made = make_windows(source, model, stage.config, [0], seed=0, per_clip=1)
    times = (made["mood"][0, :, 0] * 100).round().long()
    tokens = model.interp_audio(torch.from_numpy(source.clip(0).wave))
    assert torch.allclose(made["tokens"][0].float(), tokens[times], atol=5e-3)
    assert train(out, 1, recipe)["step"] == 1


def test_sigterm_saves_and_leaves(frozen, tmp_path):
    out = copy(frozen, tmp_path / "out")
    command = [sys.executable, str(ROOT / "train_keyframe.py"), "--out", str(out), "--windows", "8",
               "--minutes", "10", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        for line in process.stdout:
            if "steps/s" in line:
                process.terminate()
                break
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors == "" and said.startswith("stopped: step")
    assert load_file(out / "keyframe.safetensors")
    assert load_state(out / "keyframe.state")["step"] > 0
    assert not list(out.rglob(".*")) and not list(out.rglob("*partial*"))
    cached = [p.name for p in (out / "cache").iterdir()]
    assert sorted(name.rsplit("-", 1)[0] for name in cached) == ["keyframe-test-32",
                                                                 "keyframe-train-8"]
