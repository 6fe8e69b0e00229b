"""Training: the loop in process, its options, and what is refused."""

import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import films
from safetensors.torch import load_file

import train_interp
import train_keyframe
import training
from data import Clips, Windows
from keyface import KeyFace
from stage import Conditions, Config, Stage
from tools import begin, checkpoint, cli
from tools.checkpoint import (
    load_config,
    load_metadata,
    load_part,
    load_state,
    save_config,
    save_part,
)
from tools.cli import InputError
from tools.figures import load_metrics
from tools.media import read_audio
from unet import sinusoid

ROOT = Path(__file__).resolve().parents[1]


class StopAfter(list):
    """Signals that came: one, after the training has looked for it so many times."""

    def __init__(self, steps: int):
        super().__init__([signal.SIGTERM])
        self.left = steps + 1

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.fixture
def train(monkeypatch, cache):
    """Runs a training script in this process; returns the state it saved."""
    monkeypatch.setattr(training, "HELD_OUT", 2)
    monkeypatch.setattr(training, "WARM_UP", 5)
    monkeypatch.setattr(training, "sheet", lambda *_: None)  # one test draws both
    monkeypatch.setattr(training, "save_metrics", lambda *_: None)

    def train(script, out: Path, *options, stop: int = 10**9) -> dict:
        monkeypatch.setattr(training, "remember_signals", lambda: StopAfter(stop))
        script.main([f"--out={out}", f"--data={cache}", "--batch=2", *map(str, options)])
        return load_state(out / f"{script.__name__.removeprefix('train_')}.state")

    return train


SHEET, METRICS = training.sheet, training.save_metrics


def copy(frozen: Path, to: Path) -> Path:
    return Path(shutil.copytree(frozen, to))


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_interpolation_starts_from_the_keyframes_in_its_folder(frozen, tmp_path, train,
                                                               monkeypatch):
    out = copy(frozen, tmp_path / "out")
    config = load_config(Config, out)
    keyframe = Stage(config.keyframe)
    for value in keyframe.parameters():
        torch.nn.init.normal_(value, std=0.1).data = value.data.half().float()  # as it is kept
    save_part(out / "keyframe.safetensors", keyframe.state_dict())
    forward, ours, theirs = Stage.forward, {}, keyframe.state_dict()

    def noting(self, *args):
        ours.update({name: value.clone() for name, value in self.state_dict().items()})
        return forward(self, *args)

    monkeypatch.setattr(Stage, "forward", noting)
    train(train_interp, out, "--steps=1")
    first, label = "unet.input_blocks.0.0.weight", "unet.label_emb.0.0.weight"
    assert torch.equal(ours[first][:, :8], theirs[first]) and not ours[first][:, 8:].any()
    emotion, bias = config.keyframe.unet.emotion_dim, "unet.label_emb.0.0.bias"
    assert torch.equal(ours[label], theirs[label][:, emotion:])
    rest = set(ours) - {first, label, bias, "learned_mask"}
    assert len(rest) > 50
    assert all(torch.equal(ours[name], theirs[name]) for name in rest)
    assert not ours["learned_mask"].any()

    # Whatever the mask says, it begins as the keyframe network that is told a neutral emotion.
    between = Stage(config.interp)
    between.load_state_dict(ours)
    x, c_noise, context = torch.randn(8, 9, 8, 8), torch.zeros(8), torch.randn(2, 4, 24)
    neutral = sinusoid(torch.zeros(8, 2), emotion // 2).flatten(1)
    with torch.no_grad():
        torch.testing.assert_close(between.unet(x, c_noise, context, None, 4),
                                   keyframe.unet(x[:, :8], c_noise, context, neutral, 4))


def test_a_resumed_training_is_exact(frozen, tmp_path, train):
    """Of interpolation; test_processes.py kills and resumes one of keyframes."""
    whole, parted = copy(frozen, tmp_path / "whole"), copy(frozen, tmp_path / "parted")
    once = train(train_interp, whole, "--steps=4")
    first = train(train_interp, parted, "--steps=4", stop=1)
    assert first["step"] == 1 and not equal(first["stage"], once["stage"])
    assert once["average"]["n_averaged"] == 4 > first["average"]["n_averaged"] == 1
    assert train(train_interp, parted, "--steps=4", "--resume", stop=2)["step"] == 3
    twice = train(train_interp, parted, "--steps=4", "--resume")
    assert once["step"] == twice["step"] == 4
    assert equal(once["stage"], twice["stage"]) and equal(once["average"], twice["average"])
    for out in (whole, parted):  # the bad model of autoguidance is of the first step after a fifth
        assert load_metadata(out / "interp_bad.safetensors")["step"] == "1"


def test_a_training_by_the_clock_goes_on_with_its_time_and_its_curves(frozen, tmp_path, train,
                                                                      monkeypatch):
    out, ticks = copy(frozen, tmp_path / "out"), itertools.count()
    monkeypatch.setattr(training, "save_metrics", METRICS)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    half = train(train_interp, out, "--minutes=1", stop=6)
    assert 15 < half["seconds"] < 50
    kept = load_metrics(out / "interp.csv")
    METRICS(out / "interp.csv", [*kept, kept[-1] | {"step": 999}], None)  # of a run that was killed
    best = out / "interp.best.safetensors"
    save_part(best, load_file(best), held_out=0.001)
    before = next(ticks)
    end = train(train_interp, out, "--minutes=1", "--resume")
    assert next(ticks) - before < 60 <= end["seconds"] < 70  # of the minute a part was left
    rows = load_metrics(out / "interp.csv")
    assert rows[:len(kept)] == kept and len(rows) > len(kept)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == end["step"]
    assert load_metadata(best)["held_out"] == "0.001"  # none was as good since


def test_a_training_reads_scaled_latents_of_its_own_splits(frozen, cache, monkeypatch):
    monkeypatch.setattr(training, "HELD_OUT", 2)
    model = KeyFace(load_config(Config, frozen))
    model.vae.config = replace(model.vae.config, latent_mean=(1.0, 2.0, 3.0, 4.0),
                               latent_std=(0.5, 1.0, 2.0, 4.0))
    args = SimpleNamespace(data=cache, out=frozen, clips=0, seed=3)
    clips, held_out = training.open_data(args, model, model.keyframe,
                                         training.Processes(0, 1, torch.device("cpu")))
    for split, found, seed in (("train", clips.batch(2, 0), 3), ("test", held_out, 0)):
        raw = Clips(cache, split, model.config.keyframe, lambda z: z, frozen, seed).batch(2, 0)
        mean, std = (torch.tensor(x)[:, None, None] for x in ([1., 2, 3, 4], [.5, 1, 2, 4]))
        torch.testing.assert_close(found.latents, (raw.latents - mean) / std)
        torch.testing.assert_close(found.identity, (raw.identity - mean) / std)


@pytest.mark.parametrize("script, more", [(train_keyframe, ["--spatial=0"]), (train_interp, [])])
def test_each_step_and_each_seed_has_its_own_windows_and_draws(frozen, tmp_path, train, monkeypatch,
                                                               script, more):
    forward, seen = Stage.forward, []

    def noting(self, *args):
        seen.append([x.sum().item() for x in (args[1], args[5].noise, args[5].sigma)])
        return forward(self, *args)

    monkeypatch.setattr(Stage, "forward", noting)
    for seed in (0, 1):
        train(script, copy(frozen, tmp_path / str(seed)), "--steps=2", f"--seed={seed}", *more)
    assert [len(set(values)) for values in zip(*seen)] == [4, 4, 4]


def test_the_spatial_phase_is_of_single_frames_and_not_of_finished_weights(frozen, tmp_path, train,
                                                                           monkeypatch):
    """Of these it is left out after --resume, too."""
    forward, seen, init = Stage.forward, [], copy(frozen, tmp_path / "init")

    def noting(self, *args):
        seen.append((*args[1].shape[:2], len(args[6]), args[8]))
        return forward(self, *args)

    monkeypatch.setattr(Stage, "forward", noting)
    train(train_keyframe, copy(frozen, tmp_path / "new"), "--steps=4", "--spatial=.5")
    assert seen == [(8, 1, 2, True)] * 2 + [(2, 4, 2, False)] * 2
    config = load_config(Config, init)
    save_part(init / "keyframe.safetensors", Stage(config.keyframe).state_dict())
    seen.clear()
    asked = train_keyframe, tmp_path / "out", "--steps=2", "--spatial=1"
    train(*asked, f"--init={init}", stop=1)
    train(*asked, "--resume")
    assert seen == [(2, 4, 2, False)] * 2


def test_interpolation_is_told_both_ends_of_its_windows_whole_or_in_parts(frozen, tmp_path, train,
                                                                          monkeypatch):
    """And a step in two parts is the step in one, gradient and all."""
    forward, told, ended, norms = Stage.forward, [], [], []
    clip, keyframe = torch.nn.utils.clip_grad_norm_, Stage(load_config(Config, frozen).keyframe)
    for value in keyframe.parameters():  # a new network has gradients in its last layer alone
        torch.nn.init.normal_(value, std=0.1)

    def noting(parameters, most):
        norms.append(clip(parameters, most).item())
        return torch.tensor(norms[-1])

    def listening(self, vae, x0, latents, *rest):
        told.append(latents.equal(x0[:, [0, -1]]))
        return forward(self, vae, x0, latents, *rest)

    monkeypatch.setattr(Stage, "forward", listening)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noting)
    for parts in (1, 2):
        out = copy(frozen, tmp_path / str(parts))
        save_part(out / "keyframe.safetensors", keyframe.state_dict())
        state = train(train_interp, out, "--steps=1", f"--accumulate={parts}")
        ended.append(torch.cat([value.flatten() for value in state["stage"].values()]))
    assert told == [True] * 3
    torch.testing.assert_close(*ended, atol=1e-5, rtol=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_training_learns_and_saves(frozen, cache, tmp_path, train, monkeypatch):
    out = copy(frozen, tmp_path / "out")
    monkeypatch.setattr(train_keyframe, "SPATIAL_FRACTION", 0)
    state = train(train_keyframe, out, "--steps=10", "--lr=4e-3", "--batch=4")
    header = load_metadata(out / "keyframe.safetensors")
    header = {name: json.loads(value) for name, value in header.items()}
    assert header["step"] == 10 and header["config"]["frames"] == 4 and header["version"]
    torch.manual_seed(0)
    stage = KeyFace.load_frozen(out).keyframe
    held_out = Clips(cache, "train", stage.config, lambda z: z, out).batch(4, 0)
    before = training.validate(stage.eval(), held_out)
    load_part(out / "keyframe.safetensors", stage)
    after = training.validate(stage, held_out)
    assert all(np.isfinite(value) for value in after.values())
    assert after["val_1"] < 0.95 * before["val_1"]
    assert not list(out.glob(".*"))
    average = {k.removeprefix("module."): v for k, v in state["average"].items()}
    kept = load_file(out / "keyframe.safetensors")  # the average is what is kept, in fp16
    assert all(torch.equal(kept[k], average[k].half()) for k in kept)


def test_a_share_of_the_windows_has_the_pixel_loss(frozen, tmp_path, train, monkeypatch):
    """But every part of a batch that is worked in parts has a picture. Each is of the frame whose
    latents are decoded, of the same window; and z_id is not read from the window's latents."""
    out, seen, forward = copy(frozen, tmp_path / "out"), [], Stage.forward
    config = load_config(Config, out)
    config.keyframe.pixel_share = 0.5
    save_config(config, out)

    def looking(self, vae, x0, identity, tokens, emotion, draws, pixels, frame, *rest):
        times = 100 * emotion[:len(pixels), frame, 0]  # see conftest.films
        shades = (pixels.mean((1, 2, 3)) + 1) * 127.5
        assert torch.allclose((shades - 40) / 2, times, atol=1.5)
        assert not (identity[:, None] == x0).flatten(2).all(-1).any()
        seen.append((len(x0), len(pixels), frame))
        return forward(self, vae, x0, identity, tokens, emotion, draws, pixels, frame, *rest)

    monkeypatch.setattr(Stage, "forward", looking)
    asked = "--batch=4", "--steps=2", "--spatial=0"
    train(train_keyframe, out, *asked)
    for parts in (2, 4):
        train(train_keyframe, out, *asked, f"--accumulate={parts}")
    assert [each[:2] for each in seen] == [(4, 2)] * 2 + [(2, 1)] * 4 + [(1, 1)] * 8
    assert len({frame for *_, frame in seen}) > 1


def overflow(monkeypatch, steps: range) -> None:
    """In odd steps of these the loss becomes NaN; in even ones only its gradient."""
    forward = Stage.forward

    def wrong(self, *args):
        latent, pixel = forward(self, *args)
        if torch.initial_seed() in steps:
            zero = 0 * next(self.parameters()).sum()  # whose root has no finite slope
            latent = latent + (math.nan if torch.initial_seed() % 2 else zero.sqrt())
        return latent, pixel

    monkeypatch.setattr(Stage, "forward", wrong)


def test_a_step_that_is_not_finite_is_skipped_and_counted(frozen, tmp_path, train, monkeypatch,
                                                          capsys):
    """After one bad step less than end a training, weights and optimizer are as before them, and
    training goes on."""
    monkeypatch.setattr(training, "NOT_FINITE", 4)
    overflow(monkeypatch, range(2, 5))
    out = copy(frozen, tmp_path / "out")
    before = train(train_keyframe, out, "--steps=6", stop=2)
    after = train(train_keyframe, out, "--steps=6", "--resume", stop=3)
    assert (before["step"], before["skipped"], after["step"], after["skipped"]) == (2, 0, 5, 3)
    assert equal(before["stage"], after["stage"]) and equal(before["average"], after["average"])
    assert equal(*(dict(enumerate(each.values())) for state in (before, after)
                   for each in [state["optimizer"]["state"][0]]))
    end = train(train_keyframe, out, "--steps=6", "--resume")
    assert end["skipped"] == 3 and not equal(end["stage"], after["stage"])
    assert all(value.isfinite().all() for value in end["stage"].values())
    assert " steps/s  3 skipped\n" in capsys.readouterr().out


def test_too_many_such_steps_in_a_row_end_the_training(frozen, tmp_path, train, monkeypatch):
    overflow(monkeypatch, range(2, 6))
    monkeypatch.setattr(training, "NOT_FINITE", 3)
    monkeypatch.setattr(training, "SAVE_EVERY", -1)
    out = copy(frozen, tmp_path / "out")
    with pytest.raises(InputError, match="keyframe: the loss or its gradient was not finite in 3 "
                       "steps in a row; try --resume, from .*/keyframe.state of step 2, which is "
                       "intact, and an --lr below 0.002$"):
        train(train_keyframe, out, "--steps=6")
    assert load_state(out / "keyframe.state")["step"] == 2
    header = load_metadata(out / "keyframe.safetensors")
    assert header["step"] == "2" and not list(out.glob(".*"))


@pytest.mark.parametrize("decay, last", [(0.998, 3 / 12), (0.2, 0.2)])
def test_the_average_is_the_closed_form(decay, last):
    """Of weights 1, 2, 3: the first is taken whole, later ones with 1 - (1 + n) / (10 + n), but at
    least with 1 - decay."""
    layer = torch.nn.Linear(1, 1, bias=False)
    average = training.averaged(layer, decay)
    for value in (1.0, 2.0, 3.0):
        torch.nn.init.constant_(layer.weight, value)
        average.update_parameters(layer)
    second = 1 + (2 - 1) * (1 - 2 / 11)
    assert np.isclose(average.module.weight.item(), second + (3 - second) * (1 - last))


@pytest.mark.parametrize("finetune, rates", [
    (False, [(0, 0.01), (49, 0.5 * 0.99891), (500, 0.5), (999, 0.02)]),
    (True, [(0, 1 / 1000), (499, 0.5), (999, 1.0)]),
])
def test_the_learning_rate_rises_and_falls(finetune, rates):
    """Of 1000 steps: from nothing, a hundred steps up, then half a cosine down to a fiftieth; in
    the paper's recipe slowly up, and no way down."""
    run = training.Run.__new__(training.Run)
    run.args, run.signals = SimpleNamespace(steps=1000, lr=2.0), []
    run.processes = training.Processes(0, 1, torch.device("cpu"))
    run.stage = SimpleNamespace(config=SimpleNamespace(finetune=finetune))
    run.optimizer = SimpleNamespace(param_groups=[{}, {}])
    for run.step, rate in rates:
        assert run.go_on()
        assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx(
            [2 * rate] * 2, rel=0.02)


def made_up(count: int = 64) -> Windows:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(count, 4, 2, 128, generator=draw)
    return Windows(torch.zeros(count, 4, 4, 16, 16), torch.zeros(count, 4, 16, 16), tokens,
                   torch.zeros(count, 4, 2), [None] * count)


def test_what_is_validated_is_the_plain_squared_error():
    """A new network is D = x / (1 + sigma^2), which of clean latents 0 makes noise times
    sigma / (1 + sigma^2)."""
    found = training.validate(Stage(Config.tiny().keyframe), made_up())
    assert found == pytest.approx({"val_1": 1 / 4, "val_10": (10 / 101) ** 2,
                                   "val_10_other_audio": (10 / 101) ** 2}, rel=0.02)


def test_validation_with_another_windows_audio_tells_who_listens():
    """A stand-in finds the truth in its own sound alone."""
    stage, held_out = Stage(Config.tiny().keyframe), made_up()
    own = held_out.audio_tokens.mean((1, 2, 3))  # a number for each window
    latents = own.view(-1, 1, 1, 1, 1).expand_as(held_out.latents)
    stage.conditions = lambda _, tokens, __: tokens.mean((1, 2, 3))
    stage.denoise = lambda x, _, known: known.view(-1, 1, 1, 1, 1).expand_as(x)
    found = training.validate(stage, replace(held_out, latents=latents))
    assert found["val_1"] < 1e-12 and found["val_10"] < 1e-12
    strangers = own.unflatten(0, (-1, 8)).roll(1, 1).flatten()
    assert found["val_10_other_audio"] == pytest.approx((own - strangers).square().mean().item())


@pytest.mark.parametrize("name, weight", [("keyframe", 2.0), ("interp", 1.0)])
def test_a_sheet_shows_the_truth_and_what_two_sounds_make(monkeypatch, name, weight):
    """A stand-in shows the sound, which guidance multiplies by its weight."""
    shown, stage, held_out = [], Stage(getattr(Config.tiny(), name)), made_up(3)
    monkeypatch.setattr(training, "save_grid", lambda _, images: shown.append(images))
    stage.conditions = lambda _, tokens, __: Conditions(
        torch.zeros(3, 4, 16, 16), tokens.mean(2), None)
    stage.denoise = lambda x, _, known: known.context[..., :1, None, None].expand_as(x)
    model = SimpleNamespace(vae=SimpleNamespace(to_images=lambda z: z),
                            config=SimpleNamespace(id_guidance=3.0, audio_guidance=weight))
    training.sheet(None, model, stage, held_out)
    own = weight * held_out.audio_tokens.mean(2)[..., 0]  # (3, T)
    found = shown[0].mean((2, 3, 4)).view(3, 3, 4)  # people, rows, frames
    expected = torch.stack([0 * own, own, own.roll(1, 0)], 1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_end_of_training_shows_curves_and_sheet_and_keeps_the_bad_model(frozen, tmp_path, train,
                                                                        monkeypatch):
    out = copy(frozen, tmp_path / "out")
    monkeypatch.setattr(training, "sheet", SHEET)
    monkeypatch.setattr(training, "schedule", lambda _, sigma: torch.tensor([sigma, 0.0]))
    monkeypatch.setattr(training, "save_metrics", METRICS)
    ticks = itertools.count()  # a clock of which every look takes a second
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    rows = {}
    writer = SimpleNamespace(flush=lambda: None, add_scalar=lambda name, value, step: (
        rows.setdefault(step, {}).update({name: value})))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(
        SummaryWriter=lambda folder, purge_step: folder == out / "interp" and writer))
    state = train(train_interp, out, "--minutes=0.4")
    metrics = load_metrics(out / "interp.csv")
    assert metrics == list(rows.values()) and len(metrics) >= 2  # TensorBoard has the same
    assert all(row["pixel_loss"] == 0 < row["latent_loss"] for row in metrics)
    best = {name: json.loads(value)
            for name, value in load_metadata(out / "interp.best.safetensors").items()}
    least = min(metrics, key=lambda row: row["val_1"] + row["val_10"])
    assert best["step"] == least["step"]
    assert np.isclose(best["held_out"], (least["val_1"] + least["val_10"]) / 2)
    lines = (out / "interp.csv").read_text().splitlines()
    assert lines[0].startswith("minutes,step,latent_loss") and len(lines) >= 2
    assert int(float(lines[-1].split(",")[1])) == state["step"]
    assert {p.name for p in out.iterdir()} >= {"interp_curves.png", "interp_sheet.png",
                                               "interp.safetensors", "interp_bad.safetensors"}
    early, last = (json.loads(load_metadata(out / f"{name}.safetensors")["step"])
                   for name in ("interp_bad", "interp"))
    assert early < last
    more = tmp_path / "more"  # going on from there, the bad model stays what it was
    monkeypatch.setattr(training, "sheet", lambda *_: None)
    train(train_interp, more, f"--init={out}", "--steps=1", "--lr=1e-9")
    assert equal(*(load_file(folder / "interp.safetensors") for folder in (out, more)))
    assert {p.stem for p in more.glob("*.safetensors")} > {"interp", "interp_bad"}
    assert (more / "interp_bad.safetensors").read_bytes() == (
        out / "interp_bad.safetensors").read_bytes()


def test_an_autoencoder_trained_again_brings_its_own_statistics(frozen, tmp_path):
    out = copy(frozen, tmp_path / "out")
    vae = replace(load_config(Config, out).vae, latent_mean=(1.0, 2.0, 3.0, 4.0))
    save_part(out / "vae.safetensors", KeyFace(load_config(Config, out)).vae.state_dict(),
              config=asdict(vae))
    begin.open_weights(begin.options([f"--out={out}"], "", 1, 2, 1e-3),
                       training.Processes(0, 1, torch.device("cpu")))
    assert load_config(Config, out).vae == vae


def test_folders_and_states_that_do_not_fit_are_refused(frozen, tmp_path, train):
    out = copy(frozen, tmp_path / "out")
    with pytest.raises(InputError, match="keyframe.state does not exist; begin anew, without --re"):
        train(train_keyframe, out, "--resume")
    checkpoint.save_state(out / "keyframe.state", {"stage": {"a": torch.zeros(1)}})
    with pytest.raises(InputError, match="does not fit config.json"):
        train(train_keyframe, out, "--resume")
    with pytest.raises(InputError, match="nothing: no such folder; give one of weights, with"):
        train(train_keyframe, out, f"--init={tmp_path / 'nothing'}")
    (tmp_path / "begun").mkdir()  # what was trained there is not replaced by the shipped parts
    shutil.copy(frozen / "vae.safetensors", tmp_path / "begun")
    with pytest.raises(InputError, match="lacks config.json, wavlm.safetensors, beats.safe"):
        train(train_keyframe, tmp_path / "begun")
    (tmp_path / "begun" / "beats.safetensors").write_bytes(b"another")
    with pytest.raises(InputError, match="beats.safetensors, which is another; give another --out"):
        train(train_keyframe, tmp_path / "begun", f"--init={frozen}")


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, capsys):
    path = tmp_path / "a.state"
    before, newest = tmp_path / "a.state.1", {"step": 3, "x": torch.arange(1000.0)}
    for step in (1, 2):
        checkpoint.save_state(path, {"step": step})
    checkpoint.save_state(path, newest)
    assert sorted(tmp_path.iterdir()) == [path, before]  # the last two
    assert torch.equal(load_state(path)["x"], newest["x"]) and capsys.readouterr().err == ""
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(newest["x"].numpy().tobytes()) + 2000] ^= 1
    for content in (whole[:len(whole) // 2], bytes(len(whole)), bytes(flipped), b""):
        path.write_bytes(content)
        assert load_state(path)["step"] == 2
        said = capsys.readouterr().err
        assert "a.state: damaged" in said and said.endswith("the one before, a.state.1\n")
    path.unlink()
    assert load_state(path)["step"] == 2  # a kill between two renames
    before.write_bytes(b"")
    path.write_bytes(b"")
    with pytest.raises(InputError, match="a.state: damaged.*; begin anew, without --resume"):
        load_state(path)


def test_a_full_disk_leaves_the_states_that_are_there(tmp_path):
    """A limit on the size of files stands in for the disk."""
    path = tmp_path / "a.state"
    for step in (1, 2):
        checkpoint.save_state(path, {"step": step})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(OSError, match="cannot write .*a.state: File too large"):
            checkpoint.save_state(path, {"step": 3, "x": torch.zeros(10**5)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [load_state(tmp_path / name)["step"] for name in ("a.state", "a.state.1")] == [2, 1]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls, fsync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(os.fstat(file).st_ino),
                                                   fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("renamed"), rename(*paths)))
    save_part(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    file, folder = (tmp_path / "a.safetensors").stat().st_ino, tmp_path.stat().st_ino
    assert calls == [file, "renamed", folder]
    calls.clear()
    for step in (1, 2):
        checkpoint.save_state(tmp_path / "a.state", {"step": step})
    assert calls[-4:] == ["renamed", (tmp_path / "a.state").stat().st_ino, "renamed", folder]
    assert (tmp_path / "a.state").stat().st_ino in calls[:calls.index("renamed", 3)]


def test_what_killed_processes_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    begin, end = f".keyface.{cli.HOST}", f"{dead.pid}.1"  # below: a live one's; not ours
    stay = [f"{begin}.{os.getppid()}.1", f"{begin}.mine.1", ".other", f".keyface.elsewhere.{end}"]
    for name in (f"{begin}.{end}", f"{begin}.{os.getpid()}.1", *stay):
        (tmp_path / name).mkdir()
    with cli.replacing(tmp_path / "a") as temporary:
        temporary.touch()
        cli.make_folder(tmp_path)
        assert temporary.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a", *stay}


@pytest.mark.parametrize("options, line", [
    (["--minutes", "0"], '--minutes: "0" is no number from 0.001 to 1000000.0'),
    (["--minutes", "nan"], '--minutes: "nan" is no number from 0.001 to 1000000.0'),
    (["--steps", "0"], '--steps: "0" is no whole number from 1 to 1000000000'),
    (["--seed", "-1"], '--seed: "-1" is no whole number from 0 to 1000000000'),
    (["--clips", "many"], '--clips: "many" is no whole number from 1 to 10000000'),
    (["--resume", "--init", "x"], ("--resume continues what --out holds; leave out --init, "
      "--config and --without")),
])
def test_options_out_of_range_are_refused_by_name(options, line, capsys):
    assert cli.run(train_keyframe.main, options) == 2
    assert capsys.readouterr().err.endswith(f"error: {line}\n")


def test_a_short_training_prepares_few_clips():
    def count(*options: str) -> int:
        return begin.options(list(options), "", 45, 4, 1e-3).clips

    assert count("--minutes=2") == 110 and count("--steps=20") == 32
    assert count() == count("--minutes=1000") == 1600 and count("--minutes=2", "--clips=7") == 7


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(InputError, match="--batch: 4 does not divide by 3 processes"):
        training.Processes(0, 3, torch.device("cpu")).rows(4)


def test_interpolation_hears_with_an_encoder_of_its_own(frozen, tmp_path, train):
    """The released way: wav2vec2 beside the same BEATs, frozen, too."""
    init, out = copy(frozen, tmp_path / "init"), tmp_path / "out"
    config = load_config(Config, init)
    config.interp_audio = replace(config.audio, speech="wav2vec2", mapping="released")
    save_config(config, init)
    with pytest.raises(InputError, match="init: lacks wav2vec2.safetensors"):
        train(train_interp, out, f"--init={init}")
    torch.manual_seed(1)
    speech = KeyFace(config).interp_audio.speech.state_dict()
    save_part(init / "wav2vec2.safetensors", speech, half=False)
    with pytest.raises(InputError, match="cache: made with another autoencoder or other audio"):
        train(train_interp, out, f"--init={init}", "--steps=1")
    films(tmp_path / "films", [30, 30])
    train(train_interp, out, f"--init={init}", f"--data={tmp_path / 'films'}", "--steps=1")
    model = KeyFace.load_frozen(out)
    loaded = model.interp_audio.speech.state_dict()
    assert all(value.equal(loaded[name]) for name, value in speech.items())
    assert model.interp_audio.events is model.audio.events

    wave = torch.from_numpy(read_audio(tmp_path / "films/1.mp4"))
    for stage, hearing in ((model.config.interp, model.interp_audio),
                           (replace(model.config.keyframe, frames=2), model.audio)):
        made = Clips(out / "cache_videos", "train", stage, lambda z: z, out).batch(1, 0)
        times = (made.emotion[0, :, 0] * 100).round().long()
        assert torch.allclose(made.audio_tokens[0].float(), hearing(wave)[times], atol=5e-3)
