"""Released weights as files of ours, which say themselves what they are and need no experiment and no body model.

    python convert_weights.py experiment=mega_hrnet                       -> checkpoint/mega_hrnet/
    python convert_weights.py experiment=mega_vit output=DIR dtype=float16   half the size
    python demo.py weights=checkpoint/mega_hrnet                          predicts the same as experiment=mega_hrnet

    experiment=NAME        mega_hrnet | mega_resnet | mega_vit; python check_setup.py says which files it needs
    output=null            folder for the results, made if need be; null is checkpoint/ and the released file's name
    dtype=float32          float32 | float16; in float16 predictions are no longer the same to the last digit

The output folder gets tokenizer.safetensors, cvqmae.safetensors and, where the released prior is there,
vqmae.safetensors. They hold what was released and parts of SMPL-H, whose licences still apply: do not pass them on.
"""

from omegaconf import DictConfig

from mega.config import main
from mega.convert import convert_weights


@main("convert_weights")
def main(config: DictConfig) -> int:
    return convert_weights(config)


if __name__ == "__main__":
    main()
