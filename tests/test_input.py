"""Which pictures an input means, what is skipped, and which boxes belong to which picture."""

import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from mega.config import as_option, compose, file_as_testset, quote_texts
from mega.detectors import GivenBoxes, MoveNetDetector
from mega.external_files import locate
from mega.photos import InputError, find_pictures, read_picture

SHARED = Path(__file__).resolve().parents[2] / "shared" / "inputs"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.fixture
def files(tmp_path):
    """files("a.jpg", …) makes pictures in tmp_path, and folders for them; the folder."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48), "grey").save(path, format="PNG" if path.suffix in ("", ".x") else None)
        return tmp_path

    return make


def found(source: object) -> list[str]:
    return [path.name for path in find_pictures(str(source))]


def test_skipped_files_are_named_with_the_reason(files, caplog):
    folder = files("ok.jpg", "b.avif", "c.jfif", "holiday/x.jpg", "d.x", ".hidden.jpg", ".git/y.png")
    (folder / "IMG_0002.HEIC").write_bytes(HEIC)
    for name in ("clip.MP4", "notes.txt", "boxes.json", "Thumbs.db", "ok.npz", "ok_p0.glb", "IMG_0002.AAE"):
        (folder / name).write_bytes(b"x")
    files("ok_overlay.png")  # with ok.npz: a result of ours
    (folder / "lost.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "empty").mkdir()
    assert found(folder) == ["b.avif", "c.jfif", "ok.jpg"]
    (message,) = caplog.messages
    assert "IMG_0002.HEIC (HEIC, which needs a decoder: pip install pillow-heif" in message
    assert "clip.MP4 (a video" in message
    assert "d.x (not a picture, or has an unknown format)" in message
    assert f"holiday (folders; input='{folder}/**/*' takes their pictures too)" in message
    assert "lost.jpg (a link to nothing)" in message
    for silent in (".hidden", ".git", "notes", "boxes", "Thumbs", ".npz", ".glb", "AAE", "overlay", "empty"):
        assert silent not in message
    assert read_picture(folder / "b.avif").shape == (48, 64, 3)
    assert read_picture(folder / "c.jfif").shape == (48, 64, 3)


def test_many_skipped_files_make_a_short_message(files, caplog):
    folder = files("a.jpg", *(f"{i}.x" for i in range(300)))
    found(folder)
    assert "0.x, 1.x, 10.x, 100.x, 101.x and 295 others (" in caplog.text
    assert len(caplog.messages[0]) < 300


def test_a_pattern_names_what_it_skips_but_not_the_folders_that_it_searches(files, caplog):
    folder = files("a.jpg", "in/b.jpg")
    (folder / "in" / "clip.mov").write_bytes(b"x")
    assert found(f"{folder}/**/*") == ["a.jpg", "b.jpg"]
    assert caplog.messages == [f"Skipped in {folder}: in/clip.mov (a video: save its frames as pictures first)."]


def test_a_folder_with_nothing_to_read_says_why(files):
    folder = files("in/b.jpg")
    (folder / "a.heic").write_bytes(HEIC)
    with pytest.raises(InputError, match=r"holds no pictures .* Skipped: a.heic .*pip install pillow-heif.*; in \("):
        find_pictures(str(folder))
    (path,) = find_pictures(f"{folder}/a.heic")
    with pytest.raises(InputError, match=r"a\.heic is HEIC, which needs a decoder: pip install pillow-heif"):
        read_picture(path)
    (folder / "iphone.jpg").write_bytes(HEIC)
    with pytest.raises(InputError, match=r"iphone\.jpg is HEIC"):
        read_picture(folder / "iphone.jpg")
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.raises(InputError, match=r"clip\.mp4 is a video"):
        read_picture(folder / "clip.mp4")


DECODER = """
from PIL import Image, ImageFile


class Heif(ImageFile.ImageFile):
    format = "FAKE_HEIF"

    def _open(self):
        self._size, self._mode, self.tile = (40, 30), "RGB", []

    def load(self):
        self.im = Image.core.fill("RGB", self.size, (10, 20, 30))
        return Image.Image.load(self)


def register_heif_opener():
    Image.register_open("FAKE_HEIF", Heif, lambda head: head[4:12] == b"ftypheic")
"""


@pytest.mark.parametrize("name", ["a.HEIC", "exported.jpg"])
def test_heic_is_read_where_its_decoder_is_installed(files, caplog, monkeypatch, tmp_path_factory, name):
    folder, packages = files("b.jpg"), tmp_path_factory.mktemp("packages")
    (packages / "pillow_heif.py").write_text(DECODER)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setattr(Image, "ID", Image.ID[:])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # so that what is imported is removed after the test
    del sys.modules["pillow_heif"]
    assert found(folder) == ["b.jpg"]
    assert read_picture(folder / "b.jpg").shape == (48, 64, 3)
    assert "pillow_heif" not in sys.modules, "it is imported for HEIC only"
    (folder / name).write_bytes(HEIC)
    assert found(folder) == sorted([name, "b.jpg"])
    assert not caplog.messages
    assert read_picture(folder / name)[0, 0].tolist() == [10, 20, 30]


NAMES = ("[1].jpg", "a*b/c.jpg", "what?.jpg", "[ab]/[c].jpg", "José (1)/日本, 'x'.jpg", "{a}=$b #5%.jpg", " ~ .jpg")


@pytest.mark.parametrize("name", NAMES)
def test_names_with_wildcards_and_other_signs_are_names_where_they_exist(files, name):
    folder = files(name, "1.jpg", "axb/c.jpg", "what1.jpg", "a/c.jpg", "b/[c].jpg", "a/d.jpg")
    assert find_pictures(str(folder / name)) == [folder / name]
    if (parent := (folder / name).parent) != folder:
        assert find_pictures(str(parent)) == [folder / name]
        assert find_pictures(f"{parent}/*.jpg") == [folder / name]


@pytest.mark.parametrize(("on_disk", "typed"), [(nfd, str), (str, nfd)], ids=["decomposed", "composed"])
def test_accents_are_found_however_they_are_written(files, monkeypatch, on_disk, typed):
    name = "Fotos_José/Fête 한국.jpg"
    folder = files(on_disk(name))
    there = folder / on_disk(name)
    assert find_pictures(f"{folder}/{typed(name)}") == [there]
    assert find_pictures(f"{folder}/{typed('Fotos_José')}") == [there]
    assert find_pictures(f"{folder}/{typed('Fotos_José')}/{typed('Fê')}*.jpg") == [there]
    assert locate(f"{folder}/{typed('Fotos_José')}/new.json") == there.with_name("new.json")
    monkeypatch.chdir(folder)
    assert as_option("reports", many=True)([typed(name)]) == [f'reports=["{on_disk(name)}"]']
    words = [f"input={typed(name)}", f"output={typed('Fotos_José')}/Où", f"boxes={typed('nowhere_é')}"]
    config = compose("demo", quote_texts(words, "demo"))
    assert config.input == on_disk(name)
    assert config.output == f"{on_disk('Fotos_José')}/Où"
    assert config.boxes == typed("nowhere_é")


def test_the_home_folder_is_known_in_a_test_set_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    words = quote_texts(file_as_testset(["testset=~/a, b.npz"]), "test_mega")
    assert compose("test_mega", words).testset.path == str(tmp_path / "a, b.npz")


def test_files_named_like_a_value_do_not_change_options(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("3", "0.5", "1e2", "true"):
        (tmp_path / name).touch()
    words = ["samples=3", "temperature=0.5", "focal=1e2", "compile=true", "input=3", "detector.threshold=0.5"]
    config = compose("demo", quote_texts(words, "demo"))
    assert (config.samples, config.temperature, config.focal, config.compile) == (3, 0.5, 100, True)
    assert (config.input, config.detector.threshold) == ("3", 0.5)
    config = compose("test_mega", quote_texts(["pictures=3", "limit=3"], "test_mega"))
    assert (config.pictures, config.limit) == (3, 3)


# Boxes ------------------------------------------------------------------------------------------------------------

ONE, TWO = [[10, 5, 30, 45]], [[20, 5, 60, 45]]


def boxes_of(source: object, data: object = None, file: object = None, **options) -> dict[str, list | None]:
    """{picture, relative to the folder: its boxes, None: the whole picture} for a boxes file with the given content."""
    folder = Path(str(source).split("/**")[0])
    if data is not None:
        file = file or folder / "boxes.json"
        Path(file).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    detector = GivenBoxes(file and str(file), str(source), **options)
    pictures = find_pictures(str(source))
    detector.match(pictures)
    people = {path: detector(path, read_picture(path)) for path in pictures}
    return {
        path.relative_to(folder).as_posix(): None if each.rough else each.boxes.tolist()
        for path, each in people.items()
    }


def test_boxes_are_matched_by_the_path_from_the_input_or_the_boxes_file(files, tmp_path_factory, caplog):
    folder = files("d1/img.jpg", "d2/img.jpg", "img.jpg", "d1/only.jpg")
    data = {"d1/img.jpg": ONE, "./d2\\img.jpg": TWO, "img.jpg": [], str(folder / "d1/only.jpg"): TWO}
    expected = {"d1/img.jpg": ONE, "d1/only.jpg": TWO, "d2/img.jpg": TWO, "img.jpg": []}
    elsewhere = tmp_path_factory.mktemp("labels") / "labels.json"
    assert boxes_of(f"{folder}/**/*", data) == expected  # boxes.json is found
    assert boxes_of(f"{folder}/**/*", data, elsewhere) == expected
    assert boxes_of(f"{folder}/d1", {"img.jpg": ONE, "only.jpg": TWO}) == {"img.jpg": ONE, "only.jpg": TWO}
    # Relative to the boxes file alone, with .. in the name.
    beside = folder / "my" / "labels" / "b.json"
    beside.parent.mkdir(parents=True)
    assert boxes_of(f"{folder}/d2", {"../../d2/img.jpg": ONE}, beside) == {"img.jpg": ONE}


def test_a_bare_name_belongs_to_the_only_picture_of_that_name(files):
    folder = files("d1/img.jpg", "d2/img.jpg", "d2/only.jpg")
    assert boxes_of(f"{folder}/**/*", {"only.jpg": ONE})["d2/only.jpg"] == ONE
    assert boxes_of(f"{folder}/**/*", {"D2/only.jpg": ONE})["d2/only.jpg"] is None
    with pytest.raises(InputError, match=r"boxes.json: img.jpg may be .*d1/img.jpg, .*d2/img.jpg; write its path from"):
        boxes_of(f"{folder}/**/*", {"img.jpg": ONE})
    with pytest.raises(InputError, match=r"only.jpg and d2/only.jpg both mean"):
        boxes_of(f"{folder}/**/*", {"only.jpg": ONE, "d2/only.jpg": TWO})


@pytest.mark.parametrize("key", ["A.jpg", "a.jpeg", "other/a.jpg", "a", "a.jpg "])
def test_what_is_left_is_named_on_both_sides_in_an_automatic_file_too(files, caplog, key):
    folder = files("a.jpg", "b.jpg")
    assert boxes_of(folder, {key: ONE, "b.jpg": TWO}) == {"a.jpg": None, "b.jpg": TWO}
    unmatched, without = caplog.messages
    assert unmatched == f"{folder}/boxes.json has boxes for pictures that are not in the input: {key}."
    assert without == (
        f"{folder}/boxes.json has no boxes for 1 of 2 pictures; one person is expected in each of them: {folder}/a.jpg."
    )


def test_boxes_of_other_pictures_that_exist_are_no_mistake(files, caplog):
    folder = files("a.jpg", "b.jpg")
    (folder / "boxes.json").write_text(json.dumps({"a.jpg": ONE, "b.jpg": TWO}))
    assert list(boxes_of(folder / "a.jpg").values()) == [ONE]
    assert not caplog.messages


@pytest.mark.parametrize(("on_disk", "written"), [(nfd, str), (str, nfd)], ids=["decomposed", "composed"])
def test_accents_in_boxes_match_however_they_are_written(files, on_disk, written):
    folder = files(on_disk("Été/José.jpg"))
    assert boxes_of(f"{folder}/**/*", {written("Été/José.jpg"): ONE}) == {on_disk("Été/José.jpg"): ONE}
    assert boxes_of(f"{folder}/**/*", {written("José.jpg"): ONE}) == {on_disk("Été/José.jpg"): ONE}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_accepted(files, encoding):
    assert boxes_of(files("é.jpg"), json.dumps({"é.jpg": ONE[0]}, ensure_ascii=False).encode(encoding)) == {
        "é.jpg": ONE
    }


def coco(**changes) -> dict:
    """Instances as COCO's: sizes and bbox (x, y, w, h) px, crowds, other categories, and more than is needed."""
    images = [
        {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48, "license": 1, "coco_url": "http://images/a.jpg"},
        {"id": 139, "file_name": "b.jpg", "width": 64, "height": 48},
        {"id": 8, "file_name": "nobody.jpg"},
    ]
    annotation = {"area": 800.5, "segmentation": [[1, 2, 3, 4, 5, 6]]}
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 5, 20, 40], "iscrowd": 0, **annotation},
        {"id": 2, "image_id": 7, "category_id": 18, "bbox": [1, 1, 9, 9], "iscrowd": 0, **annotation},
        {"id": 3, "image_id": 139, "category_id": 1, "bbox": [20, 5, 40, 40], "iscrowd": 0, **annotation},
        {"id": 4, "image_id": 139, "category_id": 1, "bbox": [0, 0, 64, 48], "iscrowd": 1, **annotation},
    ]
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person", "supercategory": "person"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories} | changes


def test_coco_instances(files, caplog):
    folder = files("a.jpg", "b.jpg", "c.jpg", "nobody.jpg")
    people = boxes_of(folder, coco(), folder / "instances.json")
    assert people == {"a.jpg": ONE, "b.jpg": TWO, "c.jpg": None, "nobody.jpg": []}
    assert "left out are 1 boxes of other categories than person, 1 boxes around crowds" in caplog.text
    assert f"has nobody in {folder}/nobody.jpg" in caplog.text
    assert f"one person is expected in each of them: {folder}/c.jpg" in caplog.text
    # The categories say what a person is, where there are any.
    dogs = boxes_of(folder, coco(categories=[{"id": 18, "name": "Person"}]), folder / "instances.json")
    assert dogs["a.jpg"] == [[1, 1, 10, 10]]
    data = coco()
    del data["categories"]
    assert boxes_of(folder, data)["a.jpg"] == ONE  # as boxes.json, without an option


def test_coco_boxes_of_a_picture_of_another_size_are_refused(files):
    data = coco()
    data["images"][0]["width"] = 640
    with pytest.raises(InputError, match=r"a.jpg has 64×48 pixels, but its boxes in .* are for 640×48"):
        boxes_of(files("a.jpg"), data)


RESULTS = [
    {"image_id": 7, "category_id": 1, "bbox": [10.0, 5.0, 20.0, 40.0], "score": 0.9},
    {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.31},
    {"image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.99},
    {"image_id": 139, "category_id": 1, "bbox": [20, 5, 40, 40], "score": 0.5},
]


@pytest.mark.parametrize(
    ("a", "b"), [("7.jpg", "000000000139.png"), ("COCO_val2014_000000000007.jpg", "COCO_val2014_000000000139.jpg")]
)
def test_coco_results_of_pictures_with_numbers(files, caplog, a, b):
    folder = files(a, b, "x7.jpg")
    file = folder / "results.json"
    assert boxes_of(folder, RESULTS, file) == {a: ONE, b: TWO, "x7.jpg": None}
    assert "1 boxes with scores below detector.threshold=0.5" in caplog.text
    assert boxes_of(folder, RESULTS, file, threshold=0.3)[a] == [*ONE, [0, 0, 9, 9]]
    assert boxes_of(folder, RESULTS, file, threshold=0.95) == {a: [], b: [], "x7.jpg": None}
    with pytest.raises(InputError, match=r"7 may be .*07\.jpg"):
        boxes_of(files("07.jpg", "0007.jpg"), RESULTS, file)


def test_coco_results_of_pictures_with_names(files, caplog, tmp_path_factory):
    folder = files("a.jpg", "b.jpg", "7.jpg", "55.jpg")
    file, instances = folder / "results.json", tmp_path_factory.mktemp("coco") / "instances.json"
    assert boxes_of(folder, RESULTS, file)["a.jpg"] is None
    assert "pictures that are not in the input: 139." in caplog.text
    instances.write_text(json.dumps(coco()))
    expected = {"55.jpg": None, "7.jpg": None, "a.jpg": ONE, "b.jpg": TWO}
    caplog.clear()
    results = [*RESULTS, RESULTS[0] | {"image_id": 55}]  # the numbers are those of the instances alone
    assert boxes_of(folder, results, file, annotations=str(instances)) == expected
    assert "pictures that are not in the input: 55." in caplog.text
    assert boxes_of(folder, RESULTS, instances.with_name("results.json")) == expected
    assert f"the names of the pictures are taken from {instances}" in caplog.text
    by_name = [result | {"image_id": {7: "a", 139: "b.jpg"}[result["image_id"]]} for result in RESULTS]
    assert boxes_of(folder, by_name, file) == expected


WRONG = {
    "a list of boxes": ([[1, 2, 3, 4]], r"must hold \{\"name.jpg\": .* COCO instances or COCO results"),
    "a number": (7, "must hold"),
    "a word": ("a.jpg", "must hold"),
    "not JSON": (b"a.jpg: 1 2 3 4", "is not JSON"),
    "another encoding": (b'{"\xe9.jpg": []}', "is not JSON"),
    "a name twice": (b'{"a.jpg": [], "a.jpg": [[1, 2, 3, 4]]}', "has the name a.jpg more than once"),
    "boxes as objects": ({"a.jpg": {"x": 1}}, "is not four numbers"),
    "boxes as text": ({"a.jpg": "1 2 3 4"}, "is not four numbers"),
    "images alone": ({"images": []}, "has no annotations"),
    "images as names": (coco(images=["a.jpg"]), "does not hold COCO instances"),
    "images without names": (coco(images=[{"id": 7}]), "does not hold COCO instances: KeyError"),
    "categories without person": (coco(categories=[{"id": 18, "name": "dog"}]), "has no category person, only dog"),
    "annotations without boxes": (coco(annotations=[{"image_id": 7}]), "needs image_id and bbox"),
    "a result without a box": ([{"image_id": 7, "keypoints": []}], "needs image_id and bbox"),
    "a score as text": ([RESULTS[0] | {"score": "high"}], 'the score "high" is not a number'),
    "a box of three": (coco(annotations=[{"image_id": 7, "bbox": [1, 2, 3]}]), "is not four numbers"),
    "people as category 0": ([RESULTS[0] | {"category_id": 0}], r"no boxes of category 1 \(person\), only of 0"),
    "a category as a list": ([RESULTS[0] | {"category_id": [1]}], "no boxes of category 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_boxes_file_is_a_sentence(files, case):
    data, words = WRONG[case]
    with pytest.raises(InputError, match=words) as error:
        boxes_of(files("a.jpg"), data)
    assert "boxes.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/inputs")
def test_the_shared_examples(tmp_path, caplog):
    assert found(SHARED / "formats") == ["ok.jpg", "pic.avif", "pic.jfif"]
    assert "IMG_0002.HEIC" in caplog.text
    assert "clip.mp4" in caplog.text
    boxes, expected = SHARED / "boxes", {"a.jpg": [[60, 20, 150, 240]]}
    assert boxes_of(boxes / "coco", file=boxes / "coco" / "coco.json") == expected
    assert boxes_of(boxes / "coco", file=boxes / "coco" / "coco_results.json") == expected
    assert boxes_of(boxes / "bom") == expected
    assert boxes_of(boxes / "mis") == {"a.jpg": None}
    assert "not in the input: A.jpg" in caplog.text
    nested = boxes_of(f"{boxes / 'nest'}/**/*", file=boxes / "nest" / "boxes2.json")
    assert nested == {"d1/img.jpg": [[60, 20, 150, 240]], "d2/img.jpg": [[160, 20, 250, 240]]}
    with pytest.raises(InputError, match=r"img.jpg may be .*d1/img.jpg"):
        boxes_of(f"{boxes / 'nest'}/**/*")


def test_boxes_must_be_matched_before_they_are_asked_for(files):
    with pytest.raises(KeyError):
        GivenBoxes(None, str(files("a.jpg")))(Path("a.jpg"), np.zeros((48, 64, 3), np.uint8))


def test_movenet_finds_people_of_all_sizes(tmp_path, caplog):
    source, detector = locate("demo_data"), MoveNetDetector()
    path = source / "synthetic_two_people.jpg"
    image = read_picture(path)
    expected = torch.tensor(json.loads((source / "boxes.json").read_text(encoding="utf-8"))[path.name])
    found = torch.from_numpy(detector(path, image).boxes).float()
    assert (box_iou(expected, found).max(dim=1).values > 0.5).all()
    # In a corner of a picture six times as wide, where a view of 256 px finds nobody.
    height, width = image.shape[:2]
    wide = np.full((6 * height, 6 * width, 3), 90, np.uint8)
    wide[:height, :width] = image
    assert len(MoveNetDetector(sides=(256,))(path, wide).boxes) == 0
    found = torch.from_numpy(detector(path, wide).boxes).float()
    assert (box_iou(expected, found).max(dim=1).values > 0.5).all()
    assert len(detector(path, np.full_like(image, 90)).boxes) == 0
    assert "synthetic_two_people.jpg: the detector found nobody" in caplog.text
