"""The three trainings at toy size, by their scripts, on the free body: 48 steps in four epochs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SMALL = ["model.dim=32", "model.encoder_depth=1", "model.decoder_depth=1"]
_EPOCHS = ["trainer.max_steps=-1", "trainer.max_epochs=4", "training.steps=48"]
_LOGGED = ["trainer.log_every_n_steps=1", "trainer.precision=32-true"]


def small_trainings(folder: Path, batch_size: int = 4) -> dict[str, list[str]]:
    """{stage: script and overrides}; their data lie in `folder`. `output` is left to the caller."""
    tokens = f"data.cache={folder / 'tokens'}"
    common = [*_EPOCHS, *_LOGGED, f"data.batch_size={batch_size}"]
    # Four bodies a chunk, whatever the batch: to other chunks belong other bodies.
    bodies = ["data.chunk=4", "data.batches_per_epoch=12", "data.val_meshes=33", "training.unquantized_steps=5"]
    rows = ["data.train_bodies=48", "data.val_bodies=32", "training.warmup_steps=10"]
    pictures = [f"data.folder={folder / 'pictures'}", "crop.size=64", "loss_points=8", "pretrained=null"]
    pictures += ["training.backbone_steps=5", "training.warmup_steps=5", "training.decoded_every=2"]
    return {
        "tokenizer": ["train_mesh_vqvae.py", *common, *bodies],
        "pretraining": ["pretrain_mega.py", *common, tokens, *rows, *_SMALL],
        "image": ["train_mega.py", *common, tokens, *pictures, *_SMALL],
    }


def make_pictures(folder: Path) -> None:
    """24 people and their mirror images: 12 steps an epoch at batch size 4."""
    splits = "splits={train: 24, val: 4, test: 2}"
    command = [sys.executable, "tools/make_synthetic.py", f"folder={folder / 'pictures'}", splits, "processes=1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
