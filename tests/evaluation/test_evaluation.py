"""test_mega.py from pictures to a report: the same numbers however it is run, and sentences where it cannot."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest

import test_mega
from mega.config import file_as_testset
from mega.evaluation import evaluate as evaluation
from mega.evaluation import plots
from mega.evaluation.evaluate import GROUP
from mega.evaluation.statistics import Results
from mega_common.files import whole_file, write_whole
from tests.helpers.fake_files import ROOT, SMALL, needs_template, write_project
from tests.helpers.raw_files import prepare_data, write_3dpw, write_emdb

PEOPLE = 2 * GROUP + 3
DRAWS = ("mode=stochastic", "samples=3", "steps=2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A test split of its own, of two whole groups and a bit."""
    folder = tmp_path_factory.mktemp("pictures")
    splits = f"splits={{train: 0, val: 0, test: {PEOPLE}}}"
    command = [
        sys.executable,
        "tools/make_synthetic.py",
        f"folder={folder}",
        splits,
        "processes=1",
        "scene.two_people=0",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return folder


def evaluate(*overrides: str) -> int:
    """Run the script in this process; its exit status."""
    with patch.object(sys, "argv", ["test_mega.py", *overrides]), pytest.raises(SystemExit) as end:
        test_mega.run()
    return end.value.code


def evaluate_killed(picture: int, *overrides: str) -> None:
    """In this process, which is killed while it writes the picture of the person of this number, from 1."""
    written = 0

    def write_or_die(path: Path, data: bytes) -> None:
        nonlocal written
        written += 1
        if written == picture:
            with whole_file(path) as file:
                file.write(data[:1000])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, data)

    plots.write_whole = write_or_die
    evaluate(*overrides)


def started(*overrides: str, killed_at: int | None = None, **environment: str) -> subprocess.Popen:
    """In a process of its own, see `evaluate_killed` for `killed_at`."""
    command = [sys.executable, "test_mega.py", *overrides]
    if killed_at is not None:
        program = "import sys; from tests.evaluation.test_evaluation import evaluate_killed as run; "
        program += "run(int(sys.argv[1]), *sys.argv[2:])"
        command = [sys.executable, "-c", program, str(killed_at), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def reference(pictures, tmp_path_factory) -> Path:
    """The report of one process that reads whole groups."""
    output = tmp_path_factory.mktemp("reference")
    process = started(f"testset.folder={pictures}", f"output={output}", *DRAWS, "pictures=all")
    said = process.communicate()[0].decode()
    assert process.returncode == 0, said
    assert f"{PEOPLE} people" in said
    return output


def drawn(output: Path) -> dict[str, bytes]:
    """{name: content} of all that is in an evaluation's folder of pictures."""
    return {path.name: path.read_bytes() for path in (output / "pictures").iterdir()}


@pytest.mark.slow
def test_the_report_is_there(reference) -> None:
    assert {path.name for path in reference.iterdir()} >= {"report.md", "summary.json", "per_sample.csv"}
    assert not (reference / "partial").exists()
    with (reference / "per_sample.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({(row["image"], row["person"]) for row in rows}) == PEOPLE
    results = Results.read_csv(reference / "per_sample.csv")
    summary = json.loads((reference / "summary.json").read_text())
    assert summary["about"]["data"]["people"] == PEOPLE
    for metric in ("PVE", "MPJPE", "PA-MPJPE", "PA-PVE"):
        one, best, mean = (
            results.columns[f"{variant}/coco17/{metric}"] for variant in ("best_of_1", "best_of_3", "mean_of_3")
        )
        assert (best <= one).all()
        assert (best < one).any()
        assert np.isfinite(mean).all()
        # One sample is its own mean.
        np.testing.assert_array_equal(one, results.columns[f"mean_of_1/coco17/{metric}"])
        likeliest = results.columns[f"likeliest_of_3/coco17/{metric}"]
        assert (likeliest >= best).all()
    assert (results.columns["spread/apd"] > 0).all()


@pytest.mark.slow
def test_there_is_a_picture_of_every_person(reference) -> None:
    expected = {f"{i:06}_images_{i:06}_p0.jpg" for i in range(PEOPLE)}  # one person in each image
    assert drawn(reference).keys() == expected
    assert "[pictures/](pictures)" in (reference / "report.md").read_text()
    for path in (reference / "pictures").iterdir():
        height, width, _ = cv2.imread(str(path)).shape
        assert width > 3 * height, path  # crop, in place, from the side, and the spread of the samples


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.slow
def test_any_batch_size_gives_the_same_numbers(reference, pictures, tmp_path, batch_size) -> None:
    process = started(f"testset.folder={pictures}", f"output={tmp_path}", *DRAWS, f"testset.batch_size={batch_size}")
    said = process.communicate()[0].decode()
    assert process.returncode == 0, said
    assert (tmp_path / "per_sample.csv").read_text() == (reference / "per_sample.csv").read_text()


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(reference, pictures, tmp_path) -> None:
    options = (f"testset.folder={pictures}", f"output={tmp_path}", *DRAWS, "pictures=all")
    processes = [started(*options, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in range(2)]
    for process in processes:
        said = process.communicate()[0].decode()
        assert process.returncode == 0, said
    assert (tmp_path / "per_sample.csv").read_text() == (reference / "per_sample.csv").read_text()
    assert drawn(tmp_path) == drawn(reference)


@pytest.mark.slow
def test_a_killed_evaluation_is_resumed(reference, pictures, tmp_path) -> None:
    options = (f"testset.folder={pictures}", f"output={tmp_path}", *DRAWS, "pictures=all")
    write_whole(tmp_path / "pictures" / "of_an_earlier_evaluation.jpg", b"")
    process = started(*options, killed_at=GROUP + 5)
    said = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, said
    assert [path.name for path in tmp_path.glob("partial/group_*.npz")] == ["group_000000.npz"]
    kept = {path.name: path.stat() for path in tmp_path.glob("partial/pictures/[!.]*")}
    assert len(kept) == GROUP + 4
    # Other settings are not mixed with it.
    for other, changed in (("temperature=2", "options"), ("pictures=3", "pictures")):
        process = started(*options, other)
        said = process.communicate()[0].decode()
        assert process.returncode == 1
        assert f"holds an interrupted evaluation with different {changed}:" in said
    process = started(*options)
    said = process.communicate()[0].decode()
    assert process.returncode == 0, said
    assert "Resuming: 1 of 3 groups are done." in said
    assert (tmp_path / "per_sample.csv").read_text() == (reference / "per_sample.csv").read_text()
    assert drawn(tmp_path) == drawn(reference)
    for name, before in kept.items():
        after = (tmp_path / "pictures" / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), f"{name} was drawn again"


@pytest.mark.slow
def test_a_file_may_be_named(reference, pictures, tmp_path, capsys) -> None:
    path = pictures / "test" / "annotations.npz"
    overrides = [f"testset={path}", "limit=2", f"output={tmp_path}", "pictures=1"]
    assert file_as_testset(overrides)[:2] == ["testset=file", f"testset.path={path}"]
    assert evaluate(*overrides) == 0, capsys.readouterr().err
    assert len(Results.read_csv(tmp_path / "per_sample.csv")) == 2
    # A picture of the first person only, as that of the stochastic mode, but without the spread of samples.
    (name,) = drawn(tmp_path)
    assert name == "000000_images_000000_p0.jpg"
    alone, with_spread = (cv2.imread(str(folder / "pictures" / name)) for folder in (tmp_path, reference))
    border = 10
    width = alone.shape[1] - border
    assert with_spread.shape[1] > width + 384
    assert np.abs(alone[:, :width].astype(int) - with_spread[:, :width]).mean() < 2


@pytest.mark.slow
def test_what_cannot_be_evaluated_is_said_before_any_work(pictures, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("mega.evaluation.evaluate.Groups.batches", None)  # nothing is measured

    def refused(*overrides: str) -> str:
        assert evaluate(f"output={tmp_path / 'out'}", *overrides) == 1
        return capsys.readouterr().err

    known = dict(np.load(pictures / "test" / "annotations.npz"))
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)

    def with_annotations(**changes: np.ndarray | None) -> str:
        columns = {k: v for k, v in (known | changes).items() if v is not None}
        np.savez(folder / "annotations.npz", **columns)
        return refused(f"testset.folder={tmp_path / 'set'}")

    assert f"of the {PEOPLE} images named in {folder / 'annotations.npz'} are missing" in with_annotations()
    nobody = {k: v[:0] for k, v in known.items() if v.ndim}
    assert "annotates nobody" in with_annotations(**nobody)
    assert "lacks the fields ['pose']" in with_annotations(pose=None)
    assert "is for the body smplh, but the configured body is anny" in with_annotations(body=np.array("smplh"))
    assert f"protocol=mega is not one of {pictures.name}_test: choose from coco17" in refused(
        f"testset.folder={pictures}", "protocol=mega"
    )
    assert "there is no annotation file nowhere.npz" in refused("testset=nowhere.npz")
    assert "mode=guess must be deterministic or stochastic" in refused("mode=guess")
    assert "samples=0 must be" in refused("mode=stochastic", "samples=0")
    for value in ("some", "-1", "true", "null"):
        assert f"pictures={value} must be all or a whole number of at least 0" in refused(f"pictures={value}")
    assert "annotated for SMPL bodies: give experiment=" in refused("testset=3dpw")


@needs_template
@pytest.mark.slow
def test_from_raw_files_to_a_report(tmp_path, monkeypatch, capsys) -> None:
    """3DPW's and EMDB's raw files, prepared by the script, and the published setup on them."""
    write_project(tmp_path, {"mega_hrnet": SMALL})
    for gender in ("m", "f"):
        (tmp_path / "body_models" / "smplh" / gender).symlink_to(tmp_path / "body_models" / "smplh" / "neutral")
    write_3dpw(tmp_path / "datasets" / "3dpw", frames=4)
    write_emdb(tmp_path / "datasets" / "emdb", frames=3)
    assert prepare_data(tmp_path, "3dpw", "dataset.splits=[test]") == 0
    assert prepare_data(tmp_path, "emdb") == 0
    monkeypatch.chdir(tmp_path)
    for data, protocols in (("3dpw", ("mega", "standard", "hips")), ("emdb", ("mega", "standard"))):
        chosen = f"protocol=[{','.join(protocols)}]"
        status = evaluate(
            "experiment=mega_hrnet",
            f"testset={data}",
            chosen,
            f"output=report_{data}",
            "examples=0",
            *DRAWS,
        )
        assert status == 0, capsys.readouterr().err
        results = Results.read_csv(f"report_{data}/per_sample.csv")
        assert len(results) >= 3
        for protocol in protocols:
            assert np.isfinite(results.columns[f"deterministic/{protocol}/PA-MPJPE"]).all()
        text = Path(f"report_{data}/report.md").read_text()
        assert all(protocol in text for protocol in protocols)


def test_variables_of_a_slurm_shell_are_no_processes(monkeypatch):
    """In a shell of `salloc -n 4`, or in a job file without srun, the script runs alone."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    assert evaluation.process() == (0, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")  # set by srun
    assert evaluation.process() == (0, 4)
