"""The images on which looks are compared: contents and styles that scripts have drawn.

    python scripts/look_images.py FOLDER

writes them all. Each is unlike the others in what a style transfer may spoil or miss: a face, many
straight lines, open land; strokes, flat colours, darkness, lines.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from demo_drawing import SIZE, to_image
from gallery_images import IMAGES, ink_image
from look_portrait import draw_portrait
from look_street import draw_street
from look_styles import candle_image, paper_image
from PIL import Image

# name -> a file that is there, or what draws it at twice the size
CONTENTS: dict[str, str | Callable[[], np.ndarray]] = {
    "portrait": draw_portrait,
    "street": draw_street,
    "lake": "demo_content.jpg",
}
STYLES: dict[str, str | Callable[[], np.ndarray]] = {
    "fields": "demo_style.jpg",
    "paper": paper_image,
    "candle": candle_image,
    "ink": ink_image,
}


def write_images(folder: Path, names: tuple[str, ...] = (*CONTENTS, *STYLES)) -> dict[str, Path]:
    """Write some of the images into a folder, 640 x 480.

    Returns:
      Name -> file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name in names:
        source = (CONTENTS | STYLES)[name]
        paths[name] = folder / f"{name}{'.jpg' if isinstance(source, str) else '.png'}"
        if isinstance(source, str):
            shutil.copyfile(IMAGES / source, paths[name])
        else:
            to_image(source()).resize(SIZE, Image.Resampling.LANCZOS).save(paths[name])
    return paths


if __name__ == "__main__":
    for path in write_images(Path(sys.argv[1])).values():
        print(path)
