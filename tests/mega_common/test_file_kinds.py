"""Files that are not what their names say: every reader says what they are, and none advises to load them unsafely."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from mega.backbones import ViT, load_pretrained
from mega.bodies.smplh import read_regressor, read_smplh
from mega.checkpoints import load_cvqmae, load_tokenizer, load_vqmae
from mega.data.motions import read_motion
from mega.data.smpl_annotations import SMPLAnnotations
from mega.data.synthetic_images import SyntheticAnnotations
from mega.evaluation.statistics import Results
from mega_common.file_kinds import file_kind, unreadable
from mega_common.files import load_pickle, read_array, read_arrays, write_json
from mega_common.weights_io import read_released, read_weights
from mesh_vq_vae import MeshVQVAE
from mesh_vq_vae.hierarchy import read_hierarchy
from tests.helpers.toy import toy_tokenizer

SHARED = Path("/work/shared/inputs/smplh")


def packed(write: Callable, *args, **options) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *args, **options)
    return buffer.getvalue()


def zipped(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("smplh/model.npz")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
    return buffer.getvalue()


ARRAYS = {"v_template": np.zeros((50, 3))}
NPZ = packed(np.savez, **ARRAYS)
TORCH = packed(lambda buffer: torch.save({"weight": torch.zeros(100)}, buffer))
OLD_TORCH = packed(
    lambda buffer: torch.save({"weight": torch.zeros(100)}, buffer, _use_new_zipfile_serialization=False)
)
SAFETENSORS = save({"weight": torch.zeros(100)})
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 261984\n"
LOGIN = b'\xef\xbb\xbf<!DOCTYPE html>\n<html lang="en"><head><title>Sign in</title></head></html>'

# What the file is: (its content, the key of its kind, words of the message)
FILES: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "empty", "it is empty (0 bytes); the download or copy was interrupted"),
    "zeros": (b"\0" * 9000, "empty", "9000 zero bytes"),
    "lfs pointer": (LFS, "lfs", "it is a git-LFS pointer; run `git lfs pull`"),
    "annex": (b"/annex/objects/MD5-s83--1b2c\n", "annex", "git annex get"),
    "login": (LOGIN, "html", "it is an HTML page; the download wanted a login"),
    "xhtml": (b'<?xml version="1.0"?>\n<html xmlns="x">', "html", "it is an HTML page"),
    "pickle": (pickle.dumps(ARRAYS), "pickle", "it is a Python pickle; it is not opened"),
    "pickle 0": (pickle.dumps(ARRAYS, 0), "pickle", "it is a Python pickle"),
    "pickle 1": (pickle.dumps([1, ARRAYS], 1), "pickle", "it is a Python pickle"),
    "npz": (NPZ, "npz", "it is arrays of numpy (.npz)"),
    "npz cut": (NPZ[:-30], "cut", "cut short or damaged; the download or copy was interrupted"),
    "npy": (packed(np.save, np.zeros(3)), "npy", "an array of numpy (.npy)"),
    "torch": (TORCH, "torch", "it is weights of torch.save"),
    "torch cut": (TORCH[:-30], "cut", "cut short or damaged"),
    "old torch": (OLD_TORCH, "torch", "the old format of torch.save"),
    "safetensors": (SAFETENSORS, "safetensors", "it is weights (safetensors)"),
    "safetensors cut": (SAFETENSORS[:-4], "cut", "a safetensors file that is cut short"),
    "safetensors cut early": (SAFETENSORS[:20], "cut", "a safetensors file that is cut short"),
    "zip": (zipped(["smplh/model.npz", "smplh/info.txt"]), "archive", "a zip archive of 2 files (smplh/model.npz"),
    "tar": (tarred(), "archive", "it is a tar archive; unpack it"),
    "tar.gz": (gzip.compress(tarred()), "archive", "it is a gzip archive; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4" + b"\1" * 50, "archive", "it is a 7z archive; unpack it"),
    "text": ("Größe: 3\n".encode(), "text", "a text file that begins with 'Größe: 3'"),
    "utf16": ('{"a": 1}'.encode("utf-16"), "utf16", "UTF-16"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "hdf5", "HDF5"),
    "noise": (bytes(range(5, 250)), "unknown", "245 bytes of an unknown kind"),
}

# Readers, the ending that their files have, and the kinds that they accept
READERS: dict[str, tuple[Callable[[Path], object], str, set[str]]] = {
    "arrays": (read_arrays, "model.npz", {"npz"}),
    "array": (read_array, "array.npy", {"npy"}),
    "pickle": (load_pickle, "sequence.pkl", {"pickle"}),
    "smplh": (read_smplh, "model.npz", set()),
    "regressor": (lambda path: read_regressor(path, 24), "J_regressor_24.npy", set()),
    "annotations": (SMPLAnnotations.load, "coco.npz", set()),
    "synthetic": (SyntheticAnnotations.load, "annotations.npz", set()),
    "motion": (read_motion, "motion.npz", set()),
    "hierarchy": (lambda path: read_hierarchy(path.parent), "_pool0.npy", set()),
    "weights": (lambda path: read_weights(path, "CVQMAE"), "cvqmae.safetensors", set()),
    "released": (read_released, "mega_hrnet", set()),
    "backbone": (lambda path: load_pretrained(ViT(dim=32, depth=1, heads=2), path), "vitpose.pth", set()),
    "image model": (load_cvqmae, "mega_hrnet", set()),
    "image model of ours": (load_cvqmae, "cvqmae.safetensors", set()),
    "prior": (load_vqmae, "mega_pretrained", set()),
    "tokenizer": (lambda path: load_tokenizer(path, toy_tokenizer), "mesh_vqvae_54", set()),
    "tokenizer of ours": (MeshVQVAE.load, "tokenizer.safetensors", set()),
    "table": (Results.read_csv, "per_sample.csv", set()),
}
#: Whose content is of the form that a reader expects, which then has a complaint of its own.
OF_THIS_FORM = {
    ("npz", ".npz"),
    ("npy", ".npy"),
    ("safetensors", ".safetensors"),
    ("torch", ""),
    ("old torch", ""),
    ("torch", ".pth"),
    ("old torch", ".pth"),
    ("text", ".csv"),
    ("annex", ".csv"),
    ("pickle 0", ".csv"),
    ("pickle", ".pkl"),
    ("pickle 0", ".pkl"),
    ("pickle 1", ".pkl"),
}


@pytest.mark.parametrize("content", FILES)
def test_a_file_is_recognized_by_its_content(tmp_path: Path, content: str) -> None:
    data, name, words = FILES[content]
    (tmp_path / "model.bin").write_bytes(data)
    kind = file_kind(tmp_path / "model.bin")
    assert kind.name == name
    assert words in f"it is {kind.words}; {kind.advice}"
    assert data == b"" or len(data) < 5 or file_kind(tmp_path / "model.bin").words


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_what_the_file_is_and_never_to_load_it_unsafely(tmp_path: Path, reader: str) -> None:
    read, name, accepted = READERS[reader]
    path = tmp_path / name
    for content, (data, kind, words) in FILES.items():
        path.write_bytes(data)
        if kind in accepted and content != "pickle 1":
            read(path)
            continue
        with pytest.raises(ValueError) as error:  # noqa: PT011 (looked at below)
            read(path)
        said = str(error.value)
        assert "allow_pickle" not in said
        assert "weights_only" not in said
        assert "\n" not in said
        if (content, path.suffix) not in OF_THIS_FORM:
            assert words in said, (content, said)
            assert reader == "motion" or str(path) in said


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared inputs")
@pytest.mark.parametrize(("name", "words"), [("lfs_pointer", "git lfs pull"), ("pickle_named", "a Python pickle")])
def test_the_shared_inputs_are_named(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read_smplh(SHARED / f"{name}_model.npz")
    assert "allow_pickle" not in str(error.value)


def test_arrays_with_damaged_content_are_reported_as_such(tmp_path: Path) -> None:
    at = NPZ.index(b"\x93NUMPY") + 200
    (tmp_path / "a.npz").write_bytes(NPZ[:at] + b"x" + NPZ[at + 1 :])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as arrays \(\.npz\): Bad CRC-32"):
        read_arrays(tmp_path / "a.npz")
    (tmp_path / "b.npy").write_bytes(packed(np.save, np.zeros(300))[:-80])
    with pytest.raises(ValueError, match=r"b\.npy cannot be read as an array \(\.npy\): .*300"):
        read_array(tmp_path / "b.npy")
    (tmp_path / "c.npy").write_bytes(packed(lambda file: np.save(file, np.array([{}]), allow_pickle=True)))
    with pytest.raises(ValueError, match=r"c\.npy cannot be read .*: it holds objects other than numbers\.$"):
        read_array(tmp_path / "c.npy")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "but a Tensor"),
        ({"state_dict": {"layer4.0.conv1.weight": torch.zeros(1)}}, "but the weights of ResNet"),
        ({"backbone.stage4.0.weight": torch.zeros(1)}, "but the weights of HRNet"),
        ({"pytorch-lightning_version": "2.6", "state_dict": {}}, r"but a training state \(\.ckpt\), from which mode="),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "but a, b, c, …"),
        ({}, "but nothing"),
    ],
)
def test_weights_of_something_else_are_described(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "mega_hrnet")
    with pytest.raises(ValueError, match=rf"mega_hrnet is not a released checkpoint: .*{words}"):
        load_cvqmae(tmp_path / "mega_hrnet")


def test_json_is_told_from_other_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"caf\udce9.jpg": "é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"caf\udce9.jpg": "é"}
    assert str(unreadable(tmp_path / "a.json", "json", "Expecting value")).endswith("as JSON: Expecting value.")
    (tmp_path / "a.json").write_bytes(LOGIN)
    assert "it is an HTML page" in str(unreadable(tmp_path / "a.json", "json", "Expecting value"))
