"""A small data set in MVTec AD's layout, drawn from photographs that come with scikit-image.

The photographs are free of copyright, as scikit-image's docstrings say: brick and gravel
(CC0Textures), grass (linolafett) and coffee (Rachel Michetti) are CC0, rocket (SpaceX) is in the
public domain.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from utils.system.errors import UserError

# any change of the images needs a new version: users may have the old ones in their cache
VERSION = "demo-v3"
ADVICE = "set XDG_CACHE_HOME to a folder that can be written"
COUNTS = {"train/good": 40, "test/good": 10, "test/patch": 6, "test/scratch": 6, "test/stain": 6}
SIZE = 256
# around the image, so that no shift shows the edge of an object's photograph
MARGIN = 8
# of gain, grey levels and noise from image to image
GAIN_SD, OFFSET_SD, NOISE_SD = 0.04, 3.0, 2.5
# the cup of coffee, cut out along the saucer and the rim (left, top, right, bottom), on a table
CUP_OUTLINE = ((80, 62, 476, 385), (177, 21, 404, 205))
TABLE_SIDE, TABLE_COLOUR = 680, (196, 200, 206)
RADII = (9, 26)  # pixels: half the size of the smallest defect and of the largest
SCRATCH_WIDTH, STAIN_BLUR = 3, 3.0  # pixels
SUPERSAMPLING = 4
MASK_LEVEL = 0.25  # the least share of a pixel in the mask that the defect covers


class Look(NamedTuple):
    """How the images of a class are made, and the defects in them."""

    # how far it lies off at most, in pixels and degrees. The cup needs alignment; 40 images could
    # not represent textures that are shifted further
    shift: float
    angle: float
    # where the centre of a defect may be: top, left, bottom, right. No defect reaches the border of
    # 16 pixels that the centre crop removes
    area: tuple[int, int, int, int]
    # grey levels of the most visible scratches and stains: the rougher the photograph, the more it
    # hides
    contrast: float
    donor: str  # the class whose photograph patches come from


ANYWHERE = (58, 58, 198, 198)
LOOKS = {
    "brick": Look(16, 0, ANYWHERE, 60, "grass"),
    "grass": Look(16, 0, ANYWHERE, 120, "brick"),
    "gravel": Look(16, 0, ANYWHERE, 120, "brick"),
    "coffee": Look(3, 1, (58, 60, 198, 198), 60, "rocket"),
    "rocket": Look(3, 1, (90, 120, 198, 145), 30, "coffee"),
    "cup": Look(16, 180, (95, 95, 161, 161), 60, "rocket"),
}
CLASS_NAMES = tuple(LOOKS)
TEXTURES, OBJECTS = CLASS_NAMES[:3], CLASS_NAMES[3:]
Photos = dict[str, Image.Image]


def make_demo(cache: Path | None = None) -> Path:
    """The folder of the demo set, in MVTec AD's layout; the first call draws it (about 6 s).

    It lies in cache, by default padim in $XDG_CACHE_HOME or ~/.cache. TEXTURES are grey, OBJECTS
    are RGB; the cup lies turned and shifted at random. The higher a defect's number, the easier it
    is to see. The files are the same at every call on one machine. An interrupted call leaves
    nothing behind, and of two calls at the same time the first to end wins.
    """
    try:
        folder = (cache or _default_cache()) / VERSION
        if not folder.is_dir():
            _build(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: Path.home finds no home
        raise UserError(f"cannot make the demo set: {error}; {ADVICE}") from error
    return folder


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME", "")
    # relative paths are to be ignored (XDG specification)
    return Path(root if os.path.isabs(root) else Path.home() / ".cache", "padim")


def _build(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{VERSION}.", dir=folder.parent) as temporary:
        built = Path(temporary) / VERSION
        _write_set(built)
        try:
            built.rename(folder)
        except OSError:
            # another process may have been faster; its set has the same files
            if not folder.is_dir():
                raise


def _write_set(folder: Path) -> None:
    photos = {class_name: _load_photo(class_name) for class_name in CLASS_NAMES}
    jobs = [(c, g, i) for c in CLASS_NAMES for g, count in COUNTS.items() for i in range(count)]
    for class_name, group, index in tqdm(jobs, "draw demo set", unit="image", disable=None):
        image, mask = _draw(photos, class_name, group, index)
        _write_image(folder / class_name / group / f"{index:03}.png", image)
        if mask is not None:
            masks = folder / class_name / group.replace("test", "ground_truth")
            _write_image(masks / f"{index:03}_mask.png", mask)


def _load_photo(class_name: str) -> Image.Image:
    """The photograph of a class; that of an object a little larger than SIZE."""
    from skimage import data  # takes 0.2 s, as scipy.ndimage below; only the first call needs them

    if class_name in TEXTURES:
        return Image.fromarray(getattr(data, class_name)())
    photo = Image.fromarray(getattr(data, "coffee" if class_name == "cup" else class_name)())
    photo = _cut_out(photo) if class_name == "cup" else photo
    return ImageOps.fit(photo, (SIZE + 2 * MARGIN,) * 2, Image.Resampling.LANCZOS)


def _cut_out(coffee: Image.Image) -> Image.Image:
    """The cup of the photograph in the middle of a plain table."""
    cup = Image.new("L", coffee.size)
    for ellipse in CUP_OUTLINE:
        ImageDraw.Draw(cup).ellipse(ellipse, 255)
    left, top, right, bottom = cup.getbbox()
    corner = (TABLE_SIDE - left - right) // 2, (TABLE_SIDE - top - bottom) // 2
    table = Image.new("RGB", (TABLE_SIDE, TABLE_SIDE), TABLE_COLOUR)
    table.paste(coffee, corner, cup)
    return table


def _write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path)


def _draw(
    photos: Photos, class_name: str, group: str, index: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """One image (SIZE, SIZE) or (SIZE, SIZE, 3), and its mask (SIZE, SIZE) 0/255 or None."""
    # a seed for each image: none depends on those drawn before
    rng = np.random.default_rng((CLASS_NAMES.index(class_name), list(COUNTS).index(group), index))
    look, defect = LOOKS[class_name], group.split("/")[1]
    image = _draw_good(photos[class_name], look, rng)
    if defect == "good":
        return image, None
    strength = (index + 1) / COUNTS[group]
    cover = _cover(defect, strength, look.area, rng)
    if defect == "patch":
        paint = _pose(photos[look.donor], look, rng)
    else:  # brighter where it is dark, darker where it is bright
        brightness = image[cover >= MASK_LEVEL].mean()
        paint = image + strength * (look.contrast if brightness < 128 else -look.contrast)
    image += cover.reshape(cover.shape + (1,) * (image.ndim - 2)) * (paint - image)
    return image, np.where(cover >= MASK_LEVEL, 255.0, 0.0)


def _draw_good(photo: Image.Image, look: Look, rng: Generator) -> np.ndarray:
    """A defect-free image (SIZE, SIZE) or (SIZE, SIZE, 3) float64."""
    image = _pose(photo, look, rng)
    image = 128 + rng.normal(1, GAIN_SD) * (image - 128) + rng.normal(0, OFFSET_SD)
    return image + rng.normal(0, NOISE_SD, image.shape)


def _pose(photo: Image.Image, look: Look, rng: Generator) -> np.ndarray:
    """The centre of the photograph, shifted and turned at random."""
    shift, angle = tuple(rng.uniform(-look.shift, look.shift, 2)), rng.uniform(-1, 1) * look.angle
    fill = TABLE_COLOUR if photo.mode == "RGB" else 0
    resample = Image.Resampling.BICUBIC
    posed = photo.rotate(angle, resample, translate=shift, fillcolor=fill)
    left, top = (posed.width - SIZE) // 2, (posed.height - SIZE) // 2
    return np.asarray(posed.crop((left, top, left + SIZE, top + SIZE)), dtype=np.float64)


def _cover(
    defect: str, strength: float, area: tuple[int, int, int, int], rng: Generator
) -> np.ndarray:
    """The share of each pixel (SIZE, SIZE) that a defect covers."""
    from scipy.ndimage import gaussian_filter

    top, left, bottom, right = area
    centre = SUPERSAMPLING * np.array([rng.uniform(left, right), rng.uniform(top, bottom)])
    radius = SUPERSAMPLING * np.interp(strength, (0, 1), RADII)
    angle = rng.uniform(0, np.pi)
    canvas = Image.new("L", (SUPERSAMPLING * SIZE,) * 2)
    draw = ImageDraw.Draw(canvas)
    if defect == "patch":
        draw.regular_polygon((*centre, radius), 5, np.degrees(angle), 255)
    elif defect == "scratch":
        half = 1.5 * radius * np.array([np.cos(angle), np.sin(angle)])
        draw.line([*(centre - half), *(centre + half)], 255, SUPERSAMPLING * SCRATCH_WIDTH)
    else:
        draw.ellipse([*(centre - radius), *(centre + radius)], 255)
    cover = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float64) / 255
    return gaussian_filter(cover, STAIN_BLUR) if defect == "stain" else cover
