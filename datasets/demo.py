"""A small data set in MVTec AD's layout, drawn from photographs that come with scikit-image.

The photographs are free of copyright, as scikit-image's docstrings say: brick and gravel
(CC0Textures), grass (linolafett) and coffee (Rachel Michetti) are CC0, rocket (SpaceX) is in the
public domain.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from utils.system.errors import UserError

# any change of the images needs a new version: users may have the old ones in their cache
VERSION = "demo-v2"
ADVICE = "set XDG_CACHE_HOME to a folder that can be written"
TEXTURES = ("brick", "grass", "gravel")
OBJECTS = ("coffee", "rocket", "cup")
CLASS_NAMES = TEXTURES + OBJECTS
COUNTS = {"train/good": 40, "test/good": 10, "test/patch": 6, "test/scratch": 6, "test/stain": 6}
SIZE = 256
# defects stay off the border that the centre crop (224 of 256) removes
BORDER = 16
# where the centre of a defect may be: top, left, bottom, right; anywhere on textures
OBJECT_AREAS = {"coffee": (50, 60, 200, 200), "rocket": (90, 120, 225, 145)}
OBJECT_AREAS |= {"cup": (95, 95, 161, 161)}
# the cup of coffee, cut out along the saucer and the rim (left, top, right, bottom), on a table
CUP_OUTLINE = ((80, 62, 476, 385), (177, 21, 404, 205))
TABLE_SIDE, TABLE_COLOUR = 680, (196, 200, 206)
# an object's photograph is this many pixels wider on each side, so that no shift shows its edge
POSE_MARGIN = 8
# textures are not aligned; this far, because 40 images could not represent a wider range
TEXTURE_TRAVEL = 32
# how far objects lie off, in pixels and degrees
MAX_SHIFT = {"coffee": 3.0, "rocket": 3.0, "cup": 16.0}
MAX_ROTATION = {"coffee": 1.0, "rocket": 1.0, "cup": 180.0}
GAIN_SD = 0.04
OFFSET_SD = 3.0
NOISE_SD = 2.5
SUPERSAMPLING = 4
# the least share of a pixel that the defect covers for the pixel to be in the mask
MASK_LEVEL = 0.25
STAIN_BLUR = 3.0
# of the defect that is hardest to see, and of the easiest; in pixels and grey levels
SCRATCH_LENGTH = (25, 90)
SCRATCH_WIDTH = (1, 3)
SCRATCH_CONTRAST = (25, 80)
PATCH_RADIUS = (9, 26)
STAIN_RADIUS = (9, 28)
STAIN_CONTRAST = (15, 60)
# factors on the contrast of scratches and stains: the rougher the photograph, the more it hides
CONTRAST_FACTORS = {"brick": 1.0, "grass": 2.5, "gravel": 2.5}
CONTRAST_FACTORS |= {"coffee": 1.0, "rocket": 0.3, "cup": 1.0}
# patches come from another photograph from this strength on; 0 is hardest to see, 1 easiest
FOREIGN_STRENGTH = 0.5
DONORS = {"brick": "grass", "grass": "brick", "gravel": "brick"}
DONORS |= {"coffee": "rocket", "rocket": "coffee", "cup": "rocket"}

Area = tuple[int, int, int, int]  # top, left, bottom, right
Photos = dict[str, Image.Image]


def make_demo(cache: Path | None = None) -> Path:
    """The folder of the demo set, in MVTec AD's layout; the first call draws it (about 6 s).

    TEXTURES are grey, OBJECTS are RGB; the cup lies turned and shifted at random. The higher a
    defect's number, the easier it is to see. The files are the same at every call on one machine.
    An interrupted call leaves nothing behind, and of two calls at the same time the first to end
    wins.

    Args:
        cache: parent of the folder; by default padim in $XDG_CACHE_HOME or ~/.cache.
    """
    cache = _default_cache() if cache is None else cache
    folder = cache / VERSION
    try:
        if not folder.is_dir():
            _build(folder)
    except OSError as error:
        raise UserError(f"cannot make the demo set in {cache}: {error}; {ADVICE}") from error
    return folder


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME", "")
    # relative paths are to be ignored (XDG specification)
    if os.path.isabs(root):
        return Path(root) / "padim"
    try:
        return Path.home() / ".cache" / "padim"
    except RuntimeError as error:
        raise UserError(f"no cache folder for the demo set: {error}; {ADVICE}") from error


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
    from skimage import data

    if class_name == "cup":
        return _cut_out(Image.fromarray(data.coffee()))
    return Image.fromarray(getattr(data, class_name)())


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
    image = _draw_good(photos[class_name], class_name, rng)
    defect_type = group.split("/")[1]
    if defect_type == "good":
        return image, None
    strength = index / (COUNTS[group] - 1)
    alpha, paint = _draw_defect(defect_type, image, class_name, strength, photos, rng)
    image += alpha.reshape(alpha.shape + (1,) * (image.ndim - 2)) * (paint - image)
    return image, np.where(alpha >= MASK_LEVEL, 255.0, 0.0)


def _draw_good(photo: Image.Image, class_name: str, rng: Generator) -> np.ndarray:
    """A defect-free image (SIZE, SIZE) or (SIZE, SIZE, 3) float64."""
    is_texture = class_name in TEXTURES
    image = _crop(photo, TEXTURE_TRAVEL, rng) if is_texture else _pose(photo, class_name, rng)
    image = 128 + rng.normal(1, GAIN_SD) * (image - 128) + rng.normal(0, OFFSET_SD)
    return image + rng.normal(0, NOISE_SD, image.shape)


def _crop(photo: Image.Image, travel: int, rng: Generator) -> np.ndarray:
    """A random window (SIZE, SIZE) or (SIZE, SIZE, 3), within travel pixels around the centre."""
    left, top = (np.array(photo.size) - SIZE - travel) // 2 + rng.integers(travel + 1, size=2)
    return np.asarray(photo.crop((left, top, left + SIZE, top + SIZE)), dtype=np.float64)


def _pose(photo: Image.Image, class_name: str, rng: Generator) -> np.ndarray:
    """The photograph's centre at SIZE, shifted and rotated at random."""
    side = SIZE + 2 * POSE_MARGIN
    square = ImageOps.fit(photo, (side, side), Image.Resampling.LANCZOS)
    farthest, widest = MAX_SHIFT[class_name], MAX_ROTATION[class_name]
    shift, angle = tuple(rng.uniform(-farthest, farthest, 2)), rng.uniform(-widest, widest)
    resample, fill = Image.Resampling.BICUBIC, TABLE_COLOUR
    posed = square.rotate(angle, resample, translate=shift, fillcolor=fill)
    return np.asarray(ImageOps.crop(posed, POSE_MARGIN), dtype=np.float64)


def _draw_defect(
    defect_type: str,
    image: np.ndarray,
    class_name: str,
    strength: float,
    photos: Photos,
    rng: Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The share of each pixel that the defect covers (SIZE, SIZE), and its colours, as image."""
    from scipy.ndimage import gaussian_filter

    area = OBJECT_AREAS.get(class_name, (0, 0, SIZE, SIZE))
    if defect_type == "patch":
        donor = photos[class_name if strength < FOREIGN_STRENGTH else DONORS[class_name]]
        paint = _crop(donor, min(donor.size) - SIZE, rng)
        alpha = _draw_blob(area, _between(PATCH_RADIUS, strength), rng)
        return alpha, np.rot90(paint, rng.integers(1, 4))
    if defect_type == "scratch":
        length, width = _between(SCRATCH_LENGTH, strength), _between(SCRATCH_WIDTH, strength)
        alpha = _draw_curve(area, length, width, rng)
        contrast = _between(SCRATCH_CONTRAST, strength)
    else:
        alpha = _draw_blob(area, _between(STAIN_RADIUS, strength), rng)
        alpha = gaussian_filter(alpha, STAIN_BLUR)
        contrast = _between(STAIN_CONTRAST, strength)
    # darker or brighter at random, unless one would clip
    contrast *= CONTRAST_FACTORS[class_name] * rng.choice((-1, 1))
    if not 0 < image[alpha >= MASK_LEVEL].mean() + contrast < 255:
        contrast = -contrast
    return alpha, image + contrast


def _between(ends: tuple[float, float], strength: float) -> float:
    hard, easy = ends
    return hard + strength * (easy - hard)


def _draw_curve(area: Area, length: float, width: float, rng: Generator) -> np.ndarray:
    """The share of each pixel (SIZE, SIZE) that a parabola with its vertex in the area covers."""
    along, bend = np.linspace(-length / 2, length / 2, 33), rng.uniform(-0.2, 0.2) * length
    curve = along + 1j * bend * (2 * along / length) ** 2  # x + iy
    curve *= np.exp(1j * rng.uniform(0, np.pi))
    return _cover(area, curve, 0.55 * length + width, rng, width)


def _draw_blob(area: Area, radius: float, rng: Generator) -> np.ndarray:
    """The share of each pixel (SIZE, SIZE) that a disc with a wavy outline covers."""
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = [rng.uniform(0, 0.4) / k * np.cos(k * angles + rng.uniform(0, 6.3)) for k in (2, 3, 4)]
    radii = radius * (1 + np.sum(waves, axis=0))
    return _cover(area, radii * np.exp(1j * angles), radii.max() + 3 * STAIN_BLUR, rng)


def _cover(
    area: Area,
    points: np.ndarray,
    reach: float,
    rng: Generator,
    width: float = 0,
) -> np.ndarray:
    """The share of each pixel (SIZE, SIZE) that a polygon, or a line of this width, covers.

    Its points x + iy are relative to a random centre in the area, at least reach off the border.
    """
    top, left, bottom, right = np.clip(area, BORDER + reach, SIZE - BORDER - reach)
    centre = rng.uniform(left, right) + 1j * rng.uniform(top, bottom)
    xy = (SUPERSAMPLING * (centre + points)).view(np.float64).tolist()
    canvas = Image.new("L", (SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING))
    if width:
        ImageDraw.Draw(canvas).line(xy, 255, round(width * SUPERSAMPLING), joint="curve")
    else:
        ImageDraw.Draw(canvas).polygon(xy, 255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float64) / 255
