"""Mesh-VQ-VAE against the golden files `vqvae_*`: latents, tokens, meshes, codebook updates and gradients."""

import numpy as np
import pytest
import torch

from mesh_vq_vae import Hierarchy, MeshVQVAE, read_hierarchy, vertex_error
from tests.golden.golden import assert_close, assert_same, assert_state_keys, fill, golden_cases, load

RTOL = 1e-5  # no transformer or backbone lies between


def build(path, arrays, config) -> MeshVQVAE:
    """The model of a golden file, with the file's own connection matrices or those of the folder it names."""
    layers, quantizer = config["modelconv"], config["vqvaemesh"]
    own = {name: arrays[name].numpy() for name in arrays if name.startswith("conn_")}
    if own:
        hierarchy = Hierarchy.from_matrices({name.removeprefix("conn_"): matrix for name, matrix in own.items()})
    else:
        hierarchy = read_hierarchy(path.parents[1] / layers["connection_folder"])
    model = MeshVQVAE(
        hierarchy,
        layers["connection_layer_lst"],
        layers["channel_lst"],
        layers["weight_num_lst"],
        layers["residual_rate_lst"],
        n_codes=quantizer["num_embeddings"],
        commitment=quantizer["commitment_cost"],
        decay=quantizer["decay"],
        n_quantizers=quantizer["num_quantizer"],
        shared_codebook=quantizer.get("shared_codebook", False),
    )
    assert model.latent_dim == quantizer["embedding_dim"]
    return fill(model, path)


def quantizers(model) -> list:
    return list(getattr(model.vq_vae, "layers", [model.vq_vae]))


@golden_cases("vqvae")
def test_vqvae(path):
    arrays, config = load(path)
    model = build(path, arrays, config)
    x = arrays["x"]
    assert_state_keys(model, arrays["state_keys"])

    # The published code has a training and a testing path; ours is one, so both sets of numbers must agree with it.
    with torch.no_grad():
        z = model.encode_latents(x)
        reconstruction = model(x)
        decoded_random = model.decode(arrays["random_indices"])
    tokens = model.encode(x)
    for mode in ("trainmode", "testmode"):
        assert_close(z, arrays[f"{mode}_z"], RTOL, f"{mode}_z")
        assert_same(tokens, arrays[f"{mode}_indices"], f"{mode}_indices")
        assert_scalar(reconstruction.quantized.loss, arrays[f"{mode}_loss"])
        assert_scalar(reconstruction.quantized.perplexity, arrays[f"{mode}_perplexity"])
        if f"{mode}_recon" in arrays:
            assert_close(reconstruction.vertices, arrays[f"{mode}_recon"], RTOL, f"{mode}_recon")
            assert_close(model.decode(tokens), arrays[f"{mode}_recon"], RTOL, f"{mode}_recon from tokens")
        if f"{mode}_decoded_random" in arrays:
            assert_close(decoded_random, arrays[f"{mode}_decoded_random"], RTOL, f"{mode}_decoded_random")
    assert torch.equal(reconstruction.quantized.indices, tokens)
    check_first_margin(model, z, arrays["testmode_z"], arrays["first_margin"])

    # One training-mode forward: the codebooks before and after, and the gradient of the training loss.
    check_codebooks(model, arrays, "before")
    model.train()
    reconstruction = model(x)
    assert_scalar(reconstruction.quantized.loss, arrays["ema_fwd_loss"])
    assert_scalar(reconstruction.quantized.perplexity, arrays["ema_fwd_perplexity"])
    if "ema_fwd_recon" in arrays:
        assert_close(reconstruction.vertices, arrays["ema_fwd_recon"], RTOL, "ema_fwd_recon")
    check_codebooks(model, arrays, "after")
    total = vertex_error(reconstruction.vertices, x).mean() + reconstruction.quantized.loss
    assert_scalar(total, arrays["train_total_loss"])
    total.backward()
    check_gradients(dict(model.named_parameters()), arrays)
    arrays.assert_all_read()


@golden_cases("vqvae")
def test_any_batch_size_gives_the_same(path):
    arrays, config = load(path)
    model = build(path, arrays, config)
    tokens = model.encode(arrays["x"])
    assert torch.equal(torch.cat([model.encode(mesh[None]) for mesh in arrays["x"]]), tokens)
    one_by_one = torch.cat([model.decode(t[None]) for t in tokens])
    assert_close(one_by_one, model.decode(tokens), RTOL)


@golden_cases("vqvae")
def test_files_keep_the_model(path, tmp_path):
    arrays, config = load(path)
    model = build(path, arrays, config)
    model.save(tmp_path / "tokenizer.safetensors")
    model.save_released(tmp_path / "released", epoch=3)
    torch.manual_seed(1)
    for other in (
        MeshVQVAE.load(tmp_path / "tokenizer.safetensors"),
        MeshVQVAE(model.hierarchy, **model.config).load_released(tmp_path / "released").eval(),
    ):
        assert torch.equal(other.encode(arrays["x"]), model.encode(arrays["x"]))
        assert torch.equal(other.decode(arrays["random_indices"]), model.decode(arrays["random_indices"]))


def check_first_margin(model: MeshVQVAE, z: torch.Tensor, golden_z: torch.Tensor, expected: torch.Tensor) -> None:
    """How much farther (squared distance) a latent is from its second nearest code of the first quantizer.

    The golden margins are computed in float64 from the published latents, so ours differ by the error of our latents
    alone. margin(z) = |z - second|^2 - |z - first|^2 is linear in z with the gradient 2 (first - second), hence
    |change of the margin| <= 2 |first - second|_1 * the largest error of a latent's entry. That error is at most RTOL
    times the latents' spread, as `assert_close` has checked; the two squares that cancel may be much larger than their
    difference, so a limit relative to the margins themselves would be exceeded by rounding alone.
    """
    codebook = quantizers(model)[0].codebook.double()
    nearest = torch.cdist(z.flatten(0, 1).double(), codebook).square().topk(2, largest=False)
    margin = nearest.values[:, 1] - nearest.values[:, 0]
    first, second = codebook[nearest.indices].unbind(1)
    error_of_z = RTOL * golden_z.double().std(correction=0)
    limit = 2 * (first - second).abs().sum(1) * error_of_z
    assert margin.shape == expected.shape
    assert ((margin - expected).abs() <= limit).all()
    assert (expected > limit).all()  # so no token depends on rounding


def check_codebooks(model: MeshVQVAE, arrays, when: str) -> None:
    for i, quantizer in enumerate(quantizers(model)):
        for name, value in quantizer.state_dict().items():
            expected = arrays.get(f"ema_{when}_{i}_{name}")
            if expected is not None:
                np.testing.assert_allclose(value, arrays[f"ema_{when}_{i}_{name}"], rtol=2e-5, atol=1e-6, err_msg=name)


def check_gradients(parameters: dict, arrays) -> None:
    # The loss centres meshes, so the last bias has no gradient but rounding noise: judged against the largest there is.
    noise = 1e-7 * max(arrays[name].item() for name in arrays if name.startswith("gradnorm/"))
    for name in arrays:
        kind, _, key = name.partition("/")
        if kind == "grad":
            spread = arrays[name].std().item()
            torch.testing.assert_close(parameters[key].grad, arrays[name], rtol=0, atol=1e-4 * spread + noise)
        elif kind == "gradnorm":
            assert parameters[key].grad.norm().item() == pytest.approx(arrays[name].item(), rel=1e-4, abs=noise)


def assert_scalar(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 2e-5) -> None:
    assert actual.item() == pytest.approx(expected.item(), rel=rtol)
