"""Fixtures that several test files share, and the `slow` mark."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.toy import write_toy_weights

_SLOW = Path(__file__).parent / "slow"


def pytest_collection_modifyitems(items) -> None:
    """Everything in tests/slow is slow; elsewhere single tests are marked."""
    for item in items:
        if item.path.is_relative_to(_SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _log_handlers() -> Iterator[None]:
    """Hydra's handlers write to the standard output of the test in which they were made: no later test may see them."""
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers


@pytest.fixture(scope="session")
def toy_weights(tmp_path_factory) -> Path:
    """A weights folder with a small made-up tokenizer and image model."""
    return write_toy_weights(tmp_path_factory.mktemp("toy_weights"))
