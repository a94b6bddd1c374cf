"""Several overlays of the demo in one picture, as in the README.

python tools/gallery.py docs/results.jpg demo_out/astronaut_overlay.png …
"""

import argparse

import cv2
import numpy as np

WIDTH = 1280  # px


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("overlays", nargs="+")
    options = parser.parse_args()
    pictures = []
    for path in options.overlays:
        picture = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        if picture is None:
            parser.error(f"{path} cannot be read as a picture: run the demo first")
        pictures.append(picture)
    # All rows have the same width.
    scaled = [
        cv2.resize(p, (WIDTH, round(p.shape[0] * WIDTH / p.shape[1])), interpolation=cv2.INTER_AREA) for p in pictures
    ]
    cv2.imwrite(options.output, np.concatenate(scaled)[..., ::-1])


if __name__ == "__main__":
    main()
