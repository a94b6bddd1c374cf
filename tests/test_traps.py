"""Faults that code of this kind is known to have. Each has a test that fails where ours has it.

Tested elsewhere:
    Procrustes that takes a batch of 2 or 3 for the coordinates    test_geometry: test_procrustes_undoes_a_similarity;
                                                     test_metrics: test_similarity_changes_no_aligned_error
    two body models read for every item              test_smplh: test_each_gender_is_read_once
    any gender but "m" taken for female              test_smplh: test_unknown_gender_is_refused, and below
    crops that fail                                  test_geometry: test_any_box_gives_a_crop,
                                                     test_boxes_without_area_are_refused, and below
    weights not loaded strictly, empty files "load"  test_released: test_what_differs_is_named_and_nothing_is_loaded,
                                                     test_a_file_cut_short_is_named
    pickles trusted                                  test_released: test_nothing_in_a_file_is_executed;
                                                     test_pretrained: test_vit_and_what_it_is_not
    ViT positions that fit no crop                   test_pretrained: test_positions_follow_the_picture
    the transformer's first step run for each sample test_models: test_backbone_and_first_step_run_once
    the best sample of a batch for that of a person  test_metrics: test_best_of_is_taken_per_person
    items of synthetic pictures                      test_data: test_reading_twice_gives_the_same,
                                                     test_mirrored_items_are_whole, test_workers_change_nothing,
                                                     test_item_depends_on_seed_epoch_and_index_only
    random state of the samplers                     test_models: test_samplers_leave_the_global_random_state_alone

Swapped columns of a CSV cannot happen: numbers are logged by name (test_experiments reads them so), and none is written
by position.
"""

import random
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import mega
from mega.data import Augmentation, SMPLImageData, SMPLImages, SyntheticImageData
from mega.data.smpl_annotations import SMPLAnnotations
from mega.predictor import Sampling
from mega.smpl_crops import annotated_crop, patch_crop
from mega.training.cvqmae import CVQMAETraining, CVQMAETrainingConfig
from mesh_vq_vae.lightning_module import MeshVQVAETraining
from tests.helpers.toy import CROP, toy_model, toy_tokenizer

PEOPLE = 7
LOOK = (v2.ColorJitter(0.5, 0.5, 0.5, 0.1), v2.RandomErasing(0.5))
WILD = Augmentation(scale=0.2, degrees=30, turn_probability=1, look=LOOK)


class ToyBody(nn.Module):
    """The toy tokenizer's mesh, stretched by the first number of the shape."""

    name = "toy"

    def __init__(self):
        super().__init__()
        tokenizer = toy_tokenizer()
        self.template, self.keypoint_regressor = tokenizer.template, tokenizer.keypoint_regressor

    def forward(self, pose: Tensor, shape: Tensor) -> Tensor:
        return self.template * (1 + 0.1 * shape[:, :1, None])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """`synthetic/test/annotations.npz`, and `real.npz` with annotations of the published kind, of one picture each."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    (folder / "synthetic" / "test").mkdir(parents=True)
    for path in (folder / "synthetic" / "test" / "a.png", folder / "a.png"):
        cv2.imwrite(str(path), rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    names = np.full(PEOPLE, "a.png")
    np.savez(
        folder / "synthetic" / "test" / "annotations.npz",
        body=np.array("toy"),
        imgname=names,
        box=np.tile([20.0, 10, 50, 55], (PEOPLE, 1)),
        image_size=np.tile([80, 60], (PEOPLE, 1)),
        pose=np.zeros((PEOPLE, 2, 3)),
        shape=rng.normal(size=(PEOPLE, 2)),
        root_orient=rng.normal(size=(PEOPLE, 3)),
        trans=np.tile([0.0, 0, 3], (PEOPLE, 1)),
        focal=np.full(PEOPLE, 100.0),
        principal_point=np.tile([40.0, 30], (PEOPLE, 1)),
        keypoints2d=np.ones((PEOPLE, 23, 3)),
        keypoints3d=rng.normal(size=(PEOPLE, 23, 3)),
    )
    np.savez(
        folder / "real.npz",
        imgname=names,
        center=np.tile([40.0, 30], (PEOPLE, 1)),
        scale=np.full(PEOPLE, 0.25),
        pose_cam=rng.normal(size=(PEOPLE, 72)),
        shape=rng.normal(size=(PEOPLE, 10)),
        gender=np.array(["f", "F", "female", "m", "Male", "neutral", "n"]),
        part=rng.uniform(5, 60, (PEOPLE, 24, 3)),
    )
    return folder


def real(pictures: Path, **changes) -> SMPLImages:
    return SMPLImages(pictures / "real.npz", crop_size=32, **changes)


def assert_same_item(one: dict, other: dict) -> None:
    for name, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


@pytest.mark.parametrize("kind", ["synthetic", "published"])
def test_test_loaders_neither_shuffle_nor_drop(pictures: Path, tmp_path: Path, kind: str) -> None:
    if kind == "synthetic":
        where = {"folder": pictures / "synthetic", "cache": tmp_path}
        data = SyntheticImageData(ToyBody(), toy_tokenizer(), **where, eval_batch_size=3, crop_size=16, workers=0)
    else:
        test = {"path": pictures / "real.npz"}
        data = SMPLImageData(None, None, train={}, test=test, eval_batch_size=3, crop_size=32, workers=0)
    for _ in range(2):
        batches = [batch["index"].tolist() for batch in data.test_dataloader()]
        assert batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_validation_uses_every_held_out_row_once(pictures: Path) -> None:
    """In validation nothing is drawn: every row that is held out of a set comes once."""
    train = {name: {"path": pictures / "real.npz"} for name in ("one", "two")}
    held_out = SMPLImageData(None, None, train, val_share=0.6, crop_size=32).fixed_dataset("val")
    own = [part.annotations.row.tolist() for part in held_out.datasets]
    assert own[0] == own[1] == [0, 2, 4, 6]
    assert [item["index"] for item in held_out] == [0, 1, 2, 3] * 2


def test_validation_does_not_move_the_codebook() -> None:
    module = MeshVQVAETraining(toy_tokenizer().train())
    before = {k: v.clone() for k, v in module.tokenizer.state_dict().items()}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", enable_model_summary=False, **quiet)
    generator = torch.Generator().manual_seed(0)
    batches = [{"vertices": torch.randn(2, module.tokenizer.n_vertices, 3, generator=generator)}]
    trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    for name, value in module.tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    # Nor does the training of an image model, in which the tokenizer is frozen.
    assert not image_training().train().tokenizer.training


def image_training() -> CVQMAETraining:
    tokenizer = toy_tokenizer()
    model, _ = toy_model(tokenizer.n_tokens)
    config = CVQMAETrainingConfig(base_lr=1e-3, batch_size=4, warmup_steps=1, steps=2)
    return CVQMAETraining(model, config, tokenizer, torch.arange(3), CROP)


def test_every_spelling_of_a_gender(pictures: Path, tmp_path: Path) -> None:
    known = SMPLAnnotations.load(pictures / "real.npz").gender.tolist()
    assert known == ["female", "female", "female", "male", "male", "neutral", "neutral"]
    with np.load(pictures / "real.npz") as file:
        columns = dict(file)
    columns["gender"] = columns["gender"].astype("S")
    np.savez(tmp_path / "bytes.npz", **columns)
    assert SMPLAnnotations.load(tmp_path / "bytes.npz").gender.tolist() == known
    columns["gender"] = np.array([*known[:-1], "unknown"])
    np.savez(tmp_path / "unknown.npz", **columns)
    with pytest.raises(ValueError, match=r"unknown\.npz: .*row 6 \(a\.png\): The gender 'unknown' is none of"):
        SMPLAnnotations.load(tmp_path / "unknown.npz")


def test_any_batch_can_be_decoded() -> None:
    tokenizer = toy_tokenizer()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.codebook_size, (5, tokenizer.n_tokens), generator=generator)
    together = tokenizer.decode(tokens)
    for size in (1, 2, 3):
        parts = torch.cat([tokenizer.decode(part) for part in tokens.split(size)])
        torch.testing.assert_close(parts, together)


def test_annotated_boxes_anywhere_give_a_crop() -> None:
    image = np.full((60, 80, 3), 255, np.uint8)
    for cut in (annotated_crop, patch_crop):
        for center in ((-500.0, -300.0), (40.0, 900.0)):
            outside = cut(image, np.array(center), 0.3, 32, 20.0)
            assert outside.shape == (32, 32, 3)
            assert not outside.any()
        assert cut(image, np.array([80.0, 60.0]), 0.3, 32)[:10, :10].all()
        for scale in (0.0, -0.3, np.nan):
            with pytest.raises(ValueError, match="has no area"):
                cut(image, np.array([40.0, 30.0]), scale, 32)


def test_backbone_runs_once_for_all_samples(toy_weights: Path) -> None:
    predictor, seen = mega.load(toy_weights), []
    predictor.model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    boxes = np.array([[10.0, 10, 60, 90], [30, 5, 70, 80]])
    predictor(np.zeros((100, 80, 3), np.uint8), boxes, Sampling(samples=25, steps=2))
    assert seen == [2]


@pytest.mark.parametrize("patch", [False, True])
def test_reading_an_item_twice_gives_the_same(pictures: Path, patch: bool) -> None:
    data = real(pictures, augmentation=WILD, flip_probability=0.5, patch=patch)
    before = {name: getattr(data.annotations, name).copy() for name in ("keypoints2d", "pose", "center", "scale")}
    first = [data[i] for i in range(PEOPLE)]
    for item in first:
        assert_same_item(item, data[item["index"]])
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(data.annotations, name), value)


def test_flipped_keypoints_are_returned(pictures: Path) -> None:
    straight, flipped = real(pictures)[2], real(pictures, flip_probability=1.0)[2]
    assert torch.equal(flipped["image"], straight["image"].flip(-1))
    there, mirrored = straight["keypoints2d"][:17], flipped["keypoints2d"][:17]  # the 17 of H36M
    across = torch.tensor([-1.0, 1, 1])
    for right, left in ((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)):  # ankles, knees, hips, wrists, …
        assert torch.equal(mirrored[right], there[left] * across)
        assert torch.equal(mirrored[left], there[right] * across)
    assert torch.equal(mirrored[12:], there[12:] * across)  # neck and head
    assert there[:, 0].std() > 0.1


def test_items_depend_on_no_global_random_state_and_on_no_number_of_workers(pictures: Path) -> None:
    data = real(pictures, augmentation=WILD, flip_probability=0.5)
    batches = []
    for seed, workers in ((0, 0), (1, 2)):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (what must make no difference)
        random.seed(seed)
        state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        assert data[0]["image"].any()
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
        assert random.getstate() == state[2]
        batches.append(next(iter(DataLoader(data, batch_size=PEOPLE, num_workers=workers))))
    assert_same_item(*batches)
