"""Which files of the published setups are there, where the others come from, and whether they look right.

    python check_setup.py                 for mega_hrnet, mega_resnet and mega_vit, in this folder
    python check_setup.py root=DIR        in another one

The default setup needs none of them. The exit status is 1 while any is missing or wrong.
"""

from omegaconf import DictConfig

from mega.config import main
from tools.setup_check import check_setup


@main("check_setup")
def main(config: DictConfig) -> int:
    return 0 if check_setup(config.root) else 1


if __name__ == "__main__":
    main()
