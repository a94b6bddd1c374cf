"""Raw pickles are read as numbers, and nothing in them is ever run."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mega_common.files import load_pickle
from tests.helpers.raw_files import python2_pickle, with_old_names

CONTENT = {
    "arrays": [np.arange(6.0).reshape(2, 3), np.array([True, False]), np.asfortranarray(np.eye(3, dtype=np.float32))],
    "names": ["m", "f"],
    "scalar": np.float64(0.25),
    "text": np.array(["a", "bc"]),
    "nested": OrderedDict(n=3, flag=True, nothing=None, pair=(1, 2.5)),
}
WRITERS = {
    "Python 2": python2_pickle,
    "Python 3, protocol 2, old numpy": lambda content: with_old_names(pickle.dumps(content, 2)),
    **{f"protocol {p}": lambda content, p=p: pickle.dumps(content, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_way_of_writing_arrays_is_read(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "seq.pkl"
    path.write_bytes(WRITERS[writer](CONTENT))
    read = load_pickle(path)
    for have, want in zip(read.pop("arrays"), CONTENT["arrays"], strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)
    np.testing.assert_array_equal(read.pop("text"), CONTENT["text"])
    assert read == {name: CONTENT[name] for name in ("names", "scalar", "nested")}


def test_the_python_2_format_of_the_tests_is_genuine() -> None:
    """What the tests write has no trace of Python 3 or of today's numpy, and the plain reader of Python reads it."""
    data = python2_pickle(CONTENT)
    assert b"numpy.core.multiarray" in data
    assert b"_core" not in data
    assert b"_codecs" not in data


class _Runs:
    """On loading, whatever `call` and its arguments are is run."""

    def __init__(self, call: object, *arguments: object):
        self.reduced = (call, arguments)

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("call", [os.system, eval])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int, call: Callable) -> None:
    path, trace = tmp_path / "seq.pkl", tmp_path / "trace"
    command = f"touch {trace}" if call is os.system else f"open({str(trace)!r}, 'w').close()"
    attack = {"poses": [_Runs(call, command)]}
    path.write_bytes(pickle.dumps(attack, protocol))
    with pytest.raises(ValueError, match=rf"it asks for \w+\.{call.__name__},") as error:
        load_pickle(path)
    assert str(path) in str(error.value)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the attack is none, so the test shows nothing"


@pytest.mark.parametrize(
    "name", ["numpy\nload", "numpy.core.multiarray\nfromstring", "builtins\ngetattr", "__builtin__\nopen", "os\npath"]
)
def test_other_names_are_forbidden(tmp_path: Path, name: str) -> None:
    path = tmp_path / "seq.pkl"
    path.write_bytes(f"c{name}\n.".encode())
    with pytest.raises(ValueError, match=name.replace("\n", r"\.")):
        load_pickle(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read as a pickle"),
        (b"no pickle", "cannot be read as a pickle"),
        (python2_pickle(CONTENT)[:-40], "cannot be read as a pickle"),
        (python2_pickle([1, 2]), "holds a list, expected a dict"),
    ],
)
def test_broken_files_are_reported(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "seq.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as error:
        load_pickle(path)
    assert str(path) in str(error.value)
