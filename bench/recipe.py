"""How good do the weights become in how many core hours? `python bench/recipe.py DIR DIR ...`

Each DIR is a folder that `python -m toy.recipe --out DIR --hours N` made and evaluated, or
weights/tiny. Printed is a table with a row for each, in the order of its hours; --out is the same
as a figure, with the intervals of the evaluation. Hours are counted as --hours is, by steps, each
with the time that it took on the machine of the shipped weights: so they compare, whatever machine
they came from. Beside them stands what was measured.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, it finds the project

from tools.checkpoint import hashes, read_json
from tools.cli import HERE, WEIGHTS, InputError, Parser, check_output, run
from tools.figures import save_figure
from toy.recipe import PHASES

MEASURES = {  # a row of results/evaluation.json: its name in the figure
    "jaw, correlation over time": "jaw, r",
    "width, correlation over time": "width, r",
    "frames of m, b, p with closed lips": "m, b, p closed",
    "valence, correlation with the curve asked for": "valence, r",
    "the right face among 100": "right face of 100",
    "kind of vocalisation, of 7 and speech": "vocalisation of 8",
}


def measured(folder: Path) -> tuple[float, float, dict[str, dict]]:
    """The core hours of the weights in a folder, as --hours counts and as they were measured, and
    {name in the figure: {"value", "low", "high"}} from 0 to 1. Raises InputError where the recipe
    has not come to its end."""
    record = folder / "recipe.json"
    results = (HERE if folder.resolve() == WEIGHTS else folder) / "results" / "evaluation.json"
    for path in (record, results):
        if not path.exists():
            raise InputError(f"{path}: no such file; python -m toy.recipe --out {folder} makes it")
    phases = read_json(record)
    if lacking := [phase.name for phase in PHASES if phase.name not in phases]:
        raise InputError(f"{record}: lacks {lacking[0]}; the same command makes it")
    hours = sum(phase.hours * phases[phase.name]["steps"] / phase.steps for phase in PHASES)
    took = sum(phase["core_hours"] for phase in phases.values())
    seen = read_json(results)
    rows = {row["measure"]: row for row in seen["rows"]}
    if lacking := [each for each in MEASURES if each not in rows]:
        raise InputError(f'{results}: lacks "{lacking[0]}"; evaluate without options')
    if any(folder.glob("*.safetensors")) and seen["sha256"] != hashes(folder):
        raise InputError(f"{results}: is of other weights than those in {folder}; evaluate anew")
    return hours, took, {name: rows[measure]["generated"] for measure, name in MEASURES.items()}


def main(argv: list[str] | None = None) -> None:
    parser = Parser("bench/recipe.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="made by toy.recipe")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "recipe.png", help="figure")
    args = parser.parse_args(argv)
    check_output(args.out, (".png", ".webp"), "--out")
    found = sorted(map(measured, args.folders), key=lambda each: each[0])
    hours, names = [each for each, *_ in found], list(MEASURES.values())
    print(f"| core hours | measured | {' | '.join(names)} |\n|{' --- |' * (2 + len(names))}")
    for each, took, figures in found:
        cells = [f"{each:.1f}", f"{took:.1f}", *(f"{figures[name]['value']:.2f}" for name in names)]
        print(f"| {' | '.join(cells)} |")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in names:
        values, low, high = ([figures[name][key] for *_, figures in found]
                             for key in ("value", "low", "high"))
        line, = axes.plot(hours, values, marker="o", label=name)
        axes.fill_between(hours, low, high, alpha=.15, color=line.get_color(), linewidth=0)
    axes.set(xscale="log", xticks=hours, xticklabels=[f"{each:.1f}" for each in hours],
             xlabel="core hours of training, as --hours counts", ylim=(0, 1.02),
             ylabel="1 is perfect; shaded: 95 % intervals")
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize="small")
    save_figure(args.out, figure, 120)


if __name__ == "__main__":
    sys.exit(run(main))
