"""The code against numbers of the released model (tests/parity/README.md): one test a fixture,
every tensor compared."""

import json
import os
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixture import FOLDER, Fixture, names_at_full_size

import audio
import diffusion
from diffusion import (
    AYS,
    autoguide,
    guide_keyframes,
    keyframe_weights,
    latent_loss,
    loss_weight,
    merge,
    pixel_loss,
    sample,
    scalings,
    schedule,
    training_sigma,
)
from evaluation import mouths
from evaluation.lipreader import LipReader, LipReaderConfig, positions
from keyface import Film, KeyFace, Plan
from stage import (
    Conditions,
    Config,
    Stage,
    StageConfig,
    guidance_parts,
    guided_keyframes,
    guided_segments,
)
from tools.released import autoencoder, renamed
from unet import UNetConfig, sinusoid
from vae import VAE, VAEConfig


@pytest.fixture
def fx(request):
    """The fixture a test is named after; fails if the test left one of its tensors unread."""
    fixture = Fixture(request.node.name.removeprefix("test_"))
    yield fixture
    fixture.finish()


# ---- vae.py (section 6 of the fixtures' README; pixel loss: section 4) ----


def test_vae(fx):
    c, atol = fx.config["config"], fx.config["tolerance"]["atol"]
    vae = VAE(
        VAEConfig(
            ch=c["ch"],
            ch_mult=tuple(c["ch_mult"]),
            num_res_blocks=c["num_res_blocks"],
            z_channels=c["z_channels"],
            scale_factor=fx.config["scale_factor"],
        )
    )
    vae.load_state_dict(fx.weights("sd.first_stage_model."))
    posterior = vae.encode(fx["in.image"])
    fx.close("enc.moments", vae.encoder(fx["in.image"]), atol)
    fx.close("enc.mean", posterior.mean, atol)
    fx.close("enc.logvar", posterior.logvar, atol)
    fx.close("enc.std", posterior.std, atol)
    fx.close("enc.sample", posterior.sample(fx["enc.noise"]), atol)
    z, frames = fx["in.z"], fx.config["shapes"]["T"]
    fx.close("dec.clip", vae.decode(z, frames), atol)
    fx.close("dec.single", vae.decode(z), atol)
    fx.close("dec.single_from_scaled", vae.decode(vae.unscale(fx["in.z_scaled"])), atol)
    assert torch.allclose(vae.scale(z), fx["in.z_scaled"], atol=1e-6)

    pixel = fx.config["pixel"]
    t, frames = pixel["selected_frame"], pixel["T"]
    sigma, output = fx["pixel.sigma"], fx["pixel.model_output"]
    decoded = vae.to_images(output[t::frames])  # (B, 3, H, W)
    fx.close("pixel.decoded_clipped", decoded, atol)
    original = fx["pixel.original_frames"][:, :, t]
    l2 = pixel["weight_pixel"] * pixel_loss(decoded, original, sigma)
    fx.close("pixel.l2", l2[None], atol, 1e-6)
    target = fx["pixel.target"].transpose(1, 2)  # (B, T, 4, h, w)
    output = output.unflatten(0, (-1, frames))
    per_frame = latent_loss(output, target, sigma, pixel["lambda_lower"]).flatten()  # (B*T,)
    fx.close("pixel.latent_loss_per_frame", per_frame, atol, 1e-6)
    fx.close("pixel.total_per_frame", per_frame + l2, atol, 1e-6)
    fx.close("pixel.total_mean", (per_frame + l2).mean()[None], atol, 1e-6)


def diffusers_fixture(name, cls):
    """The fixture of a `diffusers` autoencoder; without a stored one, its numbers computed here."""
    if os.environ.get("KEYFACE_PARITY") or (FOLDER / f"{name}.json").exists():
        return Fixture(name)
    import diffusers

    torch.manual_seed(0)
    config = {"block_out_channels": [32, 64, 64], "layers_per_block": 2, "latent_channels": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3}
    if cls == "AutoencoderKL":
        blocks["up_block_types"] = ["UpDecoderBlock2D"] * 3
    model = getattr(diffusers, cls)(**config, **blocks).eval()
    for parameter in model.parameters():  # none stays at an initial 0 or 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    image, z = torch.rand(3, 3, 32, 32) * 2 - 1, torch.randn(3, 4, 8, 8)
    posterior = model.encode(image).latent_dist
    tensors = {
        "in.image": image,
        "in.z": z,
        "enc.mean": posterior.mean,
        "enc.logvar": posterior.logvar,
        "enc.moments": posterior.parameters,
    }
    if cls == "AutoencoderKL":
        tensors["dec"] = model.decode(z).sample
    else:
        tensors["dec.clip"] = model.decode(z, num_frames=3).sample
        tensors["dec.single"] = model.decode(z, num_frames=1).sample
    tensors |= {f"sd.{k}": v for k, v in model.state_dict().items()}
    fixture = Fixture.__new__(Fixture)
    fixture.name, fixture.tensors, fixture.unread, fixture.largest = name, tensors, set(tensors), []
    fixture.config = {
        "config": config | {"norm_num_groups": 32, "scaling_factor": 0.18215},
        "cls": cls,
        "tolerance": {"atol": 2e-5},
    }
    return fixture


def check_diffusers_vae(fx):
    """Encoder and decoder with weights in `diffusers`' naming; returns (vae, tolerance)."""
    c, atol = fx.config["config"], fx.config["tolerance"]["atol"]
    ch, temporal = c["block_out_channels"][0], "Temporal" in fx.config["cls"]
    vae = VAE(
        VAEConfig(
            ch=ch,
            ch_mult=tuple(n // ch for n in c["block_out_channels"]),
            num_res_blocks=c["layers_per_block"],
            z_channels=c["latent_channels"],
            num_groups=c["norm_num_groups"],
            temporal=temporal,
            quant_conv=True,
            post_quant_conv=not temporal,
            scale_factor=c["scaling_factor"],
        )
    )
    state = autoencoder(fx.weights(), quant_conv=True)
    if temporal and c["layers_per_block"] == 1:
        # diffusers has as many middle blocks as a level; with a single one it skips the attention
        vae.decoder.mid.attn_1 = torch.nn.Identity()
        vae.decoder.mid.block_2.forward = lambda x: x
        vae.decoder.mid.block_2.mix_time = lambda x, frames: x
        state |= {k: v for k, v in vae.state_dict().items() if k.startswith("decoder.mid.block_2.")}
        state = {k: v for k, v in state.items() if not k.startswith("decoder.mid.attn_1.")}
    vae.load_state_dict(state)
    posterior = vae.encode(fx["in.image"])
    fx.close("enc.moments", vae.quant_conv(vae.encoder(fx["in.image"])), atol)
    fx.close("enc.mean", posterior.mean, atol)
    fx.close("enc.logvar", posterior.logvar, atol)
    return vae, atol


def test_the_autoencoder_computes_as_diffusers_does():
    fx = diffusers_fixture("vae_diffusers", "AutoencoderKL")
    vae, atol = check_diffusers_vae(fx)
    fx.close("dec", vae.decode(fx["in.z"]), atol)
    fx.finish()


def test_the_temporal_decoder_computes_as_diffusers_does():
    fx = diffusers_fixture("vae_diffusers_temporal", "AutoencoderKLTemporalDecoder")
    vae, atol = check_diffusers_vae(fx)
    fx.close("dec.clip", vae.decode(fx["in.z"], frames=len(fx["in.z"])), atol)
    fx.close("dec.single", vae.decode(fx["in.z"]), atol)
    fx.finish()


# ---- network, conditioning, diffusion ---------------------------------------------------------


def stage_of(fixture, **overrides):
    """A `Stage` of the sizes in a network fixture's json, without weights."""
    c, shapes = fixture.config["config"], fixture.config["shapes"]
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in c.items()}
    unet = UNetConfig(
        **sizes,
        out_channels=fixture.config["out_channels"],
        emotion_dim=fixture.config["emotion_vector_dim"],
    )
    config = StageConfig(
        unet=unet,
        interpolation=unet.emotion_dim == 0,
        frames=shapes["T"],
        latent_shape=(4, shapes["latent_h"], shapes["latent_w"]),
        **overrides,
    )
    return Stage(config).eval()


def load_network(stage, fixture, factor=1.0):
    stage.unet.load_state_dict({k: factor * v for k, v in fixture.weights().items()})
    if stage.config.interpolation:
        stage.learned_mask.data = factor * fixture["sd_wrapper.learned_mask"]


def check_network(fx):
    stage = stage_of(fx)
    load_network(stage, fx)
    net, seen, tolerance = stage.unet, {}, fx.config["tolerance"]
    b, t = fx.config["shapes"]["B"], fx.config["shapes"]["T"]
    places = {
        "input_blocks.0": net.input_blocks[0][-1],
        "input_blocks.1.0": net.input_blocks[1][0],
        "input_blocks.1.0.time_stack": net.input_blocks[1][0].time_stack,
        "input_blocks.1.1": net.input_blocks[1][1],
        "input_blocks.1.1.time_stack.0": net.input_blocks[1][1].time_stack[0],
        "input_blocks.1.1.transformer_blocks.0": net.input_blocks[1][1].transformer_blocks[0],
        "middle_block": net.middle_block[-1],
        "output_blocks.0": net.output_blocks[0][-1],
        "output_blocks.last": net.output_blocks[-1][-1],
        "time_embed": net.time_embed,
        "label_emb": net.label_emb,
    }
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o))
        for name, module in places.items()
    ]
    emotion = fx["in.y"] if net.config.emotion_dim else None
    fx.close(
        "out", net(fx["in.x"], fx["in.timesteps"], fx["in.context"], emotion, t), tolerance["atol"]
    )
    for hook in hooks:
        hook.remove()
    seen["t_emb"] = sinusoid(fx["in.timesteps"], net.config.model_channels)
    seen["emb"] = seen["time_embed"] + seen["label_emb"]
    for name, value in seen.items():
        expected = fx.tensors[f"mid.{name}"]
        if name.endswith("0.time_stack"):
            value = value.view(expected.shape)  # (B, C, T, h*w)
        elif name.endswith("time_stack.0"):
            value = (
                value.unflatten(0, (b, -1)).transpose(1, 2).reshape(expected.shape)
            )  # (B*h*w, T, C)
        late = name.startswith(("middle", "output"))
        limits = tolerance["mid_atol"]
        fx.close(f"mid.{name}", value, max(limits.values()) if late else min(limits.values()))
    x = fx["e2e.in.x"].transpose(1, 2)  # (B, T, C, h, w)
    known = Conditions(fx["e2e.in.concat"], fx["in.context"], emotion)
    fx.close(
        "e2e.out.denoised",
        stage.denoise(x, fx["e2e.in.sigma"], known).flatten(0, 1),
        tolerance["atol"],
    )


@torch.no_grad()
def test_unet_keyframe(fx):
    check_network(fx)


@torch.no_grad()
def test_unet_interp(fx):
    check_network(fx)


def bare_stage(interpolation, shapes, **overrides):
    """A stage whose network is not used."""
    unet = UNetConfig(
        model_channels=32, channel_mult=(1,), num_res_blocks=1, context_dim=48, emotion_dim=512
    )
    h, w = shapes["latent_h"], shapes["latent_w"]
    return Stage(
        StageConfig(unet=unet, interpolation=interpolation, latent_shape=(4, h, w), **overrides)
    )


@torch.no_grad()
def test_keyframe_input(fx):
    shapes = fx.config["shapes"]
    x = fx["in.x"].unflatten(0, (shapes["B"], shapes["T"]))
    fx.close(
        "out", bare_stage(False, shapes).attach(x, fx["in.concat"]), fx.config["tolerance"]["atol"]
    )


@torch.no_grad()
def test_interp_input(fx):
    shapes, atol = fx.config["shapes"], fx.config["tolerance"]["atol"]
    stage = bare_stage(True, shapes)
    stage.learned_mask.data = fx["in.learned_mask"]
    x = fx["in.x"].unflatten(0, (shapes["B"], shapes["T"]))
    fx.close("out", stage.attach(x, fx["in.concat"]), atol)
    fx.close("drop.out", stage.attach(x, fx["drop.in.concat"]), atol)


@torch.no_grad()
def test_conditioning(fx):
    c = fx.config
    unet = UNetConfig(
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        context_dim=c["audio_out"],
        emotion_dim=2 * c["sin_dim"],
    )
    sizes = {"audio_dim": c["audio_in"], "condition_scale": 1 / c["scale_factor"]}
    stage = Stage(StageConfig(unet=unet, **sizes))
    stage.audio_proj.load_state_dict(fx.weights("sd.embedders.3.linear."))
    tolerance = c["tolerance"]["atol"], c["tolerance"]["rtol"]

    def check(prefix, known):
        fx.close(f"{prefix}.concat", known.concat, *tolerance)
        fx.close(f"{prefix}.crossattn", known.context, *tolerance)
        if known.emotion is not None:
            fx.close(f"{prefix}.vector", known.emotion, *tolerance)

    emotion = torch.stack([fx["in.valence"], fx["in.arousal"]], dim=-1)
    known = stage.conditions(fx["in.cond_frames"], fx["in.audio_emb"], emotion)
    one, none = torch.ones(1), torch.zeros(1)
    check("out.c", known)
    check("out.uc", known.keep(none, none))
    check("out.uc_identity_only", known.keep(none, one))
    check("train.out", known.keep(fx["train.keep_identity"], fx["train.keep_audio"]))
    assert stage.config.drop_identity == c["ucg_rate"]["cond_frames"]
    assert stage.config.drop_audio == c["ucg_rate"]["audio_emb"]

    interp = Stage(StageConfig(unet=replace(unet, emotion_dim=0), interpolation=True, **sizes))
    interp.audio_proj.load_state_dict(fx.weights("interp.sd.embedders.1.linear."))
    ends = fx["interp.in.cond_frames"].transpose(1, 2)  # (B, 2, C, h, w)
    known = interp.conditions(ends, fx["interp.in.audio_emb"])
    check("interp.out.c", known)
    check("interp.out.uc", known.keep(none, none))

    inputs = {"": fx["sin.values"], "cnoise_": fx["sin.cnoise_values"]}
    for name in [n for n in fx.tensors if n.startswith("sin.") and "out" in n]:
        kind, width = name.removeprefix("sin.").split("out")
        values = torch.arange(len(fx[name])) if kind == "frame_" else inputs[kind]
        fx.close(name, sinusoid(values, int(width)), *tolerance)


@torch.no_grad()
def test_diffusion(fx):
    c, atol, rtol = fx.config, fx.config["tolerance"]["atol"], fx.config["tolerance"]["rtol"]
    t = c["shapes"]["T"]
    for name, value in zip(("c_skip", "c_out", "c_in", "c_noise"), scalings(fx["scaling.sigma"])):
        fx.close(f"scaling.{name}", value, atol, rtol)
    fx.close("weight.lambda", loss_weight(fx["scaling.sigma"]), atol, rtol)
    fx.close(
        "sigma_sampling.sigma",
        training_sigma(fx["sigma_sampling.normal"], c["p_mean"], c["p_std"]),
        atol,
        rtol,
    )
    for name, evaluations in c["evaluations"].items():
        levels = schedule(int(name[1:]))
        fx.close(f"ays.{name}", levels, atol, rtol)
        assert len(levels) - 1 == evaluations
    assert list(AYS) == c["ays_table"]

    # Guidance: how the three evaluations are batched, and how results are combined.
    kf, weights = "guide.kf", keyframe_weights(c["ref_ratio"], c["audio_ratio"])
    fx.close(
        f"{kf}.out", guide_keyframes(fx[f"{kf}.in"], weights), atol, rtol
    )
    bad, good = fx["guide.karras.in"].chunk(2)
    fx.close("guide.karras.out", autoguide(bad, good, c["karras_scale"]), atol, rtol)
    known = Conditions(*(fx[f"{kf}.prep.in.c.{k}"] for k in ("concat", "crossattn", "vector")))
    nothing = Conditions(*(fx[f"{kf}.prep.in.uc.{k}"] for k in ("concat", "crossattn", "vector")))
    x = fx[f"{kf}.prep.in.x"][None]  # (1, T, C, h, w)
    stacked = Conditions.stack(guidance_parts(known, nothing))
    for k, value in zip(
        ("concat", "crossattn", "vector"), (stacked.concat, stacked.context, stacked.emotion)
    ):
        fx.close(f"{kf}.prep.out.{k}", value, atol, rtol)
    seen = {}

    def record(x, sigma, conditions):
        seen.update(x=x.flatten(0, 1), sigma=sigma.repeat_interleave(t))
        return x

    level = fx[f"{kf}.prep.out.sigma"]
    guided_keyframes(record, known, 2.0, 5.0)(x, level[0])
    for k, value in seen.items():
        fx.close(f"{kf}.prep.out.{k}", value, atol, rtol)

    # Whole trajectories on a linear stand-in for the network.
    def linear(w):
        def denoise(x, sigma, conditions):
            c_skip, c_out, c_in, c_noise = (s.view(-1, 1, 1, 1, 1) for s in scalings(sigma))
            f = torch.einsum("oi,btihw->btohw", w, c_in * x) + fx["traj.b"].view(4, 1, 1) * c_noise
            f = f + fx["traj.e"][0] * conditions.concat[:, None, :4]
            f = f + fx["traj.e"][1] * conditions.context[..., :4, None, None]
            return c_skip * x + c_out * f

        return denoise

    def check_steps(name, noise, denoise, steps=10):
        states = (x.flatten(0, 1) for x in sample(denoise, noise, schedule(steps)))
        fx.close_steps(name, states, 1e-5)

    good = linear(fx["traj.W"])
    known = Conditions(*(fx[f"traj.c.{k}"] for k in ("concat", "crossattn", "vector")))
    noise = fx["traj.noise"][None]

    def plain(x, sigma):
        return good(x, sigma.expand(len(x)), known)

    check_steps("traj.plain.steps", noise, plain)
    check_steps("traj.plain25.steps", noise, plain, 25)
    check_steps(
        "traj.kf.steps", noise, guided_keyframes(good, known, c["ref_ratio"], c["audio_ratio"])
    )
    known = Conditions(fx["traj.karras.c.concat"], fx["traj.karras.c.crossattn"], None)
    noise = fx["traj.karras.noise"].unflatten(0, (-1, t))
    guided = guided_segments(good, known, c["karras_scale"], linear(fx["traj.W_bad"]), known)
    check_steps("traj.karras.steps", noise, guided)

    # The loss on given results, and a whole training step on the linear network.
    target, sigma = fx["loss.target"].transpose(1, 2), fx["loss.sigma"]
    for lower in (1, 2, 3):
        loss = latent_loss(fx["loss.model_output"].view_as(target), target, sigma, lower)
        fx.close(f"loss.lower{lower}.per_frame", loss.flatten(), atol, rtol)
        fx.close(f"loss.lower{lower}.mean", loss.mean()[None], atol, rtol)
    noisy = target + sigma.view(-1, 1, 1, 1, 1) * fx["loss.step.noise"].transpose(1, 2)
    denoised = good(
        noisy, sigma, Conditions(fx["loss.step.concat"], fx["loss.step.crossattn"], None)
    )
    loss = latent_loss(denoised, target, sigma, 3)
    fx.close("loss.step.lower3.per_frame", loss.flatten(), atol, rtol)
    fx.close("loss.step.lower3.mean", loss.mean()[None], atol, rtol)
    fx.close("merge.out", merge(fx["merge.in"]), atol, rtol)


def check_sampling(fx, stage, latents, guided, emotion=None):
    """Conditions, then every step of the sampler; returns the tolerance of the last."""
    c = fx.config
    known = stage.conditions(latents, fx["in.audio_emb"], emotion)
    none = torch.zeros(1)
    for prefix, value in (("c", known), ("uc", known.keep(none, none))):
        fx.close(f"{prefix}.concat", value.concat, 1e-5, 1e-5)
        fx.close(f"{prefix}.crossattn", value.context, 1e-5, 1e-5)
        if value.emotion is not None:
            fx.close(f"{prefix}.vector", value.emotion, 1e-5, 1e-5)
    noise = fx["in.noise"].unflatten(0, (c["shapes"]["S"], c["shapes"]["T"]))
    limit = c["tolerance"]["relative_to_largest_x_of_the_step"]
    steps = list(sample(guided(known), noise, schedule(c["num_steps"])))
    assert len(steps) == c["network_evaluations"]
    fx.close_steps("steps", [x.flatten(0, 1) for x in steps], limit)
    limit *= fx["out.z"].abs().max().item()
    fx.close("out.z", steps[-1].flatten(0, 1), limit)
    return limit


def generator(monkeypatch, tokens, noise, **stages) -> KeyFace:
    """One with the released model's settings and these stages, which hears these tokens and draws
    this noise."""
    model = KeyFace(Config.tiny())
    model.config = replace(
        Config(), **{name: stage.config for name, stage in stages.items() if "bad" not in name})
    model.audio = model.interp_audio = SimpleNamespace(
        encode=lambda wave, start, stop: tokens[start:stop])
    for name, stage in stages.items():
        setattr(model, name, stage)
    monkeypatch.setattr(diffusion, "seeded_noise", lambda *_: noise)
    return model


def film(model, plan: Plan, identity, emotion=None) -> Film:
    """One with the model's own steps and guidance."""
    c = model.config
    return Film(plan, identity, torch.zeros(1), None, emotion, c.steps, c.id_guidance,
                c.audio_guidance, c.autoguidance, 0, lambda *_: None)


@torch.no_grad()
def test_sample_keyframe(fx, monkeypatch):
    network, g = Fixture("unet_keyframe"), fx.config["guidance"]
    stage = stage_of(
        network,
        audio_dim=fx["in.audio_emb"].shape[-1],
        condition_scale=1 / fx.config["scale_factor"],
    )
    load_network(stage, network)
    stage.audio_proj.load_state_dict(fx.weights("cond.sd.embedders.3.linear."))
    emotion = torch.stack([fx["in.valence"], fx["in.arousal"]], dim=-1)  # (1, T, 2)
    limit = check_sampling(
        fx,
        stage,
        fx["in.cond_frames"],
        emotion=emotion,
        guided=lambda known: guided_keyframes(
            stage.denoise, known, g["id_guidance"], g["audio_guidance"]
        ),
    )
    # The same by the generator, for which a keyframe stands for 13 frames.
    tokens, emotion = (x[0].repeat_interleave(13, 0) for x in (fx["in.audio_emb"], emotion))
    model = generator(monkeypatch, tokens, fx["in.noise"][None], keyframe=stage)
    t = fx.config["shapes"]["T"]
    plan = Plan(13 * (t - 1) + 1, 13, t, dummy_first=False)
    made = film(model, plan, fx["in.cond_frames"], emotion)
    fx.close("out.z", model.sample_keyframes(made, 0), limit)


@torch.no_grad()
def test_sample_interp(fx, monkeypatch):
    network = Fixture("unet_interp")
    stages = []
    for factor in (1.0, 0.9):  # the bad network is the good one times 0.9
        stage = stage_of(
            network,
            audio_dim=fx["in.audio_emb"].shape[-1],
            condition_scale=1 / fx.config["scale_factor"],
        )
        load_network(stage, network, factor)
        stage.audio_proj.load_state_dict(fx.weights("cond.sd.embedders.1.linear."))
        stages.append(stage)
    good, bad = stages
    weight = fx.config["guidance"]["autoguidance"]
    ends = fx["in.cond_frames"].transpose(1, 2)  # (S, 2, C, h, w)
    limit = check_sampling(
        fx,
        good,
        ends,
        guided=lambda known: guided_segments(good.denoise, known, weight, bad.denoise, known),
    )
    # The same by the generator, a film for each segment: nothing is averaged.
    t, found = fx.config["shapes"]["T"], []
    for keys, tokens, noise in zip(ends, fx["in.audio_emb"], fx["in.noise"].split(t)):
        model = generator(monkeypatch, tokens, noise, interp=good, interp_bad=bad)
        plan = Plan(t, t - 1, t, dummy_first=False)
        found.append(model.sample_segments(film(model, plan, keys[:1]), 0, keys))
    fx.close("out.z", torch.cat(found), limit)


def test_the_default_configuration_is_the_released_models():
    """Settings that the fixtures above are given by hand."""
    told = {name: json.loads((FOLDER / f"{name}.json").read_text())
            for name in ("diffusion", "vae", "sample_keyframe", "sample_interp")}
    config, scale = Config(), told["vae"]["scale_factor"]
    assert config.vae.scale_factor == scale
    for stage, name in ((config.keyframe, "sample_keyframe"), (config.interp, "sample_interp")):
        assert (stage.p_mean, stage.p_std) == (told["diffusion"]["p_mean"],
                                               told["diffusion"]["p_std"])
        assert stage.sigma_max == told["diffusion"]["ays_table"][0]
        assert stage.condition_scale == 1 / scale and not stage.blend and not stage.without
        assert stage.lambda_eyes == stage.pixel_share == 1
        assert config.steps == told[name]["num_steps"]
        for weight, value in told[name]["guidance"].items():
            assert getattr(config, weight) == value
        # Stable Video Diffusion has 5, 10, 20 and 20 heads on its levels.
        unet = stage.unet
        heads = [n * unet.model_channels / unet.num_head_channels for n in unet.channel_mult]
        assert heads == [5, 10, 20, 20]
    pixel = told["vae"]["pixel"]
    assert config.keyframe.lambda_lower == pixel["lambda_lower"] and config.interp.lambda_lower == 2
    assert config.keyframe.pixel_weight == pixel["weight_pixel"] and not config.interp.pixel_weight
    assert config.dummy_first and not config.average_shared
    assert {a.mapping for a in (config.audio, config.interp_audio)} == {"released"}
    assert (config.audio.speech, config.interp_audio.speech) == ("wavlm", "wav2vec2")
    from transformers import WavLMConfig

    theirs = WavLMConfig()
    assert all(getattr(theirs, f.name) == getattr(config.audio.wavlm, f.name)
               for f in fields(config.audio.wavlm) if f.name != "conv_dim")


def sizes_of(config_class, given: dict):
    """A config of the fixture's sizes, and the settings that `config_class` holds fixed."""
    names = {f.name for f in fields(config_class)}
    return (
        config_class(**{k: v for k, v in given.items() if k in names}),
        {k: v for k, v in given.items() if k not in names},
    )


def recorded(modules: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """A dictionary that the output of each module will be found in, under its name."""
    outputs = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, y, name=name: outputs.__setitem__(name, y))
    return outputs


def check_index(fx, counts: dict, features: str) -> None:
    """`map.T*`, `out.index`: which feature becomes which of two tokens a frame."""
    def taken(count: int, n: int) -> torch.Tensor:
        return audio.stretched(torch.arange(count)[:, None], n).flatten()

    for frames, count in counts.items():
        assert count["samples"] == int(frames) * audio.FRAME_SAMPLES and count["wanted"] == 2 * int(
            frames
        )
        if f"map.T{frames}" in fx.tensors:
            fx.close(f"map.T{frames}", taken(count[features], int(frames)), 0)
    shapes = fx.config["shapes"]
    fx.close("out.index", taken(shapes[features], shapes["T"]), 0)


@torch.no_grad()
def test_beats(fx):
    sizes, fixed = sizes_of(audio.BEATsConfig, fx.config["config"])
    assert fixed.pop("predictor_class") == len(fx["sd.predictor.bias"])
    real, real_fixed = sizes_of(audio.BEATsConfig, fx.config["real_config"])
    assert real == audio.BEATsConfig() and fixed.items() <= real_fixed.items()
    encoder = audio.AudioEncoder(audio.AudioConfig.tiny())
    encoder.events = model = audio.BEATs(sizes)
    model.load_state_dict(renamed("beats", fx.weights()))
    mid = recorded(
        {
            "patch_embedding": model.patch_embedding,
            "layer_norm": model.layer_norm,
            "post_extract_proj": model.post_extract_proj,
            "pos_conv": model.encoder.pos_conv[0],
            "encoder_layer_norm": model.encoder.layer_norm,
            **{f"layer{i}": layer for i, layer in enumerate(model.encoder.layers)},
        }
    )
    tolerance = fx.config["tolerance"]

    raw = audio.fbank(fx["in.wave"][None])
    fx.close("mid.fbank_raw", raw[0], tolerance["fbank_raw"])
    spectra = []
    model.patch_embedding.register_forward_pre_hook(lambda _, x: spectra.append(x[0][0, 0]))
    from_wave = model(fx["in.wave"][None])[0]
    fx.close("mid.fbank", spectra[0], tolerance["fbank"])
    fx.close("out.features", from_wave, tolerance["features_from_wave"])
    # The network by itself on the given filterbank, tightly; then everything from the waveform.
    features = model.encode(fx["mid.fbank"][None])
    for name, value in mid.items():
        fx.close(f"mid.{name}", value, tolerance["features_given_mid_fbank"])
    fx.close(
        "mid.position_bias",
        model.encoder.position_bias(features.shape[1]),
        tolerance["features_given_mid_fbank"],
    )
    fx.close("out.features", features[0], tolerance["features_given_mid_fbank"])
    fx.close("out.frames", encoder.events_released(fx["in.wave"]), tolerance["features_from_wave"])

    check_index(fx, fx.config["token_counts"], "tokens")
    for count in fx.config["token_counts"].values():
        n, bands = count["fbank_frames"], fx.config["fbank"]["num_mel_bins"]
        if n < 1e4:
            spectrum = audio.fbank(torch.zeros(1, count["samples"]))
            assert spectrum.shape == (1, n, bands)
            assert model.patch_embedding(spectrum[None]).shape[2] == count["time_patches"]


def speech_encoder(fx, kind: str) -> audio.AudioEncoder:
    """An encoder of the fixture's sizes; fails if a setting `SpeechConfig` lacks differs."""
    sizes, fixed = sizes_of(audio.SpeechConfig, fx.config["transformers_config"])
    config = audio.AudioConfig(
        speech=kind, mapping="released", wavlm=sizes, beats=audio.AudioConfig.tiny().beats
    )
    encoder = audio.AudioEncoder(config)
    for name, value in fixed.items():
        given = getattr(encoder.speech.config, name)
        assert (list(given) if isinstance(given, tuple) else given) == value, name
    return encoder


@torch.no_grad()
def test_wavlm(fx):
    encoder = speech_encoder(fx, "wavlm")
    weights = fx.weights()
    key_map = fx.config["key_map"]
    names = renamed("wavlm", {name: name for name in weights})
    assert names == {ours: name for name, ours in key_map.items()}
    encoder.speech.load_state_dict(renamed("wavlm", weights))
    convolved = recorded({"conv_features": encoder.speech.feature_extractor})
    atol = fx.config["tolerance"]["features"]

    result = encoder.speech(fx["in.wave"][None], output_hidden_states=True)
    fx.close("mid.conv_features", convolved["conv_features"][0].T, atol)
    for i, hidden in enumerate(result.hidden_states):
        fx.close(f"mid.transformers_hidden{i}", hidden[0], atol)
    fx.close("out.features", result.last_hidden_state[0], atol)
    fx.close("out.frames", encoder.speech_released(fx["in.wave"]), atol)
    check_index(fx, fx.config["feature_counts"], "features")


@torch.no_grad()
def test_wav2vec2(fx):
    encoder = speech_encoder(fx, "wav2vec2")
    encoder.speech.load_state_dict(fx.weights())
    tolerance = fx.config["tolerance"]
    hidden = recorded({"hidden": encoder.speech})

    normalised = audio.normalise(fx["in.wave"])
    fx.close("mid.normalized", normalised, **tolerance)
    fx.close("out.frames", encoder.speech_released(normalised), **tolerance)
    fx.close("mid.hidden", hidden["hidden"].last_hidden_state[0], **tolerance)


# ---- evaluation/: the lip reader of LipScore (section 13) ----


@torch.no_grad()
def test_lipreader(fx):
    tolerance = fx.config["tolerance"]
    reader = LipReader(LipReaderConfig(**fx.config["config"])).eval()
    reader.load_state_dict(fx.weights("sd.encoder."))
    points = mouths.smoothed(fx["in.landmarks"].double().numpy())
    found = mouths.patches(fx["in.video"].numpy(), points)
    error = np.abs(found.astype(float) - fx["out.patches"].numpy().astype(float)).mean()
    assert error <= tolerance["out.patches_mean_abs"]
    assert list(mouths.STABLE) == fx.config["stable_points"]["index"]
    assert [list(xy) for xy in mouths.PLACES] == fx.config["stable_points"]["xy_in_256"]
    crops = mouths.normalised(fx["out.patches"].numpy())
    fx.close("mid.normalised", crops, tolerance["mid"])

    modules = {"frontend": reader.frontend, "embed": reader.embed}
    modules |= {f"encoders.{i}": block for i, block in enumerate(reader.encoders)}
    seen = recorded(modules)
    features = reader(crops[None])[0]
    fx.close("mid.frontend", seen["frontend"][0], tolerance["mid.frontend"])
    width = features.shape[1]
    fx.close("mid.embed", seen["embed"][0] * width**0.5, tolerance["mid.embed"])
    fx.close("mid.pos_emb", positions(len(crops), width), tolerance["mid"])
    for i in range(len(reader.encoders)):
        fx.close(f"mid.encoders.{i}", seen[f"encoders.{i}"][0], tolerance["mid"])
    fx.close("out.features", features, tolerance["out.features"])
    rolled = torch.cosine_similarity(features, features.roll(1, 0)).mean()
    fx.close("out.lipscore_rolled", rolled[None], tolerance["out.lipscore_rolled"])


def test_lipreader_names_and_shapes_at_full_size():
    with torch.device("meta"):
        state = LipReader().state_dict()
    assert {f"encoder.{k}": list(v.shape) for k, v in state.items()} == (
        names_at_full_size("lipreader")["shapes"])
