"""Figures: ROC curves and localisation panels. The arrays that are drawn are not changed.

Reference: upstream's main.py, plot_fig.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from io import BytesIO
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion
from skimage.morphology import disk

from utils.evaluation import DrawnImage
from utils.metrics import RocCurve
from utils.system.device import count_cores
from utils.system.files import printable, replacing
from utils.system.memory import DRAWN_AT_ONCE

DPI = 100
FONT_SIZE = 10  # points
HEAT_MAP = colormaps["jet"]  # upstream
HEAT_MAP_ALPHA = 0.5  # upstream
PALETTE = HEAT_MAP(np.arange(256), bytes=True)[:, :3].tobytes()  # RGB after RGB
OPENING = disk(4)  # upstream; removes specks from the drawn mask only, metrics see them
BOUNDARY_COLOUR = (255, 0, 0)  # upstream
REGION_COLOUR = (255, 255, 255)  # of the border of the region of interest
# pixels of the longer side of a panel and of an overlay; larger images are scaled down in the file
LONGEST_PANEL, LONGEST_OVERLAY = 1000, 2000
ROC_SIZE = (2000, 1000)  # upstream; width and height in pixels
MOST_NAMED = 20  # curves in the legend of the ROC figure
MOST_LETTERS = 60  # of a class's name in that legend: a longer one would leave no room for curves
ROC_STEPS = 2000  # resolution of a drawn curve, in x and in y
# pixels around and between the panels, above them for the titles, right of them for the bar
MARGIN, TITLES, COLOUR_BAR = 12, 52, 84


# a localisation figure: the .jpg file to write, text above the panels, and what they show
Item = tuple[Path, str, DrawnImage]
Curves = Mapping[str, RocCurve | None]


def plot_roc_curves(path: Path, image_curves: Curves, pixel_curves: Curves) -> None:
    """Write the ROC curves by class name, image level left and pixel level right, to a PNG file.

    A class whose curve is None is left out.
    """
    width, height = ROC_SIZE
    figure = Figure(figsize=(width / DPI, height / DPI), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_roc_panel(left, "image", image_curves)
    _plot_roc_panel(right, "pixel", pixel_curves)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def thin(curve: RocCurve | None) -> RocCurve | None:
    """The curve, if any, without points that a figure draws on the same spot as the one before."""
    if curve is None:
        return None
    spots = np.round(np.stack([curve.fpr, curve.tpr]) * ROC_STEPS)
    keep = np.append(True, np.any(np.diff(spots) != 0, axis=0))
    return curve._replace(fpr=curve.fpr[keep], tpr=curve.tpr[keep])


def name_panels(has_masks: bool, has_threshold: bool) -> list[str]:
    """The panels of a localisation figure, from left to right, as upstream calls them."""
    names = ["Image"]
    if has_masks:
        names.append("Ground truth")
    names.append("Predicted heat map")
    if has_threshold:
        names += ["Predicted mask", "Segmentation result"]
    return names


def figure_size(n_panels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a localisation figure of images with these H and W."""
    factor = ceil(max(size) / LONGEST_PANEL)
    height, width = (ceil(side / factor) for side in size)
    return MARGIN + n_panels * (width + MARGIN) + COLOUR_BAR, MARGIN + height + TITLES


def plot_localisations(
    items: Sequence[Item], panels: Sequence[str], norm: Normalize, threshold: float | None
) -> Iterator[Path]:
    """Write a figure for each item, with panels as name_panels names them.

    The predicted mask is anomaly_map >= threshold, after a morphological opening; the segmentation
    result is the image with the outline of that mask. The norm is the colour scale of the anomaly
    maps; the threshold is marked on its bar. The images are of one size.

    Yields:
        The path of each file, in order, once it is complete. Threads draw several at a time.
    """
    _, _, first = items[0]
    frame = _draw_frame(panels, first.mask.shape, norm, threshold)
    most = min(max(DRAWN_AT_ONCE // first.mask.size, 1), 2 * count_cores())
    with ThreadPoolExecutor(most) as pool:
        yield from pool.map(partial(_write, frame, panels, norm, threshold), items)


def plot_overlay(
    path: Path, image: Image.Image, anomaly_map: np.ndarray, highest: float, mask: np.ndarray
) -> None:
    """Write the image (RGB) blended with its heat map, with the mask (h, w) outlined.

    The colours go from 0 to the highest score; pixels where the map (h, w) is NaN or 0, outside the
    region of interest, are drawn as they are.
    """
    scores, mask = (_shrink(pixels, LONGEST_OVERLAY) for pixels in (anomaly_map, mask))
    drawn = image.reduce(ceil(max(image.size) / LONGEST_OVERLAY))
    levels = np.fmin(scores, highest) * 256 / highest  # fmin: a number where one is NaN
    colours = Image.fromarray(levels.clip(max=255).astype(np.uint8))
    colours.putpalette(PALETTE)
    blend = Image.blend(drawn, colours.convert("RGB"), HEAT_MAP_ALPHA)
    drawn.paste(blend, mask=Image.fromarray(scores > 0))
    if (scores == 0).any():
        drawn.paste(REGION_COLOUR, mask=Image.fromarray(_find_boundaries(scores > 0)))
    drawn.paste(BOUNDARY_COLOUR, mask=Image.fromarray(_find_boundaries(mask) & mask))
    save_image(path, drawn)


def _shrink(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The pixels (h, w) or (h, w, 3), averaged in squares if the longer side is over longest.

    A square of a mask is True if any of its pixels is, so that small regions remain.
    """
    factor = ceil(max(pixels.shape[:2]) / longest)
    if factor == 1:
        return pixels
    if pixels.dtype == bool:
        return _shrink(pixels.astype(np.float32), longest) > 0
    return np.asarray(Image.fromarray(pixels).reduce(factor))


def save_image(path: Path, image: Image.Image) -> None:
    """Write an image; in a .jpg file outlines stay sharp."""
    # Pillow writes JPEG to a file without noticing that the disk is full
    content = BytesIO()
    image.save(content, Image.registered_extensions()[path.suffix], quality=90, subsampling=0)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _find_boundaries(mask: np.ndarray) -> np.ndarray:
    """The pixels on both sides of a mask's edge; skimage's takes ten times as long.

    The border of the image is no edge.
    """
    outline = np.zeros_like(mask)
    for one, next_one in (np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:]):
        differ = mask[one] != mask[next_one]
        outline[one] |= differ
        outline[next_one] |= differ
    return outline


def _write(
    frame: np.ndarray,
    panels: Sequence[str],
    norm: Normalize,
    threshold: float | None,
    item: Item,
) -> Path:
    """Write the item's figure: a copy of frame with its panels and title filled in."""
    path, title, shown = item
    figure = Image.fromarray(frame)
    drawn = _draw_panels(shown, norm, threshold)
    for i, name in enumerate(panels):
        panel = Image.fromarray(drawn[name])
        left = MARGIN + i * (panel.width + MARGIN)
        figure.paste(panel, (left, figure.height - MARGIN - panel.height))
    font_path, title = _find_font(title)
    font = ImageFont.truetype(font_path, FONT_SIZE * DPI / 72)
    ImageDraw.Draw(figure).text((MARGIN, 8), title, fill="black", font=font)
    save_image(path, figure)
    return path


def _draw_frame(
    names: Sequence[str], size: tuple[int, int], norm: Normalize, threshold: float | None
) -> np.ndarray:
    """What all figures of a class share, (h, w, 3) uint8: panel titles and the colour bar."""
    across, up = figure_size(len(names), size)  # matplotlib's coordinates start at the bottom left
    height, width = up - MARGIN - TITLES, (across - MARGIN - COLOUR_BAR) // len(names) - MARGIN
    figure = Figure(figsize=(across / DPI, up / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        middle = MARGIN + i * (width + MARGIN) + width / 2
        position = (middle / across, (MARGIN + height + 6) / up)
        figure.text(*position, name, ha="center", va="bottom", fontsize=FONT_SIZE)
    left = across - COLOUR_BAR + 4
    axes = figure.add_axes((left / across, MARGIN / up, 14 / across, height / up))
    bar = figure.colorbar(ScalarMappable(norm, HEAT_MAP), cax=axes)
    label = "Anomaly score" if threshold is None else "Anomaly score (line: threshold)"
    bar.set_label(label, size=8)
    axes.tick_params(labelsize=8)
    if threshold is not None:
        axes.axhline(threshold, color="black", linewidth=1.5)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _draw_panels(
    shown: DrawnImage, norm: Normalize, threshold: float | None
) -> dict[str, np.ndarray]:
    """The panels by name, each (h, w, 3) uint8, or (h, w) if it is black and white."""
    image = _shrink(shown.image.transpose(1, 2, 0), LONGEST_PANEL)
    panels = {
        "Image": image,
        "Ground truth": _shrink(shown.mask, LONGEST_PANEL),
        "Predicted heat map": _overlay(image, _shrink(shown.anomaly_map, LONGEST_PANEL), norm),
    }
    if threshold is not None:
        pred_mask = _shrink(_open(shown.anomaly_map >= threshold), LONGEST_PANEL)
        outlined = image.copy()
        outlined[_find_boundaries(pred_mask)] = BOUNDARY_COLOUR
        panels |= {"Predicted mask": pred_mask, "Segmentation result": outlined}
    border = _shrink(_find_boundaries(shown.anomaly_map == 0), LONGEST_PANEL)
    if border.any():
        for name in ("Image", "Predicted heat map"):
            panels[name] = np.where(border[..., None], np.uint8(REGION_COLOUR), panels[name])
    return panels


def _open(mask: np.ndarray) -> np.ndarray:
    """The morphological opening, equal to skimage's for grey images."""
    if not mask.any():
        return mask
    # it lies inside the mask: outside, nothing has to be computed
    eroded = binary_erosion(mask, OPENING, mask=mask, border_value=1)
    return binary_dilation(eroded, OPENING, mask=mask)


def _overlay(image: np.ndarray, anomaly_map: np.ndarray, norm: Normalize) -> np.ndarray:
    """The image, half covered by the colours of its scores on the colour bar."""
    colours = HEAT_MAP(norm(anomaly_map), bytes=True)[..., :3]
    blend = HEAT_MAP_ALPHA * colours + (1 - HEAT_MAP_ALPHA) * image
    return blend.round().astype(np.uint8)


def _plot_roc_panel(axes: Axes, level: str, curves: Curves) -> None:
    defined = {name: curve for name, curve in curves.items() if curve is not None}
    named = list(defined)
    if len(named) > MOST_NAMED:
        named = sorted(named, key=lambda name: defined[name].auroc)[:MOST_NAMED]
        for curve in defined.values():
            axes.plot(curve.fpr, curve.tpr, color="0.8", linewidth=0.8)
    lines = [axes.plot(defined[name].fpr, defined[name].tpr)[0] for name in named]
    lines += axes.plot([0, 1], [0, 1], color="grey", linestyle="--")
    mean = np.mean([curve.auroc for curve in defined.values()]) if defined else np.nan
    axes.set(
        title=f"Average {level} ROCAUC: {mean:.3f}" if defined else f"no {level} ROCAUC",
        xlabel="False positive rate",
        ylabel="True positive rate",
        aspect="equal",
    )
    title = f"the lowest {MOST_NAMED} of {len(defined)}" if len(defined) > MOST_NAMED else None
    # the texts come later: matplotlib leaves out a label that begins with an underscore
    legend = axes.legend(lines, ["?"] * len(lines), loc="lower right", title=title)
    names = [f"{name[:MOST_LETTERS]} {level} ROCAUC: {defined[name].auroc:.3f}" for name in named]
    for entry, name in zip(legend.get_texts(), [*names, "chance"], strict=True):
        path, text = _find_font(name)
        entry.set_fontproperties(font_manager.FontProperties(fname=path, size=FONT_SIZE))
        entry.set_text(text.replace("$", r"\$"))  # no formula


@cache
def _find_font(text: str) -> tuple[str, str]:
    """A font file that has all characters of a text, and the text.

    Characters that no installed font has are spelled out by their numbers, and so are bytes that
    are not UTF-8. matplotlib brings the default font along.
    """
    text = printable(text)
    default = font_manager.findfont("DejaVu Sans")
    for path in (default, *font_manager.findSystemFonts(fontext="ttf")):
        if _characters(path).issuperset(text):
            return path, text
    known = _characters(default)
    return default, "".join(c if c in known else c.encode("unicode_escape").decode() for c in text)


@cache
def _characters(font_path: str) -> frozenset[str]:
    """The characters that a font has; none if it cannot be read."""
    try:
        glyphs = font_manager.get_font(font_path).get_charmap()
        return frozenset(chr(c) for c, glyph in glyphs.items() if glyph and chr(c).isprintable())
    except (OSError, RuntimeError):  # a kind of font that FreeType cannot read
        return frozenset()
