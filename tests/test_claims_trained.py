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
from toy.claims.measure import BETTER, NONE, NOT, REPRODUCED, UNDECIDED, Kept
from toy.claims.trained import ABLATIONS
from toy.claims.variants import CHAINED, SHIPPED, STEPS, Training, chain

CHANGED = {"shipped": {}, "chained": {"keyframe.spacing": 1, "interp.frames": 2},
           "without_wavlm": {"keyframe.without": "wavlm", "interp.without": "wavlm"},
           "without_beats": {"keyframe.without": "beats", "interp.without": "beats"},
           "lower": {"interp.lambda_eyes": 1.0},
           "even": {"interp.lambda_eyes": 1.0, "interp.lambda_lower": 1.0},
           "pixels_0": {"keyframe.pixel_weight": 0.0},
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


@pytest.mark.parametrize("without", ["beats", "wavlm"])
def test_an_encoder_that_is_left_out_does_not_change_the_film_and_the_other_does(without):
    config = small()
    config.keyframe.frames = 2
    config.keyframe.without = config.interp.without = without
    torch.manual_seed(0)
    model = KeyFace(config.check())
    for stage in (model.keyframe, model.interp):
        for value in stage.parameters():  # layers that begin as zero would hide what is heard
            torch.nn.init.normal_(value, std=0.1)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (32, 32, 3), np.uint8)
    wave = rng.normal(0, 0.1, 6400).astype(np.float32)

    def film() -> np.ndarray:
        return np.stack(list(model.animate(picture, wave, steps=1)))

    for name in ("beats", "wavlm"):
        before = film()
        with torch.no_grad():
            for value in model.parts()[name].parameters():
                value += 0.1 * torch.randn_like(value)
        assert np.array_equal(before, film()) == (name == without)


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
    assert len(firsts) == drawn.windows == 4
    assert all(first + i in piece.times for first in firsts for i in range(-1, 4))


def test_clips_are_as_long_as_windows_of_far_keyframes_need():
    def seconds(spacing: int) -> int:
        config = Config.tiny()
        config.keyframe.spacing = spacing
        return prepare.DrawnWorld(1, config).seconds

    assert [seconds(s) for s in (7, 13, 26)] == [8, 8, 16]


def test_the_command_of_a_training_begins_it_or_goes_on(tmp_path):
    training, config = Training("keyframe", variants.DEAF_TO_EVENTS, 1), Config.tiny()
    out = tmp_path / "keyframe-without_beats-1"
    common = [sys.executable, "train_keyframe.py", "--out", str(out),
              "--data", str(tmp_path / "clips_13"), "--steps", str(STEPS),
              "--seed", "1", "--batch", "4"]
    assert training.command(tmp_path, config) == [
        *common, "--init", str(tmp_path / "blank"),
        "--config", str(tmp_path / "without_beats.json")]
    out.mkdir()
    (out / "keyframe.state").touch()
    assert training.command(tmp_path, config) == [*common, "--resume"]


@pytest.mark.parametrize("trainings, frames, words", [
    (chain(("keyframe",), CHAINED, times=2), [14], ["keyframe-chained-x2-0 3200 4 blank"]),
    (chain(("interp",), SHIPPED, 1), [14], ["interp-shipped-1 1600 4 finished"]),
    (chain(("interp",), SHIPPED, times=2), [14], ["interp-shipped-x2-0 3200 4 finished"]),
    (chain(("keyframe", "interp"), SHIPPED), [14, 14],
     ["keyframe-shipped-0 1600 4 blank", "interp-shipped-own-0 1600 4 keyframe-shipped-0"]),
    (chain(("keyframe", "interp"), variants.FAR, 1), [14, 27],
     ["keyframe-spacing_26-1 1600 4 blank",
      "interp-spacing_26-own-1 1600 2 keyframe-spacing_26-1"]),
    (chain(("interp",), variants.CLOSE), [8], ["interp-spacing_7-0 1600 7 finished"])])
def test_how_long_trainings_are_and_what_they_begin_from(tmp_path, trainings, frames, words):
    """There are as many frames a step, whatever the windows' length."""
    found = []
    for training, length in zip(trainings, frames, strict=True):
        config = Config.tiny()
        getattr(config, training.stage).frames = length
        command = training.command(tmp_path, config)
        options = dict(zip(command[2::2], command[3::2]))
        found.append(" ".join(Path(options[f"--{name}"]).name
                              for name in ("out", "steps", "batch", "init")))
    assert found == words


def test_trainings_of_other_lengths_have_another_folder(monkeypatch):
    folder_for = variants.folder_for.__wrapped__  # which remembers nothing
    folders = [folder_for(WEIGHTS)]
    for name in ("STEPS", "CLIPS", "FRAMES"):
        monkeypatch.setattr(variants, name, 28)
        folders.append(folder_for(WEIGHTS))
    monkeypatch.setattr(prepare.DrawnWorld, "_code", "another drawing")
    folders.append(folder_for(WEIGHTS))
    assert len(set(folders)) == 5
    monkeypatch.undo()
    assert folder_for(WEIGHTS) == folders[0]


@pytest.fixture
def began(tmp_path, monkeypatch) -> SimpleNamespace:
    """Trainings that end as soon as they begin: their names, and which of them fail. What is put
    together of them: by folder the parts' folders."""
    found = SimpleNamespace(names=[], failing=set(), films={})

    def start(words: list[str], **_) -> SimpleNamespace:
        out, stage = Path(words[words.index("--out") + 1]), words[1][6:-3]
        found.names.append(out.name)
        if status := int(out.name in found.failing):
            return SimpleNamespace(poll=lambda: status, returncode=status)
        out.mkdir()
        steps = int(words[words.index("--steps") + 1])
        for name in (stage, "interp_bad"):
            save_part(out / f"{name}.safetensors", {"x": torch.zeros(1)}, step=steps)
        (out / f"{stage}.state").touch()
        return SimpleNamespace(poll=lambda: status, returncode=status)

    def put_together(out: Path, config: Config, parts: dict[str, Path]) -> Path:
        found.films[out.name] = {name: source.name for name, source in parts.items()}
        return out

    monkeypatch.setattr(variants, "folder_for", lambda weights: tmp_path)
    monkeypatch.setattr(variants, "prepared", lambda *_: None)
    monkeypatch.setattr(variants, "put_together", put_together)
    monkeypatch.setattr(variants.subprocess, "Popen", start)
    return found


def test_only_what_is_missing_is_trained(tmp_path, began):
    """None twice, each chain in its order; what fails ends its own chain alone, and is named."""
    chains = [chain(("keyframe", "interp"), SHIPPED, seed) for seed in (0, 1)]
    began.failing = {"keyframe-shipped-1"}
    with pytest.raises(InputError, match="^keyframe-shipped-1: ended with exit status 1; .*1.log,"):
        variants.train(chains, WEIGHTS)
    assert sorted(began.names) == ["interp-shipped-own-0", "keyframe-shipped-0",
                                   "keyframe-shipped-1"]
    assert began.names.index("interp-shipped-own-0") > began.names.index("keyframe-shipped-0")
    assert not list(tmp_path.rglob("*.state"))
    assert variants.films_of("a", chains[1], WEIGHTS) is None
    began.failing = set()
    variants.train(chains, WEIGHTS)
    assert began.names[3:] == ["keyframe-shipped-1", "interp-shipped-own-1"]
    variants.train(chains, WEIGHTS)
    assert len(began.names) == 5


def test_models_are_measured_two_by_two(tmp_path, began, monkeypatch):
    """All of the first seed first; where a training fails, the model beside it is measured."""
    def measure(films: Path, clips: int, settings: dict, **_) -> list[str]:
        assert settings == {"autoguidance": 1}
        began.names.append(films.name)
        return ["measured"]

    monkeypatch.setattr(trained, "measure", measure)
    for name in ("measure_ceiling", "measure_strangers"):
        monkeypatch.setattr(trained, name, lambda *_, **__: ["measured"])
    spacing, mask = ABLATIONS[3:]
    kept = Kept(tmp_path / "mask.json", WEIGHTS, 3)
    trained.measure_variants(mask, kept)
    assert [sorted(began.names[:2]), *began.names[2:]] == [
        ["interp-mask_only-x2-0", "interp-shipped-x2-0"], "films-mask-mask_only-0",
        "films-mask-shipped-0", "interp-shipped-x2-1", "films-mask-shipped-1"]
    assert list(kept.parts) == ["ceiling", "strangers", *(
        f"{label}, {2 * STEPS} steps on 1200 clips" for label in (
            "embedding alone, seed 0", "with blend, seed 0", "with blend, seed 1"))]

    began.names.clear()
    began.failing = {"keyframe-spacing_7-0"}
    kept = Kept(tmp_path / "spacing.json", WEIGHTS, 3)
    with pytest.raises(InputError, match="^keyframe-spacing_7-0: ended"):
        trained.measure_variants(spacing, kept)
    assert list(kept.parts) == ["ceiling", "strangers", f"13, seed 0, {STEPS} steps on 1200 clips"]
    assert began.names[-1] == "films-spacing-shipped-0" and len(began.names) == 4
    began.failing = set()
    trained.measure_variants(spacing, kept)
    assert [name[:3] for name in began.names[4:]].count("fil") == 3
    assert sorted(kept.parts) == [*(f"{label}, {STEPS} steps on 1200 clips" for label in (
        "13, seed 0", "13, seed 1", "26, seed 0", "7, seed 0")), "ceiling", "strangers"]
    tiny = dict.fromkeys(("vae", "wavlm", "beats"), WEIGHTS.name)
    own = dict.fromkeys(("interp", "interp_bad"), "interp-spacing_26-own-0")
    assert began.films["films-spacing-spacing_26-0"] == (
        tiny | own | {"keyframe": "keyframe-spacing_26-0"})
    own = dict.fromkeys(("interp", "interp_bad"), "interp-mask_only-x2-0")
    assert began.films["films-mask-mask_only-0"] == tiny | own | {"keyframe": WEIGHTS.name}


def test_models_for_long_are_trained_alike(began):
    """For as many steps in all, from nothing."""
    variants.train(trained.FOR_LONG, WEIGHTS)
    own, chained = (began.films[variants.films_of("long", model, WEIGHTS).name]
                    for model in trained.FOR_LONG)
    assert sorted(began.names) == ["interp-shipped-own-0", "keyframe-chained-x2-0",
                                   "keyframe-shipped-0"]
    assert (own["keyframe"], own["interp"]) == ("keyframe-shipped-0", "interp-shipped-own-0")
    assert chained["keyframe"] == "keyframe-chained-x2-0"


def parts_of(ablation: trained.Ablation, better: dict[str, float]) -> dict:
    """Made figures of eight films: .6 and a bit for every variant, and more where `better` says, of
    a label or of a part."""
    films, parts = np.linspace(0.6, 0.61, 8), {
        other: {name: [2.0] * 8 * (name != "seconds") for name in BETTER}
        for other in ("ceiling", "strangers")}
    parts["strangers"] |= {name: [0.5] * 8 for name in ("jaw", "LipScore")}
    for label in ablation.variants:
        for seed in ablation.seeds_of(label):
            part = ablation.part(label, seed)
            more = better.get(label, 0) + better.get(f"{label} {seed}", 0)
            parts[part] = {name: (more + films + seed / 100).tolist() for name in BETTER}
    return parts


@pytest.mark.parametrize("number, better, expected", [
    (0, {"both": 0.1}, REPRODUCED),
    (0, {"both": 0.1, "WavLM alone": 0.2}, NOT),
    (0, {"both 0": 0.3, "both 1": -0.1}, NONE),
    (2, {"off": 0.1}, NOT),
    (2, {"off": 0.8, "on": 0.6}, NONE),  # both are sharper than the truth
    (2, {"off 0": 0.3, "off 1": -0.1}, NONE),  # on average better without
    (3, {"13": -0.1}, REPRODUCED),
    (3, {"13 0": -0.1, "13 1": 0.05}, NONE),
    (3, {"7": -0.1}, NOT),
    (4, {"with blend": 0.005}, REPRODUCED),
    (4, {"with blend": 0.1}, NOT),
    (4, {"with blend 0": 0.1}, UNDECIDED)])
def test_what_an_ablation_concludes(number, better, expected):
    ablation = ABLATIONS[number]
    parts = json.loads(json.dumps(parts_of(ablation, better)))
    verdict, _, table = trained.judge_variants(ablation, parts)
    assert verdict == expected
    rows = [line.split(" | ")[:2] for line in table.splitlines()[2:]]
    assert rows == [*([f"| {label}", str(2 if variant == SHIPPED or number < 3 else 1)]
                      for label, variant in ablation.variants.items()), ["| ceiling", "-"],
                    ["| strangers", "-"]]


def test_nothing_is_concluded_from_a_model_that_has_not_learned_to_hear():
    parts = parts_of(ABLATIONS[2], {"on": 0.1})
    assert trained.judge_variants(ABLATIONS[2], parts)[0] == REPRODUCED
    for name in ("jaw", "LipScore"):
        first = "on, seed 0, 1600 steps on 1200 clips"
        for part, values in (("strangers", parts[first][name][::-1]), (first, [0.49] * 8)):
            changed = parts | {part: parts[part] | {name: values}}  # both seeds are deaf, or one is
            verdict, seen, _ = trained.judge_variants(ABLATIONS[2], changed)
            assert verdict == UNDECIDED and "on moves its lips no better than a stranger" in seen


def test_a_table_and_a_picture(tmp_path):
    sounds = ABLATIONS[0]
    parts = parts_of(sounds, {"both": 0.1})
    _, seen, table = trained.judge_variants(sounds, parts)
    assert "LipScore, both minus BEATs alone: 0.1, by pairs of seeds 0.1, 0.09, 0.11, 0.1: " in seen
    also = seen.partition("not judged, but different, both minus BEATs alone: ")[2].split(";")[0]
    assert {each.split(" ")[0] for each in also.split(", ")} == (
        {"jaw", "width", "rounding", "sharpness", "likeness", "smeared", "NSV", "distance"})
    assert "not judged" not in trained.judge_variants(sounds, parts_of(sounds, {
        "both 0": 0.3, "both 1": -0.3}))[1]  # seeds do not agree
    assert "seconds" not in table  # which may be of several machines
    trained.draw_variants(sounds, tmp_path / "sounds.png", parts)
    assert (tmp_path / "sounds.png").read_bytes().startswith(b"\x89PNG")
