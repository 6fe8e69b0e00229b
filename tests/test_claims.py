"""The claims' verdicts on made-up figures, where the truth is known, and what the command keeps."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small

from tools import cli
from tools.checkpoint import save_config
from tools.stats import interval
from toy.claims import __main__ as command
from toy.claims import measure as measuring
from toy.claims import sampled
from toy.claims.measure import (
    NONE,
    NOT,
    REPRODUCED,
    UNDECIDED,
    Claim,
    Kept,
    Look,
    compare,
    measure,
    measure_ceiling,
    together,
    value,
    verdict,
)
from toy.claims.sampled import CHAINED, OWN, TOLD, chained_frames
from toy.evaluation.judges import JUDGED
from toy.world import frames, to_bytes

RNG = np.random.default_rng(0)


def found(lip: float = 0.9, distance: float = 10.0, clips: int = 8, **more: float) -> dict:
    """As `measure` returns it: figures without spread, but for LipScore."""
    flat = {name: [0.5] * clips for name in measuring.BETTER}
    spread = np.random.default_rng(1).normal(0, 0.05, clips)
    return flat | {"LipScore": (lip + spread).tolist(), "distance": [distance] * 9} | {
        name: [x] * clips for name, x in more.items()}


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    save_config(small(), folder)
    return folder


@pytest.mark.parametrize("low, high, better, margin, each, expected", [
    (0.1, 0.3, "higher", 0, [0.2, 0.2], REPRODUCED),
    (0.1, 0.3, "higher", 0, [0.5, -0.1], NONE),                  # the seeds do not agree
    (-0.1, 0.3, "higher", 0, [0.1], NONE),
    (-0.3, -0.1, "higher", 0, [-0.2], NOT),
    (-0.3, -0.1, "higher", 0, [-0.5, 0.1], NONE),
    (-0.3, -0.2, "higher", 0.1, [-0.4, -0.05], UNDECIDED),       # this one is within the margin
    (-0.3, -0.1, "lower", 0, [-0.2], REPRODUCED),
    (0.1, 0.3, "lower", 0, [0.2], NOT),
    (-0.05, 0.02, "higher", 0.1, [0], REPRODUCED),               # not worse by more than the margin
    (-0.2, 0.02, "higher", 0.1, [0], UNDECIDED),
    (-0.3, -0.2, "higher", 0.1, [-0.25], NOT)])
def test_a_verdict_is_where_the_interval_lies(low, high, better, margin, each, expected):
    seen = {"low": low, "high": high, "each": each, "n": 2}
    assert verdict(seen, better, margin) == expected
    assert verdict(seen | {"n": 1}, better, margin) == UNDECIDED  # one film has no interval


def test_a_claim_of_several_parts():
    assert together([REPRODUCED] * 2) == REPRODUCED
    assert together([REPRODUCED, NONE]) == NONE
    assert together([REPRODUCED, NONE, UNDECIDED]) == UNDECIDED
    assert together([REPRODUCED, NONE, NOT]) == NOT


def test_models_are_compared_clip_by_clip():
    """Clips differ much among themselves; only the spread of the differences counts."""
    apart = RNG.normal(0.03, 0.01, 200)
    clips = RNG.normal(0.5, 0.3, 200)
    ours = [{"jaw": (clips + apart + seed).tolist()} for seed in (0.0, 0.02)]
    seen = compare(ours, [{"jaw": clips.tolist()}] * 2, "jaw")
    error = apart.std() / np.sqrt(200)
    assert seen["value"] == pytest.approx(apart.mean() + 0.01) and seen["n"] == 200
    assert seen["each"] == pytest.approx(np.repeat([apart.mean(), apart.mean() + 0.02], 2))
    assert seen["low"] == pytest.approx(seen["value"] - 1.96 * error, abs=0.15 * error)
    single = compare(ours, [{"jaw": clips.tolist()}], "jaw")      # which stands beside each seed
    assert single["value"] == pytest.approx(seen["value"]) and len(single["each"]) == 2
    ours[0]["jaw"][0] = None                                     # a clip that has no value
    assert compare(ours, [{"jaw": clips.tolist()}] * 2, "jaw")["n"] == 199
    assert value(ours[1:], "jaw")["value"] == pytest.approx((clips + apart).mean() + 0.02)


def test_the_interval_of_a_distance_is_a_jackknifes():
    """Of a mean it is the standard error, times Student's t of one degree less than groups."""
    for k, t in ((2, 12.706), (8, 2.365)):
        x = RNG.normal(3, 2, k)
        without = (x.sum() - x) / (k - 1)
        mean, low, high = interval(np.array([x.mean(), *without]))
        reach = t * x.std(ddof=1) / np.sqrt(k)
        assert (low, high) == pytest.approx((mean - reach, mean + reach))
    assert interval(np.array([3.0])) == (3, 3, 3)
    both = [{"distance": [x.mean() + more, *(without + more)], "jaw": [0] * 8} for more in (1, 0)]
    seen = compare(both[:1], both[1:], "distance")
    assert (seen["value"], seen["low"], seen["high"]) == pytest.approx((1, 1, 1))


def test_a_film_that_is_the_truth_gets_the_best_figures(monkeypatch):
    """A film of another's mouth does not."""
    def seen(sharp: float) -> Look:
        states = RNG.uniform(0, 1, (40, len(JUDGED))).astype(np.float32)
        face = np.tile(np.eye(64)[0], (40, 1))
        return Look(states, face, RNG.normal(size=(40, 224)), np.full(40, sharp), 2.0)

    films = [seen(8.0) for _ in range(3)]
    clips = [SimpleNamespace(state=film.states[:, :15]) for film in films]
    ceiling = [seen(10.0) for _ in films]
    monkeypatch.setattr(measuring, "truth", lambda *_: (clips, films, ceiling))
    monkeypatch.setattr(measuring, "pool", lambda: None)
    monkeypatch.setattr(measuring, "made", lambda *_: films)
    best = measure(cli.WEIGHTS, 3)
    for name, one in {"jaw": 1, "width": 1, "LipScore": 1, "sharpness": 0.8, "likeness": 1,
                      "smeared": 0, "seconds": 2}.items():
        assert best[name] == pytest.approx([one] * 3, abs=1e-5), name
    assert best["distance"] == pytest.approx([0] * 4, abs=1e-3) and best["NSV"] == []
    far = measuring.measure_strangers(cli.WEIGHTS, 3)            # of other clips' mouths
    assert max(far["LipScore"]) < 0.99 and max(far["jaw"]) < 0.7 and far["distance"] == []
    top = measure_ceiling(cli.WEIGHTS, 3)                        # it stands beside the drawn films
    assert top["sharpness"] == [1] * 3 and top["seconds"] == [] and len(top["distance"]) == 4
    assert max(top["jaw"]) < 0.7 and min(top["distance"]) > 1    # (of other states than these)
    monkeypatch.setattr(measuring, "made", lambda *_: films[1:] + films[:1])
    other = measure(cli.WEIGHTS, 3)
    assert max(other["jaw"]) < 0.7 and max(other["LipScore"]) < 0.99


def test_a_film_is_of_the_model_and_the_setting_that_are_measured(monkeypatch, tmp_path):
    """A claim would otherwise compare one model with itself. The judges are the shipped ones."""
    variant, asked = tmp_path / "variant", []
    variant.mkdir()
    save_config(small(), variant)
    clip = SimpleNamespace(wave=np.zeros(1280), emotion=np.zeros((2, 2)), seed=5)

    def animate(face, wave, emotion, **settings):
        assert wave is clip.wave and emotion is clip.emotion
        asked.append((face, settings))
        return iter(np.zeros((2, 16, 16, 3), np.uint8))

    monkeypatch.setattr(measuring, "loaded", lambda folder: SimpleNamespace(
        size=folder.name, animate=animate))
    monkeypatch.setattr(measuring, "face_of", lambda clip, size, number: f"face for {size}")
    monkeypatch.setattr(measuring, "judges_of", lambda path: asked.append(path))
    monkeypatch.setattr(measuring, "look", lambda judges, video: Look(*[np.array(video)] * 4))
    monkeypatch.setattr(measuring, "truth", lambda *_: ([clip], [], []))
    monkeypatch.setattr(measuring, "pool", lambda: None)
    monkeypatch.setattr(measuring, "made", lambda _, do, tasks, __: [do(*task) for task in tasks])
    monkeypatch.setattr(measuring, "figures_of", lambda seen, *_: {"films": [len(seen)]})
    assert measure(variant, 1, {"steps": 2}, shipped=cli.WEIGHTS) == {"films": [1]}
    assert asked == [("face for variant", {"seed": 5, "steps": 2}),
                     cli.WEIGHTS / "judges.safetensors"]


def test_the_chained_baseline_is_told_its_own_last_frame(monkeypatch):
    told, total = [], 10

    def sample(film, window):
        told.append(film.identity.mean().item())
        assert (film.id_guidance, film.audio_guidance) == (1, 3) and film.identity.shape[0] == 1
        assert film.plan.window(window) == [4 * window + i for i in range(4)]
        return torch.stack([torch.full((4, 2, 2), (4 * window + i) / 10) for i in range(4)])

    config = SimpleNamespace(keyframe=SimpleNamespace(frames=4), steps=1, id_guidance=2,
                             audio_guidance=3, autoguidance=1)
    vae = SimpleNamespace(to_latents=lambda x: x, to_images=lambda x: x[:, :3])
    model = SimpleNamespace(config=config, vae=vae, sample_keyframes=sample, size=2)
    asked = (model, np.full((2, 2, 3), 255, np.uint8), np.zeros(total * 640, np.float32),
             np.zeros((total, 2)), 0)
    film = list(chained_frames(*asked))
    assert told == pytest.approx([1, 0.3, 0.7])
    # Or the true one of that time; the picture of frame t is of the grey t here.
    monkeypatch.setattr(sampled, "frames", lambda clip, times, size: torch.full((1, 3, 2, 2), (
        times[0] / 127.5) - 1))
    told.clear()
    list(chained_frames(*asked, true="a clip"))
    assert told == pytest.approx([1, 3 / 127.5 - 1, 7 / 127.5 - 1], abs=0.005)
    assert [int(frame[0, 0, 0]) for frame in film] == [round((i / 10 + 1) * 127.5)
                                                       for i in range(total)]


def test_a_chained_film_begins_from_the_true_first_frame(monkeypatch):
    """And ours from a portrait in another pose."""
    def film(model, image, wave, curve, seed, true=None, **settings):
        begun.append(image)
        told.append(true is not None or settings)
        return iter(RNG.integers(0, 255, (50, 32, 32, 3), np.uint8))

    begun, told = [], []
    monkeypatch.setattr(sampled, "loaded", lambda _: SimpleNamespace(size=32))
    monkeypatch.setattr(sampled, "judges_of", lambda _: None)
    monkeypatch.setattr(sampled, "look", lambda _, film: SimpleNamespace(
        features=np.stack([frame.mean((0, 1)) for frame in film])))
    monkeypatch.setattr(sampled, "chained_frames", film)
    monkeypatch.setattr(sampled, "KeyFace", SimpleNamespace(animate=film))
    for name in (CHAINED, TOLD, OWN):
        seen = sampled.long_film(cli.WEIGHTS, cli.WEIGHTS, 5, 2, name)
        assert min(seen["film"]) > max(seen["truth"]) and len(seen["film"]) == 2
    true = to_bytes(frames(sampled.long_clip(5, 2), [0], 32))[0]
    assert [np.array_equal(image, true) for image in begun] == [True, True, False]
    # Ours of the same training is guided as the chained ones are: by the sound alone.
    assert told == [{}, True, {"id_guidance": 1, "autoguidance": 1}]


def test_of_each_name_the_first_film_keeps_its_strip(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(sampled, "pool", lambda: None)
    monkeypatch.setattr(sampled, "made", lambda _, function, tasks, __: map(function, *zip(*tasks)))
    kept = Kept(tmp_path / "a.json", weights, 3)
    for name in "ab":
        sampled.each_film(kept, name, lambda i: {"n": i, "strip": "x"}, [(i,) for i in range(2)])
    assert kept.parts == {"a 0": {"n": 0, "strip": "x"}, "a 1": {"n": 1},
                          "b 0": {"n": 0, "strip": "x"}, "b 1": {"n": 1}}


def test_long_films_are_made_by_the_right_weights(tmp_path, weights, monkeypatch):
    """Ten of each of the two models that are trained alike. A model is not trained again whose
    films are there; where one is, because some are missing, those of the training before go."""
    found, trained, version = {}, [], "first"

    def each_film(kept: Kept, name: str, function, tasks: list[tuple]) -> None:
        found[name] = len(tasks), *(tasks[-1][i] for i in (0, 3))
        for i in range(len(tasks)):
            if f"{name} {i}" not in kept.parts and not (name == TOLD and version == "first"):
                kept.part(f"{name} {i}", lambda: version)

    def films_of(claim: str, model: list, weights) -> str:
        return f"{model[0].variant.name}, {len(model)}"

    monkeypatch.setattr(sampled, "each_film", each_film)
    monkeypatch.setattr(sampled, "films_of", films_of)
    monkeypatch.setattr(sampled, "train", lambda models, weights: trained.extend(map(len, models)))
    monkeypatch.setattr(measuring, "fingerprint", lambda folder: f"{folder} {version}")
    kept = Kept(tmp_path / "a.json", weights, 20)
    kept.made_with = {}
    sampled.measure_long(kept)
    assert found == {"ours": (20, weights, 120), "longest": (2, weights, 600),
                     OWN: (10, "shipped, 2", 120), CHAINED: (10, "chained, 1", 120),
                     TOLD: (10, "chained, 1", 120)}
    assert trained == [2, 1]
    version = "second"
    sampled.measure_long(kept)
    assert trained == [2, 1, 1]
    assert {name: kept.parts[f"{name} 9"] for name in ("ours", OWN, CHAINED, TOLD)} == {
        "ours": "first", OWN: "first", CHAINED: "second", TOLD: "second"}
    sampled.measure_long(kept)
    assert trained == [2, 1, 1]


# ---- What each claim concludes -------------------------------------------------------------------

# Better than any model, so that it would be seen if it counted as one.
CEILING = {name: found(0.99, 1) | {"seconds": [], "NSV": []} for name in ("ceiling", "strangers")}
STRIP = {"strip": sampled.to_text([np.zeros((8, 8, 3), np.uint8)] * 3)}


def steps(ten: dict) -> dict:
    return CEILING | {"2": found(0.7, 30), "10": ten, "20": found()}


def guidance(quality: float, sync: float) -> dict:
    return CEILING | {"default": [1.5, 2.0]} | {  # the other cells say the contrary
        f"{i:g}, {a:g}": found(0.8 + sync * a * (1 if i == 1.5 else -9),
                               10 - quality * i * (1 if a == 2 else -9))
        for i in (1, 1.5, 2, 4) for a in (1, 2, 5, 8)}


def emotions(judged: np.ndarray) -> dict:
    return {f"film {i}": {"judged": judged.tolist(), "jaw": 0.9} | (STRIP if i == 0 else {})
            for i in range(12)}


def long(ours: float, own: float, chained: float, told: float = 0.0, level: float = 5.0,
         noise: float = 0.0) -> dict:
    """By how much films, which begin `level` farther away than the truth, rise in a minute; chained
    ones by all at once, in five seconds. Films differ by `noise`; of ours there are more."""
    parts, t = {}, np.arange(600)
    for k, (name, rises) in enumerate((
            ("ours", ours * t / 60), (OWN, own * t / 60), ("longest", ours * t / 60),
            (CHAINED, chained * np.minimum(t, 5) / 5), (TOLD, told * np.minimum(t, 5) / 5))):
        seconds = 600 if name == "longest" else 120
        for i in range(12 if name == "ours" else 6):
            rng = np.random.default_rng(i)
            truth = 5 + rng.random(seconds)
            film = truth + level + rises[:seconds] + noise * (-1) ** (i + k) * t[:seconds] / 110
            parts[f"{name} {i}"] = {"film": film.tolist(), "truth": truth.tolist()} | (
                STRIP if i == 0 else {})
    return parts


@pytest.mark.parametrize("name, parts, expected", [
    ("steps", steps(found()), REPRODUCED),
    ("steps", steps(found(0.85)), NOT),
    ("steps", steps(found(0.9, 12)), NOT),
    ("steps", steps(found(0.9, 10.52)), REPRODUCED),  # 20 steps are 5 % of 10.52 lower, and less
    ("steps", steps(found(0.9, 10.53)), NOT),
    ("autoguidance", CEILING | {"1": found(), "2": found(distance=9)}, REPRODUCED),
    ("autoguidance", CEILING | {"1": found(), "2": found(distance=11)}, NOT),
    ("guidance", guidance(1, 0.01), REPRODUCED),
    ("guidance", guidance(1, 0), NONE),
    ("guidance", guidance(-1, 0.01), NOT),
    ("emotions", emotions(sampled.asked()), REPRODUCED),
    ("emotions", emotions(0 * sampled.asked() + 0.3), NOT),      # it stays as it is
    ("long", long(0.2, 1.0, 4.0), REPRODUCED),                   # by .37; 1.9 against 4
    ("long", long(0.4, 1.0, 4.0), NOT),                          # by .73
    ("long", long(-0.4, 1.0, 4.0), NOT),                         # it changes by as much
    ("long", long(0.0, 0.0, 50.0, level=-30), REPRODUCED),       # nearer than the truth, and stays
    ("long", long(0.0, 0.0, 50.0, noise=2), REPRODUCED),         # 2 more or less, of 5
    ("long", long(0.0, 0.0, 50.0, noise=9), UNDECIDED),
    ("long", long(0.0, -1.0, 0.1, 0.0, noise=9), NONE),          # less than films differ by
    ("long", long(0.2, 1.0, 4.0, 4.0), NONE),                    # no farther than if told the truth
    ("long", long(0.0, 0.0, 0.0), NONE),
    ("long", long(0.0, 1.0, 0.0), NOT)])
def test_what_a_claim_concludes(name, parts, expected):
    said, seen, table = command.CLAIMS[name].judge(parts)
    assert said == expected, seen
    assert seen.endswith(".") and len({line.count("|") for line in table.splitlines()}) == 1
    assert "ceiling" not in seen and table.count("ceiling") == ("ceiling" in parts)
    assert table.endswith("| - |\n") == ("ceiling" in parts)    # its row, the last, has no seconds


@pytest.mark.parametrize("name, parts", [
    ("steps", steps(found())), ("guidance", guidance(1, 0)), ("long", long(0.1, 0.1, 3.0)),
    ("emotions", emotions(sampled.asked()))])
def test_a_claim_is_drawn_without_an_error(tmp_path, name, parts):
    command.CLAIMS[name].draw(tmp_path / "a.png", parts)
    assert (tmp_path / "a.png").stat().st_size > 5000


# ---- The command ---------------------------------------------------------------------------------

def test_a_claim_that_was_interrupted_goes_on(tmp_path, weights, monkeypatch, capsys):
    done, full = [], True

    def work(kept: Kept) -> None:
        for name in "abc":
            def one(name=name):
                if name == "c" and full:
                    raise OSError("no space left")
                done.append(name)
                return {"n": len(done)}
            kept.part(name, one)

    claim = Claim("tried", "It works.", "It ends.", work, lambda parts: (
        REPRODUCED, f"{len(parts)} parts.", "| a |\n"), lambda path, parts: path.touch())
    monkeypatch.setattr(command, "CLAIMS", {"tried": claim})
    argv, out = [f"--out={tmp_path / 'out'}", f"--weights={weights}"], tmp_path / "out"
    assert cli.run(command.main, argv) == 1
    assert done == ["a", "b"] and command.result(out, "tried") is None
    assert cli.run(command.main, [*argv, "--clips=5"]) == 2      # nor does it replace what is begun
    assert "tried.parts.json has 20 films of each setting" in capsys.readouterr().err
    full = False
    assert cli.run(command.main, argv) == 0
    assert done == ["a", "b", "c"]
    assert command.result(out, "tried")["parts"] == {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}
    assert cli.run(command.main, [*argv, "tried"]) == 0          # again: all of it is kept
    assert cli.run(command.main, argv) == 0                      # nothing is missing
    assert len(done) == 3
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "tried.json", "tried.png"]
    # A trial with other clips does not replace it; with other weights it is measured anew.
    assert cli.run(command.main, [*argv, "--clips=5"]) == 2
    assert "tried.json has 20 films of each setting; give that" in capsys.readouterr().err
    save_config(replace(small(), steps=3), weights)
    measuring.fingerprint.cache_clear()
    for _ in range(2):
        assert cli.run(command.main, argv) == 0
        assert done[3:] == ["a", "b", "c"]


def test_a_claim_that_fails_does_not_keep_others_from_being_measured(tmp_path, weights, monkeypatch,
                                                                     capsys):
    def fail(kept: Kept) -> None:
        raise cli.InputError("its training ended")

    def claim(name: str, measure) -> Claim:
        return Claim(name, "It works.", "It ends.", measure, lambda parts: (
            REPRODUCED, "It does.", "| a |\n"), lambda path, parts: path.touch())

    monkeypatch.setattr(command, "CLAIMS", {
        "first": claim("first", fail), "second": claim("second", lambda kept: None)})
    assert cli.run(command.main, [f"--out={tmp_path / 'out'}", f"--weights={weights}"]) == 2
    assert capsys.readouterr().err.count("its training ended") == 2
    text = (tmp_path / "out" / "README.md").read_text()
    assert "[second](#second)" in text and "| first | It works. | not measured yet" in text


def test_the_gallery_is_made_of_what_is_kept(tmp_path, weights, capsys):
    kept = Kept(tmp_path / "steps.json", weights, 7)
    assert "**Reproduced**" not in command.gallery(tmp_path)
    kept.finish(verdict=REPRODUCED, seen="As good.", table="| steps |\n| --- |\n| 10 |\n")
    text = command.gallery(tmp_path)
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert "As good. | reproduced | `python -m toy.claims steps` | [steps.png]" in rows[
        "| [steps](#steps)"]
    others = [name for name in command.CLAIMS if name != "steps"]
    assert all("not measured yet" in rows[f"| {name}"] for name in others)
    assert "**Reproduced**, from 7 films" in text and "![steps](steps.png)" in text


def test_a_claim_that_is_only_judged_again_is_of_the_same_code(tmp_path, weights, monkeypatch):
    def finished(code: str, *measured: str) -> str:
        monkeypatch.setattr(measuring, "code_version", lambda: code)
        kept = Kept(tmp_path / "steps.json", weights, 7)
        for part in measured:
            kept.part(part, lambda: 1)
        kept.finish(verdict=REPRODUCED)
        return json.loads(kept.path.read_text())["version"]

    assert [finished("old", "2"), finished("new", "2"), finished("newest", "2", "3")] == [
        "old", "old", "newest"]


def test_a_claim_that_nobody_made(tmp_path, capsys):
    assert cli.run(command.main, ["stepps", f"--out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and 'unknown claim "stepps"; known: long, emotions' in said
    assert cli.run(command.main, [f"--weights={tmp_path / 'none'}"]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
