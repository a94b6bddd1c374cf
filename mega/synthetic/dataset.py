"""The synthetic data set: images and annotations on disk, made by several processes, resumable.

Images are made in chunks of `CHUNK`; a chunk is a function of (seed, split, its number) alone, so neither the number of
processes nor the size of the split changes an image. The annotations of a chunk are written last, in one step: a chunk
without them is made again.
"""

import json
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from mega.bodies import AnnyBody, PoseSampler
from mega.synthetic.scene import Person, SceneMaker, SceneSettings
from mega_common.files import write_npz, write_whole

CHUNK = 50  # pictures
_JPEG_QUALITY = (60, 95)
#: Increased whenever the same seed gives different images.
VERSION = 1


def build_dataset(
    folder: str | Path,
    splits: Mapping[str, int],
    seed: int = 0,
    processes: int | None = None,
    scene: SceneSettings | None = None,
    overwrite: bool = False,
) -> None:
    """Make every split that does not exist yet, or finish it.

    Args:
        folder: gets one folder per split with `images/*.jpg` and `annotations.npz`.
        splits: number of images of each split; splits without images are left out.
        seed: the same seed gives the same images.
        processes: one per core if None.
        scene: how often things happen in an image.
        overwrite: delete what was made with another seed or other settings.

    Raises:
        FileExistsError: if a split was begun with other settings and `overwrite` is false.
    """
    settings = scene or SceneSettings()
    for split, n_pictures in splits.items():
        if n_pictures < 1:
            continue
        _build_split(Path(folder) / split, split, n_pictures, seed, processes or _n_cores(), settings, overwrite)


def _build_split(
    folder: Path, split: str, n_pictures: int, seed: int, processes: int, settings: SceneSettings, overwrite: bool
) -> None:
    recipe = json.loads(json.dumps({"version": VERSION, "seed": seed, "n_pictures": n_pictures, **asdict(settings)}))
    if _is_finished(folder, recipe, overwrite):
        print(f"{folder}: {n_pictures} images exist already")
        return
    chunks = folder / "chunks"
    chunks.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    write_whole(folder / "recipe.json", json.dumps(recipe, indent=2).encode())

    numbers = range(-(-n_pictures // CHUNK))
    missing = [number for number in numbers if not _chunk_path(chunks, number).exists()]
    done = n_pictures - sum(_chunk_length(number, n_pictures) for number in missing)
    jobs = [(folder, split, number, n_pictures, seed) for number in missing]
    with tqdm(total=n_pictures, initial=done, desc=str(folder), unit="picture", smoothing=0.05) as progress:
        for length in _run(jobs, processes, settings):
            progress.update(length)
    _merge(folder, [_chunk_path(chunks, number) for number in numbers])
    shutil.rmtree(chunks)


def _is_finished(folder: Path, recipe: dict, overwrite: bool) -> bool:
    """Whether the split is there; a split of another recipe is removed or refused."""
    file = folder / "recipe.json"
    if not file.exists():
        return False
    if json.loads(file.read_text()) == recipe:
        return (folder / "annotations.npz").exists()
    if not overwrite:
        raise FileExistsError(
            f"{file} describes a data set made with another seed, size or setting: choose another folder, or replace "
            "this one with overwrite=true"
        )
    shutil.rmtree(folder)
    return False


def _run(jobs: list[tuple], processes: int, settings: SceneSettings) -> Iterator[int]:
    """Do the jobs; yields each one's number of pictures as it is done."""
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # another order of sums would change the last digit, and then an image
        try:
            worker = _Worker(settings)
            yield from (worker.make_chunk(*job) for job in jobs)
        finally:
            torch.set_num_threads(threads)
        return
    AnnyBody()  # builds Anny's cache once if it is missing, not in every process
    # Fresh interpreters: a forked copy of PyTorch's or Embree's threads would hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(settings,)) as pool:
        futures = [pool.submit(_make_chunk, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Worker:
    """Makes chunks, in one process."""

    def __init__(self, settings: SceneSettings) -> None:
        self.settings = settings
        self.body = AnnyBody()
        self.sampler = PoseSampler(self.body)
        self.maker = SceneMaker(self.body, settings)

    def make_chunk(self, folder: Path, split: str, number: int, n_pictures: int, seed: int) -> int:
        """Write the pictures of a chunk, then its annotations; returns the number of pictures."""
        split_seed = zlib.crc32(split.encode())
        chunk_seed = np.random.SeedSequence([seed, split_seed, number]).generate_state(1)[0]
        people = self._sample_people(2 * CHUNK, torch.Generator().manual_seed(int(chunk_seed)))  # enough for any chunk
        rows = []
        for i in range(_chunk_length(number, n_pictures)):
            index = number * CHUNK + i
            rng = np.random.default_rng([seed, split_seed, index])
            n_people = 2 if rng.random() < self.settings.two_people else 1
            picture, found = self.maker.make(people[2 * i : 2 * i + n_people], rng)
            name = f"images/{index:06d}.jpg"
            _write_jpeg(folder / name, picture, int(rng.integers(*_JPEG_QUALITY)))
            rows += [{"imgname": name, **row} for row in found]
        columns = {field: np.array([row[field] for row in rows]) for field in rows[0]}
        write_npz(_chunk_path(folder / "chunks", number), columns | {"body": np.array(self.body.name)})
        return _chunk_length(number, n_pictures)

    def _sample_people(self, n: int, generator: torch.Generator) -> list[Person]:
        pose = self.sampler.sample(n, generator)
        shape = self.body.sample_shapes(n, generator)
        root_orient = self.sampler.sample_root_orient(n, generator)
        vertices = self.body(pose, shape)
        arrays = (array.numpy() for array in (pose, shape, root_orient, vertices))
        return [Person(*values) for values in zip(*arrays, strict=True)]


_worker: _Worker | None = None  # the one of this process


def _start_worker(settings: SceneSettings) -> None:
    global _worker
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker = _Worker(settings)


def _make_chunk(job: tuple) -> int:
    return _worker.make_chunk(*job)


def _merge(folder: Path, chunks: list[Path]) -> None:
    """All chunks as one table, in the order of the pictures."""
    tables = [dict(np.load(chunk)) for chunk in chunks]
    body = tables[0]["body"]
    columns = {field: np.concatenate([table[field] for table in tables]) for field in tables[0] if field != "body"}
    write_npz(folder / "annotations.npz", columns | {"body": body})


def _chunk_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def _chunk_length(number: int, n_pictures: int) -> int:
    return min(CHUNK, n_pictures - number * CHUNK)


def _write_jpeg(path: Path, picture: np.ndarray, quality: int) -> None:
    ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"{path} could not be encoded as a JPEG")
    path.write_bytes(data.tobytes())


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
