"""The shipped weights: small, complete, readable without pickle, and they listen."""

import copy
import io
import json
import os
import re
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from test_sample import forbid

import sample
from keyface import KeyFace
from tools import cli
from tools.checkpoint import header_number, load_metadata, load_part
from tools.cli import InputError
from tools.media import read_audio, read_image
from toy.faces import random_identity
from toy.world import SPLITS, portrait, to_bytes

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "weights" / "tiny"


@pytest.fixture(scope="module")
def model():
    return KeyFace.load(WEIGHTS)


def test_folder_is_whole_and_small(model):
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    parts = {f"{name}.safetensors" for name in model.parts()}
    assert set(sizes) >= {"config.json", "README.md"} | parts
    assert model.interp_bad is not None
    assert sum(sizes.values()) < 32e6
    for name in ("keyframe", "interp", "interp_bad"):
        assert {"config", "step", "version"} <= set(load_metadata(WEIGHTS / f"{name}.safetensors"))


def test_the_face_is_kept_and_the_mouth_follows_the_sound(model):
    """Frames stay near the identity picture; the mouth moves with a voice, not without."""
    identity = read_image(ROOT / "assets" / "face.png", model.size)
    wave = read_audio(ROOT / "assets" / "speech.flac")[:8960]
    spoken, silent = (np.stack(list(model.animate(identity, sound, steps=5))).astype(np.float32)
                      for sound in (wave, np.zeros_like(wave)))
    assert spoken.shape == (14, model.size, model.size, 3)
    assert np.abs(spoken - identity).mean() < 20  # of 255; 60 other people are 45 to 113 from it
    rows, columns = (slice(a * model.size // 64, b * model.size // 64)
                     for a, b in ((36, 58), (18, 46)))  # of 64: the mouth
    motion, stillness = (np.abs(np.diff(film[:, rows, columns], axis=0)).mean()
                         for film in (spoken, silent))
    assert motion > 2 * stillness


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU"))])
@torch.no_grad()
def test_half_precision_is_near(model, device):
    """Both networks in it against float32, from the lowest to the highest noise."""
    face = torch.from_numpy(read_image(ROOT / "assets" / "face.png", model.size))
    face = model.vae.to_latents(face.permute(2, 0, 1)[None] / 127.5 - 1)  # (1, C, 16, 16)
    sound = model.audio(torch.from_numpy(read_audio(ROOT / "assets" / "speech.flac")[:35840]))
    sigma = torch.tensor([0.1, 80.0])
    noise = torch.randn(2, 4, *face.shape[1:], generator=torch.Generator().manual_seed(0))
    x = face[:, None] + sigma.view(-1, 1, 1, 1, 1) * noise
    tokens = sound[None, ::14].expand(2, -1, -1, -1).to(device)  # (2, 4, 2, 128)
    for stage, known, emotion in ((model.keyframe, face, torch.ones(2, 4, 2, device=device)),
                               (model.interp, torch.stack([face, -face], 1), None)):
        known = known.expand(2, *known.shape[1:]).to(device)
        exact, *halves = (s.denoise(x.to(device), sigma.to(device),
                                    s.conditions(known, tokens, emotion))
                          for s in (copy.deepcopy(stage).to(device, t)
                                    for t in (None, torch.bfloat16, torch.float16)))
        for near in halves:
            error = (near - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
            assert 0 < error.min() and error.max() < 1e-2


def test_low_memory_makes_the_same_film(model, monkeypatch):
    """One clip or image at a time; on the device is what works, and nothing else."""
    low, where = KeyFace.load(WEIGHTS, low_memory=True), {}
    low.device = torch.device("cpu:0")  # the CPU again, under a name of its own
    parts = low.parts()

    def moved(module, device):
        where[next(name for name, part in parts.items() if part is module)] = str(device)

    def watch(network, team, batch):
        def check(_, args):
            assert {name for name, device in where.items() if device == "cpu:0"} == team
            assert set(where) == set(parts) and len(args[0]) == batch
            worked.append(network)
        network.register_forward_pre_hook(check)
        return network

    worked, between, hearing = [], {"interp", "interp_bad"}, {"wavlm", "beats"}
    watched = {watch(low.keyframe.unet, {"keyframe"}, 14), watch(low.interp.unet, between, 14),
               watch(low.interp_bad.unet, between, 14), watch(low.vae.encoder, {"vae"}, 1),
               watch(low.vae.decoder, {"vae"}, 1), watch(low.audio.speech, hearing, 1),
               watch(low.audio.events, hearing, 1)}
    identity = read_image(ROOT / "assets" / "face.png", model.size)
    wave = read_audio(ROOT / "assets" / "speech.flac")[:17280]
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    films = []
    for each in (model, low):
        images, decode = [], each.vae.decode

        def kept(*args, images=images, decode=decode):
            images.append(decode(*args))
            return images[-1]

        monkeypatch.setattr(each.vae, "decode", kept)
        assert len(list(each.animate(identity, wave, "happy", steps=1))) == 27
        films.append(torch.cat(images))
    assert set(worked) == watched
    assert (films[0] - films[1]).norm() < 1e-4 * films[0].norm()


def test_another_autoencoder_is_told(tmp_path):
    """Of the same shapes, but with latents of other statistics."""
    shutil.copytree(WEIGHTS, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    values["vae"]["latent_mean"][0] += 0.1
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="vae.safetensors: not the part that .*config.json"):
        KeyFace.load(tmp_path)


# ---- pictures that these weights do not know

REAL = Path(os.environ.get("KEYFACE_FACES") or ROOT.parent / "shared" / "real" / "faces")


def warning(model, picture: np.ndarray | Path) -> str | None:
    return model.unlike(read_image(picture, model.size))


def drawn(seed: int, size: int) -> np.ndarray:
    """A held-out person's portrait (size, size, 3)."""
    identity, pose = (np.random.default_rng([seed, SPLITS.index("test"), i]) for i in (0, 6))
    return to_bytes(portrait(SimpleNamespace(identity=random_identity(identity)), size, pose))


def test_no_held_out_drawing_is_strange(model):
    for seed in range(10):
        picture = drawn(seed, (64, 100, 128, 256, 333)[seed % 5])
        jpeg = io.BytesIO()
        Image.fromarray(picture).save(jpeg, "JPEG", quality=85)
        assert warning(model, picture) is None, seed
        assert warning(model, np.array(Image.open(jpeg))) is None, seed
    assert warning(model, cli.IMAGE) is None


def test_other_pictures_are_strange(model, monkeypatch):
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    blots = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    cloud = np.asarray(blots.resize((256, 256)))
    mottled = (cloud * 0.7 + rng.normal(40, 12, (256, 256, 1))).clip(0, 255).astype(np.uint8)
    for picture in (rng.integers(0, 256, (64, 64, 3), np.uint8), np.full((64, 64), 128, np.uint8),
                    np.broadcast_to(ramp, (256, 256)).copy(), cloud, mottled):
        said = warning(model, picture)
        assert said.startswith("looks unlike the faces") and "\n" not in said
    monkeypatch.setattr(model, "familiar_error", None)  # weights that do not say
    assert warning(model, cloud) is None


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder of photographs: KEYFACE_FACES")
def test_photographs_are_strange(model):
    """Also small on a plain ground, which is most of the picture then, and out of focus."""
    assert any(REAL.iterdir())
    for path in sorted(REAL.iterdir()):
        photograph = Image.fromarray(read_image(path))
        side = photograph.width
        blurred = photograph.filter(ImageFilter.GaussianBlur(side / 64))
        pictures = {"as it is": photograph, "blurred": blurred}
        for ground in ("white", "grey"):
            pictures[ground] = Image.new("RGB", (side, side), ground)
            small = photograph.resize((side // 2, side // 2))
            pictures[ground].paste(small, (side // 4, side // 4))
        for name, picture in pictures.items():
            assert "looks unlike" in (warning(model, np.array(picture)) or ""), (path, name)


# ---- weights that cannot be used

@pytest.fixture
def folder(tmp_path):
    """The shipped weights, as links that can be replaced one by one."""
    for path in WEIGHTS.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def refused(folder: Path, name: str, content: bytes, load=KeyFace.load) -> str:
    """What `load` says when one file of the folder has other content."""
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(WEIGHTS / name)
    assert str(error.value).startswith(str(folder / name))
    return str(error.value)


@pytest.mark.parametrize("name, content, reason", [
    ("", None, "no such folder; give"), ("config.json", None, "holds no config.json, nor the rel"),
    ("interp.safetensors", None, "missing from the weights folder"),
    ("wavlm.safetensors", b"\0" * 50, "damaged")])
def test_the_command_tells_what_is_wrong_with_weights(tmp_path, capsys, name, content, reason):
    folder, out = tmp_path / "weights", tmp_path / "out" / "film.mp4"
    if name:
        shutil.copytree(WEIGHTS, folder)
        (folder / name).unlink()
    if content:
        (folder / name).write_bytes(content)
    status = cli.run(sample.main, [f"--weights={folder}", f"--out={out}", "--device=cpu"])
    said = capsys.readouterr().err
    assert (status, said.count("\n")) == (2, 1) and reason in said and str(folder) in said, said
    assert not list(out.parent.iterdir())


def test_weights_without_the_right_to_read_them(tmp_path, monkeypatch, capsys):
    for name in ("wavlm.safetensors", "vae.safetensors", "config.json"):  # they add up
        forbid(monkeypatch, name)
        status = cli.run(sample.main, [f"--out={tmp_path / 'film.mp4'}", "--device=cpu"])
        said = capsys.readouterr().err
        assert (status, said.count("\n")) == (2, 1), said
        assert re.search(f"{name}: Permission denied; check its permissions$", said), said
    assert not list(tmp_path.iterdir())


def test_configs_that_no_model_has(folder):
    text = (WEIGHTS / "config.json").read_text()
    for path, value, reason in (
            ("size", "64", "whole number"), ("size", 64.5, "whole number"), ("size", True, "whole"),
            ("size", -64, "whole number"), ("size", 10**30, "whole number"), ("size", 65, "fit"),
            ("id_guidance", float("nan"), "number"), ("autoguidance", float("inf"), "number"),
            ("dummy_first", 1, "true or false"), ("audio/speech", 3, "string"),
            ("audio/speech", "ears", "not one of"), ("vae", [], "object"), ("vae", None, "object"),
            ("vae/ch_mult", 4, "list"), ("vae/ch_mult", [], "ch_mult|no model|fit"),
            ("vae/ch_mult", [1, "2", 4], "whole number"), ("vae/latent_mean", [0.1], "latent_mean"),
            ("vae/num_groups", 0, "from 1"), ("vae/scale_factor", 0, "from 1e-06"),
            ("vae/latent_std", [1, 1, 0, 1], "from 1e-06"), ("steps", 0, "from 1"),
            ("keyframe/sigma_max", 0, "from 0.003"), ("interp/sigma_max", -80, "from 0.003"),
            ("keyframe/p_std", -1, "from 0"), ("interp/p_mean", 1e5, "from -5 to 5"),
            ("interp/drop_audio", 1.5, "from 0 to 1"), ("keyframe/pixel_weight", -1, "from 0"),
            ("autoguidance", 1e5, "from -100 to 100"), ("keyframe/frames", 1, "frames"),
            ("keyframe/unet/num_head_channels", 3, "num_head_channels does not fit"),
            ("audio/wavlm/max_bucket_distance", 8, "max_bucket_distance"),
            ("vae/num_groups", 7, "no model"), ("keyframe/spacing", 0, "spacing"),
            ("interp/frames", 9, "frames"), ("keyframe/latent_shape", [4, 16], "latent_shape"),
            ("keyframe/audio_dim", 127, "audio_dim"), ("keyframe/unet/num_groups", 5, "no model"),
            ("audio/wavlm/conv_dim", [32, 48], "no model"), ("extra", 1, "unknown field 'extra'"),
            ("vae/extra", 1, "vae: unknown field 'extra'")):
        config = json.loads(text)
        *parents, last = path.split("/")
        part = config
        for parent in parents:
            part = part[parent]
        part[last] = value
        said = refused(folder, "config.json", json.dumps(config).encode())
        assert any(r in said for r in reason.split("|")), (path, value, said)
    config = json.loads(text)
    del config["interp"]["unet"]["emotion_dim"]
    said = refused(folder, "config.json", json.dumps(config).encode())
    assert "interp: unet: missing field 'emotion_dim'" in said
    for content in (b"", text[:500].encode(), b"\xff\xfe", b"[" * 10**5, b"7"):
        refused(folder, "config.json", content)


def test_weights_that_are_damaged_or_of_another_part(model, folder):
    def load_vae(folder: Path) -> None:
        load_part(folder / "vae.safetensors", model.vae)

    whole = (WEIGHTS / "vae.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8:8 + length]), whole[8 + length:]

    def packed(**changes) -> bytes:
        name = "decoder.conv_in.bias"
        text = json.dumps({**header, name: {**header[name], **changes}}).encode()
        return struct.pack("<Q", len(text)) + text + data

    offsets = header["decoder.conv_in.bias"]["data_offsets"]
    for content in (b"", whole[:5], whole[:-100], whole[:length // 2],
                    struct.pack("<Q", 2**60) + whole[8:], struct.pack("<Q", 50) + whole[8:],
                    whole[:8] + b"x" * length + data,
                    packed(data_offsets=[o + 10**9 for o in offsets]), packed(dtype="F64"),
                    packed(dtype="I16"), packed(dtype="F7"), packed(shape=[-64]),
                    packed(shape=[32])):
        refused(folder, "vae.safetensors", content, load_vae)
    tensors = load_file(WEIGHTS / "vae.safetensors")
    tensors["decoder.conv_in.bias"][3] = torch.nan
    save_file(tensors, folder / "nan")
    said = refused(folder, "vae.safetensors", (folder / "nan").read_bytes(), load_vae)
    assert "decoder.conv_in.bias holds values that are not finite" in said
    for there, name in (("keyframe", "interp"), ("interp", "keyframe"), ("wavlm", "beats")):
        content = (WEIGHTS / f"{there}.safetensors").read_bytes()
        said = refused(folder, f"{name}.safetensors", content)
        assert f"holds the weights of {there}, not of {name};" in said
    save_file(tensors, folder / "number", {"familiar_error": '"a lot"'})
    with pytest.raises(InputError, match="familiar_error in its header is no number"):
        header_number(folder / "number", "familiar_error")
    (folder / "beats.safetensors").unlink()
    with pytest.raises(InputError, match="beats.safetensors: missing"):
        KeyFace.load(folder)
