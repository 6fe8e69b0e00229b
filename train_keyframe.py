"""Trains stage 1, keyframe generation: `python train_keyframe.py --minutes 15`."""

import sys

from training import Recipe, run

RECIPE = Recipe(name="keyframe", minutes=45, images=0.15, windows=2400, per_clip=2)

if __name__ == "__main__":
    sys.exit(run(RECIPE, __doc__))
