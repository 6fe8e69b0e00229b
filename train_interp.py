"""Trains stage 2, interpolation between keyframes, from the keyframe weights in --out, or goes on
from those of --init."""

import sys

from training import Recipe, run

RECIPE = Recipe(name="interp", minutes=25, images=0.0, windows=4000, per_clip=5, learning_rate=1e-3)

if __name__ == "__main__":
    sys.exit(run(RECIPE, __doc__))
