"""Runs a training script that gets a signal in the middle of writing a state, at the same moment every time.

    python -m tests.slow.interrupted SIGKILL 3 train_mega.py key=value …

The signal comes when the third training state is written, but has not taken its place yet. A signal sent from outside
would come earlier or later, depending on how busy the machine is.
"""

import os
import runpy
import signal
import sys
from itertools import count
from pathlib import Path

from mega.training.checkpoints import LAST


def main() -> None:
    """The signal's name, the number of the state, the script and its options are the command line's."""
    name, which, *sys.argv = sys.argv[1:]
    replace, states = Path.replace, count(1)

    def interrupted(path: Path, target: Path) -> Path:
        if Path(target).name == LAST and next(states) == int(which):
            os.kill(os.getpid(), signal.Signals[name])
        return replace(path, target)

    Path.replace = interrupted
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
