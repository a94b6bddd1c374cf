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
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from mega.bodies import AnnyBody
from mega.synthetic.scene import SceneMaker, SceneSettings
from mega_common.files import read_arrays, write_npz, write_whole

CHUNK = 50  # images
_JPEG_QUALITY = (60, 95)
#: Increased whenever the same seed gives different images.
VERSION = 1


def build_split(
    folder: str | Path,
    n_images: int,
    seed: int = 0,
    processes: int | None = None,
    scene: SceneSettings | None = None,
    overwrite: bool = False,
) -> None:
    """Make a split that does not exist yet, or finish it.

    Args:
        folder: named like the split; gets `images/*.jpg` and `annotations.npz`.
        seed: the same seed gives the same images.
        processes: one per core if None.
        scene: how often things happen in an image.
        overwrite: delete what was made with another seed or other settings.

    Raises:
        FileExistsError: if the split was begun with other settings and `overwrite` is false.
    """
    folder, scene = Path(folder), scene or SceneSettings()
    scene = replace(scene, fill=tuple(scene.fill))  # hashable
    recipe = json.dumps({"version": VERSION, "seed": seed, "n_pictures": n_images, **asdict(scene)}, indent=2)
    recipe_file, annotations = folder / "recipe.json", folder / "annotations.npz"
    if recipe_file.exists() and json.loads(recipe_file.read_text(encoding="utf-8")) != json.loads(recipe):
        if not overwrite:
            raise FileExistsError(
                f"{recipe_file} describes a data set made with another seed, size or setting: choose another folder, "
                "or replace this one with overwrite=true"
            )
        shutil.rmtree(folder)
    elif recipe_file.exists() and annotations.exists():
        print(f"{folder}: {n_images} images exist already")
        return
    write_whole(recipe_file, recipe.encode())
    (folder / "images").mkdir(exist_ok=True)

    chunks = {}
    for start in range(0, n_images, CHUNK):
        chunks[folder / "chunks" / f"{start // CHUNK:05d}.npz"] = range(start, min(start + CHUNK, n_images))
    missing = {file: images for file, images in chunks.items() if not file.exists()}
    done = n_images - sum(map(len, missing.values()))
    with tqdm(total=n_images, initial=done, desc=str(folder), unit="picture", smoothing=0.05) as progress:
        for n_made in _make_chunks(missing, seed, scene, processes):
            progress.update(n_made)

    tables = [read_arrays(file) for file in chunks]
    body = {"body": tables[0].pop("body")}
    write_npz(annotations, {name: np.concatenate([table[name] for table in tables]) for name in tables[0]} | body)
    shutil.rmtree(folder / "chunks")


def _make_chunks(chunks: Mapping[Path, range], seed: int, scene: SceneSettings, processes: int | None) -> Iterator[int]:
    """Make these chunks; yields the number of images of each when it is done."""
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    make = partial(_make_chunk, seed=seed, scene=scene)
    if processes == 1:
        yield from map(make, chunks.keys(), chunks.values())
        return
    AnnyBody()  # builds Anny's cache once if it is missing, not in every process
    # Fresh interpreters: a forked copy of PyTorch's or Embree's threads would hang.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make, chunks.keys(), chunks.values())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads would differ in the last digit, and then in an image."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@_one_thread()
def _make_chunk(file: Path, images: range, seed: int, scene: SceneSettings) -> int:
    """Write images, then `file` with their annotations; returns the number of images."""
    folder, maker = file.parents[1], _scene_maker(scene)
    split_seed = zlib.crc32(folder.name.encode())
    chunk_seed = np.random.SeedSequence([seed, split_seed, images.start // CHUNK]).generate_state(1)[0]
    people = maker.sample_people(2 * CHUNK, torch.Generator().manual_seed(int(chunk_seed)))  # enough for any chunk
    rows = []
    for i, index in enumerate(images):
        rng = np.random.default_rng([seed, split_seed, index])
        n_people = 2 if rng.random() < scene.two_people else 1
        image, found = maker.make(people[2 * i : 2 * i + n_people], rng)
        name = f"images/{index:06d}.jpg"
        quality = int(rng.integers(*_JPEG_QUALITY))
        encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        (folder / name).write_bytes(encoded)  # cv2.imwrite fails where Windows' code page lacks a character
        rows += [{"imgname": name, **row} for row in found]
    columns = {field: np.array([row[field] for row in rows]) for field in rows[0]}
    write_npz(file, columns | {"body": np.array(maker.body.name)})
    return len(images)


@cache
def _scene_maker(scene: SceneSettings) -> SceneMaker:
    """One per process."""
    return SceneMaker(AnnyBody(), scene)
