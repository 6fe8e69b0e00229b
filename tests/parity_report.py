"""How near the code comes to the released model's numbers: `python -m tests.parity_report`.

Runs tests/test_parity.py and prints a table: for each fixture how many tensors were compared, and
of them the one that came nearest to its tolerance.
"""

import sys
from pathlib import Path
from unittest import mock

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # where the tests find it, too

from fixture import Fixture


def table(rows: dict[str, list[tuple[str, float, float]]]) -> str:
    """Markdown from `Fixture.largest` of each fixture."""
    lines = ["| fixture | tensors | nearest to its tolerance | largest error | tolerance |",
             "| --- | --- | --- | --- | --- |"]
    for name, largest in sorted(rows.items()):
        key, error, tolerance = max(largest, key=lambda row: row[1] / (row[2] or 1))
        count = len({key for key, *_ in largest})
        lines.append(f"| `{name}` | {count} | `{key}` | {error:.1e} | {tolerance:.1e} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the table; returns the tests' exit status."""
    rows, finish = {}, Fixture.finish

    def record(fixture: Fixture) -> None:
        rows[fixture.name] = fixture.largest
        finish(fixture)

    with mock.patch.object(Fixture, "finish", record):
        status = pytest.main(["-q", str(Path(__file__).with_name("test_parity.py"))])
    print(f"\n{table(rows)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
