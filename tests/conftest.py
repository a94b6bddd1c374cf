"""Fixtures that several test files share."""

from pathlib import Path

import pytest

from tests.helpers.toy import write_toy_weights


@pytest.fixture(scope="session")
def toy_weights(tmp_path_factory) -> Path:
    """A weights folder with a small made-up tokenizer and image model."""
    return write_toy_weights(tmp_path_factory.mktemp("toy_weights"))
