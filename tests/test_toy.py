"""The toy world: same seed same clip, lips that close, splits apart, mouth in step with sound."""

import re
from argparse import Namespace

import numpy as np
import pytest
import torch

from audio import AudioConfig, AudioEncoder
from tools import cli
from tools.checkpoint import load_state
from tools.media import FPS, FRAME_SAMPLES, write_video
from tools.processes import Processes
from toy import example, faces, recipe, train_encoders, train_vae, voices, world
from toy.vocalisations import KINDS
from toy.world import EVENTS, STATE, make_clip, portrait


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_a_clip_depends_on_its_seed_and_split_alone():
    first = make_clip(7, seconds=4)
    make_clip(8, seconds=4)
    assert same(first, make_clip(7, seconds=4))
    assert not np.array_equal(first.identity, make_clip(7, "test", seconds=4).identity)
    assert not np.array_equal(first.wave, make_clip(8, seconds=4).wave)
    assert first.wave.dtype == np.float32 and np.abs(first.wave).max() <= 1
    assert (
        len(first.state)
        == len(first.emotion)
        == len(first.viseme)
        == len(first.event)
        == len(first.phoneme) // 2
        == 100
    )


@pytest.mark.parametrize(("main", "argv"), [
    (train_encoders.main, ["--out"]), (world.main, ["--clips=1"]), (example.main, [])])
def test_a_file_is_no_folder_to_write_to(main, argv, tmp_path, capsys):
    (tmp_path / "taken").touch()
    assert cli.run(main, [*argv, str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().err.endswith("taken: File exists; name a folder to write\n")


def test_lips_close_and_lower_lip_meets_teeth():
    rng, counts = np.random.default_rng(0), {0: 0, 1: 0}
    for _ in range(30):
        speech = voices.speak(
            voices.random_sentence(rng, "train"), voices.random_voice(rng, "train")
        )
        n_frames = -(-len(speech.wave) // FRAME_SAMPLES)
        mouth = voices.mouth_track(speech.phonemes, n_frames)
        centre = {}  # two closures within one frame: the later one is seen
        for start, end, symbol, _ in speech.phonemes:
            if symbol in voices.CLOSURES:
                centre[int((start + end) / 2 * FPS)] = voices.CLOSURES[symbol]
        for frame, bite in centre.items():
            counts[bite] += 1
            assert mouth[frame, 3] >= 0.8 if bite else mouth[frame, 0] <= 0.03
    assert min(counts.values()) > 30


def test_splits_share_no_voice_and_no_content_word():
    rng = np.random.default_rng(0)
    said = {
        split: " ".join(voices.random_sentence(rng, split) for _ in range(2000)).lower()
        for split in ("train", "test")
    }
    words = {split: set(re.findall("[a-z]+", text)) for split, text in said.items()}
    content = {word.lower() for kind in voices.CONTENT for word in voices.WORDS[kind].split()}
    assert not words["train"] & words["test"] & content
    assert len(words["test"] & content) > 60
    variants = {
        split: {voices.random_voice(rng, split).name.split("+")[1] for _ in range(200)}
        for split in said
    }
    assert not variants["train"] & variants["test"]


def test_the_mouth_moves_with_the_sound():
    rng, found = np.random.default_rng(1), []
    for _ in range(20):
        speech = voices.speak(voices.random_sentence(rng, "test"), voices.random_voice(rng, "test"))
        n_frames = len(speech.wave) // FRAME_SAMPLES
        loud = np.sqrt((speech.wave[: n_frames * FRAME_SAMPLES].reshape(n_frames, -1) ** 2).mean(1))
        jaw = voices.mouth_track(speech.phonemes, n_frames)[:, 0]
        found.append(
            [
                np.corrcoef(jaw[3:-3], loud[3 + lag : n_frames - 3 + lag])[0, 1]
                for lag in range(-3, 4)
            ]
        )
    found = np.mean(found, axis=0)
    assert found[3] > 0.5 and found.argmax() == 3  # best without a shift


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocalisation_is_labelled_heard_and_seen(kind):
    clip = make_clip(3, "test", seconds=4, kind=kind)
    here = clip.event == EVENTS.index(kind)
    assert here.sum() > 10 and set(np.unique(clip.event)) <= {0, EVENTS.index(kind)}
    assert not clip.phoneme.any() and not clip.viseme.any()
    power = (clip.wave.reshape(100, -1) ** 2).mean(1)
    assert power[here].mean() > 2 * power[~here].mean()
    assert np.abs(clip.state[here] - clip.state[~here].mean(0)).max(0).max() > 0.4


def test_smile_shows_valence_and_eyes_show_arousal():
    clips = [make_clip(seed, kind="speech") for seed in range(6)]
    state, emotion = (
        np.concatenate([getattr(clip, name) for clip in clips]) for name in ("state", "emotion")
    )
    assert np.corrcoef(state[:, STATE.index("smile")], emotion[:, 0])[0, 1] > 0.99
    assert np.corrcoef(state[:, STATE.index("brow_height")], emotion[:, 1])[0, 1] > 0.99
    assert abs(np.corrcoef(emotion.T)[0, 1]) < 0.5
    assert (clips[0].event[clips[0].viseme > 0] == EVENTS.index("speech")).all()


def test_a_portrait_is_the_same_person_in_another_emotion():
    clip = make_clip(5, seconds=1)
    one, two = (portrait(clip, 64, np.random.default_rng(seed)) for seed in (0, 1))
    assert one.shape == (3, 64, 64) and one.abs().max() <= 1
    stranger = faces.draw(
        *(torch.from_numpy(x) for x in (make_clip(6, seconds=1).identity, faces.REST[None])),
        64,
    )[0]
    assert 0 < (one - two).abs().mean() < (one - stranger).abs().mean()


def test_a_training_of_the_autoencoder_that_was_stopped_ends_as_one_that_was_not(tmp_path,
                                                                                  monkeypatch):
    """A signal comes after the first of two steps; the first step's rate shows in the weights."""
    world = train_vae.DrawnFaces.__new__(train_vae.DrawnFaces)  # without 900 faces to measure on
    world.size = 64
    world.held_out = world.measured = world.familiar = train_vae.random_faces(
        np.random.default_rng(1), 4, 64)
    monkeypatch.setattr(train_vae, "BATCH", 2)
    signals: list[int] = []
    monkeypatch.setattr(train_vae, "remember_signals", lambda: signals)

    def trained(folder: str, resume: bool = False) -> dict[str, torch.Tensor]:
        args = Namespace(steps=2, out=tmp_path / folder, resume=resume)
        args.out.mkdir(exist_ok=True)
        train_vae.train(args, world, Processes(0, 1, torch.device("cpu")))
        return load_state(args.out / "vae.state")["vae"]

    whole = trained("whole")
    signals.append(15)
    half = trained("parts")
    signals.clear()
    parts = trained("parts", resume=True)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    assert not torch.equal(half["decoder.conv_in.weight"], whole["decoder.conv_in.weight"])


def test_a_training_of_an_encoder_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(train_encoders, "BATCH_FRAMES", train_encoders.SHORT)

    def trained(folder: str, signals: list[int], resume: bool = False) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        args = Namespace(steps=2, clips=2, out=tmp_path / folder, resume=resume)
        args.out.mkdir(exist_ok=True)
        encoder, one = AudioEncoder(AudioConfig.tiny()), Processes(0, 1, torch.device("cpu"))
        monkeypatch.setattr(one, "agree", lambda values: values if resume or not signals else [1.0])
        train_encoders.train("beats", encoder, args, one, [])
        return load_state(args.out / "beats.state")

    whole = trained("whole", [])
    half = trained("parts", [15])
    parts = trained("parts", [15], resume=True)
    assert (half["step"], parts["step"]) == (1, 2)
    assert all(torch.equal(parts["objective"][name], value)
               for name, value in whole["objective"].items())


def test_a_recipe_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    """The second phase fails once, after it has kept its state: only what is left is done again."""
    script = """
import sys, pathlib, safetensors
words = sys.argv[1:]
out, steps = (pathlib.Path(words[words.index(name) + 1]) for name in ("--out", "--steps"))
name = words[0]
with open(out / "said", "a") as file:
    options = [word[2:] for word in words if word in ("--resume", "--init")]
    file.write(" ".join([name, str(steps), *options]) + "\\n")
first = not (out / f"{name}.state").exists()
(out / f"{name}.state").touch()
safetensors.serialize_file({}, out / f"{name}.safetensors", {"figures": '{"dB": 31.25}'})
sys.exit(5 if name == "b" and first else 0)
"""
    phases = (recipe.Phase("a", ("-c", script, "a"), 100, 1, "a"),
              recipe.Phase("b", ("-c", script, "b", "--init", "DIR"), 100, 1, "b"))
    monkeypatch.setattr(recipe, "PHASES", phases)
    monkeypatch.setattr(recipe, "HOURS", 2)
    words = ["--out", str(tmp_path), "--hours", "1"]
    with pytest.raises(cli.InputError, match="b ended with exit status 5"):
        recipe.main(words)
    recipe.main(words)
    recipe.main(words)
    assert (tmp_path / "said").read_text().splitlines() == ["a 50", "b 50 init", "b 50 resume"]
    text = (tmp_path / "README.md").read_text()
    assert "| a | 50 |" in text and "dB 31.25" in text


def test_the_autoencoder_learns_from_videos(tmp_path, capsys):
    """Of films in one grey each, so that what is held out can be told from what is learned from."""
    for name, grey in (("a", 40), ("b", 120), ("c", 200)):
        write_video(tmp_path / f"{name}.mp4", [np.full((32, 32, 3), grey, np.uint8)] * 20,
                    np.ones(20 * 640, np.float32) / 2, 32)
    (tmp_path / "d.mp4").write_text("no video")
    frames = train_vae.FilmedFaces(tmp_path, 32)
    assert "left out" in capsys.readouterr().err
    greys = [((x.mean((1, 2, 3)) + 1) * 127.5).round().int()
             for x in (frames.held_out, frames.batch(0), frames.measured)]
    assert (greys[0] - 40).abs().max() < 4  # every tenth by name: the first
    assert all((g > 115).all() and g.min() < 125 and g.max() > 195 for g in greys[1:])
    assert len(frames.pictures) == 14  # every third of 20, twice
