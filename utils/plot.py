"""Figures: ROC curves and localisation panels. Draws what it is given and changes none of it.

Reference: upstream's main.py, plot_fig.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from skimage.morphology import disk, opening
from skimage.segmentation import mark_boundaries

from utils.evaluation import Evaluation, RocCurve
from utils.files import replacing

DPI = 100
HEAT_MAP = "jet"  # upstream
HEAT_MAP_ALPHA = 0.5  # upstream
OPENING = disk(4)  # upstream; takes specks out of the drawn mask, not out of any metric
BOUNDARY_COLOUR = (1, 0, 0)  # upstream
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


def plot_roc_curves(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write the ROC curves of all classes, image level left and pixel level right.

    Args:
        path: of the PNG file.
        evaluations: by class name; a curve that is not defined is left out.
    """
    image_curves = {name: evaluation.image_curve for name, evaluation in evaluations.items()}
    pixel_curves = {name: evaluation.pixel_curve for name, evaluation in evaluations.items()}
    figure = Figure(figsize=(20, 10), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_roc_panel(left, "image", image_curves)
    _plot_roc_panel(right, "pixel", pixel_curves)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def plot_localisations(
    items: Iterable[Localisation], norm: Normalize, threshold: float | None
) -> None:
    """Write the panels of every item: image, ground truth, heat map, predicted mask and outline.

    The predicted mask is anomaly_map >= threshold, opened. Without a mask there is no ground
    truth panel, without a threshold there are no last two.

    Args:
        items: images of one class, all of one size, all with or all without mask.
        norm: colour scale of the anomaly maps, shared by all heat maps and the colour bar.
        threshold: in units of the anomaly maps, marked on the colour bar.
    """
    figure = None
    for item in items:
        panels = _panel_pixels(item, threshold)
        if figure is None:
            figure = _PanelFigure(panels, item.anomaly_map, norm, threshold)
        figure.write(item, panels)


class _PanelFigure:
    """Panels whose pixels change from image to image while the rest is drawn once.

    One pixel of an image is one pixel of the figure.
    """

    def __init__(
        self,
        panels: Mapping[str, np.ndarray],
        anomaly_map: np.ndarray,
        norm: Normalize,
        threshold: float | None,
    ) -> None:
        height, width = anomaly_map.shape
        total = (
            MARGIN + len(panels) * (width + MARGIN) + COLOUR_BAR,
            MARGIN + height + TITLES,
        )
        self.figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.artists = {}
        for i, (name, pixels) in enumerate(panels.items()):
            axes = self._add_axes(MARGIN + i * (width + MARGIN), width, height)
            axes.set_axis_off()
            axes.set_title(name, fontsize=10, pad=4)
            self.artists[name] = _draw_pixels(axes, pixels)
            if name == "Predicted heat map":
                self.heat_map = axes.imshow(
                    anomaly_map,
                    cmap=HEAT_MAP,
                    norm=norm,
                    alpha=HEAT_MAP_ALPHA,
                    interpolation="none",
                    animated=True,
                )
        bar_axes = self._add_axes(total[0] - COLOUR_BAR + 4, 14, height)
        bar = self.figure.colorbar(self.heat_map, cax=bar_axes)
        label = "Anomaly score" if threshold is None else "Anomaly score (line: threshold)"
        bar.set_label(label, size=8)
        bar.ax.tick_params(labelsize=8)
        if threshold is not None:
            bar.ax.axhline(threshold, color="black", linewidth=1.5)
        self.title = self.figure.text(
            MARGIN / total[0], 1 - 8 / total[1], "", va="top", fontsize=10, animated=True
        )
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def write(self, item: Localisation, panels: Mapping[str, np.ndarray]) -> None:
        """Fill in the item's pixels and write its file."""
        self.canvas.restore_region(self.background)
        for name, artist in self.artists.items():
            artist.set_data(panels[name])
            self.figure.draw_artist(artist)
        self.heat_map.set_data(item.anomaly_map)
        self.figure.draw_artist(self.heat_map)
        self.title.set_text(item.title)
        self.figure.draw_artist(self.title)
        with replacing(item.path) as temporary:
            Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB").save(
                temporary, compress_level=3
            )

    def _add_axes(self, left: int, width: int, height: int) -> Axes:
        across, up = self.figure.get_size_inches() * DPI
        return self.figure.add_axes((left / across, MARGIN / up, width / across, height / up))


def _panel_pixels(item: Localisation, threshold: float | None) -> dict[str, np.ndarray]:
    """The pixels of each panel by its title; those under the heat map are the image's."""
    image = item.image.transpose(1, 2, 0)
    panels = {"Image": image}
    if item.mask is not None:
        panels["Ground truth"] = item.mask
    panels["Predicted heat map"] = image
    if threshold is not None:
        pred_mask = opening(item.anomaly_map >= threshold, OPENING)
        panels["Predicted mask"] = pred_mask
        panels["Segmentation result"] = mark_boundaries(
            image, pred_mask, color=BOUNDARY_COLOUR, mode="thick"
        )
    return panels


def _draw_pixels(axes: Axes, pixels: np.ndarray):
    return axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none", animated=True)


def _plot_roc_panel(axes: Axes, level: str, curves: Mapping[str, RocCurve | None]) -> None:
    defined = {name: curve for name, curve in curves.items() if curve is not None}
    for class_name, curve in defined.items():
        fpr, tpr = _thin(curve)
        axes.plot(fpr, tpr, label=f"{class_name} {level} ROCAUC: {curve.auroc:.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="chance")
    mean = np.mean([curve.auroc for curve in defined.values()]) if defined else np.nan
    axes.set(
        title=f"Average {level} ROCAUC: {mean:.3f}" if defined else f"no {level} ROCAUC",
        xlabel="False positive rate",
        ylabel="True positive rate",
        aspect="equal",
    )
    axes.legend(loc="lower right")


def _thin(curve: RocCurve) -> tuple[np.ndarray, np.ndarray]:
    """The curve without the points that fall on the same spot of a figure as their neighbour."""
    spots = np.round(np.stack([curve.fpr, curve.tpr]) * ROC_STEPS)
    keep = np.append(True, np.any(np.diff(spots) != 0, axis=0))
    return curve.fpr[keep], curve.tpr[keep]
