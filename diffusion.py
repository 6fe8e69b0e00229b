"""The diffusion: noise levels, preconditioning, losses, guidance, sampler (paper: preliminaries).

EDM (arXiv 2206.00364) with sigma_data = 1 and v-prediction, as in Stable Video Diffusion. Pure
functions: to the sampler a model is whatever `guided(x, sigma)` is. Latents are (B, T, C, h, w),
noise levels sigma (B,), of the sampler scalars.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

# Noise levels of "Align Your Steps" (arXiv 2404.14507) for Stable Video Diffusion.
AYS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in, c_noise of D = c_skip x + c_out F(c_in x, c_noise)."""
    s2 = sigma**2 + 1
    return 1 / s2, -sigma / s2.sqrt(), 1 / s2.sqrt(), sigma.log() / 4


def loss_weight(sigma: Tensor) -> Tensor:
    """lambda(sigma) = (sigma^2 + 1) / sigma^2."""
    return (sigma**2 + 1) / sigma**2


def draw_sigma(normal: Tensor, p_mean: float, p_std: float) -> Tensor:
    """Noise levels of training from unit normal numbers: ln sigma ~ N(p_mean, p_std^2)."""
    return torch.exp(p_mean + p_std * normal)


def schedule(steps: int, sigma_max: float = AYS[0]) -> Tensor:
    """Falling noise levels and a final 0, float64. As in the released code steps = 10 takes the
    whole table and so makes 11 evaluations; any other number resamples it to `steps` levels,
    linear in (index, ln sigma)."""
    table = np.log(AYS)
    if steps != 10:
        table = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(AYS)), table)
    # Another sigma_max stretches the table in ln sigma about its lowest level.
    low = math.log(AYS[-1])
    levels = np.exp(low + (table - low) * (math.log(sigma_max) - low) / (math.log(AYS[0]) - low))
    return torch.from_numpy(np.append(levels, 0.0))


def latent_loss(denoised: Tensor, target: Tensor, sigma: Tensor, lambda_lower: float) -> Tensor:
    """mean of lambda(sigma) w_lower (D - x0)^2 a frame: (B, T, C, h, w), sigma (B,) -> (B, T)."""
    weight = torch.ones(target.shape[-2], 1, device=target.device)
    weight[target.shape[-2] // 2 :] = lambda_lower
    error = (weight * (denoised - target) ** 2).mean(dim=(2, 3, 4))
    return loss_weight(sigma)[:, None] * error


def pixel_loss(images: Tensor, originals: Tensor, sigma: Tensor) -> Tensor:
    """mean of lambda(sigma) (image - original)^2; (B, 3, H, W), sigma (B,) -> scalar."""
    return (loss_weight(sigma) * ((images - originals) ** 2).mean(dim=(1, 2, 3))).mean()


def guide_keyframes(denoised: Tensor, id_guidance: float, audio_guidance: float) -> Tensor:
    """D_0 + w_id (D_id - D_0) + w_aud (D_id,aud - D_id), of the three stacked along the batch."""
    neither, identity, both = denoised.chunk(3)
    return neither + id_guidance * (identity - neither) + audio_guidance * (both - identity)


def autoguide(bad: Tensor, good: Tensor, weight: float) -> Tensor:
    """D_bad + w (D_good - D_bad) (arXiv 2406.02507)."""
    return bad + weight * (good - bad)


def sample(
    guided: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    sigmas: Tensor,
    after_step: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Euler steps on the probability-flow ODE; yields x after every step, the last is the sample.

    guided(x, sigma) -> D; noise is unit normal; sigmas fall to 0: the last step returns D itself.
    """
    x = noise * (1 + sigmas[0] ** 2).sqrt().to(noise)
    for sigma, following in pairwise(sigmas):
        slope = (x - guided(x, sigma.to(x))) / sigma.to(x)
        x = x + (following - sigma).to(x) * slope
        if after_step is not None:
            x = after_step(x)
        yield x


def merge(segments: Tensor) -> Tensor:
    """Segments laid end over end, shared frames averaged: (S, T, ...) -> ((S-1)(T-1)+T, ...)."""
    shared = share_ends(segments)
    return torch.cat([shared[:1, 0], shared[:, 1:].flatten(0, 1)])


def share_ends(x: Tensor) -> Tensor:
    """Sets the frame that neighbouring segments share to its copies' mean: (S, T, C, h, w)."""
    x = x.clone()
    x[1:, 0] = x[:-1, -1] = (x[1:, 0] + x[:-1, -1]) / 2
    return x


def seeded_noise(seed: int, stage: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Unit normal noise that depends on (seed, stage, index) alone, the same on every device."""
    state = np.random.SeedSequence((seed, stage, index)).generate_state(1, np.uint64)[0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(state >> np.uint64(1))))
