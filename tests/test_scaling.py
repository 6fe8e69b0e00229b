"""Sizes by name, frozen parts and networks from published files, and what a large training needs:
at tiny sizes under the published names; names and shapes at full size."""

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fixture import Fixture
from safetensors.torch import load_file, save_file
from test_keyface import shaken
from test_released import (  # noqa: F401
    KEYS,
    bare,
    errors,
    hub,
    made,
    publish,
    small,
)
from test_training import train  # noqa: F401

import train_interp
import train_keyframe
import training
from data import Windows
from stage import Config, Draws, Stage
from tools import cli, describe, pretrained, released, scaling
from tools.checkpoint import load_config
from tools.cli import WEIGHTS, InputError
from unet import UNetConfig
from vae import VAE, VAEConfig

# ---- sizes --------------------------------------------------------------------------------------


def test_sizes_by_name():
    small, full = map(scaling.named_config, ("small", "full"))
    for stage in (small.keyframe, small.interp):
        with torch.device("meta"):
            count = sum(p.numel() for p in Stage(stage).parameters())
        assert 60e6 < count < 100e6
    assert small.size == 256 and small.keyframe.latent_shape == (4, 32, 32)
    assert (small.interp.interpolation, small.interp.unet.in_channels) == (True, 9)
    for stage in (full.keyframe, full.interp):
        stage.checkpoint_activations = False
    assert full == replace(Config(), dummy_first=False)  # which no training here shows a model
    shipped = load_config(Config, WEIGHTS)
    shipped.vae.latent_mean = shipped.vae.latent_std = Config.tiny(128).vae.latent_mean
    assert scaling.named_config("tiny") == Config.tiny(128) == shipped


@pytest.mark.parametrize("content, reason", [
    ('{"keyframe": {"unet": {"depth": 3}}}', "keyframe: unet: unknown field 'depth'"),
    ('{"size": 500}', "latent_shape does not fit the other fields"),
    ('{"keyframe": {"unet": {"in_channels": 9}}}', "in_channels does not fit the other fields"),
    ('{"keyframe": {"unet": {"emotion_dim": 250}}}', "emotion_dim does not fit the other fields"),
    ('{"keyframe": {"unet": {"num_groups": 7}}, "interp": {"unet": {"num_groups": 7}}}',
     "num_channels.* divisible by num_groups"),
    ('{"keyframe": {"unet": {"num_head_channels": 60}}}', "num_head_channels does not fit"),
    ('{"keyframe": {"unet": {"channel_mult": [1, 1, 1, 1, 1, 1, 1, 1]}}}', "channel_mult does not"),
    ('{"interp": {"unet": {"model_channels": 64}}}', "unet does not fit the other fields"),
    ('{"keyframe": {"frames": "many"}}', 'frames: "many" does not fit'),
    ("[1]", "an object is expected"), ("{", "not readable as JSON")])
def test_configs_that_no_model_has(tmp_path, capsys, content, reason):
    path = tmp_path / "own.json"
    path.write_text(content)
    assert cli.run(train_keyframe.main, [f"--config={path}", "--describe"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(f"own.json: .*{reason}", said), said


def test_sizes_that_nobody_knows_are_refused(capsys):
    assert cli.run(train_interp.main, ["--init=nowhere", "--describe"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert cli.run(train_interp.main, ["--config=smal", "--describe"]) == 2
    assert capsys.readouterr().err.endswith(
        'error: --config: "smal" is none of tiny, small, full, nor a JSON file\n')
    assert cli.run(train_interp.main, ["--shard"]) == 2
    assert capsys.readouterr().err.endswith(
        "error: --shard: there is one process only; start several with torchrun\n")


def test_describe_says_what_a_training_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    own = tmp_path / "own.json"
    tiny, sizes = Config.tiny(), {"channel_mult": (1,), "attention_resolutions": ()}
    wanted = replace(tiny, vae=replace(tiny.vae, ch=8), **{
        name: replace(stage, unet=replace(stage.unet, **sizes))
        for name, stage in (("keyframe", tiny.keyframe), ("interp", tiny.interp))})
    own.write_text(json.dumps(asdict(wanted)))
    monkeypatch.setattr(describe, "taken", lambda *given: describe.Taken(  # tested in test_bench.py
        *(10**9,) * 7, 10**10) if given == (wanted, "interp", 1, False) else None)
    asked = [f"--config={own}", "--describe", "--batch=4", "--accumulate=2", "--steps=36000"]
    assert cli.run(train_interp.main, asked) == 0
    said = capsys.readouterr().out
    assert "1,000.0 M trained\nmemory of a process, 1 window at a time: 5.00 GB" in said
    assert "process: 0.02 T a step" in said  # in two parts
    assert re.search("core of a server, float32 +0.04 T a second: 36,000 steps in 5.0 hours", said)


# ---- what is there wins -------------------------------------------------------------------------


def test_a_config_file_decides_the_networks_alone(frozen, tmp_path, train):  # noqa: F811
    """Frozen parts stay what they are, and so does an --out that has a config.json."""
    path, out = tmp_path / "own.json", tmp_path / "out"
    config = load_config(Config, frozen)
    values = json.loads(json.dumps(asdict(replace(config, vae=VAEConfig(patch=2)))))
    for name in ("keyframe", "interp"):
        values[name]["unet"]["context_dim"] = 40
    values["vae"] |= {"ch_mult": [1, 2], "patch": 2}
    path.write_text(json.dumps(values))
    state = train(train_keyframe, out, f"--config={path}", f"--init={frozen}", "--steps=1")
    assert state["stage"]["audio_proj.weight"].shape == (40, 128)
    made = load_config(Config, out)
    assert made.vae == config.vae and made.keyframe.unet.context_dim == 40
    with pytest.raises(InputError, match="out/config.json says otherwise, and what is there stays"):
        train(train_keyframe, out, f"--config={frozen / 'config.json'}", "--steps=1")
    # Networks of other sizes are refused by name, frozen parts of other sizes, too.
    with pytest.raises(InputError, match="out/keyframe.safetensors: .* of another shape"):
        train(train_keyframe, tmp_path / "new", f"--init={out}",
              f"--config={frozen / 'config.json'}", "--steps=1")
    with pytest.raises(InputError, match="--config: latent_shape does not .* python -m tools.pre"):
        train(train_keyframe, tmp_path / "new", f"--init={out}", "--config=small", "--steps=1")
    with pytest.raises(InputError, match="leave out --init, --config and --without"):
        train(train_keyframe, out, "--resume", "--config=tiny")


# ---- frozen parts by name -----------------------------------------------------------------------


def little() -> Config:
    """Small, with the levels and blocks of SVD's network, so that its names are there."""
    return small(channel_mult=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(4, 2, 1))


@pytest.fixture(scope="module")
def original():
    return made(little())


@pytest.fixture(scope="module")
def published(original, tmp_path_factory):
    return publish(original, tmp_path_factory.mktemp("published"))


def sources(folder: Path) -> dict[str, str]:
    files = {"wavlm": "checkpoints/WavLM-Base+.pt", "beats": released.BEATS_FILE,
             "wav2vec2": "wav2vec2-base-960h"}
    return {part: str(folder / file) for part, file in files.items()}


def test_the_image_autoencoder_of_diffusers(published, original, tmp_path):
    """Compared with diffusers' own encoder and decoder; older files name attention otherwise."""
    AutoencoderKL = pytest.importorskip("diffusers").AutoencoderKL
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=(4, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    shaken(theirs.eval())
    theirs.save_pretrained(tmp_path / "vae")
    out = tmp_path / "out"
    config = replace(little(), interp_audio=None)  # says temporal, which this file is not
    pretrained.make(out, config, sources(published) | {"vae": str(tmp_path / "vae")})
    made = load_config(Config, out)
    assert (made.vae.temporal, made.vae.post_quant_conv) == (False, True)
    model = pretrained.KeyFace.load_frozen(out)
    images, latents = torch.randn(2, 3, 64, 64), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = theirs.encode(images).latent_dist, theirs.decode(latents).sample
    posterior = model.vae.encode(images)
    torch.testing.assert_close(posterior.mean, expected[0].mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.logvar, expected[0].logvar, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.vae.decode(latents), expected[1], atol=1e-4, rtol=1e-4)
    for name, value in model.parts()["wavlm"].state_dict().items():
        assert value.equal(original.parts()["wavlm"].state_dict()[name]), name
    tensors = older = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                      ("to_out.0", "proj_attn")):
        older = {k.replace(f".{new}.", f".{name}."): v for k, v in older.items()}
    assert len(older.keys() - tensors.keys()) == 16
    ours, others = released.autoencoder(tensors), released.autoencoder(older)
    assert ours.keys() == others.keys() and all(ours[k].equal(others[k]) for k in ours)


@pytest.mark.parametrize("part, source, reason", [
    ("vae", "nowhere", "--vae nowhere: no such file or folder, nor a name on huggingface.co"),
    ("vae", "checkpoints", "--vae .*checkpoints: holds no vae/diffusion_pytorch_model.* nor"),
    ("vae", "wav2vec2-base-960h/model.safetensors", "model.safetensors: not the weights that"),
    ("beats", "microsoft/beats",
     "--beats microsoft/beats: microsoft/beats cannot be reached; get ")])
def test_parts_that_are_not_there(hub, published, tmp_path, capsys, monkeypatch,  # noqa: F811
                                  part, source, reason):
    hub.trouble["microsoft"] = bare(errors.LocalEntryNotFoundError)
    monkeypatch.setattr(pretrained, "named_config", lambda _: replace(little(), interp_audio=None))
    there = published / source
    given = {"vae": str(published)} | sources(published) | {
        part: str(there) if there.exists() else source}
    options = [f"--{name}={value}" for name, value in given.items()]
    assert cli.run(pretrained.main, [str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(reason, said), said
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_command_takes_the_parts_and_the_size_that_fit_each_other(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(pretrained, "make", lambda *asked: made.append(asked))
    own = ["--vae=mine", "--config=tiny"]
    for options, size, vae, svd in (([], "small", pretrained.SOURCES["vae"], None),
                                    (["--svd=theirs"], "full", "theirs", "theirs"),
                                    (["--svd=theirs", *own], "tiny", "mine", "theirs")):
        pretrained.main([str(tmp_path), *options])
        out, config, parts, given = made.pop()
        assert (out, config, given) == (tmp_path, scaling.named_config(size), svd)
        assert parts == pretrained.SOURCES | {"vae": vae}


# ---- SVD's network ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["keyframe", "interp"])
def test_a_stage_of_full_size_begins_as_svd(name):
    """Names and shapes of SVD's file; what begins anew and what is frozen, against the lists."""
    with torch.device("meta"):
        stage = Stage(getattr(scaling.finetuned(Config()), name))
        vae = VAE(VAEConfig.tiny())
        given = {k: torch.empty(s) for k, s in KEYS["svd_diffusers"]["unet"].items()}
        fresh = pretrained.begin(stage, Path("unet"), released.renamed("keyframe", given))
    own = {"audio_proj.weight", "audio_proj.bias"}
    own |= {"learned_mask"} if name == "interp" else set()
    differs = KEYS["map_svd"]["shape_differs"][name]
    assert fresh == own | {f"unet.{k}" for k in differs}
    scaling.fitted(stage, vae, False)
    kept = [p.numel() for p in stage.parameters() if not p.requires_grad]
    learnt = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    counts = KEYS[name]["trainable"]
    assert (len(kept), sum(kept), learnt) == (
        counts["frozen_unet_tensors"], counts["frozen_unet_parameters"],
        counts["trainable_parameters"])
    assert all(p.requires_grad for p in stage.unet.time_embed.parameters())


@pytest.fixture(scope="module")
def svd(original, published):
    """SVD's network beside the published files, as `diffusers` has it; the dictionary in our names.
    The label embedding has other inputs."""
    given = {k: v for k, v in original.keyframe.state_dict().items() if k.startswith("unet.")}
    given["unet.label_emb.0.0.weight"] = torch.ones(32, 6)
    theirs = {KEYS["map_svd"]["unet"][k[5:]]: v.contiguous() for k, v in given.items()}
    (published / "unet").mkdir()
    save_file(theirs, published / "unet" / "diffusion_pytorch_model.safetensors")
    return given


@pytest.fixture(scope="module")
def begun(svd, published, tmp_path_factory):
    """What `--init svd` makes."""
    out = tmp_path_factory.mktemp("begun")
    pretrained.make(out, little(), sources(published) | {"vae": str(published)}, str(published))
    return out


def test_svd_in_its_own_names_is_the_same(svd, begun, published, original, tmp_path):
    whole = {f"model.diffusion_model.{k[5:]}": v for k, v in svd.items()}
    whole |= {f"first_stage_model.{k}": v for k, v in original.vae.state_dict().items()}
    whole |= {"conditioner.embedders.0.open_clip.model.logit_scale": torch.ones(1),
              "conditioner.embedders.3.encoder.quant_conv.weight": torch.ones(1)}
    save_file({k: v.clone() for k, v in whole.items()}, tmp_path / "svd.safetensors")
    file = pretrained.locate("svd", str(tmp_path))
    found, vae = pretrained.network(file), pretrained.frozen("vae", file)
    theirs = pretrained.network(pretrained.locate("svd", str(published)))
    assert found.keys() == theirs.keys() and all(v.equal(theirs[k]) for k, v in found.items())
    for name, value in load_file(begun / "vae.safetensors").items():
        torch.testing.assert_close(value, vae[name], atol=1e-5, rtol=1e-5)
    made = load_file(begun / "interp.safetensors")
    new = {k for k, v in svd.items() if not made[k].equal(v)}
    assert new == {"unet.label_emb.0.0.weight", "unet.input_blocks.0.0.weight"}
    assert made["unet.input_blocks.0.0.bias"].equal(svd["unet.input_blocks.0.0.bias"])
    assert not made["learned_mask"].any() and made["unet.input_blocks.0.0.weight"].all()
    with pytest.raises(InputError, match="svd.safetensors: not the weights that are to be here"):
        pretrained.begin(Stage(Config.tiny().keyframe), file, found)


class MadeUp(SimpleNamespace):
    """Clips that are noise."""

    def batch(self, size: int, step: int, rows: slice) -> Windows:
        draw = torch.Generator().manual_seed(step)
        shapes = (4, 4, 8, 8), (4, 8, 8), (4, 2, 128), (4, 2)
        tensors = (torch.randn(size, *shape, generator=draw) for shape in shapes)
        return Windows(*tensors, [None] * size).rows(rows)


def test_training_goes_on_from_svd(begun, train, tmp_path, monkeypatch):  # noqa: F811
    """Temporal layers stay SVD's to the bit; everything else moves, as far as AdamW's first step
    goes: by a thousandth of the rate, and the decay."""
    clips = MadeUp()
    monkeypatch.setattr(training, "open_data", lambda *_: (clips, clips.batch(1, 0, slice(1))))
    monkeypatch.setattr(training.Run, "measure", lambda _: None)
    monkeypatch.setattr(Windows, "pictures", lambda _, count, frame: torch.zeros(count, 3, 64, 64))
    state = train(train_keyframe, tmp_path / "out", f"--init={begun}", "--steps=1", "--batch=2",
                  "--bf16",
                  "--accumulate=2", "--lr=1e-3")
    before = load_file(begun / "keyframe.safetensors")
    learnt = {k for k in before if "time_" not in k or "time_embed" in k}
    for key, value in state["stage"].items():
        moved = (value - before[key]).abs().max()
        assert moved <= 1.1e-6 and (moved == 0 or key in learnt), key
    assert sum(not state["stage"][k].equal(before[k]) for k in learnt) > 0.9 * len(learnt)


def test_published_weights_by_name(hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    """--init svd and --init released: made once, beside weights/tiny, to be finetuned."""
    made = []
    for module in (pretrained, scaling):
        monkeypatch.setattr(module, "named_config", lambda name: little())

    def note(folder, config, *_):
        made.append((folder.name, config))
        folder.mkdir(parents=True)
        (folder / "config.json").touch()

    monkeypatch.setattr(pretrained, "make", note)
    monkeypatch.setattr(released, "convert", lambda _, out, dtype, config: note(out, config))
    for name in ("svd", "released", "svd"):
        args = SimpleNamespace(init=Path(name), config=None, without=None, out=tmp_path)
        assert scaling.chosen(args).keyframe.finetune
        pretrained.published(args, first=True)
        assert args.init.name == scaling.PUBLISHED[name]
        assert scaling.settled(little(), args.init, args).interp.finetune
    config = scaling.finetuned(little())
    assert made == [("svd", config), ("released-float32", config)]
    args = SimpleNamespace(init=tmp_path, config=None, without=None)
    pretrained.published(args, first=True)
    assert args.init == tmp_path


# ---- a step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_of_a_step_whole_and_in_parts(parts):
    """Against the published objective, LPIPS aside; and its gradients."""
    fx = Fixture("vae")
    config = VAEConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1)
    vae = VAE(config).requires_grad_(False)
    vae.load_state_dict(fx.weights("sd.first_stage_model."))
    sigma, target = fx["pixel.sigma"], fx["pixel.target"].transpose(1, 2)
    output = fx["pixel.model_output"].view(target.shape).clone().requires_grad_()
    tiny = Config.tiny().interp
    stage = Stage(replace(tiny, lambda_lower=3.0, lambda_eyes=1.0, pixel_weight=1.0,
                          unet=UNetConfig.tiny(in_channels=9, emotion_dim=0, channel_mult=(1,))))
    rows = iter([output[i::parts] for i in range(parts)])
    stage.conditions = lambda *_: SimpleNamespace(keep=lambda *_: None)
    stage.denoise = lambda *_: next(rows)
    stage.distance = lambda vae, a, b: torch.zeros(len(a))
    draws = Draws(sigma, sigma, sigma, torch.zeros_like(target))
    pixels = fx["pixel.original_frames"][:, :, 1]
    losses = torch.zeros(2)
    for part in scaling.parts(parts, target, target, target, None, draws, pixels):
        both = stage(vae, *part, 1)
        (sum(both) / parts).backward()
        losses += torch.stack(both).detach() / parts
    fx.close("pixel.total_mean", sum(losses)[None], 2e-5, 1e-6)
    per_frame = fx["pixel.latent_loss_per_frame"].mean()
    assert losses[0] == pytest.approx(per_frame.item(), rel=1e-5)
    whole = output.grad.clone()
    output.grad = None
    rows = iter([output])
    sum(stage(vae, target, target, target, None, draws, pixels, 1)).backward()
    torch.testing.assert_close(whole, output.grad)


def test_layers_that_are_computed_twice_give_the_same_gradients():
    """And their copy, the average of the weights, computes with weights of its own."""
    torch.manual_seed(0)
    config = Config.tiny().keyframe
    vae, stage = VAE(VAEConfig.tiny()).requires_grad_(False), Stage(config)
    shaken(stage)
    x = torch.randn(1, 2, 4, 16, 16)
    inputs = (vae, x, x[:, 0], torch.randn(1, 2, 2, 128), torch.zeros(1, 2, 2),
              stage.draw(x.shape), torch.zeros(1, 3, 64, 64), 1)
    found = []
    for spared in (False, True):
        stage.config = replace(config, checkpoint_activations=spared)
        scaling.fitted(stage, vae, bf16=False)
        stage.zero_grad()
        sum(stage(*inputs)).backward()
        found.append([p.grad.clone() for p in stage.parameters()])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)
    scaling.fitted(stage, vae, bf16=True)
    copied = training.averaged(stage, 0.9).module
    torch.nn.init.zeros_(copied.unet.out[2].weight)
    torch.nn.init.ones_(copied.unet.out[2].bias)
    known = copied.conditions(x[:, 0], inputs[3], inputs[4])
    out = copied.unet(copied.attach(x, known.concat), torch.ones(2), known.context, known.emotion,
                      2)
    assert out.dtype == torch.bfloat16 and out.eq(1).all()


def test_lpips_where_it_is_installed(monkeypatch):
    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "vgg"

        def forward(self, a, b):
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    config = replace(Config.tiny().keyframe, latent_shape=(4, 32, 32))
    plain = scaling.make_ready(Stage(config), VAE(VAEConfig.tiny()), False)
    assert plain.distance is Stage.distance and scaling.rate(plain, 0.5) == 0.5
    assert scaling.rate(Stage(replace(config, finetune=True)), 0.5) == scaling.LEARNING_RATE
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    stage = scaling.make_ready(Stage(config), VAE(VAEConfig.tiny()), False)
    a, b = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    assert stage.distance(None, a, b).tolist() == [1, 1]
    assert stage.state_dict().keys() == plain.state_dict().keys()
    drawn = scaling.make_ready(Stage(Config.tiny().keyframe), VAE(VAEConfig.tiny()), False)
    assert drawn.distance is Stage.distance

    def offline(**_):
        raise OSError("no route")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline))
    with pytest.raises(InputError, match="VGG16 cannot be downloaded .no route.; connect, or unin"):
        scaling.lpips_distance(torch.device("cpu"))
