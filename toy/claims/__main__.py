"""The paper's claims, each by a command: `python -m toy.claims NAME`.

A claim is measured on people, sentences and voices of the test split. Its table and verdict are
printed and kept in results/claims/ (NAME.json, NAME.png), and README.md there is a gallery of all.
The verdict is *reproduced*, *not reproduced*, *no difference seen* or *undecided*. It follows from
95 % intervals by a rule that is stated in the code before anything is measured. Parts that are
finished are kept as they come, so a command that was interrupted goes on; with other weights it
begins anew, and another number of clips than that of a result is refused.
"""

import sys
from argparse import Namespace
from pathlib import Path

from stage import Config
from tools import cli
from tools.checkpoint import load_config, read_json, save_text
from tools.cli import WEIGHTS, InputError, number
from tools.stats import FEW
from toy.claims import sampled, trained
from toy.claims.measure import SPEECH, Claim, Kept, markdown
from toy.claims.variants import STEPS
from toy.evaluation.stats import SMEARED

CLAIMS = {claim.name: claim for claim in (*sampled.CLAIMS, *trained.CLAIMS)}


def options(argv: list[str] | None) -> Namespace:
    parser = cli.Parser("python -m toy.claims", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME",
        help=f"of {', '.join(CLAIMS)}; default: all without a result of these weights")
    add("--weights", type=Path, default=WEIGHTS, help="folder of a trained model, with its judges")
    add("--out", type=Path, default=Path("results/claims"), help="default results/claims")
    add("--clips", type=number(int, 2, 1000), default=20, help="films of each setting (default 20)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in CLAIMS]:
        raise InputError(f'unknown claim "{unknown[0]}"; known: {", ".join(CLAIMS)}')
    return args


def result(out: Path, name: str) -> dict | None:
    """What is kept of a finished claim, of whatever weights."""
    path = out / f"{name}.json"
    found = read_json(path) if path.exists() else {}
    return found if "verdict" in found else None


def carry_out(claim: Claim, kept: Kept) -> None:
    """Measures what is not yet there, and writes NAME.json and NAME.png."""
    print(f"{claim.name}: {claim.says}\nReproduced if: {claim.rule}", flush=True)
    claim.measure(kept)
    verdict, seen, table = claim.judge(kept.parts)
    claim.draw(kept.path.with_suffix(".png"), kept.parts)
    kept.finish(verdict=verdict, seen=seen, table=table)
    print(f"\n{table}\n{seen}\n{claim.name}: {verdict}\n")


def gallery(out: Path) -> str:
    """All claims, from what is kept of those that are finished."""
    rows, figures = [], ""
    for name, claim in CLAIMS.items():
        command = f"`python -m toy.claims {name}`"
        if found := result(out, name):
            rows.append([f"[{name}](#{name})", claim.says, found["seen"], found["verdict"], command,
                         f"[{name}.png]({name}.png)"])
            figures += (f"\n## {name}\n\n{claim.says} Reproduced if: {claim.rule} "
                        f"**{found['verdict'].capitalize()}**, from {found['made with']['clips']} "
                        "films of a model, if no column says otherwise. All that is not trained "
                        f"for this claim is of the weights {found['made with']['weights']}; the "
                        f"last of it was measured by the code {found['version']}.\n\n"
                        f"![{name}]({name}.png)\n\n{found['table']}")
        else:
            rows.append([name, claim.says, "not measured yet", "-", command, "-"])
    head = ["claim", "the paper", "here", "verdict", "command", "figure"]
    return f"""\
# The paper's claims

Each claim is put to the test in the drawn world, over people, sentences and voices of the test
split. The verdict follows by a rule that was written down before (`toy/claims/`); in brackets are
95 % intervals over films (of the share in `emotions` over stretches). A difference is seen where
the interval, and each pair of seeds, lie on one side of the rule's limit. *No difference seen*:
they lie on both sides of 0. *Undecided*: they lie on both sides of a limit that is not 0, or the
model has not learned to follow the sound, so that its films tell nothing. A claim of several parts
gets the weakest of their verdicts: *not reproduced*, then *undecided*, *no difference seen*,
*reproduced*. Two seeds tell little: if a change did nothing, all pairs of two seeds against two
would still favour the side that is said to be better in one case of six, and those of two seeds
against one in one case of three. What is *not judged, but different* is picked from all other
figures, so a difference that is barely one may be chance. The rule of `long` was changed (twice
within half an hour) after films of ours were measured and before any of the chained model: films of
ours lie nearer to a person than the true seconds do, so that the old limit, a share of how much
farther they lie, was negative. What is trained for `long` was trained once, and makes ten films.
`python -m toy.claims` measures what is missing and writes this page, by the rules of today's code.

Models that are trained for a claim learn for {STEPS} steps a stage (twice as long in `mask` and for
`long`'s chained model) and are sampled without a bad model (in `long` without guidance by the
identity, too). The stages that a claim does not train, and *ours* and *longest* in `long`, are
those of the shipped weights. So compare rows of one table only. In `spacing` all see about as many
frames a step, so a wider spacing sees fewer segments, which are longer; guidance and steps are
those that were chosen for 13; and of the 14 keyframes of a film's last window 7 lie beyond its end
with a spacing of 7, 2 with 13 and 1 with 26.

Films of speech last {SPEECH:g} seconds (in `emotions` {sampled.LASTS:g}, in `spacing` a window of
its longest spacing, in `long` as its table says). The figures are of them; those of *NSV* are of
others, {trained.NSV} of each vocalisation. Steps are evaluations of the network, but 10 stands for
the published table of 11 levels.

*jaw*, *width*, *rounding*: correlation of the mouth with the true one along time. *LipScore*:
cosine to the true film in the features of the judges' own lip reader, which is not the paper's.
*distance*: Frechet distance of all frames, as the judges see them (in `long` that of each second of
a film from the drawn person's whole film). *sharpness*: mean absolute Laplacian, over that of the
true film after the autoencoder. *likeness*: cosine of the judge's embedding to the person's.
*smeared*: share of frames less sharp than {SMEARED} of the model's own keyframes around them; the
truth has some, too. *seconds*: processor time for one second of film; tables may be of different
machines. *NSV*: share of vocalisations that are recognised. *asked*: valence and arousal, from -1
to 1; beside them what the judge reads, in the last of the three seconds in which an emotion is
held. *nearest*: share of these stretches that are nearest to the emotion asked for. *Ceiling*: the
true film after the autoencoder. *Strangers*: that of another clip, which is what one gets without
hearing. *Chained*: a model that goes on from its own last frame; *chained to the truth*: the same,
told the true frame in its place; *longest*: ours as shipped, for ten minutes. Weights are named by
a hash of their folder, the code by its commit (*dirty*: with changes that were not committed).

{markdown(head, rows)}{figures}"""


def main(argv: list[str] | None = None) -> None:
    args = options(argv)
    cli.check_shipped(args.weights, "--weights")
    load_config(Config, args.weights)                      # else a mistake is told only much later
    cli.make_folder(args.out)
    if args.clips < FEW:
        cli.warn(f"--clips {args.clips}: fewer than {FEW} films tell little; intervals are wide")
    failed = None
    for name in args.names or CLAIMS:
        try:
            kept = Kept(args.out / f"{name}.json", args.weights, args.clips)
            if args.names or not kept.finished:
                carry_out(CLAIMS[name], kept)
        except InputError as error:                        # of one claim; the others are measured
            failed = failed or error
            cli.warn(f"{name}: {error}")
        save_text(args.out / "README.md", gallery(args.out))
    if failed:
        raise failed
    print(f"wrote {args.out}/README.md")


if __name__ == "__main__":
    sys.exit(cli.run(main))
