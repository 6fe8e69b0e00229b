"""The optimizer against the singular values of a matrix, and torch's own."""

import pytest
import torch
from torch import nn

from stage import Config, Stage
from tools import scaling
from tools.muon import Muon, orthogonal
from vae import VAE, VAEConfig


def test_orthogonal_keeps_the_singular_vectors_and_evens_the_values():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 40, generator=generator) * torch.logspace(-1, 0, 12)[:, None]
    for matrix in (x, x.T):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        assert s[0] > 10 * s[-1]
        inner = u.T @ orthogonal(matrix) @ vt.T
        assert ((.65 < inner.diag()) & (inner.diag() < 1.25)).all()
        assert (inner - inner.diag().diag()).abs().max() < 1e-4


def test_steps_as_torch_does(monkeypatch):
    """torch's Muon takes matrices only; bfloat16 is exchanged for float32 in it."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.float())
    generator = torch.Generator().manual_seed(0)
    start, *grads = torch.randn(4, 8, 27, generator=generator)
    theirs, ours = nn.Parameter(start.clone()), nn.Parameter(start.view(8, 3, 3, 3).clone())
    optimizer = torch.optim.Muon([theirs], lr=.02, weight_decay=.01, momentum=.95,
                                 adjust_lr_fn="match_rms_adamw")
    mine = Muon(nn.ParameterList([ours]), .02, ())
    for grad in grads:
        theirs.grad, ours.grad = grad, grad.view(8, 3, 3, 3)
        optimizer.step()
        mine.step()
    assert (ours - start.view_as(ours)).abs().max() > .01
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=1e-5, atol=1e-6)


def test_every_parameter_steps_once():
    vae = VAE(VAEConfig.tiny())
    optimizer = Muon(vae, 1e-3, ("conv_in", "conv_out"))
    muon, adam = (group["params"] for group in optimizer.param_groups)
    assert {*map(id, muon)} | {*map(id, adam)} == {*map(id, vae.parameters())}
    assert len(muon) + len(adam) == len(list(vae.parameters()))
    assert all(p.ndim == 4 for p in muon) and id(vae.decoder.conv_out.weight) in map(id, adam)
    # A first step of AdamW moves every number by the rate, whatever the gradient.
    before = [p.detach().clone() for p in adam]
    for p in vae.parameters():
        p.grad = torch.randn_like(p)
    muon[0].grad = None  # of a part that was not computed
    first = muon[0].detach().clone()
    optimizer.step()
    for p, old in zip(adam, before):
        torch.testing.assert_close((p - old * (1 - 1e-5)).abs(), torch.full_like(p, 1e-3),
                                   rtol=1e-3, atol=1e-6)
    assert torch.equal(first, muon[0]) and len(optimizer.param_groups) == 2
    again = Muon(vae, 1e-3, ("conv_in", "conv_out"))
    again.load_state_dict(optimizer.state_dict())
    assert len(again.state) == len(optimizer.state) == len(list(vae.parameters())) - 1


@pytest.mark.parametrize("name, own", [("keyframe", set()), ("interp", {"learned_mask"})])
def test_the_layers_at_the_ends_of_a_network_are_adamws(name, own):
    stage = Stage(getattr(Config.tiny(), name))
    rest = {id(p) for p in scaling.optimizer(stage, 1e-3).param_groups[1]["params"]}
    matrices = {name for name, p in stage.named_parameters() if p.ndim > 1 and id(p) in rest}
    assert matrices == {
        "audio_proj.weight", "unet.input_blocks.0.0.weight", "unet.time_embed.0.weight",
        "unet.label_emb.0.0.weight", "unet.out.2.weight"} | own
