"""The files of trained backbones: heads are left out, the rest is strict."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from mega.backbones import HRNetW48, ResNet50, ViT, load_pretrained


def saved(path: Path, state: dict) -> Path:
    torch.save(state, path)
    return path


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
    with pytest.raises(ValueError, match=r"object\.pth is damaged, cut short, or holds more than weights"):
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
        with pytest.raises(ValueError, match=r"vitpose_backbone\.pth is damaged, cut short"):
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
