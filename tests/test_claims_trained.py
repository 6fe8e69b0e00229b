"""The claims that need trainings: their variants, their commands, and what the trainings do."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import numbered, small
from test_training import copy, train  # noqa: F401 (a fixture)

import train_keyframe
from data import Clips
from keyface import KeyFace
from stage import Config
from tools import prepare
from tools.checkpoint import load_config, save_part
from tools.cli import WEIGHTS, InputError
from toy.claims import trained, variants
from toy.claims.measure import BETTER, NOT, REPRODUCED
from toy.claims.trained import ABLATIONS
from toy.claims.variants import CHAINED, SHIPPED, SPATIAL, Training

CHANGED = {"shipped": {}, "chained": {"keyframe.spacing": 1, "interp.frames": 2},
           "without_wavlm": {"keyframe.without": "wavlm", "interp.without": "wavlm"},
           "without_beats": {"keyframe.without": "beats", "interp.without": "beats"},
           "lower_1": {"interp.lambda_lower": 1.0}, "pixels_0": {"keyframe.pixel_weight": 0.0},
           "mask_only": {"interp.blend": False},
           "spacing_7": {"keyframe.spacing": 7, "interp.frames": 8},
           "spacing_26": {"keyframe.spacing": 26, "interp.frames": 27}}


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in values.items():
        deeper = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if deeper else {prefix + name: value}
    return found


def test_variants_differ_where_they_should_and_nowhere_else():
    known = {v.name: v for a in ABLATIONS for v in a.variants.values()} | {"chained": CHAINED}
    shipped = flat(asdict(load_config(Config, WEIGHTS)))
    found = {}
    for name, variant in known.items():
        values = flat(asdict(variant.config(WEIGHTS)))
        assert values.keys() == shipped.keys()
        found[name] = {key: value for key, value in values.items() if value != shipped[key]}
    assert found == CHANGED
    for ablation in ABLATIONS:  # what is not trained anew is sampled with shipped weights
        for variant in ablation.variants.values():
            assert {key.split(".")[0] for key in CHANGED[variant.name]} <= {*ablation.stages}
        assert {label for _, *labels in ablation.tests for label in labels} == {*ablation.variants}


@pytest.mark.parametrize("without, same", [("beats", True), ("wavlm", False)])
def test_a_film_without_beats_is_the_same_whatever_beats_says(without, same):
    config = small()
    config.keyframe.frames = 2
    config.keyframe.without = config.interp.without = without
    torch.manual_seed(0)
    model = KeyFace(config.check())
    for stage in (model.keyframe, model.interp):
        for value in stage.parameters():  # layers that begin as zero would hide what is heard
            torch.nn.init.normal_(value, std=0.1)
    model.requires_grad = False
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (32, 32, 3), np.uint8)
    wave = rng.normal(0, 0.1, 6400).astype(np.float32)

    @torch.no_grad()
    def film() -> np.ndarray:
        return np.stack(list(model.animate(picture, wave, steps=1)))

    before = film()
    for value in model.audio.events.parameters():
        value.normal_(std=0.1)
    assert np.array_equal(before, film()) == same


def test_options_of_the_trainings(frozen, tmp_path, train):  # noqa: F811
    """--without is kept in config.json, for both stages; --spatial 1 leaves temporal layers alone,
    and a resumed training needs neither to know what it is."""
    out = copy(frozen, tmp_path / "out")
    options = "--steps=2", "--spatial=1"
    begun = train(train_keyframe, out, *options, "--without=beats", stop=1)["stage"]
    ended = train(train_keyframe, out, *options, "--resume")["stage"]
    config = load_config(Config, out)
    assert (config.keyframe.without, config.interp.without) == ("beats", "beats")
    moved = {name for name in begun if not torch.equal(begun[name], ended[name])}
    temporal = {name for name in begun if "time_stack" in name or "time_mixer" in name}
    assert moved and temporal and not moved & temporal


def test_a_chained_window_is_told_the_frame_before_it(cache, frozen, tmp_path):
    """In a cache whose latents are the numbers of the frames."""
    mine = numbered(cache, tmp_path / "mine")
    config = load_config(Config, frozen)
    config.keyframe.spacing, config.interp.frames = 1, 2
    clips = Clips(mine, "test", config.check().keyframe, lambda z: z, frozen)
    for window in (clips.batch(1, step) for step in range(10)):
        numbers = torch.cat([window.identity, window.latents[0]]).mean((1, 2, 3))
        assert torch.allclose(numbers - numbers[0], torch.arange(5.0), atol=0.1)
    # The drawn world has the frames for it: windows of 4 and one before.
    config.size, drawn = 16, prepare.DrawnWorld(1, config)
    (piece,) = drawn.pieces(0)
    entry = {"shard": "", "kind": "speech", "times": piece.times, "frames": len(piece.emotion)}
    firsts = clips._clip(Path(), entry).firsts
    assert len(firsts) == drawn.WINDOWS
    assert all(first + i in piece.times for first in firsts for i in range(-1, 4))


def test_clips_are_as_long_as_windows_of_far_keyframes_need():
    def seconds(spacing: int) -> int:
        config = Config.tiny()
        config.keyframe.spacing = spacing
        return prepare.DrawnWorld(1, config).seconds

    assert [seconds(s) for s in (7, 13, 26)] == [8, 8, 16]


def test_commands(tmp_path):
    training, config = Training("keyframe", variants.DEAF_TO_EVENTS, 1), Config.tiny()
    out = tmp_path / "keyframe-without_beats-1"
    common = [sys.executable, "train_keyframe.py", "--out", str(out),
              "--data", str(tmp_path / "clips_13"), "--steps", str(variants.STEPS["keyframe"]),
              "--seed", "1", "--batch", "4"]
    assert training.command(tmp_path, config) == [
        *common, "--init", str(tmp_path / "spatial"),
        "--config", str(tmp_path / "without_beats.json")]
    out.mkdir()
    (out / "keyframe.state").touch()
    assert training.command(tmp_path, config) == [*common, "--resume"]
    # The other ways to begin; as many frames a step, whatever the windows' length.
    for stage, variant, words, frames in (
            ("keyframe", SPATIAL, ("--batch", "4", "--spatial", "1", "--init", "blank"), 14),
            ("keyframe", CHAINED, ("--batch", "4", "--init", "finished"), 14),
            ("interp", SHIPPED, ("--batch", "4", "--init", "finished"), 14),
            ("interp", variants.FAR, ("--batch", "2", "--init", "finished"), 27),
            ("interp", variants.CLOSE, ("--batch", "7", "--init", "finished"), 8)):
        getattr(config, stage).frames = frames
        found = Training(stage, variant).command(tmp_path, config)[10:-2]
        assert [*words[:-1], str(tmp_path / words[-1])] == found


def test_only_what_is_missing_is_trained(tmp_path, monkeypatch):
    """A common spatial half first, then all others, none of them twice; what fails is named."""
    started = []

    def start(words: list[str], status: int = 0, **_) -> SimpleNamespace:
        out, stage = Path(words[words.index("--out") + 1]), words[1][6:-3]
        started.append(out.name)
        if not status:
            out.mkdir()
            steps = int(words[words.index("--steps") + 1])
            save_part(out / f"{stage}.safetensors", {"x": torch.zeros(1)}, step=steps)
            (out / f"{stage}.state").touch()
        return SimpleNamespace(poll=lambda: status, returncode=status)

    monkeypatch.setattr(variants, "folder_for", lambda weights: tmp_path)
    monkeypatch.setattr(variants, "prepared", lambda *_: None)
    monkeypatch.setattr(variants.subprocess, "Popen", start)
    wanted = [Training(stage, SHIPPED, seed) for stage in ("keyframe", "interp") for seed in (0, 1)]
    variants.train(wanted[:3], WEIGHTS)
    assert started[0] == "spatial" and sorted(started[1:]) == sorted(t.name for t in wanted[:3])
    assert not list(tmp_path.rglob("*.state"))
    variants.train(wanted, WEIGHTS)
    assert started[4:] == ["interp-shipped-1"]
    monkeypatch.setattr(variants.subprocess, "Popen", lambda words, **_: start(words, 2))
    with pytest.raises(InputError, match="^keyframe-chained-0: ended with exit status 2; .*0.log,"):
        variants.train([Training("keyframe", CHAINED)], WEIGHTS)


def parts_of(ablation: trained.Ablation, better: dict[str, float]) -> dict:
    """Made figures of eight films: 1 and a bit for every variant, and more where `better` says."""
    films = np.linspace(0, 0.01, 8)
    return {trained.part_name(label, seed): {
        name: (1 + better.get(label, 0) + films + seed / 100).tolist() for name in BETTER}
        for label in ablation.variants for seed in ablation.seeds}


def test_verdicts_and_pictures(tmp_path):
    sounds, _, pixels, spacing, mask = ABLATIONS
    for ablation, better, expected in (
            (sounds, {"both": 0.1}, REPRODUCED), (sounds, {"both": 0.1, "WavLM alone": 0.2}, NOT),
            (pixels, {"off": 0.1}, NOT), (spacing, {"13": -0.1}, REPRODUCED),
            (mask, {"with blend": 0.01}, REPRODUCED), (mask, {"with blend": 0.1}, NOT)):
        parts = json.loads(json.dumps(parts_of(ablation, better)))
        verdict, _, table = trained.judge_variants(ablation, parts)
        assert verdict == expected
        assert table.count("\n") == 2 + len(ablation.variants)
    assert "LipScore, both less BEATs alone: 0.1, by seed 0.1, 0.1" in (
        trained.judge_variants(sounds, parts_of(sounds, {"both": 0.1}))[1])
    trained.draw_variants(sounds, tmp_path / "sounds.png", parts_of(sounds, {"both": 0.1}))
    assert (tmp_path / "sounds.png").read_bytes().startswith(b"\x89PNG")
