"""The diffusion: noise levels, preconditioning, losses, guidance, sampler (paper: preliminaries).

EDM (arXiv 2206.00364) with v-prediction, as in Stable Video Diffusion. These are pure functions:
the sampler knows a model only as a function guided(x, sigma) -> D.

B windows (or segments) of T frames, C channels, h x w latent pixels. Latents are (B, T, C, h, w),
noise levels sigma are (B,), in the sampler scalars. D is the denoiser and F the network inside it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

# The latents are scaled to about unit variance, so EDM's sigma_data is 1.
SIGMA_DATA = 1

# Noise levels of "Align Your Steps" (arXiv 2404.14507), optimised for Stable Video Diffusion.
AYS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in, c_noise of D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)."""
    # The noisy latent is x = x0 + sigma n. The network sees it at unit variance,
    #     c_in x = alpha x0 + sigma' n,  alpha = 1 / sqrt(sigma^2 + 1),  sigma' = sigma alpha,
    # and F approximates v = alpha n - sigma' x0. Solving the two for x0 gives
    #     x0 = alpha (c_in x) - sigma' v = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) F,
    # hence the minus of c_out. (EDM's F learns -v, so its c_out has none.) At high noise D is all
    # F's doing (v is about -x0 there), and at low noise nearly all of D is x itself.
    s2 = sigma**2 + SIGMA_DATA**2
    c_skip = SIGMA_DATA**2 / s2
    c_out = -sigma * SIGMA_DATA / s2.sqrt()
    c_in = 1 / s2.sqrt()
    c_noise = sigma.log() / 4
    return c_skip, c_out, c_in, c_noise


def loss_weight(sigma: Tensor) -> Tensor:
    """lambda(sigma) = (sigma^2 + 1) / sigma^2, which is 1 / c_out^2: lambda (D - x0)^2 is then the
    plain squared error (F - v)^2, in which every noise level counts alike."""
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2


def training_sigma(normal: Tensor, p_mean: float, p_std: float) -> Tensor:
    """Noise levels for training, from unit normal numbers: ln sigma ~ N(p_mean, p_std^2)."""
    return torch.exp(p_mean + p_std * normal)


def schedule(steps: int, sigma_max: float = AYS[0]) -> Tensor:
    """The falling noise levels of the sampler and a final 0: (steps + 1,) float64; (12,) for 10."""
    # As in the released code, steps = 10 takes the whole table and so makes 11 evaluations. Any
    # other number (below 10: ours) resamples the table to `steps` levels, linearly in index and
    # ln sigma.
    table = np.log(AYS)
    if steps != 10:
        table = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(AYS)), table)
    # Ours: another sigma_max stretches the table in ln sigma about its lowest level.
    low = math.log(AYS[-1])
    levels = np.exp(low + (table - low) * (math.log(sigma_max) - low) / (math.log(AYS[0]) - low))
    return torch.from_numpy(np.append(levels, 0.0))


def latent_loss(denoised: Tensor, target: Tensor, sigma: Tensor, lambda_lower: float,
                lambda_eyes: float = 1.0) -> Tensor:
    """mean of lambda(sigma) w (D - x0)^2 per frame: (B, T, C, h, w), (B,) -> (B, T)."""
    # The weight w of a row counts the lower half, where the mouth is, lambda_lower times. It is not
    # renormalised to a mean of 1, so lambda_lower = 3 also makes the whole loss about twice as
    # large. Ours: the quarter of the rows above the middle, with the eyes, counts lambda_eyes
    # times.
    h = target.shape[-2]
    w = torch.ones(h, 1, device=target.device)  # (h, 1)
    w[h // 4 : h // 2], w[h // 2 :] = lambda_eyes, lambda_lower
    error = (w * (denoised - target) ** 2).mean(dim=(2, 3, 4))  # (B, T)
    return loss_weight(sigma)[:, None] * error


def pixel_loss(images: Tensor, originals: Tensor, sigma: Tensor) -> Tensor:
    """mean of lambda(sigma) (image - original)^2: (B, 3, H, W), (B,) -> scalar."""
    return (loss_weight(sigma) * ((images - originals) ** 2).mean(dim=(1, 2, 3))).mean()


def keyframe_weights(id_guidance: float, audio_guidance: float) -> tuple[float, float, float]:
    """Guidance of keyframes, D_0 + w_id (D_id - D_0) + w_aud (D_id,aud - D_id), as a weighted sum
    of three evaluations: the weights of D_0, D_id and D_id,aud, whose sum is 1."""
    # D_0 is given neither condition, D_id the identity, D_id,aud identity and audio. The emotion
    # stays in all three and is never dropped, so guidance neither strengthens nor weakens it.
    return 1 - id_guidance, id_guidance - audio_guidance, audio_guidance


def guide_keyframes(denoised: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted sum of k evaluations, stacked along the batch: (k B, ...) -> (B, ...)."""
    return sum(weight * part for weight, part in zip(weights, denoised.chunk(len(weights))))


def autoguide(bad: Tensor, good: Tensor, weight: float) -> Tensor:
    """D_bad + w (D_good - D_bad): away from what an under-trained model does (arXiv 2406.02507)."""
    return bad + weight * (good - bad)


def sample(
    guided: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    sigmas: Tensor,
    after_step: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Euler steps on the probability-flow ODE; yields x after every step, the last is the sample.

    guided(x, sigma) -> D; noise is unit normal; sigmas fall to 0.
    """
    # The start has the variance of a noisy latent, sigma^2 + sigma_data^2.
    x = noise * (SIGMA_DATA**2 + sigmas[0] ** 2).sqrt().to(noise)
    for sigma, following in pairwise(sigmas):
        # dx / dsigma = (x - D(x; sigma)) / sigma. The last step, to sigma = 0, lands on D itself.
        slope = (x - guided(x, sigma.to(x))) / sigma.to(x)
        x = x + (following - sigma).to(x) * slope
        if after_step is not None:
            x = after_step(x)
        yield x


def merge(segments: Tensor) -> Tensor:
    """Lays K segments end to end, shared frames averaged: (K, T, ...) -> (K (T - 1) + 1, ...)."""
    shared = share_ends(segments)
    return torch.cat([shared[:1, 0], shared[:, 1:].flatten(0, 1)])


def share_ends(x: Tensor) -> Tensor:
    """Sets both copies of the frame that neighbouring segments share to their mean: (K, T, ...)."""
    x = x.clone()
    x[1:, 0] = x[:-1, -1] = (x[1:, 0] + x[:-1, -1]) / 2
    return x


def seeded_noise(seed: int, stage: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Unit normal noise that depends on (seed, stage, index) alone, the same on every device.
    stage: 0 for keyframes, 1 for interpolation; index: of the window, or of the segment."""
    # A window's noise thus does not depend on how many windows a recording has.
    state = np.random.SeedSequence((seed, stage, index)).generate_state(1, np.uint64)[0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(state >> np.uint64(1))))
