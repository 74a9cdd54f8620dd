import numpy as np
import pytest
from PIL import Image

from datasets.masks import load_mask
from datasets.notes import LARGE_MASK, MANY_VALUES, UNSEEN_MASKS, Notes
from datasets.preprocessing import WHOLE, Preprocessing

UNTOUCHED = Preprocessing(0, 0)
DEFECT = np.zeros((40, 48), bool)
DEFECT[10:20, 12:30] = True
LEFT = np.arange(48)[None].repeat(40, 0) < 24
GREY = (DEFECT * 255).astype(np.uint8)
WHITE = np.full_like(GREY, 255)


def layers(*bands):
    """An image of these bands: grey and alpha, red, green and blue, or these and alpha."""
    modes = {2: "LA", 3: "RGB", 4: "RGBA"}
    return Image.merge(modes[len(bands)], [Image.fromarray(band) for band in bands])


def palette(indices, *colours):
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putpalette(sum(colours, ()))
    return image


def transparent(image, value):
    """An image in which this value is declared transparent: the background."""
    image.info["transparency"] = value
    return image


MEANT = {
    "opaque": layers(GREY, WHITE),
    "wholly transparent": layers(GREY, WHITE * 0),
    "class numbers in colours": palette(DEFECT * 3, (9, 9, 9), (1, 1, 1), (2, 2, 2), (0, 0, 0)),
    "white background in a palette": palette(DEFECT, (255, 255, 255), (255, 0, 0)),
    "transparent index": transparent(palette(DEFECT, (0, 0, 0), (255, 255, 255)), 1),
    "1 bit": Image.fromarray(DEFECT),
    "faint": Image.fromarray(GREY // 255),
    "16 bits": Image.fromarray(DEFECT.astype(np.uint16)),
    "RGB": layers(GREY * 0, GREY * 0, GREY // 255),
}


@pytest.mark.parametrize("image", MEANT.values(), ids=MEANT)
def test_what_is_meant_is_marked(tmp_path, image):
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png", UNTOUCHED), DEFECT)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (layers(WHITE, GREY), "is transparent in part; save it in black and white, without tr"),
        (transparent(Image.fromarray(WHITE - GREY // 2), 255), "is transparent in part"),
        (palette(DEFECT, (255, 255, 255), (0, 0, 0)), "palette whose index 0, the background, is"),
        (palette(DEFECT * 0, (255, 255, 255)), "marks no pixel, but its image lies among"),
    ],
)
def test_mask_of_two_meanings_or_none_is_refused(tmp_path, image, message):
    image.save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=message):
        load_mask(tmp_path / "mask.png", UNTOUCHED)


FRAME = np.pad(np.zeros((36, 44), np.uint8), 2, constant_values=255)
BLURRED = np.minimum(np.arange(48, dtype=np.uint8) // 2, 19)[None].repeat(40, 0)
SOFT = BLURRED * LEFT.astype(np.uint8) + GREY // 9


@pytest.mark.parametrize(
    ("pixels", "invert", "kind"),
    [
        (255 - GREY, False, LARGE_MASK),
        (FRAME, False, LARGE_MASK),
        (GREY, True, LARGE_MASK),
        (255 - GREY, True, None),
        (GREY, False, None),
        (np.where(LEFT, 255, 0).astype(np.uint8), False, None),  # half, not more
        (SOFT, False, MANY_VALUES),
        (BLURRED // 2, False, LARGE_MASK),  # 12 values may be classes
    ],
)
def test_what_may_be_meant_otherwise_is_noted_once(tmp_path, pixels, invert, kind):
    notes, path = Notes(), tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    for _ in range(2):
        marked = load_mask(path, UNTOUCHED, invert, notes)
    np.testing.assert_array_equal(marked, (pixels > 0) != invert)
    expected = [f"{kind.what}: {path}; {kind.advice}"] if kind else []
    assert notes.sentences() == expected


@pytest.mark.parametrize(
    ("preprocessing", "seen"),
    [((0, 32), False), ((0, 36), True), ((256, 32, False, 16, WHOLE), False), ((32, 0), False)],
)
def test_mask_that_is_lost_in_resizing_or_cropping_is_noted(tmp_path, preprocessing, seen):
    pixels, notes = np.zeros((40, 48), np.uint8), Notes()
    pixels[2, 20] = 255  # nearest-neighbour resizing to 32 rows takes rows 0, 1, 3, ...
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask = load_mask(tmp_path / "mask.png", Preprocessing(*preprocessing), notes=notes)
    assert mask.any() == seen
    assert [UNSEEN_MASKS.what in sentence for sentence in notes.sentences()] == [True] * (not seen)
