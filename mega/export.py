"""Results on disk: the arrays, meshes and drawing of a picture, written together or not at all."""

import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from mega.photos import InputError, Picture
from mega.predictor import People
from mega.rendering import draw_people, draw_side_view, draw_uncertainty, panel, people_openness
from mega.rendering.shading import palette_colors

MIN_DRAWN_SIDE = 512  # px, longer side; smaller pictures are enlarged, so that details of the bodies are visible
_TO_UPRIGHT = np.array([1, -1, -1], np.float32)  # camera frame -> x right, y up, z towards the viewer


def make_output_folder(folder: str | Path) -> Path:
    """The folder, created if needed. Raises InputError if it cannot be written to."""
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
            pass
    except OSError as error:
        raise InputError(f"The output folder {folder} cannot be written: {error.strerror}.") from None
    return folder


def encode_results(name: str, people: People, sheet: np.ndarray, mesh_format: str = "glb") -> dict[str, bytes]:
    """The files of one picture, {file name: content}; `sheet` is the drawing (h, w, 3) uint8 RGB."""
    files = {f"{name}_overlay.png": encode_png(sheet)}
    colors = palette_colors(len(people))
    for p, vertices in enumerate(people.vertices):
        files[f"{name}_p{p}.{mesh_format}"] = encode_mesh(vertices, people.faces, colors[p], mesh_format)
    files[f"{name}.npz"] = encode_npz(vars(people) | {"focal": np.float32(people.focal)})
    return files


def write_together(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write the files of a picture to `folder` so that they appear together or not at all.

    They are written to a hidden folder in `folder` and then moved, in their order. Meshes of people whom only an
    earlier run found are removed.

    Raises InputError if the disk is full or the folder cannot be written to; none of the files is left then.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-", ignore_cleanup_errors=True) as partial:
            for file_name, content in files.items():
                Path(partial, file_name).write_bytes(content)
            for old in os.listdir(folder):
                if re.fullmatch(rf"{re.escape(name)}_p\d+\.(glb|obj)", old) and old not in files:
                    (folder / old).unlink()
            for file_name in files:
                Path(partial, file_name).replace(folder / file_name)
    except OSError as error:
        raise InputError(f"The results cannot be written to {folder}: {error.strerror}.") from error


def encode_npz(arrays: Mapping[str, np.ndarray | None]) -> bytes:
    """Arrays by name -> .npz; those that are None are left out."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def encode_png(image: np.ndarray) -> bytes:
    """(h, w, 3) uint8 RGB -> PNG, with light compression: three times faster than strong, hardly larger."""
    return cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 2])[1].tobytes()


def encode_mesh(vertices: np.ndarray, faces: np.ndarray, color: np.ndarray, mesh_format: str) -> bytes:
    """A mesh (V, 3) m of the camera frame as glTF binary or Wavefront OBJ.

    Both formats have y up, so their axes are the camera's (x, -y, -z). The camera is at the origin.
    """
    import trimesh  # slow to import, and only needed here
    from trimesh.visual.material import PBRMaterial
    from trimesh.visual.texture import TextureVisuals

    # This is a rotation about the x axis, so the faces keep their orientation.
    mesh = trimesh.Trimesh(vertices * _TO_UPRIGHT, faces, process=False)
    if mesh_format == "obj":
        return mesh.export(file_type="obj", include_normals=False, header=None).encode()
    linear = np.append(color**2.2, 1.0)  # glTF colours are linear
    material = PBRMaterial(name="body", baseColorFactor=linear, metallicFactor=0.0, roughnessFactor=0.7)
    mesh.visual = TextureVisuals(material=material)
    return mesh.export(file_type="glb", include_normals=True)


def draw_sheet(image: np.ndarray | Picture, people: People, max_side: int = 1024) -> np.ndarray:
    """Input, meshes in place, from the side and, with samples, uncertainty, in one picture (h, w, 3) uint8 RGB.

    Args:
        image: (h, w, 3) uint8.
        max_side: largest longer side of the input in the drawing, px.
    """
    picture, focal, centre = scale_to_draw(image, people, max_side)
    light = people_openness(people.vertices, people.faces)

    cells = [
        (picture, "input"),
        (draw_people(picture, people.vertices, people.faces, focal, centre, open_share=light), "in place"),
        (draw_side_view(people.vertices, people.faces, len(picture), open_share=light), "from the side"),
    ]
    if people.uncertainty is not None:
        heat = draw_uncertainty(picture, people.vertices, people.faces, focal, centre, people.uncertainty, light)
        cells.append((heat, f"uncertainty over {people.samples.shape[1]} samples"))
    return panel([cells])


def scale_to_draw(image: np.ndarray | Picture, people: People, max_side: int) -> tuple[np.ndarray, float, np.ndarray]:
    """The picture at the size of the drawing, with its focal length px and principal point (2,) px."""
    longer = max(image.shape[:2])
    scale = float(np.clip(longer, min(MIN_DRAWN_SIDE, max_side), max_side)) / longer
    pixels = Picture.of(image).at_least(min(longer, max_side)).pixels
    if scale == 1:
        return pixels, people.focal, people.principal_point
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    picture = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    # Pixel centres are at whole numbers, so the fixed point of the scaling is the corner at -0.5.
    return picture, people.focal * scale, (people.principal_point + 0.5) * scale - 0.5
