"""Images of a part, good and defective, and how they are preprocessed."""

import numpy as np

from datasets.images import Preprocessing

SMALL = Preprocessing(96, 80)


def good_images(n=5, size=(96, 120)):
    """Noise around waves, each (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    waves = 128 + 40 * np.sin(np.arange(size[1]) / 3)[None, :, None]
    return [(waves + rng.normal(0, 8, (*size, 3))).astype(np.uint8) for _ in range(n)]


def defective(size=(96, 120)):
    """A good image with a bright square in rows 20 to 43 and columns 48 to 71."""
    pixels = good_images(1, size)[0]
    pixels[20:44, 48:72] = 250
    return pixels
