"""The analysis of a tokenizer's latents: on a made-up one against plain loops, and as a script."""

import json
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch

from mega.bodies.parts import PARTS, token_parts, vertex_parts
from mesh_vq_vae import vertex_error
from tests.helpers.fake_files import ROOT
from tests.helpers.toy import toy_tokenizer
from tests.mesh_vq_vae.test_tokenizer import residual_tokenizer
from tools.latent_analysis import (
    describe_effects,
    encode,
    exchange_pose_and_shape,
    interpolate,
    nearest_codes,
    swap_parts,
    token_effects,
)


@pytest.fixture
def tokenizer():
    return toy_tokenizer()


def bodies(tokenizer, *shape: int, seed: int = 0):
    noise = torch.randn(*shape, tokenizer.n_vertices, 3, generator=torch.Generator().manual_seed(seed))
    return tokenizer.template + 0.1 * noise


@torch.no_grad()
def test_codes_are_those_of_the_tokens() -> None:
    for tokenizer in (toy_tokenizer(), residual_tokenizer()):
        meshes = 0.3 * torch.randn(5, 162, 3)
        latents = encode(tokenizer, meshes)
        torch.testing.assert_close(latents, tokenizer.encode_latents(meshes))
        codes = nearest_codes(tokenizer, latents[:4].unflatten(0, (2, 2))).flatten(0, 1)
        assert torch.equal(codes, tokenizer.vq_vae.lookup(tokenizer.encode(meshes[:4])))


@torch.no_grad()
def test_interpolation_ends_at_the_reconstructions(tokenizer) -> None:
    first, last = bodies(tokenizer, 2, 3)
    between, numbers = interpolate(tokenizer, first, last, steps=5)
    assert between.shape == (3, 5, tokenizer.n_vertices, 3)
    for end, meshes in ((0, first), (-1, last)):
        torch.testing.assert_close(between[:, end], tokenizer.decode(tokenizer.encode(meshes)))
    middle = (tokenizer.encode_latents(first) + tokenizer.encode_latents(last)) / 2
    torch.testing.assert_close(between[:, 2], tokenizer.decode(tokenizer.quantize(middle)))
    assert numbers["share_of_last"] == [0, 0.25, 0.5, 0.75, 1]
    assert numbers["tokens_of_first_percent"][0] == numbers["tokens_of_last_percent"][-1] == 100
    assert numbers["step_mm"][0] == 0
    assert numbers["step_mm"][3] == pytest.approx(1000 * vertex_error(between[:, 3], between[:, 2]).mean().item())
    assert numbers["limb_error_percent_of_vertices"][0] == pytest.approx(0, abs=1e-4)
    assert numbers["limb_error_percent_of_vertices"][2] > 1


@torch.no_grad()
def test_effect_of_a_token_is_that_of_exchanging_its_code(tokenizer) -> None:
    meshes = bodies(tokenizer, 3)
    effects = token_effects(tokenizer, meshes)
    tokens = tokenizer.encode(meshes)
    for n in (0, tokenizer.n_tokens - 1):
        moved = []
        for p in range(3):
            changed = tokens[p].clone()
            changed[n] = tokens[p - 1, n]
            moved.append((tokenizer.decode(changed[None]) - tokenizer.decode(tokens[p : p + 1])).norm(dim=-1)[0])
        torch.testing.assert_close(effects[n], torch.stack(moved).mean(0))
    # Numbers of a token that moves the vertices of its own part alone, and of one that moves all alike.
    parts = vertex_parts(tokenizer)
    own = int(token_parts(tokenizer)[0])
    made_up = torch.full_like(effects, 1e-9)
    made_up[0] = 0.02 * (parts == own)
    made_up[1] = 0.01
    described = describe_effects(tokenizer, made_up)
    assert (described[0]["part"], described[0]["own_part_percent"]) == (PARTS[own], pytest.approx(100))
    assert described[0]["largest_mm"] == pytest.approx(20)
    assert described[1]["mean_mm"] == pytest.approx(10)
    assert described[0]["leads_vertices"] == (parts == own).sum()
    assert described[1]["leads_vertices"] == (parts != own).sum()
    template = tokenizer.template
    centre = template[described[1]["centre_vertex"]]
    assert described[1]["reach_cm"] == pytest.approx(100 * (template - centre).norm(dim=-1).mean().item(), rel=1e-4)


@torch.no_grad()
def test_exchange_of_pose_and_shape(tokenizer) -> None:
    quadruples = bodies(tokenizer, 2, 2, 2)
    quadruples[:, 0, 1], quadruples[:, 1, 1] = quadruples[:, 0, 0], quadruples[:, 1, 0]  # shape makes no difference
    meshes, numbers = exchange_pose_and_shape(tokenizer, quadruples)
    assert numbers["changed_tokens_percent"]["shape"] == 0
    assert numbers["changed_tokens_percent"]["pose"] == numbers["changed_tokens_percent"]["both"] > 0
    assert max(numbers["shape_share_by_token_percent"]) == 0
    errors = numbers["V2V_mm_to_truth"]
    assert errors["a, unchanged"] == 0
    assert errors["by_latents"] == errors["truth, encoded and decoded"] > 0
    torch.testing.assert_close(meshes["by_latents"], tokenizer.decode(tokenizer.encode(quadruples[:, 0, 0])))

    quadruples[0, :, 1] = bodies(tokenizer, 2, seed=1)
    meshes, numbers = exchange_pose_and_shape(tokenizer, quadruples)
    z = tokenizer.encode_latents(quadruples[0].flatten(0, 1)).unflatten(0, (2, 2))
    expected = tokenizer.decode(tokenizer.quantize((z[0, 0] + z[1, 1] - z[1, 0])[None]))[0]
    torch.testing.assert_close(meshes["by_latents"][0], expected)
    assert numbers["changed_tokens_percent"]["shape"] > 0


@torch.no_grad()
def test_tokens_of_parts_are_swapped(tokenizer) -> None:
    a, b = bodies(tokenizer, 2, 1)
    legs = ("left_leg", "right_leg")
    swapped = torch.isin(token_parts(tokenizer), torch.tensor([PARTS.index(part) for part in legs]))
    assert 0 < swapped.sum() < tokenizer.n_tokens
    tokens = torch.where(swapped, tokenizer.encode(b), tokenizer.encode(a))
    torch.testing.assert_close(swap_parts(tokenizer, a, b, legs), tokenizer.decode(tokens))


@pytest.fixture
def analyse(monkeypatch, capsys):
    """analyse("bodies=4", …) -> (exit status, what was said)."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["latent_analysis.py", *arguments])
        status = 0
        try:
            runpy.run_path(str(ROOT / "tools" / "latent_analysis.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        said = capsys.readouterr()
        message = f"{status}\n" if isinstance(status, str) else ""
        return 1 if message else status, said.out + said.err + message

    return run


def test_the_script_leaves_pictures_and_numbers(analyse, tmp_path) -> None:
    status, said = analyse("bodies=5", "token_bodies=2", "steps=3", "pair=1", f"output={tmp_path / 'latents'}")
    assert status == 0, said
    assert "a token moves the surface by" in said
    numbers = json.loads((tmp_path / "latents" / "latent.json").read_text())
    assert (numbers["tokens_per_body"], numbers["pairs"], len(numbers["tokens"])) == (99, 2, 99)
    assert sum(numbers["tokens_of_part"].values()) == 99
    errors = numbers["exchange"]["V2V_mm_to_truth"]
    # The shipped tokenizer: truth itself comes back best; another pose is much worse than another shape.
    assert errors["truth, encoded and decoded"] < errors["a, unchanged"] < errors["b"]
    changed = numbers["exchange"]["changed_tokens_percent"]
    assert changed["shape"] < changed["pose"] <= changed["both"] + 5
    assert numbers["token_means"]["own_part_percent"] > 50
    for name in ("interpolation.png", "tokens.png", "exchange.png", "latents.jpg"):
        picture = cv2.imread(str(tmp_path / "latents" / name))
        assert picture.shape[0] > 300
        assert np.ptp(picture) > 100


def test_wrong_options_are_one_sentence(analyse, tmp_path) -> None:
    status, said = analyse("bodies=4", "pair=2", f"output={tmp_path}")
    assert (status, said) == (1, "pair=2: 4 bodies are 2 pairs, counted from 0.\n")
    status, said = analyse("weights=nowhere.safetensors", f"output={tmp_path}")
    assert status == 1
    assert "nowhere.safetensors is missing" in said
