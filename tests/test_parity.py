"""The code against numbers of the released model (tests/parity/README.md): one test a fixture, every tensor compared."""

import pytest
import torch

from fixture import Fixture


@pytest.fixture
def fx(request):
    """The fixture a test is named after; fails if the test left one of its tensors unread."""
    fixture = Fixture(request.node.name.removeprefix("test_"))
    yield fixture
    fixture.finish()
