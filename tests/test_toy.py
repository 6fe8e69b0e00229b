"""The toy world: same seed same clip, lips that close, splits apart, mouth in step with sound."""

import hashlib
import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch

from audio import MARGIN, AudioConfig, AudioEncoder
from tools import cli
from tools.checkpoint import load_state, save_part
from tools.media import FPS, FRAME_SAMPLES, write_video
from tools.prepare import Videos
from tools.processes import Processes
from toy import example, faces, recipe, train_encoders, train_vae, voices, world
from toy.evaluation import judges
from toy.vocalisations import KINDS
from toy.world import EVENTS, STATE, make_clip, portrait
from vae import VAE, VAEConfig


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


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_lie_on_the_drawn_mouth(seed):
    """On the edge of what changes where only the colour of the lips does."""
    rng, at = np.random.default_rng(seed), {name: i for i, name in enumerate(faces.TRAITS)}
    who = faces.random_identity(rng)
    who[at["beard"]], who[at["skin"]] = 0, 0.1      # (a beard's colour goes by that of the lips)
    red, pink = (torch.from_numpy(np.where(np.arange(len(who)) == at["lip_colour"], value, who))
                 for value in (0.0, 0.7))
    state = make_clip(seed, seconds=0.2).state[:1]
    state[:, STATE.index("jaw")] = 0.5
    state[:, STATE.index("tilt")] = 0
    both = [faces.draw(who.float(), torch.from_numpy(state), 256)[0] for who in (red, pink)]
    change = (both[0] - both[1]).abs().sum(0)                                   # (H, W)
    lips = change.numpy() > 0.5 * change.max().item()
    whole = np.all([np.roll(lips, by, axis) for by in (-1, 1) for axis in (0, 1)], 0)
    y, x = np.nonzero(lips & ~whole)                # their edges, outside and towards the hole
    mouth = faces.landmarks(red.float(), torch.from_numpy(state), 256)[0, 48:].numpy()  # (20, 2)
    assert np.hypot(mouth[:, :1] - x, mouth[:, 1:] - y).min(1).max() < 1.5
    assert [mouth[0, 0], mouth[6, 0]] == pytest.approx([x.min(), x.max()], abs=1.5)
    assert mouth[3, 1] < mouth[14, 1] < mouth[18, 1] < mouth[9, 1]      # from the top down


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
        split: " ".join(voices.random_sentence(rng, split) for _ in range(700)).lower()
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


def test_an_eye_is_seen_alone_wherever_the_head_is():
    """Each crop of unequal eyes is that of a face with two such eyes; a head that moves and turns
    takes its crops along; the right eye comes mirrored."""
    person = torch.from_numpy(make_clip(9, seconds=1).identity)
    states = torch.from_numpy(faces.REST).repeat(4, 1)
    opening = torch.tensor([.1, 1, .1, 1])
    states[:, STATE.index("eye_open")] = opening
    for name, values in (("head_x", (.9, -.8)), ("head_y", (-.5, .6)), ("tilt", (1, -.9))):
        states[2:, STATE.index(name)] = torch.tensor(values)
    for size in (64, 128):
        alike = judges.eye_crops(faces.draw(person, states, size), states)
        other = opening[[1, 0, 3, 2]]
        crops = judges.eye_crops(faces.draw(person, states, size, other), states)
        assert torch.allclose(crops[:, 0], alike[:, 0], atol=1e-6)
        assert torch.allclose(crops[:2, 1], alike[[1, 0], 1], atol=1e-6)
        middle = alike[..., 6:26, 6:26]                     # without hair that falls from the side
        shut_to_open = (middle[0] - middle[1]).abs().mean()
        assert (middle[:2] - middle[2:]).abs().mean() < .2 * shut_to_open
        assert (middle[:, 0] - middle[:, 1]).abs().mean() < .2 * shut_to_open


def test_colours_in_cielab():
    """Known values of sRGB under D65, as in Lindbloom's calculator."""
    known = {(1, 0, 0): (53.24, 80.09, 67.20), (0, 1, 0): (87.73, -86.18, 83.18),
             (0, 0, 1): (32.30, 79.19, -107.86), (1, 1, 1): (100, 0, 0), (0, 0, 0): (0, 0, 0),
             (.5, .5, .5): (53.39, 0, 0), (.01, .01, .01): (.70, 0, 0)}
    found = judges.lab(torch.tensor(list(known), dtype=torch.float32))
    assert torch.allclose(found, torch.tensor(list(known.values())), atol=.02)


def test_judges_learn_the_same_from_the_same_seed_and_are_kept(tmp_path):
    def trained() -> judges.Judges:
        torch.manual_seed(0)
        found, vae = judges.Judges(), VAE(VAEConfig.tiny(128)).eval()
        lessons = judges.prepare(vae, 128, people=2, clips=2)
        assert lessons.frames.shape == (2, 4, 3, 64, 64)
        assert lessons.eyes.shape == (2, 4, 2, 3, 32, 32)
        unequal = lessons.eye_truth[..., 0].diff()[..., 0] != 0
        assert unequal[:, ::2].any() and not unequal[:, 1::2].any()
        mean = lessons.truth[..., STATE.index("eye_open")]
        assert torch.allclose(lessons.eye_truth[..., 0].mean(-1), mean)
        judges.train(found, lessons, 1e-6)
        return found

    one, two = trained(), trained()
    assert all(torch.equal(value, two.state_dict()[name])
               for name, value in one.state_dict().items())
    path = tmp_path / "judges.safetensors"
    save_part(path, one.state_dict(), half=False, version="1")
    pictures, states = torch.zeros(2, 3, 128, 128), torch.zeros(2, 17)
    assert torch.equal(judges.Judges.load(path).eyes(pictures, states),
                       one.eyes(pictures, states))


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
        args = Namespace(steps=2, out=tmp_path / folder)
        args.out.mkdir(exist_ok=True)
        state = load_state(args.out / "vae.state") if resume else None
        train_vae.train(args, world, Processes(0, 1, torch.device("cpu")), state)
        return load_state(args.out / "vae.state")["vae"]

    whole = trained("whole")
    signals.append(15)
    half = trained("parts")
    signals.clear()
    parts = trained("parts", resume=True)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    assert not torch.equal(half["decoder.conv_in.weight"], whole["decoder.conv_in.weight"])


def test_errors_at_mouth_and_eyes_weigh_more():
    """Of one wrong pixel: its own error, 1 + 2, in its share of the weights, and four edges."""
    grey, side = torch.zeros(1, 3, 100, 100), 100
    around = 0.5 * 2 * 2 / (side * (side - 1))

    def loss(y: int, x: int) -> float:
        wrong = grey.clone()
        wrong[..., y, x] = 1
        return train_vae.reconstruction_loss(wrong, grey).item() - around

    plain = loss(8, 8)
    assert loss(75, 50) / plain == pytest.approx(train_vae.AT_MOUTH, rel=1e-3)
    assert loss(42, 30) / plain == pytest.approx(train_vae.AT_EYES, rel=1e-3)
    assert train_vae.reconstruction_loss(grey + 1, grey).item() == pytest.approx(3)


def test_latents_are_scaled_to_unit_size():
    torch.manual_seed(0)
    vae = VAE(VAEConfig.tiny())
    pictures = train_vae.random_faces(np.random.default_rng(2), 6, 32)
    vae.config = train_vae.normalised(vae, pictures)
    with torch.no_grad():
        x, z = vae.to_latents(pictures), vae.encode(pictures).mean
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(vae.unscale(x), z, atol=1e-5) and not torch.allclose(x, z, atol=0.1)


def test_an_encoder_learns_the_labels_of_what_it_hears():
    """The sound of frame t is the number t + 1 here, as are its labels."""
    n = 40
    clip = make_clip(3, seconds=n / FPS)
    clip.wave = np.repeat(np.arange(1, n + 1, dtype=np.float32), FRAME_SAMPLES)
    clip.event, clip.phoneme = np.arange(1, n + 1), np.repeat(np.arange(1, n + 1), 2)
    clip.state = np.repeat(np.arange(1, n + 1, dtype=np.float32)[:, None], len(STATE), 1)
    ends = set()
    for seed in range(20):
        sound, phoneme, event, state, heard = train_encoders.chunk_of(
            clip, np.random.default_rng(seed), 20)
        frames = sound[MARGIN:-MARGIN].view(20, FRAME_SAMPLES)
        assert torch.equal(frames.amax(1), frames.amin(1)) and torch.equal(heard, frames[:, 0] > 0)
        first = event[0].item()
        ends.add(heard.all().item())
        told = frames[heard, 0] / frames[0, 0] * first
        for labels in (event[heard], phoneme[::2][heard], phoneme[1::2][heard], state[heard, 0]):
            torch.testing.assert_close(labels.float(), told)
        assert not any(labels[~heard].any() for labels in (event, state))
    assert ends == {True, False}


def test_a_head_that_knows_the_phonemes_around_a_token_has_no_loss():
    """Features hold them as one-hot vectors, and the lips as they are."""
    known, lips, offsets = len(voices.PHONEMES), len(train_encoders.LIPS), train_encoders.OFFSETS
    draw, n = torch.Generator().manual_seed(0), 12
    phoneme = torch.randint(known, (1, 2 * n), generator=draw)
    state = torch.rand(1, n, len(STATE), generator=draw)
    state[:, ::3, STATE.index("jaw")] = 0
    reach = max(offsets)
    around = torch.nn.functional.pad(phoneme, (reach, reach))
    hot = [torch.nn.functional.one_hot(around[:, reach + o:reach + o + 2 * n], known)
           for o in offsets]
    seen = state[..., train_encoders.LIPS].repeat_interleave(2, 1)
    features = torch.cat([*hot, seen], -1).float()
    head = train_encoders.PhonemeHead(features.shape[-1])
    for layer in (head.phonemes, head.lips, head.closed):
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        head.phonemes.weight[:, :-lips] = 50 * torch.eye(len(offsets) * known)
        head.lips.weight[:, -lips:] = torch.eye(lips)
        jaw = train_encoders.LIPS.index(STATE.index("jaw"))
        head.closed.weight[0, jaw - lips], head.closed.bias[0] = -9000, 9000 * train_encoders.SHUT
        given = (features.unflatten(1, (n, 2)), None, phoneme, None, state, torch.ones(1, n).bool())
        assert head.loss(*given).item() < 0.02
        late = given[0].roll(1, 1)
        assert head.loss(late, *given[1:]).item() > 1


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
    (tmp_path / "parts" / "beats.state").rename(tmp_path / "parts" / "beats.state.1")  # mid-save
    parts = trained("parts", [15], resume=True)
    assert (half["step"], parts["step"]) == (1, 2)
    assert all(torch.equal(parts["objective"][name], value)
               for name, value in whole["objective"].items())


def test_a_recipe_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    """The second phase fails once, after it has kept its state, under the name that this has in the
    middle of a save: only what is left is done again."""
    script = """
import sys, pathlib, safetensors
words = sys.argv[1:]
out, steps = (pathlib.Path(words[words.index(name) + 1]) for name in ("--out", "--steps"))
name = words[0]
with open(out / "said", "a") as file:
    options = [word[2:] for word in words if word in ("--resume", "--init")]
    file.write(" ".join([name, str(steps), *options]) + "\\n")
first = not list(out.glob(f"{name}.state*"))
(out / f"{name}.state.1").touch()
safetensors.serialize_file({}, out / f"{name}.safetensors", {"figures": '{"dB": 31.25}'})
sys.exit(5 if name == "b" and first else 0)
"""
    phases = (recipe.Phase("a", ("-c", script, "a"), 100, 1, "a"),
              recipe.Phase("b", ("-c", script, "b", "--init", "DIR"), 100, 1, "b"))
    monkeypatch.setattr(recipe, "PHASES", phases)
    monkeypatch.setattr(recipe, "HOURS", 2)
    words = ["--out", str(tmp_path), "--processes", "1", "--hours", "1"]
    monkeypatch.setattr(recipe, "evaluated", lambda out: True)
    with pytest.raises(cli.InputError, match="b ended with exit status 5"):
        recipe.main(words)
    recipe.main(words)
    recipe.main(words)
    with pytest.raises(cli.InputError, match="a in .* is of another number of hours"):
        recipe.main([*words[:-1], "2"])
    monkeypatch.setattr(recipe, "jaw", lambda folder: 0.75)
    recipe.main([*words, "--until-jaw", ".7"])
    with pytest.raises(cli.InputError, match="0.750 is less than 0.8"):
        recipe.main([*words, "--until-jaw", ".8"])
    assert (tmp_path / "said").read_text().splitlines() == ["a 50", "b 50 init", "b 50 resume"]
    text = (tmp_path / "README.md").read_text()
    assert "| a | 50 |" in text and "dB 31.25" in text
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(cli.InputError, match="holds a.safetensors, which no recipe made"):
        recipe.main(words)


def test_an_evaluation_of_other_weights_does_not_count(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    assert not recipe.evaluated(tmp_path)
    (tmp_path / "results").mkdir()
    for weights, counts in ((b"other weights", False), (b"weights", True)):
        digest = hashlib.sha256(weights).hexdigest()
        (tmp_path / "results/evaluation.json").write_text(
            json.dumps({"sha256": {"a.safetensors": digest}}))
        assert recipe.evaluated(tmp_path) == counts


def test_a_phase_that_knows_no_other_processes_is_alone(tmp_path):
    args = Namespace(processes=2, hours=1, out=tmp_path)
    assert "tools.processes" in recipe.command(recipe.BEATS, args, begun=False)
    assert "tools.processes" not in recipe.command(recipe.JUDGES, args, begun=False)
    assert recipe.steps(recipe.JUDGES, 1) == sum(judges.STEPS.values())


def test_the_race_measures_films_by_their_jaw(monkeypatch):
    """True pictures, and the same ones backwards, stand in for a film."""
    clip = make_clip(recipe.VALIDATION, "train", 4, "speech")
    pictures = world.to_bytes(world.frames(clip, np.arange(len(clip.state)), 64))
    for film, low, high in ((pictures, 0.9, 1), (pictures[::-1], -1, 0.6)):
        monkeypatch.setattr(recipe, "make_film", lambda *_, film=film: (film.copy(), 1.0))
        assert low < recipe.jaw(cli.WEIGHTS, clips=1) < high


def test_the_autoencoder_learns_from_videos(tmp_path, capsys):
    """Of films in one grey each, so that what is held out can be told from what is learned from."""
    for name, grey in (("a", 40), ("b", 120), ("c", 200)):
        write_video(tmp_path / f"{name}.mp4", [np.full((32, 32, 3), grey, np.uint8)] * 20,
                    np.ones(20 * 640, np.float32) / 2, 32)
    (tmp_path / "d.mp4").write_text("no video")
    frames = train_vae.FilmedFaces(32, Videos(tmp_path, 32))
    assert "left out" in capsys.readouterr().err
    greys = [((x.mean((1, 2, 3)) + 1) * 127.5).round().int()
             for x in (frames.held_out, frames.batch(0), frames.measured)]
    assert (greys[0] - 40).abs().max() < 4  # every tenth by name: the first
    assert all((g > 115).all() and g.min() < 125 and g.max() > 195 for g in greys[1:])
    assert len(frames.pictures) == 14  # every third of 20, twice
