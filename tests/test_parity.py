"""The code against numbers of the released model (tests/parity/README.md): one test a fixture, every tensor compared."""

import json
import os

import pytest
import torch

from fixture import FOLDER, Fixture
from vae import VAE, VAEConfig, from_diffusers


@pytest.fixture
def fx(request):
    """The fixture a test is named after; fails if the test left one of its tensors unread."""
    fixture = Fixture(request.node.name.removeprefix("test_"))
    yield fixture
    fixture.finish()


# ---- vae.py (section 6 of the fixtures' README; pixel loss: section 4) ----

def test_vae(fx):
    c, atol = fx.config["config"], fx.config["tolerance"]["atol"]
    vae = VAE(VAEConfig(ch=c["ch"], ch_mult=tuple(c["ch_mult"]), num_res_blocks=c["num_res_blocks"],
                        z_channels=c["z_channels"], scale_factor=fx.config["scale_factor"]))
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
    weight = (sigma.square() + 1) / sigma.square()                                  # (B,)
    decoded = vae.to_images(output[t::frames])                                      # (B, 3, H, W)
    fx.close("pixel.decoded_clipped", decoded, atol)
    error = (decoded - fx["pixel.original_frames"][:, :, t]).square().mean((1, 2, 3))
    l2 = pixel["weight_pixel"] * (weight * error).mean()
    fx.close("pixel.l2", l2[None], atol, 1e-6)
    target = fx["pixel.target"].transpose(1, 2).flatten(0, 1)                       # (B*T, 4, h, w)
    error = weight.repeat_interleave(frames)[:, None, None, None] * (output - target).square()
    error[:, :, error.shape[2] // 2:] *= pixel["lambda_lower"]
    per_frame = error.mean((1, 2, 3))                                               # (B*T,)
    fx.close("pixel.latent_loss_per_frame", per_frame, atol, 1e-6)
    fx.close("pixel.total_per_frame", per_frame + l2, atol, 1e-6)
    fx.close("pixel.total_mean", (per_frame + l2).mean()[None], atol, 1e-6)


def diffusers_fixture(name, cls):
    """The fixture of a `diffusers` autoencoder; without a stored one, its numbers computed here."""
    if "KEYFACE_PARITY" in os.environ or (FOLDER / f"{name}.json").exists():
        return Fixture(name)
    import diffusers
    torch.manual_seed(0)
    config = {"block_out_channels": [32, 64, 64], "layers_per_block": 2, "latent_channels": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3}
    if cls == "AutoencoderKL":
        blocks["up_block_types"] = ["UpDecoderBlock2D"] * 3
    model = getattr(diffusers, cls)(**config, **blocks).eval()
    for parameter in model.parameters():           # none stays at an initial 0 or 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    image, z = torch.rand(3, 3, 32, 32) * 2 - 1, torch.randn(3, 4, 8, 8)
    posterior = model.encode(image).latent_dist
    tensors = {"in.image": image, "in.z": z, "enc.mean": posterior.mean,
               "enc.logvar": posterior.logvar, "enc.moments": posterior.parameters}
    if cls == "AutoencoderKL":
        tensors["dec"] = model.decode(z).sample
    else:
        tensors["dec.clip"] = model.decode(z, num_frames=3).sample
        tensors["dec.single"] = model.decode(z, num_frames=1).sample
    tensors |= {f"sd.{k}": v for k, v in model.state_dict().items()}
    fixture = Fixture.__new__(Fixture)
    fixture.name, fixture.tensors, fixture.unread, fixture.largest = name, tensors, set(tensors), []
    fixture.config = {"config": config | {"norm_num_groups": 32, "scaling_factor": 0.18215},
                      "cls": cls, "tolerance": {"atol": 2e-5}}
    return fixture


def check_diffusers_vae(fx):
    """Encoder and decoder with weights in `diffusers`' naming; returns (vae, tolerance)."""
    c, atol = fx.config["config"], fx.config["tolerance"]["atol"]
    ch, temporal = c["block_out_channels"][0], "Temporal" in fx.config["cls"]
    vae = VAE(VAEConfig(ch=ch, ch_mult=tuple(n // ch for n in c["block_out_channels"]),
                        num_res_blocks=c["layers_per_block"], z_channels=c["latent_channels"],
                        num_groups=c["norm_num_groups"], temporal=temporal, quant_conv=True,
                        post_quant_conv=not temporal, scale_factor=c["scaling_factor"]))
    state = from_diffusers(fx.weights())
    if temporal and c["layers_per_block"] == 1:
        # diffusers has as many middle blocks as a level; with a single one it skips the attention
        vae.decoder.mid.attn_1 = torch.nn.Identity()
        vae.decoder.mid.block_2.forward = lambda x, frames: x
        state |= {k: v for k, v in vae.state_dict().items() if k.startswith("decoder.mid.block_2.")}
        state = {k: v for k, v in state.items() if not k.startswith("decoder.mid.attn_1.")}
    vae.load_state_dict(state)
    posterior = vae.encode(fx["in.image"])
    fx.close("enc.moments", vae.quant_conv(vae.encoder(fx["in.image"])), atol)
    fx.close("enc.mean", posterior.mean, atol)
    fx.close("enc.logvar", posterior.logvar, atol)
    return vae, atol


def test_vae_diffusers():
    fx = diffusers_fixture("vae_diffusers", "AutoencoderKL")
    vae, atol = check_diffusers_vae(fx)
    fx.close("dec", vae.decode(fx["in.z"]), atol)
    fx.finish()


def test_vae_diffusers_temporal():
    fx = diffusers_fixture("vae_diffusers_temporal", "AutoencoderKLTemporalDecoder")
    vae, atol = check_diffusers_vae(fx)
    fx.close("dec.clip", vae.decode(fx["in.z"], frames=len(fx["in.z"])), atol)
    fx.close("dec.single", vae.decode(fx["in.z"]), atol)
    fx.finish()


def test_vae_names_and_shapes_at_full_size():
    with torch.device("meta"):
        state = VAE(VAEConfig.full()).state_dict()
    names = json.loads((FOLDER / "keys_map_svd.json").read_text())["vae"]
    assert {k: list(v.shape) for k, v in state.items()} == {
        k.removeprefix("first_stage_model."): shape
        for k, shape in json.loads((FOLDER / "keys_vae.json").read_text())["shapes"].items()
        if k.startswith("first_stage_model.")}
    assert list(from_diffusers({names[k]: v for k, v in state.items()})) == list(state)
