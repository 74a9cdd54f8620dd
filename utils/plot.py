"""Figures: ROC curves and localisation panels. Draws what it is given and changes none of it.

Reference: upstream's main.py, plot_fig.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

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
from skimage.segmentation import find_boundaries

from utils.metrics import RocCurve
from utils.system.files import printable, replacing

DPI = 100
FONT_SIZE = 10  # points
HEAT_MAP = "jet"  # upstream
HEAT_MAP_ALPHA = 0.5  # upstream
OPENING = disk(4)  # upstream; takes specks out of the drawn mask, not out of any metric
BOUNDARY_COLOUR = (255, 0, 0)  # upstream
STRIP = 256  # rows of an overlay that are coloured at once. Memory only
ROC_STEPS = 2000  # resolution of a drawn curve, in x and in y
# figure pixels around and between the panels
MARGIN, TITLES, COLOUR_BAR = 12, 52, 84


class Localisation(NamedTuple):
    """What one figure shows and where it goes.

    image is (3, H, W) uint8, anomaly_map (H, W) float32; mask (H, W) bool, None where the defect
    is not marked.
    """

    path: Path
    title: str
    image: np.ndarray
    anomaly_map: np.ndarray
    mask: np.ndarray | None


Curves = Mapping[str, RocCurve | None]


def plot_roc_curves(path: Path, image_curves: Curves, pixel_curves: Curves) -> None:
    """Write the ROC curves of all classes, image level left and pixel level right.

    Args:
        path: of the PNG file.
        image_curves: by class name; what is None is left out.
        pixel_curves: as image_curves.
    """
    figure = Figure(figsize=(20, 10), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_roc_panel(left, "image", image_curves)
    _plot_roc_panel(right, "pixel", pixel_curves)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def thin(curve: RocCurve) -> RocCurve:
    """The curve without the points that fall on the same spot of a figure as their neighbour."""
    spots = np.round(np.stack([curve.fpr, curve.tpr]) * ROC_STEPS)
    keep = np.append(True, np.any(np.diff(spots) != 0, axis=0))
    return curve._replace(fpr=curve.fpr[keep], tpr=curve.tpr[keep])


def plot_localisations(
    items: Iterable[Localisation], norm: Normalize, threshold: float | None
) -> Iterator[Path]:
    """Write the panels of every item: image, ground truth, heat map, predicted mask and outline.

    The predicted mask is anomaly_map >= threshold, opened. Without a mask there is no ground
    truth panel, without a threshold there are no last two. One pixel of an image is one pixel of
    the figure.

    Args:
        items: images of one class, all of one size, all with or all without mask.
        norm: colour scale of the anomaly maps, shared by all heat maps and the colour bar.
        threshold: in units of the anomaly maps, marked on the colour bar.

    Yields:
        The path of each file that is complete; the figures are drawn side by side in threads.
    """
    items = list(items)
    if not items:
        return
    names = list(_panel_pixels(items[0], norm, threshold))
    frame = _draw_frame(names, items[0].anomaly_map.shape, norm, threshold)
    with ThreadPoolExecutor() as pool:
        yield from pool.map(partial(_write, frame, norm, threshold), items)


def plot_overlay(
    path: Path, image: np.ndarray, anomaly_map: np.ndarray, norm: Normalize, threshold: float
) -> None:
    """Write the image under the colours of its map, with anomaly_map >= threshold outlined.

    Args:
        path: of the PNG file.
        image: (H, W, 3) uint8.
        anomaly_map: (H, W) float32; where it is NaN the image stays bare.
        norm: colour scale of the map.
        threshold: in units of the map.
    """
    pixels = image.copy()
    for top in range(0, len(image), STRIP):
        strip = slice(top, top + STRIP)
        there = np.isfinite(anomaly_map[strip])
        # a mask as index makes of the pixels a row of them, which _overlay takes as well
        pixels[strip][there] = _overlay(image[strip][there], anomaly_map[strip][there], norm)
    pixels[find_boundaries(anomaly_map >= threshold, mode="inner")] = BOUNDARY_COLOUR
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=1)


def _write(frame: np.ndarray, norm: Normalize, threshold: float | None, item: Localisation) -> Path:
    """Fill in the item's panels and title and write its file."""
    pixels = frame.copy()
    height, width = item.anomaly_map.shape
    for i, panel in enumerate(_panel_pixels(item, norm, threshold).values()):
        left = MARGIN + i * (width + MARGIN)
        pixels[-MARGIN - height : -MARGIN, left : left + width] = panel
    figure = Image.fromarray(pixels)
    ImageDraw.Draw(figure).text((MARGIN, 8), item.title, fill="black", font=_title_font())
    with replacing(item.path) as temporary:
        figure.save(temporary, compress_level=1)
    return item.path


def _draw_frame(
    names: Sequence[str], size: tuple[int, int], norm: Normalize, threshold: float | None
) -> np.ndarray:
    """All that the figures of a class share, (h, w, 3) uint8: panel titles and the colour bar."""
    height, width = size
    across = MARGIN + len(names) * (width + MARGIN) + COLOUR_BAR
    up = MARGIN + height + TITLES
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


@cache
def _title_font() -> ImageFont.FreeTypeFont:
    """The font of the panel titles, which matplotlib brings along."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), FONT_SIZE * DPI / 72)


def _panel_pixels(
    item: Localisation, norm: Normalize, threshold: float | None
) -> dict[str, np.ndarray]:
    """The pixels of each panel by its title, (H, W, 3) uint8, or (H, W, 1) in grey."""
    image = item.image.transpose(1, 2, 0)
    panels = {"Image": image}
    if item.mask is not None:
        panels["Ground truth"] = _black_and_white(item.mask)
    panels["Predicted heat map"] = _overlay(image, item.anomaly_map, norm)
    if threshold is not None:
        pred_mask = _open(item.anomaly_map >= threshold)
        outlined = image.copy()
        outlined[find_boundaries(pred_mask)] = BOUNDARY_COLOUR
        panels["Predicted mask"] = _black_and_white(pred_mask)
        panels["Segmentation result"] = outlined
    return panels


def _open(mask: np.ndarray) -> np.ndarray:
    """As skimage's opening, which takes twice as long: it is made for grey images."""
    return binary_dilation(binary_erosion(mask, OPENING, border_value=1), OPENING)


def _overlay(image: np.ndarray, anomaly_map: np.ndarray, norm: Normalize) -> np.ndarray:
    """The image under the colours that the scores have on the colour bar."""
    colours = colormaps[HEAT_MAP](norm(anomaly_map), bytes=True)[..., :3]
    blend = HEAT_MAP_ALPHA * colours + (1 - HEAT_MAP_ALPHA) * image
    return blend.round().astype(np.uint8)


def _black_and_white(mask: np.ndarray) -> np.ndarray:
    return (mask[..., None] * 255).astype(np.uint8)


def _plain(name: str) -> str:
    """The name as matplotlib can draw it: no formula, and valid text."""
    return printable(name).replace("$", r"\$")


def _plot_roc_panel(axes: Axes, level: str, curves: Curves) -> None:
    defined = {name: curve for name, curve in curves.items() if curve is not None}
    for class_name, curve in defined.items():
        label = f"{_plain(class_name)} {level} ROCAUC: {curve.auroc:.3f}"
        axes.plot(curve.fpr, curve.tpr, label=label)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="chance")
    mean = np.mean([curve.auroc for curve in defined.values()]) if defined else np.nan
    axes.set(
        title=f"Average {level} ROCAUC: {mean:.3f}" if defined else f"no {level} ROCAUC",
        xlabel="False positive rate",
        ylabel="True positive rate",
        aspect="equal",
    )
    axes.legend(loc="lower right")
