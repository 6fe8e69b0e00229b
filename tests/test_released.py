"""The released weights: names at full size, conversion end to end at a small one, and what is said
when a file is missing, gated, damaged or the wrong one."""

import copy
import errno
import json
import re
import shutil
import socket
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixture import names_at_full_size
from huggingface_hub import HfApi, errors
from safetensors.torch import load_file, save_file
from test_keyface import shaken
from test_sample import write_wav

import sample
from audio import AudioConfig
from keyface import Config, KeyFace
from stage import StageConfig
from tools import cli, released
from tools.checkpoint import load_config, load_metadata, load_part, save_config, save_part
from tools.cli import InputError
from unet import UNetConfig
from vae import VAEConfig

KEYS = {name: names_at_full_size(name)
        for name in ("keyframe", "interp", "vae", "audio", "svd_diffusers", "map_svd")}


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def parameters(part: torch.nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())


# ---- names at full size -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return KeyFace(Config())


@pytest.mark.parametrize("stage", ["keyframe", "interp"])
def test_every_name_and_shape_of_a_stage(full, stage):
    keys = KEYS[stage]["shapes"]
    module, groups = full.parts()[stage], KEYS[stage]["groups"]
    published = {f"_forward_module.{name}": shape for name, shape in keys.items()}
    assert len(published) == KEYS[stage]["total_tensors"]
    assert released.renamed(stage, published) == shapes(module)
    assert parameters(module.unet) == groups["model.diffusion_model"]["parameters"]
    decoder = groups["first_stage_model.decoder"]["parameters"]
    assert parameters(module) + decoder == KEYS[stage]["total_parameters"]
    assert parameters(full.vae.decoder) == decoder
    frozen = [p.numel() for k, p in module.unet.named_parameters()
              if "time_" in k and not k.startswith("time_embed")]
    counts = KEYS[stage]["trainable"]
    assert (len(frozen), sum(frozen)) == (counts["frozen_unet_tensors"],
                                          counts["frozen_unet_parameters"])
    assert parameters(module) - sum(frozen) == counts["trainable_parameters"]


def test_every_name_and_shape_of_the_autoencoder(full):
    keys = {k: v for k, v in KEYS["vae"]["shapes"].items() if k.startswith("first_stage_model.")}
    assert released.renamed("vae", keys) == shapes(full.vae)
    for half in ("encoder", "decoder"):
        total = KEYS["vae"]["groups"][f"first_stage_model.{half}"]["parameters"]
        assert parameters(getattr(full.vae, half)) == total
    meta = {k: torch.empty(v, device="meta") for k, v in KEYS["svd_diffusers"]["vae"].items()}
    assert {k: list(v.shape) for k, v in released.autoencoder(meta).items()} == shapes(full.vae)


def test_every_name_and_shape_of_hearing(full):
    keys, parts = KEYS["audio"], full.parts()
    for naming in ("wavlm", "wavlm_transformers"):
        assert released.renamed("wavlm", keys[naming]) == shapes(parts["wavlm"])
        assert parameters(parts["wavlm"]) == keys["totals"][naming]["parameters"]
    assert released.renamed("wav2vec2", keys["wav2vec2_transformers"]) == shapes(parts["wav2vec2"])
    assert parameters(parts["wav2vec2"]) == keys["totals"]["wav2vec2_transformers"]["parameters"]
    assert released.renamed("beats", keys["beats"]) == shapes(parts["beats"])
    surplus = sum(np.prod(keys["beats"][name]) for name in keys["beats"].keys() - shapes(
        parts["beats"]).keys())
    assert parameters(parts["beats"]) + surplus == keys["totals"]["beats"]["parameters"]
    older = {f"wav2vec2.{name.replace('parametrizations.weight.original', 'weight_')}": shape
             for name, shape in keys["wav2vec2_transformers"].items()}
    older = {k.replace("weight_0", "weight_g").replace("weight_1", "weight_v"): v
             for k, v in older.items()}
    assert released.renamed("wav2vec2", older | {"lm_head.bias": [32]}) == shapes(parts["wav2vec2"])


@pytest.mark.parametrize("kind, part, prefix", [("unet", "keyframe", "unet."), ("vae", "vae", "")])
def test_each_name_has_one_counterpart_in_diffusers(full, kind, part, prefix):
    pairs = KEYS["map_svd"][kind]
    named = {theirs: theirs for theirs in pairs.values()}
    assert len(named) == len(pairs)
    assert released.renamed(part, named) == {prefix + k: v for k, v in pairs.items()}
    surplus = KEYS["svd_diffusers"][kind].keys() - named.keys()
    assert surplus == ({"quant_conv.weight", "quant_conv.bias"} if kind == "vae" else set())
    # And from ours to theirs: what a checkpoint holds beyond them is KeyFace's own.
    back = {prefix + ours: theirs for ours, theirs in pairs.items()}
    for stage in ("keyframe", "interp") if kind == "unet" else ("vae",):
        own = shapes(full.parts()[stage]).keys() - back.keys()
        assert own == {"vae": set(), "keyframe": {"audio_proj.weight", "audio_proj.bias"},
                       "interp": {"audio_proj.weight", "audio_proj.bias", "learned_mask"}}[stage]


def test_shapes_of_svd_in_diffusers(full):
    theirs = KEYS["svd_diffusers"]
    for stage, differs in KEYS["map_svd"]["shape_differs"].items():
        ours, given = shapes(full.parts()[stage]), released.renamed(stage, theirs["unet"])
        assert {name.removeprefix("unet."): [ours[name], shape] for name, shape in given.items()
                if ours[name] != shape} == differs


def test_the_identity_embedders_autoencoder_is_left_out():
    names = {f"_forward_module.{k}": k for k in KEYS["vae"]["shapes"] if "conditioner." in k}
    assert len(names) == KEYS["vae"]["groups"]["conditioner.embedders.0"]["tensors"]
    assert not released.renamed("keyframe", names)


def test_each_rule_has_a_name_that_needs_it():
    """In the lists, but for what the files hold beyond them: the prefix and the loss that the notes
    of keys_keyframe.json tell of, the two halves of wav2vec2's recogniser of letters, and the names
    that attention had in older autoencoders of `diffusers`."""
    lists = {"keyframe": [*KEYS["keyframe"]["shapes"], *KEYS["interp"]["shapes"],
                          *KEYS["vae"]["shapes"], *KEYS["svd_diffusers"]["unet"]],
             "vae": [*KEYS["vae"]["shapes"], *KEYS["svd_diffusers"]["vae"]],
             "wavlm": [*KEYS["audio"]["wavlm"], *KEYS["audio"]["wavlm_transformers"],
                       *KEYS["audio"]["wav2vec2_transformers"]],
             "beats": [*KEYS["audio"]["beats"]]}
    idle = set()
    for part, names in lists.items():
        for pattern, to in released.NAMES[part]:
            found = [name for name in names if re.search(pattern, name)]
            if not found:
                idle.add(pattern)
            names = [name if to is None else re.sub(pattern, to, name)
                     for name in names if to is not None or name not in found]
    assert idle == {r"^_forward_module\.", r"^loss_fn\.", r"^lm_head\.", r"^wav2vec2\.",
                    r"\.(q)uery\.|\.(k)ey\.|\.(v)alue\."}


def test_two_names_for_one_tensor_are_refused():
    with pytest.raises(InputError, match="both mean unet.time_embed.0.bias"):
        released.renamed("keyframe", {"model.diffusion_model.time_embed.0.bias": 0,
                                      "time_embedding.linear_1.bias": 1})


# ---- conversion at a small size -----------------------------------------------------------------


def small(**unet) -> Config:
    """The released structure (temporal decoder, hearing) in few channels. The networks have few
    levels and blocks, too, as each tensor takes its time to be read, renamed and written."""
    few = {"channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)}
    unet = UNetConfig(model_channels=8, num_head_channels=4, context_dim=12, emotion_dim=8,
                      num_groups=4, **few | unet)
    sizes = {"audio_dim": 128, "latent_shape": (4, 8, 8)}
    hearing = replace(AudioConfig.tiny(), mapping="released")
    return Config(
        keyframe=StageConfig(unet=unet, **sizes),
        interp=StageConfig(unet=replace(unet, in_channels=9, emotion_dim=0), interpolation=True,
                           spacing=1, **sizes),
        vae=VAEConfig(ch=4, ch_mult=(1, 2, 2, 2), num_res_blocks=1, num_groups=2), audio=hearing,
        interp_audio=replace(hearing, speech="wav2vec2"), size=64, steps=1)


def made(config: Config) -> KeyFace:
    """A random model whose files can be published."""
    torch.manual_seed(0)
    model = KeyFace(config)
    for part in model.parts().values():
        shaken(part.eval())
    model.interp_bad.load_state_dict({k: 0.9 * v for k, v in model.interp.state_dict().items()})
    model.interp_bad.audio_proj = model.interp.audio_proj
    torch.nn.init.zeros_(model.interp_audio.speech.masked_spec_embed)
    return model


@pytest.fixture(scope="module")
def original():
    return made(small())


def publish(model: KeyFace, folder: Path) -> Path:
    """Writes the parts of `model` as their authors published them."""
    checkpoints, parts = folder / "checkpoints", model.parts()
    for path in (checkpoints, folder / "vae", folder / "wav2vec2-base-960h"):
        path.mkdir(parents=True, exist_ok=True)
    decoder = {f"first_stage_model.decoder.{k}": v
               for k, v in model.vae.decoder.state_dict().items()}
    for part, file, n in (("keyframe", "keyframe", 3), ("interp", "interpolation", 1),
                          ("interp_bad", "interpolation_bad", None)):
        state = {"loss_fn.lpips.lin0.weight": torch.ones(1), **decoder}
        for name, value in parts[part].state_dict().items():
            name = re.sub(r"^unet\.", "model.diffusion_model.", name)
            name = re.sub(r"^learned_mask$", "model.learned_mask", name)
            name = re.sub(r"^audio_proj\.", f"conditioner.embedders.{n}.linear.", name)
            if n or not name.startswith("conditioner"):  # the bad one's conditions are the good's
                state[name] = value
        state = OrderedDict((f"_forward_module.{k}", v) for k, v in state.items())
        torch.save({"module": state, "step": 1}, checkpoints / f"{file}.pt")
    vae = {KEYS["map_svd"]["vae"][k]: v.flatten(1) if ".attn_1." in k and v.ndim == 4 else v
           for k, v in model.vae.state_dict().items()}
    matrix = torch.eye(8) + 0.1 * torch.randn(8, 8)  # the encoder's last convolution, in two
    weight, bias = vae["encoder.conv_out.weight"], vae["encoder.conv_out.bias"]
    vae["encoder.conv_out.weight"] = torch.linalg.solve(matrix, weight.flatten(1)).view_as(weight)
    vae["encoder.conv_out.bias"] = torch.linalg.solve(matrix, bias - 1)
    vae |= {"quant_conv.weight": matrix[..., None, None], "quant_conv.bias": torch.ones(8)}
    vae = {k: v.contiguous() for k, v in vae.items()}
    save_file(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({k: v.half() for k, v in vae.items()},
              folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    theirs = released.renamed("wavlm", {name: name for name in KEYS["audio"]["wavlm"]})
    wavlm = {theirs[k]: v for k, v in parts["wavlm"].state_dict().items()}
    torch.save({"cfg": {"layers": 3}, "model": wavlm}, checkpoints / "WavLM-Base+.pt",
               _use_new_zipfile_serialization=False)
    beats = parts["beats"].state_dict()
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    beats |= {table.format(i): beats[table.format(0)] for i in (1, 2)}
    torch.save({"cfg": {}, "model": beats | {"predictor.bias": torch.zeros(527)}},
               folder / released.BEATS_FILE)
    wav2vec2 = {f"wav2vec2.{k}": v for k, v in parts["wav2vec2"].state_dict().items()
                if k != "masked_spec_embed"}  # theirs was trained without masks
    save_file(wav2vec2 | {"lm_head.bias": torch.zeros(32)},
              folder / "wav2vec2-base-960h" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def published(original, tmp_path_factory):
    return publish(original, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted")
    released.convert(published, out, torch.float32, small())
    return out


def same(model: KeyFace, original: KeyFace) -> None:
    for name, part in original.parts().items():
        tensors = model.parts()[name].state_dict()
        for key, value in part.state_dict().items():
            limit = 1e-5 if key.startswith("encoder.conv_out") else 0  # computed from two
            torch.testing.assert_close(tensors[key], value, atol=limit, rtol=limit)


IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
WAVE = (0.1 * np.random.default_rng(1).standard_normal(16000)).astype(np.float32)


def test_converted_weights_are_the_same_and_make_the_same_film(original, published, converted):
    loaded, direct = KeyFace.load(converted), released.load(published, config=small())
    films = []
    for model in (original, loaded, direct):
        same(model, original)
        films.append(np.stack(list(model.animate(IMAGE, WAVE[:5760], "happy"))).astype(int))
    assert films[0].std() > 1
    assert max(np.abs(film - films[0]).max() for film in films[1:]) <= 1


def test_networks_in_bfloat16_take_half_the_space_and_compute_alike(original, published, tmp_path):
    """bf16 is for the networks: half the space, computed in on a GPU, in float32 on a CPU."""
    released.convert(published, tmp_path, torch.bfloat16, small())
    kinds = {p.stem: {t.dtype for t in load_file(p).values()} for p in tmp_path.glob("*.s*")}
    assert kinds == {part: {torch.bfloat16 if part in released.NETWORKS else torch.float32}
                     for part in original.parts()}
    model = KeyFace.load(tmp_path)
    loaded = model.keyframe.state_dict()
    for key, value in original.keyframe.state_dict().items():
        assert loaded[key].equal(value.bfloat16().float()), key
    stages = model.keyframe, copy.deepcopy(model.keyframe).bfloat16()
    x, sigma, audio = torch.randn(1, 2, 4, 8, 8), torch.ones(1), torch.randn(1, 2, 2, 128)
    emotion = torch.zeros(1, 2, 2)
    whole, half = (s.denoise(x, sigma, s.conditions(x[:, 0], audio, emotion)) for s in stages)
    assert half.dtype == torch.float32
    assert 0 < (half - whole).norm() < 0.02 * whole.norm()


def test_interpolation_hears_wav2vec2(original, monkeypatch):
    heard = {}
    for name in ("keyframe", "interp"):
        stage = getattr(original, name)

        def conditions(latents, audio, *emotion, name=name, stage=stage):
            heard[name] = audio
            return type(stage).conditions(stage, latents, audio, *emotion)

        monkeypatch.setattr(stage, "conditions", conditions)
    list(original.animate(IMAGE, WAVE))
    wave = torch.from_numpy(WAVE)
    tokens, others = original.audio(wave), original.interp_audio(wave)  # (25, 2, 128)
    assert original.interp_audio.events is original.audio.events
    assert type(original.interp_audio.speech).__name__ == "Wav2Vec2Model"
    assert torch.equal(tokens[..., 64:], others[..., 64:]) and not torch.equal(tokens, others)
    # A dummy of frame 0, then frames 0, 13, 26: the last token stands for all past the end.
    assert torch.equal(heard["keyframe"][0, :4], tokens[[0, 0, 13, 24]])
    assert torch.equal(heard["interp"][0], others[:14])
    assert torch.equal(heard["interp"][1], others[[*range(13, 25), 24, 24]])


def test_without_the_bad_network(published, converted, tmp_path, monkeypatch):
    monkeypatch.setitem(vars(released), "find", lambda row, _, find=released.find: (
        find(row, published) if row.part != "interp_bad" else None))
    released.convert(published, tmp_path, torch.float32, small())
    assert KeyFace.load(tmp_path).interp_bad is None


def test_sample_reads_a_folder_of_published_files(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(released, "Config", small)
    film, sound = tmp_path / "film.mp4", write_wav(tmp_path / "sound.wav", WAVE[:5760])
    status = cli.run(sample.main, [f"--weights={published}", f"--out={film}", "--device=cpu",
                                     f"--audio={sound}"])
    assert (status, film.exists()) == (0, True), capsys.readouterr().err


# ---- files that are wrong -----------------------------------------------------------------------


class Code:
    """A pickle of it would call a function."""

    def __reduce__(self):
        return print, ("code was run",)


def other(file: str):
    """Another published file takes the place of one."""
    def spoil(path: Path, published: Path) -> None:
        shutil.copyfile(published / file, path)
    return spoil


def edit(change):
    """Changes the tensors of a published file."""
    def spoil(path: Path, _) -> None:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path)
        else:
            content = torch.load(path, weights_only=True)
            change(content["module"] if "module" in content else content["model"])
            torch.save(content, path)
    return spoil


def cut(keep: float):
    def spoil(path: Path, _) -> None:
        data = path.read_bytes()
        path.write_bytes(data[:int(len(data) * keep)])
    return spoil


def holding(content: object):
    return lambda path, _: torch.save(content, path)


VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
KEYFRAME, INTERP = "checkpoints/keyframe.pt", "checkpoints/interpolation.pt"
WAVLM = "checkpoints/WavLM-Base+.pt"
PARTS = {KEYFRAME: "keyframe", INTERP: "interp", VAE_FILE: "vae", WAVLM: "wavlm"}
OFFICIAL = "_forward_module.model.diffusion_model.time_embed."


def lose_seven(tensors: dict) -> None:
    for name in [k for k in tensors if ".to_q." in k][:7]:
        del tensors[name]


WRONG = {
    "the wrong stage": (KEYFRAME, other(INTERP), "keyframe.pt: .* of interp .* of keyframe "),
    "the other way": (INTERP, other(KEYFRAME), "of keyframe .* of interp "),
    "of a stage, for the ears": (WAVLM, other(INTERP),
                                 "a checkpoint of interp stands where one of wavlm belongs"),
    "missing": (KEYFRAME, edit(lambda t: t.pop(OFFICIAL + "0.bias")),
                "missing: unet.time_embed.0.bias$"),
    "seven": (INTERP, edit(lose_seven), "here; missing: .*to_q.weight, .* and 2 more$"),
    "surplus": (KEYFRAME, edit(lambda t: t.update(new=torch.ones(1))), "not belonging: new$"),
    "misshapen": (KEYFRAME, edit(lambda t: t.update({OFFICIAL + "0.bias": torch.ones(3)})),
                  r"of another shape: unet.time_embed.0.bias \(3,\) for \(32,\)"),
    "not finite": (KEYFRAME, edit(lambda t: t[OFFICIAL + "0.bias"].fill_(torch.nan)),
                   "keyframe.pt: unet.time_embed.0.bias holds values that are not finite"),
    "whole numbers": (INTERP, edit(lambda t: t.update({OFFICIAL + "0.bias": torch.ones(
        32, dtype=torch.int)})), "interpolation.pt: unet.time_embed.0.bias holds torch.int32"),
    "a sparse tensor": (KEYFRAME, edit(lambda t: t.update(
        {OFFICIAL + "0.bias": torch.ones(32).to_sparse()})), "bias holds .*sparse"),
    "names that are none": (KEYFRAME, edit(lambda t: t.update({1: torch.ones(1)})), "no tensors"),
    "no shared decoder": (VAE_FILE, edit(lambda t: t["decoder.conv_out.weight"].mul_(2)),
                          "not the autoencoder that .*keyframe.pt was trained with"),
    "another autoencoder": (VAE_FILE, edit(lambda t: t.update(
        {"post_quant_conv.bias": torch.ones(4)})), "not belonging: post_quant_conv.bias"),
    "autoencoder without a layer": (VAE_FILE, edit(lambda t: t.pop("encoder.conv_out.weight")),
                                    "missing: encoder.conv_out.weight; not belonging: quant_conv"),
    "half a layer": (VAE_FILE, edit(lambda t: t.pop("quant_conv.bias")),
                     "not belonging: quant_conv.weight$"),
    "a layer too small": (VAE_FILE, edit(lambda t: t.update(
        {"quant_conv.weight": torch.ones(3, 3, 1, 1)})), "not belonging: quant_conv"),
    "an unknown block": (VAE_FILE, edit(lambda t: t.update(
        {"decoder.up_blocks.x.bias": torch.ones(1)})), "not belonging: decoder.up.x.bias"),
    "cut pickle": (KEYFRAME, cut(0.6), "keyframe.pt: damaged or cut off"),
    "cut old pickle": (WAVLM, cut(0.6), "Base.*pt: damaged or cut off"),
    "empty": (KEYFRAME, cut(0), "keyframe.pt: damaged or cut off"),
    "cut safetensors": (VAE_FILE, cut(0.6), "model.safetensors: damaged or cut off"),
    "code": (KEYFRAME, holding({"module": Code()}), "refused.*print"),
    "no tensors": (KEYFRAME, holding({"module": [1]}), "no tensors"),
}
WHOLE = ("missing", "no shared decoder", "cut old pickle")  # through a conversion of all files


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused_and_run_no_code(original, published, tmp_path, capsys, kind):
    """What was converted before is not used, either."""
    (file, spoil, reason), folder = WRONG[kind], tmp_path / "files"
    if kind in WHOLE:  # without the bad network, which can be absent
        shutil.copytree(published, folder, ignore=shutil.ignore_patterns("interpolation_bad.pt"))
    else:
        (folder / file).parent.mkdir(parents=True)
        shutil.copyfile(published / file, folder / file)
    spoil(folder / file, published)
    with pytest.raises(InputError, match=reason) as caught:
        if kind in WHOLE:
            released.convert(folder, tmp_path / "out", config=small())
        else:
            part, path = PARTS[file], folder / file
            tensors = released.translated(part, path, released.read(path))
            released.check_tensors(path, original.parts()[part], tensors)
    assert "\n" not in str(caught.value)
    assert "code was run" not in capsys.readouterr().out
    if kind in WHOLE:
        with pytest.raises(InputError, match="config.json"):  # half converted is not used
            KeyFace.load(tmp_path / "out")


@pytest.mark.parametrize("spoil, reason", [
    (lambda d: d[:-100], "damaged"), (lambda d: d[:5], "damaged"),
    (lambda d: b"\xff" * 8 + d[8:], "damaged"),
    (lambda d: d[:8] + d[8:].replace(b"BF16", b"F999", 1), "damaged"),
    (lambda d: d.replace(b"audio_proj.bias", b"audio_proj.bais", 1),
     "missing: audio_proj.bias; not belonging: audio_proj.bais")])
def test_tampered_weights_folder(original, tmp_path, spoil, reason):
    path = tmp_path / "keyframe.safetensors"
    state = {k: v.bfloat16() for k, v in original.keyframe.state_dict().items()}
    save_part(path, state, half=False)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=f"keyframe.safetensors: .*{reason}"):
        load_part(path, original.keyframe)


def test_a_loaded_part_takes_the_place_of_what_was_there(tmp_path):
    """Without memory of its own before, and training it leaves the file alone."""
    path, given = tmp_path / "part.safetensors", torch.nn.Linear(3, 2)
    save_part(path, given.state_dict(), half=False)
    before = path.read_bytes()
    with torch.device("meta"):
        part = torch.nn.Linear(3, 2).requires_grad_(False)
    load_part(path, part)
    assert part.weight.equal(given.weight) and not part.weight.requires_grad
    part.weight += 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("change, reason", [
    (lambda c: c.pop("interp_audio"), "missing field 'interp_audio'"),
    (lambda c: c["interp_audio"].pop("speech"), "interp_audio: missing field 'speech'"),
    (lambda c: c["keyframe"]["unet"].update(depth=3), "keyframe: unet: unknown field 'depth'"),
    (lambda c: c.update(vae=None), "vae: an object is expected, not null"),
    (lambda c: c.update(interp_audio=3), "interp_audio: an object is expected, not 3")])
def test_a_configuration_comes_back_and_a_wrong_field_is_named(tmp_path, change, reason):
    for config in (small(), Config.tiny(), Config()):
        save_config(config, tmp_path)
        assert load_config(Config, tmp_path) == config
    values = json.loads((tmp_path / "config.json").read_text())
    change(values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=reason):
        load_config(Config, tmp_path)


# ---- the hub ---------------------------------------------------------------------------------


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A hub that gives out the published files, and takes note; `hub.trouble` says what it raises
    for which file."""
    state = SimpleNamespace(asked=[], trouble={}, cache=tmp_path / "hub")

    def answer(repository: str, name: str) -> None:
        state.asked.append(name)
        for part, error in state.trouble.items():
            if part in f"{repository}/{name}":
                raise error

    def model_info(repository, timeout):
        answer(repository, "")
        names = [str(p.relative_to(published)) for p in published.rglob("*.*")]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in names])

    def hf_hub_download(repository, name, etag_timeout):
        answer(repository, name)
        source = published / name
        if name == "model.safetensors":
            source = published / "wav2vec2-base-960h" / name
        target = state.cache / f"models--{repository.replace('/', '--')}" / "snapshots/1" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return str(target)

    monkeypatch.setattr(released.constants, "HF_HUB_CACHE", str(state.cache))
    monkeypatch.setattr(released, "FOLDER", tmp_path / "weights" / "released")
    monkeypatch.setattr(released, "model_info", model_info)
    monkeypatch.setattr(released, "hf_hub_download", hf_hub_download)
    return state


def bare(kind: type) -> Exception:
    """An error of the hub, without the answer that it is usually made from."""
    return kind.__new__(kind)


refusing = bare(errors.HfHubHTTPError)
refusing.response = SimpleNamespace(status_code=403)


def test_a_hub_that_stays_silent_is_not_waited_for(hub, monkeypatch):
    """A real request to a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        api = HfApi(endpoint=f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(released, "model_info", api.model_info)
        monkeypatch.setattr(released, "PATIENCE", 0.2)
        with pytest.raises(InputError, match="wav2vec2-base-960h does not answer .*Timeout"):
            row = next(r for r in released.FILES if r.part == "wav2vec2")
            released.download(row, "weights released", released.FOLDER)
    assert "model.safetensors" not in hub.asked  # a download would be tried again for minutes


def test_downloads_once(hub, original):
    same(released.load("released", config=small()), original)
    assert [name for name in hub.asked if name] == [
        VAE_FILE, "checkpoints/WavLM-Base+.pt", "model.safetensors", released.BEATS_FILE, KEYFRAME,
        INTERP, "checkpoints/interpolation_bad.pt"]
    hub.asked.clear()
    hub.trouble[""] = ConnectionError()  # for every file
    assert len(released.obtain("released")) == 7
    assert not hub.asked
    assert released.listing("released").count("found ") == 7


@pytest.mark.parametrize("file, error, reason", [
    ("stable-video", bare(errors.GatedRepoError), (
        "wants its licence accepted; get a file like vae/diffusion.* from "
        "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid "
        ".accept its licence there and log in with `hf auth login`. "
        "and put it into .*weights/released/vae\n")),
    ("BEATs", bare(errors.LocalEntryNotFoundError), (
        "toninio19/keyface cannot be reached; get checkpoints/BEATs_.* from https://.* and put it "
        "into .*released/checkpoints\n")),
    ("keyframe", bare(errors.RepositoryNotFoundError), "toninio19/keyface is not there"),
    ("interpolation.pt", bare(errors.EntryNotFoundError), "interpolation.pt is missing"),
    ("wav2vec2", TimeoutError("timed out"), "wav2vec2-base-960h does not answer .TimeoutError"),
    ("", ConnectionError("offline"), "cannot be reached; get a file like vae/"),
    ("keyframe.pt", refusing, "keyface refuses .HTTP 403: see to your token"),
    ("bad", TimeoutError("timed out"), "keyface does not answer .TimeoutError"),
])
def test_hub_trouble_is_one_line(hub, capsys, monkeypatch, file, error, reason):
    hub.trouble[file] = error
    status = cli.run(sample.main, ["--weights", "released", "--device", "cpu"])
    said = capsys.readouterr().err
    assert (status, said.count("\n")) == (2, 1), said
    assert re.search(f"weights released: .*{reason}", said), said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_is_not_the_hubs_fault(hub, number):
    hub.trouble["keyframe.pt"] = OSError(number, "It did not work")
    with pytest.raises(OSError, match=f"{hub.cache}: It did not work; .* HF_HOME"):
        released.obtain("released")


def test_what_can_be_done_without(hub, capsys):
    hub.trouble["bad"] = bare(errors.EntryNotFoundError)
    hub.trouble["WavLM"] = bare(errors.EntryNotFoundError)
    hub.trouble["microsoft"] = TimeoutError()
    with pytest.raises(InputError, match="WavLM-Base.*pt is missing"):  # neither of the two
        released.obtain("released")
    by_hand = released.FOLDER / "wavlm-base-plus" / "pytorch_model.bin"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(b"x")
    files = released.obtain("released")
    assert files["wavlm"] == by_hand and "interp_bad" not in files
    assert "without autoguidance" in capsys.readouterr().err


def test_half_a_download_is_not_used(hub):
    blobs = hub.cache / "models--toninio19--keyface" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"x")
    (blobs.parent / "snapshots").mkdir()
    assert "found " not in released.listing("released")


def test_folders_and_listing(published, converted, tmp_path, capsys):
    (tmp_path / "flat").mkdir()
    for row in released.FILES:
        source = released.find(row, published)
        if source and row.part != "beats":
            (tmp_path / "flat" / source.name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"flat: {released.BEATS_FILE} is missing; get"):
        released.obtain(tmp_path / "flat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no config.json, nor the"):
        released.obtain(tmp_path / "empty")
    with pytest.raises(InputError, match="is a weights folder already, and holds none of the"):
        released.obtain(converted)
    assert "not needed, converted there already" in released.listing(converted).splitlines()[0]
    assert cli.run(sample.main, ["--list-weights", "--weights", str(published)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(released.FILES)
    for line, row in zip(lines[1:], released.FILES):
        state, size, unit, *_, where = line.removesuffix(" (gated)").split()
        assert (state == "found") == (row.repository != "microsoft/wavlm-base-plus"), line
        assert unit == "GB" and row.purpose in line and float(size.lstrip("~")) >= 0
        assert Path(where).is_file() if state == "found" else where == row.file


def test_the_command_says_what_it_converted(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(released, "Config", small)
    out = tmp_path / "out"
    assert cli.run(released.main, [str(published), str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("wrote") == 7
    name = Path(released.BEATS_FILE).name
    assert f"{name}: tensors left out, not needed here: encoder (2), predictor (1)\n" in said
    assert json.loads(load_metadata(out / "vae.safetensors")["config"])["ch"] == small().vae.ch
    assert {t.dtype for t in load_file(out / "interp.safetensors").values()} == {torch.bfloat16}
    assert cli.run(released.main, [str(published), str(out), "--dtype", "fp8"]) == 2
    assert cli.run(released.main, [str(tmp_path / "nowhere"), str(out)]) == 2
