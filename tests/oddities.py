"""Files that are intact but may mean something else: how they are made, and what a run says.

Each case changes the folder data, which has six good images in data/good, three with a bright
square in data/broken and their masks in data/ground_truth/broken, 40 x 40 pixels. NOTED has the
note that a run and check print, REFUSED the line with which a run ends and that check calls a
problem, TAKEN what is taken as it was meant, with how many training and test images and masks there
are then. A case is the function that makes the change, and options.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from PIL import ExifTags, Image

from tests.helpers import good_images, write_image

SIZE = (40, 40)
DATA = Path("data")
N_GOOD, N_BROKEN = 6, 3
SQUARE = np.zeros(SIZE, np.uint8)
SQUARE[8:18, 10:24] = 255


def build() -> None:
    """Write the folder data."""
    for i, pixels in enumerate(good_images(N_GOOD, SIZE)):
        write_image(DATA / f"good/{i}.png", pixels)
    for i in range(N_BROKEN):
        pixels = np.where(SQUARE[..., None] > 0, np.uint8(250 - i), good_images(1, SIZE)[0])
        write_image(DATA / f"broken/{i}.png", pixels)
        write_image(DATA / f"ground_truth/broken/{i}_mask.png", SQUARE)


def paths(pattern: str) -> list[Path]:
    """Files in data, of which there must be some."""
    found = sorted(DATA.glob(pattern))
    assert found
    return found


def move(pattern: str, folder: str, name: str = "{0}{1}") -> None:
    """Move files into a folder of data; name is in terms of their stem and suffix."""
    for path in paths(pattern):
        new = DATA / folder / name.format(path.stem, path.suffix)
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)
    while not list(path.parent.iterdir()):
        path = path.parent
        path.rmdir()


def rename(*names: str) -> None:
    """Rename files or folders: old, new, old, new, ..."""
    for old, new in zip(names[::2], names[1::2], strict=True):
        (DATA / new).parent.mkdir(parents=True, exist_ok=True)
        (DATA / old).rename(DATA / new)


def copy(old: str, *new: str) -> None:
    for name in new:
        (DATA / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / old, DATA / name)


def edit(pattern: str, change: Callable[[Image.Image], Image.Image], suffix: str = "") -> None:
    """Save what change makes of each image, with the suffix if one is given."""
    for path in paths(pattern):
        with Image.open(path) as image:
            changed = change(image.copy())
        path.unlink()
        exif = changed.info.get("exif", b"")
        changed.save(path.with_suffix(suffix or path.suffix), exif=exif)


def in_mvtec(function: Callable | None = None, *arguments: object) -> None:
    """Make data/bolt a class in MVTec AD's layout, then change it."""
    rename("good/5.png", "bolt/test/good/5.png")
    rename("good", "bolt/train/good", "broken", "bolt/test/broken")
    rename("ground_truth", "bolt/ground_truth")
    if function:
        function(*arguments)


def add_junk() -> None:
    """Leave what other programs leave, everywhere."""
    for folder in (DATA, DATA / "good", DATA / "broken"):
        for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints"):
            write_image(folder / name / "0.png", SQUARE)
        for name in ("._0.png", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"no image")


def sort_by_day() -> None:
    move("good/[012].png", "good/monday")
    move("good/[345].png", "good/tuesday")


def name_masks_twice() -> None:
    rename("ground_truth", "mask")
    copy(f"mask/broken/{ONE}", f"label/broken/{ONE}")


def put_masks_of_two_defects_together() -> None:
    copy("broken/0.png", "dent/0.png")
    move(MASKS, "masks")


def leave_one_mask(name: str = "0_mask.png") -> None:
    """Leave one mask, among the images of the defects."""
    copy(MASK, f"broken/{name}")
    shutil.rmtree(DATA / "ground_truth")


def invert(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 255 - value)


def lay_on_side(image: Image.Image) -> Image.Image:
    """With the tag of a camera that was held sideways: to be turned by 90 degrees."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    turned.info["exif"] = tags.tobytes()
    return turned


def lay_wide_on_side() -> None:
    for pattern in (IMAGES, MASKS):
        edit(pattern, lambda image: image.crop((0, 0, 40, 36)))
    edit("broken/*", lay_on_side)


def lay_masks_on_side() -> None:
    """The masks were drawn on the images as they are stored."""
    lay_wide_on_side()
    edit(MASKS, partial(Image.Image.transpose, method=Image.Transpose.ROTATE_90))


def make_deep(image: Image.Image, bits: int = 12) -> Image.Image:
    """As a grey camera of so many bits stores it in 16."""
    pixels = np.asarray(image.convert("L")).astype(np.uint16)
    return Image.fromarray(pixels * np.uint16(2 ** (bits - 8)))


def write_tiff(
    pattern: str, change: Callable[[np.ndarray], np.ndarray], photometric: str = "rgb", **options
) -> None:
    """Write each image as a TIFF file of what change makes of its pixels (H, W, 3)."""
    for path in paths(pattern):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        tifffile.imwrite(
            path.with_suffix(".tif"), change(pixels), photometric=photometric, **options
        )
        path.unlink()


def write_deep_mask(pixels: np.ndarray) -> np.ndarray:
    """Class numbers in colours of 16 bits, of which Pillow keeps the upper 8."""
    return np.dstack([pixels > 0] * 3).astype(np.uint16)


def write_infrared() -> None:
    """A fourth channel beside the colours."""
    write_tiff("good/*", lambda p: np.dstack([p, p[..., 0]]), extrasamples=["unspecified"])


def write_deep_colours(pattern: str) -> None:
    write_tiff(pattern, lambda pixels: pixels.astype(np.uint16) * 16)


def mix_formats() -> None:
    """Training images as PNG and JPEG, defective ones as JPEG."""
    for pattern in ("good/[01].png", "broken/*"):
        edit(pattern, same, ".jpg")


def save_again() -> None:
    """In another file of the same pixels."""
    with Image.open(DATA / "good/0.png") as image:
        image.save(DATA / "good/2.png", compress_level=0)


def write_labels() -> None:
    """Another program's descriptions of defects in place of masks."""
    shutil.rmtree(DATA / "ground_truth")
    (DATA / "annotations").mkdir()
    (DATA / "annotations/0.json").touch()


IMAGES = "*/*.png"
MASKS, ONE = "ground_truth/broken/*", "0_mask.png"
MASK = f"ground_truth/broken/{ONE}"
GOOD_MASK, MASK_7 = f"ground_truth/good/{ONE}", "ground_truth/broken/7_mask.png"
same = Image.Image.copy
to_black_and_white = partial(Image.Image.convert, mode="1")
ALL = (5, 4, 3)  # training images, test images, masks
TO_FINE = ("bolt/train/good", "bolt/train/fine", "bolt/test/good", "bolt/test/fine")
TO_OK = ("bolt/train/good", "bolt/train/ok", "bolt/test/good", "bolt/test/OK")
TO_NG = ("good", "OK", "broken", "NG", "ground_truth/broken", "ground_truth/NG")
TO_TEST = ("bolt/ground_truth", "bolt/test/ground_truth")
TAKEN = {
    "plain": (ALL,),
    "MVTec's layout": (ALL, in_mvtec),
    "--invert_masks: inverted masks": (ALL, edit, MASKS, invert),
    "junk": (ALL, add_junk),
    "a folder called masks": (ALL, rename, "ground_truth", "masks"),
    "masks named as their images": (ALL, move, MASKS, "mask/broken", "{0[0]}{1}"),
    "masks of one defect in masks itself": (ALL, move, MASKS, "Masks"),
    "a folder label in MVTec's layout": (ALL, in_mvtec, rename, TO_TEST[0], "bolt/label"),
    "masks in test": (ALL, in_mvtec, rename, *TO_TEST),
    "no masks": ((5, 4, 0), shutil.rmtree, "data/ground_truth"),
    "OK and NG": (ALL, rename, *TO_NG),
    "normal": (ALL, rename, "good", "normal"),
    "train/ok, test/OK": (ALL, in_mvtec, rename, *TO_OK),
    "--normal fine: another name of good images": (ALL, rename, "good", "fine"),
    "--normal fine: another name in MVTec's layout": (ALL, in_mvtec, rename, *TO_FINE),
    "WebP": (ALL, edit, IMAGES, same, ".webp"),
    "JPEG 2000": (ALL, edit, IMAGES, same, ".jp2"),
    "masks as PBM": (ALL, edit, MASKS, to_black_and_white, ".pbm"),
    "an empty folder": (ALL, in_mvtec, os.mkdir, "data/bolt/notes"),
    "--exif: wide images on their side": (ALL, lay_wide_on_side),
    "--bit_depth 12: a camera of 12 bits": (ALL, edit, IMAGES, make_deep),
    "images of one name": ((5, 5, 3), in_mvtec, copy, "bolt/test/good/5.png", "bolt/test/ok/5.png"),
}
BESIDE = "read as masks of images beside them: 3, for example data/broken/"
BELOW = "images in folders within the folder of their kind: 6, for example data/good/monday/0.png"
DARK = "16-bit images, none of which has a value above 4095: …; --bit_depth 12 reads them"
UNUSED = "images with transparency or channels beyond RGB: 6, for example data/good/0.tif"
RAW = "that are not read (.cr2, .heic): 2, for example data/good/0.CR2"
UNREAD = "folders that are not read: data/bolt/{}; move"
LOOSE = "images beside the folders of a split or class: data/{}; they are not"
ORPHAN = "masks that belong to no defective image: data/{}; they are not read"
UNLIKE = "that differ from the training images in size: 3, for example data/broken/0"
GOOD_0 = "bolt/train/good/0.png"
OURS = "folders that are not read, as they hold results of this program"
LIKE_MASKS = "test images in black and white among others, as masks are"
TWICE = "test images with the pixels of a training image: data/good/2.png"
NOTED = {
    "masks beside their images": (f"{BESIDE}{ONE}", move, MASKS, "broken"),
    "masks in a folder": (f"{BESIDE}masks/0.png", move, MASKS, "broken/masks", "{0[0]}{1}"),
    "mask of a good image": (ORPHAN.format(GOOD_MASK), copy, MASK, GOOD_MASK),
    "mask without image": (ORPHAN.format(MASK_7), copy, MASK, MASK_7),
    "a camera of 12 bits": (DARK, edit, IMAGES, make_deep),
    "--bit_depth 14: a camera of 12 bits": (DARK, edit, IMAGES, make_deep),
    "colours of 12 bits": (DARK, write_deep_colours, "good/*"),
    "infrared": (UNUSED, write_infrared),
    "stacks": ("of several pages or frames: 6", write_tiff, "good/*", lambda p: np.stack([p, p])),
    "raw files": (RAW, copy, "good/0.png", "good/0.CR2", "good/0.heic"),
    "no image in a folder": ("not read (.gif): data/dent", copy, "good/0.png", "dent/0.gif"),
    "good images by day": (BELOW, sort_by_day),
    "loose images": (LOOSE.format("9.png"), copy, "good/0.png", "9.png"),
    **{
        f"{path} in MVTec's layout": (note, in_mvtec, copy, GOOD_0, f"bolt/{path}")
        for path, note in {
            "train/9.png": LOOSE.format("bolt/train/9.png"),
            "test/9.png": LOOSE.format("bolt/test/9.png"),
            "ground_truth/9.png": ORPHAN.format("bolt/ground_truth/9.png"),
            "ground_truth/dent/9.png": ORPHAN.format("bolt/ground_truth/dent/9.png"),
            "validation/good/9.png": UNREAD.format("validation"),
            "train/bad/9.png": UNREAD.format("train/bad"),
            "test/label/9.png": UNREAD.format("test/label"),
        }.items()
    },
    "results": (f"{OURS}: data/resnet18;", copy, "good/0.png", "resnet18/a.png", "resnet18/.padim"),
    "annotations as JSON": ("not read: data/annotations; …masks must be images", write_labels),
    "a mask among the defects": (f"{LIKE_MASKS}: data/broken/0_m.png", leave_one_mask, "0_m.png"),
    "thumbnails": (UNLIKE, edit, "good/*", partial(Image.Image.resize, size=(24, 24))),
    "defects as JPEG, all others mixed": (
        "defective images that differ from good test images in format: 3, for",
        mix_formats,
    ),
    "a test image that was trained on": (TWICE, save_again),
    "a name of two lines": ("(.gif): data/good/a b.gif", copy, "good/0.png", "good/a\nb.gif"),
    "a training image twice": ("another: data/good/1.png", copy, "good/0.png", "good/1.png"),
}
ASKED = "are the images in the folder roi of data masks? they are all black and white; call it gro"
BRIGHTER = "go from 4864 to 11392, beyond --bit_depth 12; …give a larger"
FLOAT = "0.tif: damaged, or an unusual kind of TIFF; save it in grey or RGB with 8 or 16 bits"
DEEP_MASK = "its colours have 16 bits, of which the upper 8 are read: save it in grey"
TWO_GOOD = "data has several folders of good images by their names, OK, good; say which it is with"
SAY = "say which has the good images with --normal NAME"
TWO_FOLDERS = "data has several folders of masks, label, mask: keep one"
TWO_MASKS = "0_mask.bmp and …0_mask.png may both be the mask of one image"
TWO_IMAGES = f"mask data/{MASK} belongs to both data/broken/0.jpg and data/broken/0.png"
TWO_DEFECTS = f"masks/{ONE} belongs to both data/broken/0.png and data/dent/0.png"
NO_MASK = "mask missing for data/broken/1.png: expected data/broken/1_mask.png"
REFUSED = {
    "masks by another name": (ASKED, rename, "ground_truth", "roi"),
    "wide images on their side": ("must be equal; give --exif", lay_wide_on_side),
    "--exif: masks on their side": ("must be equal; leave out --exif", lay_masks_on_side),
    "--bit_depth 12: brighter": (BRIGHTER, edit, IMAGES, partial(make_deep, bits=14)),
    "--bit_depth 12: in colour": ("--bit_depth cannot scale", write_deep_colours, "good/*"),
    "floating-point colours": (FLOAT, write_tiff, "good/*", np.float32),
    "class numbers in 16-bit colours": (DEEP_MASK, write_tiff, MASKS, write_deep_mask),
    "two folders of good images": (TWO_GOOD, copy, "good/0.png", "OK/0.png"),
    "no usual name": (f"data holds broken, fine: {SAY}", rename, "good", "fine"),
    "--normal fine: no such folder": (f"data holds broken, good: {SAY}",),
    "two folders of masks": (TWO_FOLDERS, name_masks_twice),
    "two masks of an image": (TWO_MASKS, copy, MASK, f"{MASK[:-4]}.bmp"),
    "two images of a mask": (TWO_IMAGES, copy, "broken/0.png", "broken/0.jpg"),
    "one mask of two defects": (TWO_DEFECTS, put_masks_of_two_defects_together),
    "a mask is missing": (NO_MASK, leave_one_mask),
}
