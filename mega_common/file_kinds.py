"""What a file really is, by its content, for messages about files that are not what their name says."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import NamedTuple


class FileKind(NamedTuple):
    """What a file is.

    Attributes:
        name: a key, e.g. "npz", "torch", "lfs".
        words: a noun phrase, e.g. "a git-LFS pointer".
        advice: what to do with it, as a clause; may be empty.
    """

    name: str
    words: str
    advice: str = ""


_AGAIN = "the download or copy was interrupted: fetch the file again"
_UNPACK = "unpack it and give the file that is inside"
_OTHER = "give the file that belongs here"
# Beginnings of files, longest first where one includes another.
_BEGINNINGS = (
    (b"version https://git-lfs", FileKind("lfs", "a git-LFS pointer", "run `git lfs pull` where you cloned it")),
    (b"\x93NUMPY", FileKind("npy", "an array of numpy (.npy)")),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", FileKind("torch", "weights in the old format of torch.save")),
    (b"\x1f\x8b", FileKind("archive", "a gzip archive", _UNPACK)),
    (b"BZh", FileKind("archive", "a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ\x00", FileKind("archive", "an xz archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("archive", "a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", FileKind("archive", "a RAR archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("archive", "a Zstandard archive", _UNPACK)),
    (b"\x89HDF\r\n\x1a\n", FileKind("hdf5", "an HDF5 file (of Keras or MATLAB, for example)", _OTHER)),
    (b"MATLAB 5.0", FileKind("matlab", "a MATLAB file", _OTHER)),
    (b"\xff\xd8\xff", FileKind("picture", "a JPEG picture", _OTHER)),
    (b"\x89PNG", FileKind("picture", "a PNG picture", _OTHER)),
    (b"GIF8", FileKind("picture", "a GIF picture", _OTHER)),
    (b"glTF", FileKind("mesh", "a glTF mesh", _OTHER)),
    (b"%PDF", FileKind("pdf", "a PDF document", _OTHER)),
)
_HTML = re.compile(rb"\s*<(?s:.{,300}?)(!doctype html|html|head|body|script|!--)", re.IGNORECASE)
# Protocols 2 to 5 have a mark; older pickles begin with a dict, a list, or the class of an object.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\([dl]p?\d*\n|[}\]]q.|c[\w.]+\n\w+\n", re.DOTALL)
#: What the readers expect, by the name of the kind that it is.
_EXPECTED = {
    "npz": "arrays (.npz)",
    "npy": "an array (.npy)",
    "pickle": "a pickle of arrays",
    "torch": "weights (torch.save)",
    "safetensors": "weights (safetensors)",
    "json": "JSON",
    "csv": "a table (.csv)",
}


def file_kind(path: str | Path) -> FileKind:
    """What the file is, by its first bytes and, for archives, its table of contents. Nothing in it is executed."""
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4096)
    if not start.strip(b"\0"):
        words = f"{size} zero bytes" if size else "empty (0 bytes)"
        return FileKind("empty", words, _AGAIN)
    for beginning, kind in _BEGINNINGS:
        if start.startswith(beginning):
            return kind
    if start[257:262] == b"ustar":
        return FileKind("archive", "a tar archive", _UNPACK)
    if start.startswith(b"PK"):
        return _zip_kind(path)
    text = start.removeprefix(b"\xef\xbb\xbf")
    if _HTML.match(text):
        return FileKind("html", "an HTML page", "the download wanted a login or a confirmation: fetch it in a browser")
    if b"/annex/objects/" in start and size < 1000:
        return FileKind("annex", "a git-annex pointer", "run `git annex get` where you cloned it")
    if start[8:9] == b"{" and (length := int.from_bytes(start[:8], "little")) < 1 << 30:
        return _safetensors_kind(path, length, size)
    if _PICKLE.match(start):
        return FileKind("pickle", "a Python pickle", "it is not opened, since a pickle can run any code: " + _OTHER)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return FileKind("utf16", "text in UTF-16, as PowerShell's > writes", "save it as UTF-8")
    if _is_text(text):
        words = " ".join(text[:200].decode(errors="replace").split())[:60]
        return FileKind("text", f"a text file that begins with {words!r}", _OTHER)
    return FileKind("unknown", f"{size} bytes of an unknown kind", "fetch the file again")


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return FileKind("cut", "a zip file (.npz, or weights of torch.save) that is cut short or damaged", _AGAIN)
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return FileKind("torch", "weights of torch.save")
    if not names:
        return FileKind("empty", "an archive (.npz or .zip) without content", _AGAIN)
    if all(name.endswith(".npy") for name in names):
        return FileKind("npz", "arrays of numpy (.npz)")
    return FileKind("archive", f"a zip archive of {len(names)} files ({', '.join(names[:3])}, …)", _UNPACK)


def _safetensors_kind(path: Path, length: int, size: int) -> FileKind:
    with path.open("rb") as file:
        header = file.read(8 + length)[8:]
    cut = FileKind("cut", "a safetensors file that is cut short or damaged", _AGAIN)
    if len(header) < length:
        return cut
    try:
        tensors = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return FileKind("safetensors", "weights (safetensors)") if 8 + length + max(tensors, default=0) == size else cut
    except (ValueError, LookupError, TypeError, AttributeError):
        return cut


def _is_text(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else the end of what was read cuts a character
            return False
    return not re.search(rb"[\0-\x08\x0e-\x1a\x7f]", start)


def unreadable(path: str | Path, expected: str, error: Exception | str = "", hint: str = "") -> ValueError:
    """The error to raise for a file that could not be read: it names the file, what it is, and what to do.

    Args:
        expected: a key of `_EXPECTED`.
        error: the reader's message. It is passed on only if the file is of the expected kind: about other files,
            readers say nothing useful, and numpy and PyTorch advise to load them unsafely.
        hint: a further sentence.
    """
    try:
        kind = file_kind(path)
    except OSError as fault:
        reason = fault.strerror
    else:
        message = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if kind.name == {"json": "text", "csv": "text"}.get(expected, expected):
            reason = (
                "it holds objects other than numbers" if re.search("allow_pickle|weights_only", message) else message
            )
        else:
            reason = f"it is {kind.words}; {kind.advice or _OTHER}"
    return ValueError(f"{path} cannot be read as {_EXPECTED[expected]}: {reason}. {hint}".rstrip())
