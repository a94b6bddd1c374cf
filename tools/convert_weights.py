"""Convert released weights to our files, which store their configuration and need no body model.

    python tools/convert_weights.py weights=mega_hrnet                      -> checkpoint/mega_hrnet/
    python tools/convert_weights.py weights=mega_vit output=DIR dtype=float16        half the size
    python demo.py weights=checkpoint/mega_hrnet                            predicts the same as weights=mega_hrnet

    weights=null           mega_hrnet | mega_resnet | mega_vit | a released file; experiment=NAME also sets it.
                           python tools/check_setup.py lists the files that are needed
    tokenizer_weights=null another tokenizer than the released one
    pretrained=checkpoint/VQMAE/mega_pretrained      the prior; left out if the file does not exist
    output=null            folder for the results, created if needed; null is checkpoint/ and the released file's name
    dtype=float32          float32 | float16; with float16 predictions are no longer the same to the last digit
    cam_range=null         width of the crop in the unit of the camera that the model predicts; null takes that of the
                           published setup

The output folder gets tokenizer.safetensors, cvqmae.safetensors and, if the released prior exists, vqmae.safetensors.
They contain the released weights and parts of SMPL-H, whose licences still apply: do not distribute them.
"""

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig

from mega.checkpoints import (
    MODEL_FILE,
    PRIOR_FILE,
    PUBLISHED_SETUPS,
    TOKENIZER_FILE,
    find_weights,
    load_cvqmae,
    load_tokenizer,
    load_vqmae,
    save_model,
)
from mega.config import main
from mega.external_files import locate
from mega.predictor import check_pair
from mega_common.weights_io import to_dtype


@main("convert_weights")
def convert(config: DictConfig) -> None:
    """Read and check everything, then write: nothing is written if a released file is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not config.weights:
        raise ValueError(f"Choose the weights: weights={', '.join(PUBLISHED_SETUPS)}, or a file.")
    dtype = getattr(torch, config.dtype)
    model_path, tokenizer_path = find_weights(config.weights)
    tokenizer_path = config.tokenizer_weights or tokenizer_path
    output = Path(config.output or Path("checkpoint") / model_path.name)

    tokenizer = load_tokenizer(tokenizer_path)
    model, description = load_cvqmae(model_path, config.cam_range)
    check_pair(model, tokenizer)
    parts = {tokenizer_path: tokenizer, model_path: model}
    has_prior = locate(config.pretrained).exists()
    if has_prior:
        prior, prior_description = load_vqmae(config.pretrained)
        check_pair(prior, tokenizer)
        parts[config.pretrained] = prior
    for path, part in parts.items():
        try:
            to_dtype(part.state_dict(), dtype)
        except ValueError as error:  # a number is too large
            raise ValueError(f"{path}: {error}") from error

    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(output / TOKENIZER_FILE, dtype)
    print(f"wrote {output / TOKENIZER_FILE}")
    save_model(model, output / MODEL_FILE, description, dtype)
    print(f"wrote {output / MODEL_FILE}")
    if has_prior:
        save_model(prior, output / PRIOR_FILE, prior_description, dtype)
        print(f"wrote {output / PRIOR_FILE}")
    else:
        print(f"left out {output / PRIOR_FILE}: there is no {config.pretrained}")


if __name__ == "__main__":
    convert()
