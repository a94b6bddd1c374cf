"""Sequences -> one annotation file, and a report of what was kept of each and why the rest was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mega.data.prepare.frames import Frames, joined
from mesh_vq_vae.whole_files import write_json, write_npz

NO_PICTURE = "missing picture"


@dataclass
class Report:
    """What became of the people in the frames.

    Attributes:
        sequences: {name: {"kept": rows, reason: rows, …}}.
        problems: what should not be, each with the name of its file.
    """

    sequences: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, frames: Frames) -> None:
        """Count the rows of a sequence by their reason."""
        reasons = Counter(reason or "kept" for reason in frames.reason.tolist())
        self.sequences[name] = {"kept": reasons.pop("kept", 0), **dict(reasons.most_common())}

    def totals(self) -> dict[str, int]:
        """Rows of all sequences by what became of them, "kept" first."""
        totals = Counter(kept=0)
        for counts in self.sequences.values():
            totals.update(counts)
        return dict(totals)

    def lines(self) -> list[str]:
        """A line a sequence."""
        width = max(map(len, self.sequences), default=0)
        return [f"  {name:<{width}}  {_told(counts)}" for name, counts in self.sequences.items()]


def _told(counts: dict[str, int]) -> str:
    kept, *others = [f"{n} {what}" for what, n in counts.items()]
    return f"{kept}, skipped: {', '.join(others)}" if others else kept


def annotate(files: Sequence[Path], read: Callable[[Path], tuple[str, Frames]], output: Path) -> int:
    """Read every sequence, write `output` (.npz) and beside it `*_report.json`, and print what was kept.

    A sequence that cannot be read is named and the others are still written.

    Args:
        read: file -> name of the sequence and its table.

    Returns:
        How many problems there were: files that cannot be read, sequences with missing pictures, nothing to write.
    """
    report, tables = Report(), []
    for file in tqdm(files, desc=output.stem, unit="sequence"):
        try:
            name, frames = read(file)
        except (OSError, ValueError) as error:
            report.problems.append(str(error))
            continue
        report.add(name, frames)
        absent = frames.imgname[frames.reason == NO_PICTURE]
        if len(absent):
            report.problems.append(f"{file}: {len(absent)} pictures are missing, the first is {absent[0]}.")
        tables.append(frames.used())
    if report.totals()["kept"]:
        write_npz(output, joined(tables).annotations())
    else:
        report.problems.append(f"{output} is not written: no frame can be used.")
    summary = {"kept": report.totals(), "sequences": report.sequences, "problems": report.problems}
    write_json(output.with_name(f"{output.stem}_report.json"), summary)
    print(*report.lines(), f"{output}: {_told(report.totals())}", *report.problems, sep="\n")
    return len(report.problems)


def skip_missing_pictures(frames: Frames) -> Frames:
    """The same table; rows without their picture are given that as a reason. Pictures of a folder are listed once."""
    folders = {Path(name).parent for name in frames.imgname.tolist()}
    there = {str(file) for folder in folders if folder.is_dir() for file in folder.iterdir()}
    return frames.skip(np.array([str(Path(name)) not in there for name in frames.imgname.tolist()]), NO_PICTURE)
