"""How the house is built: which module may import which, and how large the whole may be.

Imports are read from the source, those inside functions too; none is carried out. What a module
starts by other means (`python -m ...`, a name put together at run time) is not seen.
"""

import ast
import symtable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APART = ("app", "walk")  # a page and a guided walk, which come on top of the method
ROWS = (  # of the root: a module may import what stands in a row below its own, never beside it
    ("sample", "train_keyframe", "train_interp", *APART),
    ("training",),
    ("data",),
    ("keyface",),
    ("stage",),
    ("unet", "vae", "audio", "diffusion", "emotion"),
)
ROW = {name: i for i, names in enumerate(ROWS) for name in names}
FOLDERS = ("tools", "evaluation", "toy", "bench", "tests")
MODELLED = tuple(f"tools.{name}" for name in ("released", "pretrained", "scaling", "describe",
                                              "prepare", "begin"))  # which know the networks
WORLD = ("toy.world", "toy.vocalisations")  # what the drawn world holds and how it looks
COMMANDS = ROWS[0]  # what is run, so that nothing hangs on it


def sources() -> dict[str, str]:
    """The text of each module, by the name it is imported under. The tests' own folder is on the
    path, and so its modules have no folder in their names."""
    paths = [*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))]
    found = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[1:] if parts[0] == "tests" else parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


@cache
def asked_for(text: str) -> list[tuple[str, str]]:
    """(module, name in it) of each import in a text; the name is "" where there is none."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"imports are written with whole names here: {node.module}"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def imports(modules: dict[str, str]) -> dict[str, set[str]]:
    """Which of the given modules each of them imports, wherever in its text."""
    found = {}
    for module, text in modules.items():
        inner = [(outer, f"{outer}.{name}") for outer, name in asked_for(text)]  # maybe a module
        found[module] = {b if b in modules else a for a, b in inner} & modules.keys()
    return found


def place(module: str) -> str:
    """The folder a module is in: "root", one of FOLDERS."""
    folder = module.split(".")[0]
    if folder in FOLDERS[:-1]:
        return folder
    return "root" if folder in ROW else "tests"


def allowed(module: str, other: str) -> bool:
    """Whether the first may import the second."""
    here, there = place(module), place(other)
    if here == "tests":
        return True
    if other in COMMANDS or there == "tests":
        return False
    if there == "tools":
        return True
    if here == "root":  # the page may show the drawn world, too
        downwards = there == "root" and ROW[module] < ROW[other]
        return downwards or (module == "app" and there == "toy")
    if here == "tools":  # some of them work with the networks, and one knows the drawn world
        return (module in MODELLED and there == "root" and other not in ("training", "data")
                or (module, other) == ("tools.prepare", "toy.world"))
    if here == "evaluation":  # it measures films, of whatever network, and knows the toy's judges
        return there == here or other in ("toy.evaluation.judges", *WORLD)
    return there in ("root", "toy", "evaluation") or (here == there == "bench")


def wrong(arrows: dict[str, set[str]]) -> list[str]:
    return sorted(f"{module} -> {other}" for module, others in arrows.items() for other in others
                  if not allowed(module, other))


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, the first of them at its end again; [] if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@cache
def names_in(text: str) -> set[str]:
    """What the text of a module defines or imports at its outermost level."""
    table = symtable.symtable(text, "", "exec")
    return {name.get_name() for name in table.get_symbols()
            if name.is_assigned() or name.is_imported() or name.is_namespace()}


def missing(modules: dict[str, str]) -> list[str]:
    """What modules ask of each other that is not there, by its own name or as `module.name`."""
    found = set()
    for module, text in modules.items():
        asked, known_as = asked_for(text), {}
        for outer, name in asked:
            if (inner := f"{outer}.{name}".rstrip(".")) in modules:
                known_as[name or outer] = inner
            elif outer in modules and name not in names_in(modules[outer]):
                found.add(f"{module}: {outer}.{name}")
        nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:  # a name that is also a variable's may be either
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known_as.pop(node.id, None)
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                outer, name = known_as.get(node.value.id), node.attr
                if outer and name not in names_in(modules[outer]) and not name.startswith("__"):
                    found.add(f"{module}: {outer}.{name}")
    return sorted(found)


def test_what_modules_ask_of_each_other_is_there():
    """Also in scripts that no test runs."""
    modules = sources()
    assert missing(modules) == []
    for module, line in (("bench.hour", "from tools.media import nothing"),
                         ("walk", "from tools import media\nmedia.nothing()")):
        name = "tools.media.nothing"
        assert missing(modules | {module: modules[module] + f"\n{line}\n"}) == [f"{module}: {name}"]


def test_each_module_of_the_root_has_its_row():
    names = {path.stem for path in ROOT.glob("*.py")}
    assert names - set(APART) == ROW.keys() - set(APART), "a module came or went: see to ROWS"


def test_arrows_point_down_and_none_goes_in_a_circle():
    arrows = imports(sources())
    assert {"stage", "tools.media"} <= arrows["keyface"]
    assert "toy.world" in arrows["tools.prepare"]
    assert wrong(arrows) == []
    assert circle(arrows) == []


@pytest.mark.parametrize("module, line", [
    ("vae", "from unet import UNet"),  # beside
    ("stage", "    from keyface import KeyFace"),  # above, and out of sight
    ("toy.world", "import sample"),  # a command
    ("bench.unet", "from train_keyframe import main"),
    ("tools.checkpoint", "import stage as s"),
    ("data", "from toy import world"),  # only tools.prepare knows that there is a toy world
    ("tools.prepare", "from data import Clips"),
    ("tools.media", "from toy.voices import speak"),
    ("toy.voices", "from bench import unet"),
    ("audio", "from fixture import FOLDER"),
    ("keyface", "import walk"),
    ("walk", "from toy import readout"),
    ("tools.figures", "from evaluation.mouths import patches"),
    ("evaluation.watch", "from keyface import KeyFace"),
    ("evaluation.mouths", "from toy.evaluation.films import to_tensor"),
])
def test_a_wrong_arrow_is_found(module, line):
    modules = sources()
    modules[module] += f"\n\ndef late():\n{line}\n" if line.startswith(" ") else f"\n{line}\n"
    assert any(arrow.startswith(f"{module} -> ") for arrow in wrong(imports(modules)))


@pytest.mark.parametrize("module, line, through", [
    ("tools.cli", "from tools import media", "tools.media"),
    ("toy.faces", "    from toy.evaluation.films import face_of", "toy.world"),
    ("bench.unet", "from bench.sample import main", "bench.sample"),
    ("toy.world", "from tools import prepare", "tools.prepare"),
])
def test_a_circle_is_found(module, line, through):
    modules = sources()
    modules[module] += f"\n\ndef late():\n{line}\n" if line.startswith(" ") else f"\n{line}\n"
    assert {module, through} <= set(circle(imports(modules)))


def test_the_whole_stays_small():
    lines = {path.name: len(path.read_text().splitlines()) for path in ROOT.glob("*.py")
             if path.stem not in APART}
    assert sum(lines.values()) < 2900
    assert {name: n for name, n in lines.items() if n > 400} == {}
    assert len((ROOT / "README.md").read_text().split()) < 2000
