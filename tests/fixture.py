"""Reading the parity fixtures: numbers from the released model's own code (tests/parity/README.md).

A `Fixture` hands out the tensors of one file and keeps account: `finish()` fails when any tensor
was left unread, so that nothing in a fixture is silently skipped.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

OWN = Path(__file__).parent / "parity"
FOLDER = Path(os.environ.get("KEYFACE_PARITY") or OWN)


def names_at_full_size(name: str) -> dict:
    """The list keys_NAME.json. Lists are facts about the published files, which no other set of
    fixtures changes, so that they are always read from this checkout."""
    return json.loads((OWN / f"keys_{name}.json").read_text())


class Fixture:
    """Tensors and configuration of one fixture.

    `largest` collects (name, error, tolerance) of everything compared, where in the tensor the
    error came nearest to the tolerance.
    """

    def __init__(self, name: str):
        self.name = name
        self.config = json.loads((FOLDER / f"{name}.json").read_text())
        self.tensors = load_file(FOLDER / f"{name}.safetensors")
        self.unread = set(self.tensors)
        self.largest: list[tuple[str, float, float]] = []

    def __getitem__(self, key: str) -> torch.Tensor:
        """A tensor to compute with; weights are stored in float16, exact in float32."""
        self.unread.discard(key)
        tensor = self.tensors[key]
        return tensor.float() if tensor.dtype == torch.float16 else tensor

    def weights(self, prefix: str = "sd.") -> dict[str, torch.Tensor]:
        """All tensors under `prefix`, without it: a state dict."""
        return {k[len(prefix) :]: self[k] for k in self.tensors if k.startswith(prefix)}

    def close(self, key: str, actual: torch.Tensor, atol: float, rtol: float = 0.0) -> None:
        """Compares with the stored result: same shape, |error| <= atol + rtol |expected|."""
        expected = self[key]
        assert actual.shape == expected.shape, f"{self.name} {key}: {actual.shape} {expected.shape}"
        error = (actual.detach().double() - expected.double()).abs().flatten()
        limit = (atol + rtol * expected.double().abs()).flatten()
        worst = (error / limit.clamp(min=1e-30)).argmax()
        self.largest.append((key, error[worst].item(), limit[worst].item()))
        assert (error <= limit).all(), (
            f"{self.name} {key}: largest error {error.max():.2e}, tolerance {atol:g} + {rtol:g} |x|"
        )

    def close_steps(self, key: str, states: Iterable[torch.Tensor], limit: float) -> None:
        """Compares the states of a sampler, each relative to its largest |x|."""
        for i, (x, expected) in enumerate(zip(states, self[key], strict=True)):
            error = ((x - expected).abs().max() / expected.abs().max()).item()
            self.largest.append((key, error, limit))
            assert error <= limit, f"{self.name} {key} step {i}: relative error {error:.1e}"

    def finish(self) -> None:
        """Fails if a tensor of the fixture was never read."""
        unread = sorted(self.unread)
        assert not unread, f"{self.name}: {len(unread)} tensors not read: {unread[:5]} ..."
