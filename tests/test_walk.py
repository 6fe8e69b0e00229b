"""The walk: its page says what walk.py would write now, numbers and pictures aside.

Nothing is computed: the texts are written again from the template and the modules, and each of
their numbers may be any.
"""

import ast
import re
import shutil
from pathlib import Path

import pytest
import torch

from tools import page
from tools.checkpoint import load_metadata
from tools.cli import WEIGHTS, InputError
from toy.readout import read, ridge

ROOT = Path(__file__).parents[1]
WALK = ROOT / "walk"
TEMPLATE = (WALK / "template.md").read_text()
PAGE = (WALK / "README.md").read_text()


def told_otherwise(text: str) -> list[str]:
    """The lines of the page that are not those of `text`, in which ⟨ ⟩ stands for any number, or
    one of a few words."""
    lines, told = text.splitlines(), PAGE.splitlines()
    wrong = [f"{len(told)} lines, not {len(lines)}"] if len(lines) != len(told) else []
    for line, found in zip(lines, told):
        parts = (re.escape(part) for part in page.VALUE.split(line)[::2])
        if not re.fullmatch(r"(?:[\d.,×+ %-]+?|yes|no|wavlm|wav2vec2)".join(parts), found):
            wrong.append(found)
    return wrong


def test_the_page_is_what_the_walk_would_write():
    assert told_otherwise(page.quoted(TEMPLATE)) == [], "run: python walk.py"


@pytest.mark.parametrize("module, line, change", [
    ("diffusion.py", "    slope = (x - guided", "    slope = (guided"),
    ("stage.py", "mask[:, [0, -1]] = 1", "mask[:, 0] = 1"),
    ("vae.py", "return (z - mean) / std", "return z / std"),
])
def test_code_that_changes_must_be_told_anew(tmp_path, module, line, change):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    text = (tmp_path / module).read_text()
    assert line in text
    (tmp_path / module).write_text(text.replace(line, change))
    try:
        wrong = told_otherwise(page.quoted(TEMPLATE, tmp_path))
    except InputError as error:  # a line by which a quotation is found is gone
        assert module in str(error)
    else:
        assert any(line.strip() in found for found in wrong)


def test_no_number_of_the_prose_is_typed():
    text = re.sub(r"```.*?```|⟪.*?⟫|⟨.*?⟩|\$.*?\$|`[^`]*`|\]\(.*?\)", "", TEMPLATE,
                  flags=re.DOTALL)
    text = re.sub(r"^#.*|^\| ?[\w:]+|^\d+\.|stops? \d+", "", text, flags=re.MULTILINE)
    assert re.findall(r".*\d.*", text) == []


def test_each_value_is_a_name_of_the_walk():
    tree = ast.parse((ROOT / "walk.py").read_text())
    known = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    known |= {a.asname or a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
              for a in node.names}
    for value in page.VALUE.findall(TEMPLATE):
        for node in ast.walk(ast.parse(f'f"""{{{value}}}"""')):
            if isinstance(node, ast.Name):
                assert node.id in known | {"map", "str"}, value


def test_its_pictures_are_there_and_small():
    shown = set(re.findall(r"!\[.+?\]\((.+?)\)", PAGE))
    files = {path.name: path.stat().st_size for path in WALK.glob("*.webp")}
    assert len(shown) == 14 and shown == files.keys()
    assert sum(files.values()) < 3e6
    assert len((ROOT / "walk.py").read_text().splitlines()) <= 450


def test_the_read_outs_are_of_the_shipped_weights():
    path = WALK / "readouts.safetensors"
    assert page.fingerprint(WEIGHTS) in load_metadata(path)["of"], "run: python -m toy.readout"


def test_ridge_finds_a_linear_map():
    torch.manual_seed(0)
    x, weight = torch.randn(200, 5), torch.randn(6, 3)
    assert torch.allclose(ridge(x, read(x, weight), 1e-9), weight, atol=1e-4)
    # By the closed form in one dimension: of centred x, slope = xy / (xx + penalty).
    x = torch.tensor([[-1.0], [1.0]])
    assert torch.allclose(ridge(x, 3 * x, 2.0), torch.tensor([[1.5], [0.0]]))
