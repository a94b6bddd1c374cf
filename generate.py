"""Random bodies from the pre-trained masked transformer, without any picture.

    python generate.py                              16 Anny bodies -> generated/
    python generate.py n=64 seed=1 output=more      others
    python generate.py experiment=mega_hrnet        SMPL bodies from the released prior (python check_setup.py)

    n=16 steps=20 temperature=1.3 seed=0            how many, and how they are drawn
    rule=default           default | published, whose last step leaves one token out
    output=generated       folder for bodies.png, body_00.glb … and bodies.npz (vertices (n, V, 3) m, y up, faces
                           (F, 3), tokens (n, N))
    export=glb             glb | obj
    device=auto            auto | cpu | cuda | cuda:1 …
    pretrained=…           the masked transformer; tokenizer_weights=… its tokenizer

Prints how different the bodies are: the mean distance between the same vertex of two of them.
"""

import sys

import hydra
from omegaconf import DictConfig

from mega.inference import run_generation


@hydra.main(version_base="1.3", config_path="configs", config_name="generate")
def main(config: DictConfig) -> None:
    sys.exit(run_generation(config))


if __name__ == "__main__":
    main()
