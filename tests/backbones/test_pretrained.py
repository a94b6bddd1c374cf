"""The files of trained backbones: heads are left out, the rest is strict."""

import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from mega.backbones import BlazePose, HRNetW48, ResNet50, ViT, load_pretrained, start_backbone
from mega.external_files import IMAGENET
from tests.golden.golden import GOLDEN_DIR
from tests.helpers.fake_files import composed

KEYS = GOLDEN_DIR / "pretrained_keys.json"
needs_keys = pytest.mark.skipif(not KEYS.is_file(), reason=f"no {KEYS}")


def saved(path: Path, state: dict) -> Path:
    torch.save(state, path)
    return path


def users_file(name: str) -> dict[str, Tensor]:
    """The state dict of a file that users download: its names, shapes and types, with made-up values.

    The values of a tensor are alike, so that it takes no memory, but no two tensors have the same.
    """
    state = {}
    for i, (key, shape, dtype) in enumerate(json.loads(KEYS.read_text())[name]):
        state[key] = torch.tensor(i + 1).to(getattr(torch, dtype)).expand(shape)
    return state


def renamed(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {"renamed" if k == key else k: v for k, v in state.items()}


@pytest.fixture(scope="module")
def hrnet() -> HRNetW48:
    return HRNetW48()


def test_resnet_from_torchvision_and_from_a_pose_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, backbone = resnet50(weights=None).eval(), ResNet50().eval()
    state = net.state_dict()
    state["deconv_layers.0.weight"] = torch.zeros(3)
    load_pretrained(backbone, saved(tmp_path / "resnet50_coco_pose.pth", {"state_dict": state}))
    images = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        pooled = net.fc(net.avgpool(backbone(images)).flatten(1))
        torch.testing.assert_close(pooled, net(images))


def test_hrnet_keeps_its_new_layers(hrnet: HRNetW48, tmp_path: Path) -> None:
    state = {k: v + 1 for k, v in hrnet.state_dict().items() if not k.startswith("downsample_stage")}
    state["final_layer.weight"] = torch.zeros(17, 48, 1, 1)  # COCO's 17 keypoints instead of 24
    new = hrnet.downsample_stage_1[0].weight.clone()
    load_pretrained(hrnet, saved(tmp_path / "pose_hrnet_w48.pth", state))
    assert torch.equal(hrnet.conv1.weight, state["conv1.weight"])
    assert torch.equal(hrnet.downsample_stage_1[0].weight, new)


def test_vit_and_what_it_is_not(hrnet: HRNetW48, tmp_path: Path) -> None:
    vit = ViT(dim=32, depth=1, heads=2)
    state = {f"backbone.{k}": torch.ones_like(v) for k, v in vit.state_dict().items()}
    path = saved(tmp_path / "vitpose_backbone.pth", {"state_dict": state | {"keypoint_head.w": torch.ones(1)}})
    load_pretrained(vit, path)
    assert (vit.last_norm.weight == 1).all()
    with pytest.raises(ValueError, match=r"vitpose_backbone\.pth do not fit this ResNet50: .*0\.weight is missing"):
        load_pretrained(ResNet50(), path)
    with pytest.raises(FileNotFoundError, match=r"pose_hrnet_w48\.pth is missing: HRNet-W48"):
        load_pretrained(hrnet, tmp_path / "body_models" / "pose_hrnet_w48.pth")
    saved(tmp_path / "object.pth", {"state_dict": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r"object\.pth holds objects other than tensors and numbers"):
        load_pretrained(vit, tmp_path / "object.pth")


def test_backbones_are_not_taken_for_one_another(hrnet: HRNetW48, tmp_path: Path) -> None:
    resnet = ResNet50()
    for model, given in ((resnet, hrnet), (hrnet, resnet)):
        before = [v.clone() for v in model.state_dict().values()]
        path = saved(tmp_path / "backbone.pth", {"state_dict": given.state_dict()})
        with pytest.raises(ValueError, match=rf"backbone\.pth do not fit this {type(model).__name__}: .* is missing"):
            load_pretrained(model, path)
        assert all(torch.equal(v, old) for v, old in zip(model.state_dict().values(), before, strict=True))


def test_no_file_of_weights(tmp_path: Path) -> None:
    vit, path = ViT(dim=32, depth=1, heads=2), tmp_path / "vitpose_backbone.pth"
    saved(path, {"state_dict": vit.state_dict()})
    whole = path.read_bytes()
    for content in (b"", b"not weights", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"vitpose_backbone\.pth cannot be read as weights"):
            load_pretrained(vit, path)
    for content in ([1, 2], {0: torch.zeros(1)}, {"epoch": 3}):
        with pytest.raises(ValueError, match=r"vitpose_backbone\.pth is no state dict"):
            load_pretrained(vit, saved(path, content))
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"vitpose_backbone\.pth is a folder, but a file is expected"):
        load_pretrained(vit, path)


def test_positions_follow_the_picture() -> None:
    """Any grid will do; on the file's own grid the positions are those of the file."""
    torch.manual_seed(0)
    vit = ViT(position_grid=(4, 3), dim=32, depth=1, heads=2).eval()
    with torch.no_grad():
        for height, width in ((64, 48), (48, 80)):
            assert vit(torch.rand(2, 3, height, width)).shape == (2, 32, height // 16, width // 16)
        torch.testing.assert_close(vit._positions((4, 3)), vit.pos_embed[:, :1] + vit.pos_embed[:, 1:])
        vit.pos_embed[:] = 0.5  # alike everywhere: so are the interpolated ones
        torch.testing.assert_close(vit._positions((7, 5)), torch.ones(1, 35, 32))


@needs_keys
def test_the_pose_network_that_users_download(tmp_path: Path) -> None:
    state = users_file("pose_hrnet_w48.pth")
    path = tmp_path / "pose_hrnet_w48.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # it is of 2019
    backbone = HRNetW48()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    load_pretrained(backbone, path)
    lacking = ("final_layer.", "downsample_stage_", *(f"stage4.2.fuse_layers.{branch}." for branch in (1, 2, 3)))
    for key, value in backbone.state_dict().items():
        expected = before if key.startswith(lacking) else state
        assert torch.equal(value, expected[key]), key
    assert not any(key.startswith(lacking[1:]) for key in state)


@needs_keys
@pytest.mark.parametrize(
    "key", ["conv1.weight", "stage4.2.fuse_layers.0.3.1.running_var", "stage2.0.branches.0.0.bn1.bias"]
)
def test_a_pose_network_with_another_name_is_refused(hrnet: HRNetW48, tmp_path: Path, key: str) -> None:
    before = {k: v.clone() for k, v in hrnet.state_dict().items()}
    path = saved(tmp_path / "pose_hrnet_w48.pth", renamed(users_file("pose_hrnet_w48.pth"), key))
    with pytest.raises(
        ValueError, match=rf"pose_hrnet_w48\.pth do not fit this HRNetW48: {key} is missing; renamed is"
    ):
        load_pretrained(hrnet, path)
    assert all(torch.equal(v, before[k]) for k, v in hrnet.state_dict().items())


@needs_keys
def test_what_a_pose_network_may_lack_it_lacks_wholly(hrnet: HRNetW48, tmp_path: Path) -> None:
    state = users_file("pose_hrnet_w48.pth")
    part = "stage4.2.fuse_layers.1."
    state |= {k: v for k, v in hrnet.state_dict().items() if k.startswith(part)}
    load_pretrained(hrnet, saved(tmp_path / "whole.pth", state))
    key = next(k for k in state if k.startswith(part) and k.endswith(".weight"))
    del state[key]
    with pytest.raises(ValueError, match=rf"part\.pth do not fit this HRNetW48: {key} is missing"):
        load_pretrained(hrnet, saved(tmp_path / "part.pth", state))


@needs_keys
@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_the_vit_that_users_download(tmp_path: Path) -> None:
    """Its 2.5 GB are accepted by names and shapes; of the first two blocks and the rest each tensor arrives."""
    state = users_file("vitpose_backbone.pth (under 'state_dict')")
    path = saved(tmp_path / "vitpose_backbone.pth", {"state_dict": state})
    with torch.device("meta"):
        whole = ViT()
        assert len(whole.state_dict()) == len(state)
        load_pretrained(whole, path)
        wrong = saved(tmp_path / "wrong.pth", {"state_dict": renamed(state, "blocks.31.mlp.fc2.bias")})
        with pytest.raises(
            ValueError, match=r"wrong\.pth .*: blocks\.31\.mlp\.fc2\.bias is missing; renamed is not in"
        ):
            load_pretrained(whole, wrong)
    few = {k: v for k, v in state.items() if not k.startswith("blocks.") or int(k.split(".")[1]) < 2}
    vit = ViT(depth=2)
    load_pretrained(vit, saved(tmp_path / "few.pth", {"state_dict": few}))
    for key, value in vit.state_dict().items():
        assert torch.equal(value, few[key]), key


def test_torchvisions_imagenet_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are fetched once, by torchvision, and a broken file is named."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = ResNet50_Weights.DEFAULT.url
    assert IMAGENET.source == url
    assert IMAGENET.place() == tmp_path / "hub" / "checkpoints" / Path(url).name
    state = {k: v for k, v in resnet50(weights=None).state_dict().items() if not k.endswith("num_batches_tracked")}
    fetched = []

    def fetch(url: str, path: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        assert Path(path).stem.endswith(hash_prefix)
        fetched.append(url)
        torch.save(state, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        backbone = ResNet50()
        start_backbone(backbone, "imagenet")
        assert torch.equal(backbone[7][2].conv3.weight, state["layer4.2.conv3.weight"])
    assert fetched == [url]
    other = ResNet50()
    start_backbone(other, str(saved(tmp_path / "numbered.pth", backbone.state_dict())))
    assert torch.equal(other[0].weight, state["conv1.weight"])

    IMAGENET.place().write_bytes(b"cut short")
    with pytest.raises(
        ValueError,
        match=r"resnet50-11ad3fa6\.pth cannot be read as weights .* a text file",
    ):
        start_backbone(backbone, "imagenet")


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("invalid hash value")])
def test_imagenet_weights_that_cannot_be_fetched(tmp_path, monkeypatch, error: Exception) -> None:
    def refuse(*_, **__):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError, match=r"resnet50-11ad3fa6\.pth is missing and could not be fetched") as found:
        start_backbone(ResNet50(), "imagenet")
    assert IMAGENET.source in str(found.value)
    assert "backbone_weights=FILE" in str(found.value)


def test_random_weights_have_to_be_asked_for(tmp_path: Path) -> None:
    vit = ViT(dim=32, depth=1, heads=2)
    before = vit.last_norm.weight.clone()
    start_backbone(vit, "random")
    assert torch.equal(vit.last_norm.weight, before)
    with pytest.raises(ValueError, match=r"what ViT starts from: give backbone_weights=FILE, or random"):
        start_backbone(vit, None)
    with pytest.raises(ValueError, match=r"what ResNet50 starts from: give backbone_weights=FILE, imagenet, or random"):
        start_backbone(ResNet50(), None)
    with pytest.raises(ValueError, match=r"imagenet is for ResNet-50, and this is ViT"):
        start_backbone(vit, "imagenet")
    start_backbone(BlazePose(), None)
    with pytest.raises(ValueError, match=r"BlazePose has options of its own"):
        start_backbone(BlazePose(), "random")


def test_published_experiments_start_from_trained_backbones() -> None:
    expected = {
        "hrnet": "body_models/pose_hrnet_w48.pth",
        "resnet": "imagenet",
        "vit": "body_models/vitpose_backbone.pth",
    }
    for name, weights in expected.items():
        assert composed("train_mega", f"experiment=mega_{name}").backbone_weights == weights
    assert composed("train_mega", "experiment=mega_vit").backbone.drop_path == 0.55


def test_stochastic_depth_grows_and_is_for_training() -> None:
    """A branch that is left out leaves its input as it was; on average nothing changes."""
    vit = ViT(dim=32, depth=12, heads=2, drop_path=0.55).train()
    assert vit.state_dict().keys() == ViT(dim=32, depth=12, heads=2).state_dict().keys()
    rates = [block.drop_path1.p for block in vit.blocks]
    assert rates == [block.drop_path2.p for block in vit.blocks]
    torch.testing.assert_close(torch.tensor(rates), 0.05 * torch.arange(12))

    torch.manual_seed(0)
    ones = torch.ones(20_000, 1, 2)
    dropped = vit.blocks[-1].drop_path1(ones)
    values, counts = dropped[:, 0].unique(dim=0, return_counts=True)  # a picture as a whole
    torch.testing.assert_close(values, torch.tensor([[0.0, 0.0], [1 / 0.45, 1 / 0.45]]))
    # 5 standard deviations of a share of 20,000
    assert counts[0].item() / len(ones) == pytest.approx(0.55, abs=5 * (0.55 * 0.45 / len(ones)) ** 0.5)
    assert not torch.equal(dropped, vit.blocks[-1].drop_path2(ones))

    images = torch.rand(4, 3, 64, 48)
    plain = ViT(dim=32, depth=12, heads=2)
    plain.load_state_dict(vit.state_dict())
    with torch.no_grad():
        expected = plain(images)
        assert not torch.allclose(vit(images), expected)
        torch.testing.assert_close(vit.eval()(images), expected)


def test_stochastic_depth_of_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with half the pictures each drop what one with all of them drops."""
    branch = ViT(dim=32, depth=2, heads=2, drop_path=0.5).blocks[1].drop_path1.train()
    ones = torch.ones(16, 3, 2)
    torch.manual_seed(0)
    together = branch(ones)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("mega_common.distributed.world_size", lambda: 2)
        monkeypatch.setattr("mega_common.distributed.rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        parts.append(branch(ones[:8]))
    assert torch.equal(torch.cat(parts), together)
