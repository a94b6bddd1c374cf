"""Pre-train the masked transformer: a prior over bodies, from tokens without images.

    python pretrain_mega.py                  train on random Anny bodies; rerun the command to resume
    python pretrain_mega.py mode=test        measure the default weights on bodies that were never trained on
    python pretrain_mega.py mode=export      write the run's weights to checkpoint/anny_lite/
    python pretrain_mega.py trainer=gpu      on a GPU

Checkpoints, logs (CSV, TensorBoard) and panels go to `output`. Options: configs/pretrain_mega.yaml.
"""

from functools import partial

import lightning as L
from omegaconf import DictConfig

from mega.checkpoints import load_into, load_tokenizer, load_vqmae, save_model
from mega.config import build, main
from mega.training.callbacks import draw_random_bodies
from mega.training.trainer import fit, model_arguments, prepare_export, test
from mega.training.vqmae import VQMAETraining
from mega_common.weights_io import weights_format


@main("pretrain_mega")
def pretrain_mega(config: DictConfig) -> None:
    L.seed_everything(config.seed, verbose=False)  # initial weights depend on it

    # The body and its tokenizer, trained by train_mesh_vqvae.py
    body = build(config.body)
    tokenizer = load_tokenizer(config.tokenizer_weights, partial(build(config.tokenizer), body=body))

    # The masked transformer: new, or the one to test. Our weights store their configuration, released ones do not.
    if config.mode == "test" and weights_format(config.weights) is not None:
        model, _ = load_vqmae(config.weights)
    else:
        model = build(config.model, n_tokens=tokenizer.n_tokens, codebook_size=tokenizer.codebook_size)
        if config.mode == "test":
            load_into(model, config.weights)
    module = VQMAETraining(model, build(config.training))

    if config.mode == "export":
        dtype = prepare_export(config, module)
        save_model(model, config.weights, {"model": model_arguments(config.model, tokenizer)}, dtype)
        print(f"wrote {config.weights}")
        return

    data = build(config.data)(body=body, tokenizer=tokenizer)  # batches {"tokens": (B, N)}
    if config.mode == "test":
        test(config, module, data)
    else:
        fit(config, module, data, partial(draw_random_bodies, tokenizer))


if __name__ == "__main__":
    pretrain_mega()
