"""Human meshes from pictures.

    python demo.py                                     demo_data/ -> demo_out/
    python demo.py input=photos output=results         a folder; also a file or a pattern: 'input=photos/*.jpg'
    python demo.py boxes=boxes.json                    where the people are, see below
    python demo.py detector=movenet                    find the people
    python demo.py mode=stochastic samples=25          several meshes per person, and the uncertainty of each vertex
    python demo.py experiment=mega_hrnet               the published model, from your files (tools/check_setup.py)

    input=demo_data        folder, file or glob pattern
    output=demo_out        folder for the results; created if it does not exist
    boxes=null             JSON file; null reads boxes.json in the input folder if it exists
    detector=boxes         boxes | movenet | torchvision | whole_image. movenet and torchvision (which fetches its
                           weights once) find the people. With the others, one person is expected in a picture without
                           boxes; the box is tightened around the predicted mesh before the final prediction
    detector.threshold=0.5                             smallest score of a person (movenet: 0.15, torchvision: 0.7)
    detector.annotations=null                          file of COCO instances, for the names of images in COCO results
    mode=deterministic     deterministic | stochastic, which adds samples and their uncertainty
    samples=25 steps=5 temperature=1 seed=0            of the stochastic mode
    decode=null            argmax | soft: the mesh of the likeliest codes, as published, or of the mean codes; null
                           leaves it to the weights
    tta=null               none | flip | shift | flip_shift: test-time augmentation, the mean prediction over the crop
                           and its mirror image (2 times the time), shifted crops (5 times), or both (10 times); null
                           leaves it to the weights
    focal=null             null | default | focal length of the camera, px. null reads the picture's EXIF data (35 mm
                           equivalent, with 36 mm for the longer side, or else the sensor's resolution); where they do
                           not say it, and for default, 1000/224 of the picture's longer side is assumed, as published
    export=glb             glb | obj
    device=auto            auto | cpu | cuda | cuda:N | mps: auto takes a GPU if there is one (mps: a Mac's)
    precision=fp32         fp32 | bf16 | auto: bf16 computes the products of backbone and transformer in bfloat16: about
                           twice as fast on CPUs that support it, far slower on others; about one token in a hundred
                           differs. auto takes bf16 where the device supports it. With fp32 the same picture gives the
                           same mesh on every machine
    compile=false          true | false: torch.compile; takes minutes before the first picture and needs a C++ compiler
                           on a CPU, so it only pays for many pictures
    weights=anny_lite      anny_lite | mega_hrnet | mega_resnet | mega_vit | a folder with tokenizer.safetensors and
                           cvqmae.safetensors | the file of an image model
    tokenizer_weights=null                             another tokenizer than the one that belongs to the weights
    tighten_passes=2 max_side=1024                     passes of the tightening; longer side of drawn pictures, px

The boxes file is one of these, in px of the upright picture:

    {"a.jpg": [[x0, y0, x1, y1], …], "day 2/b.jpg": …} Names are paths from the input folder or from the file's folder;
                           a name alone will do where only one picture has it. Capital letters count
    COCO instances         {"images": [{"id", "file_name"}], "annotations": [{"image_id", "bbox": [x, y, w, h]}], …}:
                           boxes of the category person that are not marked as crowds
    COCO results           [{"image_id", "bbox": [x, y, w, h], "score", "category_id"}, …]. Numbers of images are those
                           of detector.annotations, else of the only file of instances in their folder, else of the
                           pictures' names (7.jpg, 000000000007.jpg)

Names without a picture and pictures without boxes are reported, and so are files in the input folder that are not read:
videos, HEIC without its decoder (pip install pillow-heif), subfolders (input='photos/**/*' reads those too).

For NAME.jpg the following files are written to the output folder, all of them or none:

    NAME_overlay.png       the picture, the meshes in place and from the side, and in stochastic mode the uncertainty
    NAME_p0.glb …          the mesh of each person, metres, y up, the camera at the origin
    NAME.npz               vertices (P, V, 3) float32 in the camera frame of the full picture: metres, x right,
                           y down, z forward; faces (F, 3); boxes (P, 4) px; focal px; principal_point (2,) px;
                           tokens (P, N); keypoints3d (P, J, 3) metres; keypoints2d (P, J, 2) px: 23 keypoints, or
                           SMPL's 24 joints with the published models;
                           in stochastic mode samples (P, Q, V, 3) and uncertainty (P, V), metres: the standard
                           deviation of each vertex's position over the samples

Pictures with the same name (a.jpg, a.png) get results with different names (a_jpg, a_png). Pictures that cannot be
used are reported and skipped; the exit status is then 1.
"""

import logging
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import mega
from mega.config import build, main
from mega.console import Stopwatch, format_table
from mega.detectors import GivenBoxes
from mega.export import draw_sheet, encode_results, make_output_folder, write_together
from mega.photos import InputError, find_pictures, open_picture, output_names
from mega.predictor import Sampling

STAGES = ("read", "detect", "predict", "draw", "write")


@main("demo")
def demo(config: DictConfig) -> int:
    """Predict the people in every picture; the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    paths = find_pictures(config.input)
    output = make_output_folder(config.output)
    if len(paths) > 1 and output.resolve() in {path.parent.resolve() for path in paths}:
        raise InputError(f"The output folder {output} holds the input: results would be taken for input the next time.")
    detector = build(config.detector)
    if isinstance(detector, GivenBoxes):
        detector.match(paths)
    options = (config.device, config.precision, config.compile, config.decode, config.tta)
    predictor = mega.load(config.weights, *options, tokenizer=config.tokenizer_weights)
    sampling = None
    if config.mode == "stochastic":
        sampling = Sampling(config.samples, config.steps, config.temperature, config.seed)

    done, failures = [], []
    named = list(zip(paths, output_names(paths), strict=True))
    with logging_redirect_tqdm(), tqdm(named, unit="picture", disable=None, file=sys.stderr) as bar:
        for path, name in bar:
            bar.set_postfix_str(path.name)
            watch = Stopwatch()
            try:
                with watch("read"):
                    image = open_picture(path)
                with watch("detect"):
                    found = detector(path, image)
                    boxes = predictor.tighten(image, found.boxes, config.tighten_passes) if found.rough else found.boxes
                with watch("predict"):
                    focal, source = choose_focal(config.focal, image.focal)
                    people = predictor(image, boxes, sampling, focal)
                with watch("draw"):
                    sheet = draw_sheet(image, people, config.max_side)
                with watch("write"):
                    write_together(output, name, encode_results(name, people, sheet, config.export))
                done.append((path.name, len(people), f"{people.focal:.0f} px, {source}", watch.seconds))
                continue
            except InputError as error:
                message = str(error) if str(path) in str(error) else f"{path}: {error}"
            except Exception as error:  # a bug, or out of memory: the other pictures are still processed
                message = f"{path} failed unexpectedly: {error!r}.\n{traceback.format_exc()}"
            failures.append(message.splitlines()[0])
            tqdm.write(message, file=sys.stderr)

    if done:
        print(f"\nMilliseconds per person:\n\n{timing_table(done)}\n\nThe results are in {output}/.")
    if failures:
        print(f"\n{len(failures)} of {len(paths)} pictures failed:", *failures, sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def choose_focal(option: float | str | None, from_exif: float | None) -> tuple[float | None, str]:
    """The focal length of a picture, px, and where it is from; None is the published one."""
    if option is None and from_exif is not None:
        return from_exif, "EXIF"
    return (None, "default") if option in (None, "default") else (option, "given")


def timing_table(done: Sequence[tuple[str, int, str, Mapping[str, float]]]) -> str:
    """One row per (picture, people, focal length, seconds by stage), and one for all.

    Pictures without people count as one person.
    """
    total = sum((Counter(seconds) for *_, seconds in done), Counter())
    rows = []
    for name, people, focal, seconds in [*done, (f"all {len(done)}", sum(row[1] for row in done), "", total)]:
        spent = [1000 * seconds[stage] / max(people, 1) for stage in STAGES]
        rows.append([name, str(people), focal, *(f"{ms:.0f}" for ms in [*spent, sum(spent)])])
    return format_table(["picture", "people", "focal", *STAGES, "total"], rows)


if __name__ == "__main__":
    demo()
