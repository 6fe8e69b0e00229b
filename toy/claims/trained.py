"""The claims for which something is trained."""

from pathlib import Path

from toy.claims.measure import Claim

CLAIMS: tuple[Claim, ...] = ()


def chained(weights: Path) -> Path | None:
    """A model that goes on from its own last frame, trained on the parts of that folder; None where
    it has not been trained."""
    return None
