"""How a part lies in an image; images and maps, turned and moved between it and a template.

The template is the median of the aligned training images. It is sought in the grey image: first at
all angles in coarse steps, with the shift that the cross-correlation of small images gives by FFT,
then by least squares on larger and larger images. What the constants find is measured by
tests/alignment.py.

A pose says where the template lies in an image: x_image = R x_template + shift, both from the
centre. Inside, poses are rows (angle in radians, row shift, column shift).

Reference: Baker and Matthews, "Lucas-Kanade 20 years on: a unifying framework", IJCV 56, 2004,
section 3.2 (inverse compositional), with gain and bias.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import ceil, radians, sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# sides are those of a square of an image's area: of the template at most,
SIDE = 256
# of what is tried at all angles, in steps of so many degrees,
COARSE_SIDE, ANGLE_STEP = 64, 5.0
# and then of what is moved by least squares, so often at each
REFINED_SIDES, REFINED_STEPS = (64, 128, 256), 3
WINDOW_EDGE = 0.2  # of the radius: where the round window falls from 1 to 0
PASSES = 2  # in which training images are laid onto their median
# angles of training images count as limited if so many degrees are free of them, and so many that
# it is by chance once in a hundred times
LEAST_GAP, CHANCE_OF_GAP = 30.0, 0.01
# degrees, and pixels of SIDE, that a part may lie beyond the training images
SPARE_ANGLE, SPARE_SHIFT = 2.5, 2.0
RESEMBLING = 0.7  # mean correlation that tells classes that have a pose from others (DESIGN)
FLAT = 1.0  # grey levels (standard deviation): what varies less has no pose
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as Pillow's
MOST_MOVED = 2.0  # pixels of a size, in a step of least squares
LEAST_GAIN = 0.1  # contrast of an image over that of the template: with less its steps are noise
TINY = 1e-6  # below any norm of pixels that differ
AT_ONCE = 8  # images, at all angles. Memory and speed only


class Poses(NamedTuple):
    """How the parts of B images lie, each (B,) float32.

    Attributes:
        angle: degrees in (-180, 180] by which the part is turned counter-clockwise.
        row_shift: pixels of the image by which the template's centre lies below the image's.
        column_shift: and to its right.
        correlation: of the aligned image with the template, in [-1, 1].
    """

    angle: Tensor
    row_shift: Tensor
    column_shift: Tensor
    correlation: Tensor


class PoseRange(NamedTuple):
    """An arc of angles, from start on counter-clockwise, in degrees; a box of shifts in pixels."""

    start: float
    extent: float
    top: float
    bottom: float
    left: float
    right: float


@dataclass(frozen=True)
class Alignment:
    """A template, and the poses of the training images.

    Attributes:
        template: (h, w) float32 grey; smaller than the images if these are large.
        image_size: H and W of the images, whose pixels shifts are counted in.
        range: of the poses of the training images, with something to spare.
        before: mean correlation of the training images with their median as they are,
        after: with the template once they are aligned,
        lowest: and the lowest of them.
    """

    template: Tensor
    image_size: tuple[int, int]
    range: PoseRange
    before: float
    after: float
    lowest: float

    @property
    def resembles(self) -> bool:
        """Whether the training images, once aligned, are alike."""
        return self.after >= RESEMBLING

    @torch.inference_mode()
    def find_poses(self, images: Tensor) -> Poses:
        """The poses of images (B, 3, H, W) uint8, within the range of the training images.

        An image of one colour has pose zero and correlation 0.
        """
        grey = to_grey(images.to(self.template.device), self.template.shape)
        poses, correlation = self._search(grey)
        scale = sqrt(images.shape[2] * images.shape[3] / self.template.numel())
        angle, row, column = poses.unbind(1)
        return Poses(angle.rad2deg(), row * scale, column * scale, correlation)

    @cached_property
    def _search(self) -> "_Search":
        scale = sqrt(self.template.numel() / (self.image_size[0] * self.image_size[1]))
        start, extent, *box = self.range
        return _Search(self.template, PoseRange(start, extent, *(side * scale for side in box)))


@torch.inference_mode()
def learn_alignment(batches: Iterable[Tensor]) -> Alignment:
    """The template and the range of poses of training images.

    Args:
        batches: yields (B, 3, H, W) uint8, all of one size; a few hundred images are enough.
    """
    shapes_and_greys = [(images.shape[2:], to_grey(images)) for images in batches]
    (height, width), _ = shapes_and_greys[0]
    grey = torch.cat([part for _, part in shapes_and_greys])
    median = grey.median(dim=0).values
    level = _Level(median)
    before = level.correlations(level.centre(grey)).mean()
    everywhere = _whole_range(*median.shape)
    # an image of usual contrast, lest it is one without a part
    template = grey[grey.flatten(1).std(dim=1).median(dim=0).indices]
    for _ in range(PASSES):
        poses, _ = _Search(template, everywhere)(grey)
        template = _warp(grey, _centre(poses)).median(dim=0).values
    poses, correlation = _Search(template, everywhere)(grey)
    scale = sqrt(height * width / template.numel())
    return Alignment(
        template=template,
        image_size=(height, width),
        range=_range_of(poses, scale),
        before=before.item(),
        after=correlation.mean().item(),
        lowest=correlation.min().item(),
    )


def to_part(images: Tensor, poses: Poses) -> Tensor:
    """Images (B, 3, H, W) uint8, turned and moved onto the template; the border is repeated."""
    moved = F.grid_sample(
        images.float(),
        _grid(_to_rows(poses), images.shape[-2:]),
        padding_mode="border",
        align_corners=False,
    )
    return moved.round_().to(torch.uint8)


def to_image(anomaly_maps: Tensor, poses: Poses) -> Tensor:
    """Maps (B, H, W) float32 of aligned images, as maps of the images as they were.

    A pixel that is not in the aligned image is 0.
    """
    grid = _grid(_invert(_to_rows(poses)), anomaly_maps.shape[-2:])
    moved = F.grid_sample(anomaly_maps[:, None], grid, padding_mode="border", align_corners=False)[
        :, 0
    ]
    # beyond the outer edges of the pixels at the border
    return moved.masked_fill_((grid.abs() > 1 + 1e-6).any(dim=3), 0)


def to_grey(images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Images (B, 3, H, W) uint8 as grey ones (B, h, w) float32, in which poses are sought.

    Args:
        images: of any size.
        size: h and w; by default those of a template.
    """
    weights = torch.tensor(GREY, device=images.device)
    grey = torch.einsum("bchw,c->bhw", images.float(), weights)
    return _resize(grey, size or _scaled_size(*grey.shape[1:], SIDE))


def _scaled_size(height: int, width: int, side: int) -> tuple[int, int]:
    scale = min(1, side / sqrt(height * width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize(grey: Tensor, size: tuple[int, int]) -> Tensor:
    if grey.shape[1:] == torch.Size(size):
        return grey
    return F.interpolate(grey[:, None], size, mode="area")[:, 0]


class _Search:
    """Finds a template (h, w) in grey images, within a range of poses in its pixels."""

    def __init__(self, template: Tensor, limits: PoseRange) -> None:
        self.limits = limits
        n_angles = max(1, ceil(limits.extent / ANGLE_STEP))
        steps = (torch.arange(n_angles, device=template.device) + 0.5) / n_angles
        self.angles = (limits.start + steps * limits.extent).deg2rad()
        self.coarse_size = _scaled_size(*template.shape, COARSE_SIDE)
        self.coarse_scale = sqrt(template.numel() / (self.coarse_size[0] * self.coarse_size[1]))
        self.spectra = self._rotated_spectra(template)
        sizes = [_scaled_size(*template.shape, side) for side in REFINED_SIDES]
        self.levels = [_Level(_resize(template[None], size)[0]) for size in sizes]

    def __call__(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """Poses (B, 3) in the template's pixels, and correlations (B,)."""
        poses = torch.cat([self._try_angles(part) for part in grey.split(AT_ONCE)])
        for level in self.levels:
            poses, correlation = self._refine(grey, poses, level)
        flat = grey.flatten(1).std(dim=1) < FLAT
        return poses.masked_fill(flat[:, None], 0), correlation.masked_fill(flat, 0)

    def _rotated_spectra(self, template: Tensor) -> Tensor:
        """Conjugate spectra of the coarse template at all angles, each of norm 1."""
        small = _to_square(_windowed(_resize(template[None], self.coarse_size)))
        turns = F.pad(self.angles[:, None], (0, 2))
        rotated = _warp(small.expand(len(turns), -1, -1), _invert(turns), "zeros")
        norms = torch.linalg.vector_norm(rotated, dim=(1, 2), keepdim=True)
        return torch.fft.rfft2(rotated / norms.clamp(min=TINY)).conj()

    def _try_angles(self, grey: Tensor) -> Tensor:
        """The best poses (B, 3) at the coarse angles, to a pixel of the coarse size."""
        small = _to_square(_windowed(_resize(grey, self.coarse_size)))
        side, device = small.shape[1], grey.device
        spectra = torch.fft.rfft2(small)[:, None] * self.spectra
        correlations = torch.fft.irfft2(spectra, s=(side, side))
        rows = self._shifts(self.limits.top, self.limits.bottom, side).to(device)
        columns = self._shifts(self.limits.left, self.limits.right, side).to(device)
        correlations = correlations[:, :, rows[:, None], columns]
        best = correlations.flatten(1).argmax(dim=1)
        angle, row, column = torch.unravel_index(best, correlations.shape[1:])
        shifts = torch.stack([rows[row], columns[column]], dim=1) * self.coarse_scale
        return self._limit(torch.cat([self.angles[angle][:, None], shifts], dim=1))

    def _shifts(self, low: float, high: float, side: int) -> Tensor:
        """Whole shifts of the coarse size between two of the template's, to the nearest."""
        shifts = torch.arange(side) - side // 2
        within = (shifts >= low / self.coarse_scale - 0.5) & (
            shifts <= high / self.coarse_scale + 0.5
        )
        return shifts[within]

    def _refine(self, grey: Tensor, poses: Tensor, level: "_Level") -> tuple[Tensor, Tensor]:
        """The best of the poses on the way to the least squares at a level, and correlations."""
        scale = sqrt(grey[0].numel() / len(level.window))
        grey = _resize(grey, level.size)
        best, best_correlation = poses, grey.new_full((len(grey),), -1)
        for _ in range(REFINED_STEPS):
            centred = level.centre(_warp(grey, _scaled(poses, 1 / scale)))
            correlation = level.correlations(centred)
            better = correlation > best_correlation
            best = torch.where(better[:, None], poses, best)
            best_correlation = torch.where(better, correlation, best_correlation)
            poses = self._limit(_compose(poses, _invert(_scaled(level.steps(centred), scale))))
        return best, best_correlation

    def _limit(self, poses: Tensor) -> Tensor:
        """Poses moved to the nearest ones within the limits."""
        limits, (angle, row, column) = self.limits, poses.unbind(1)
        middle, half = radians(limits.start + limits.extent / 2), radians(limits.extent / 2)
        angle = _wrap(middle + _wrap(angle - middle).clamp(-half, half))
        row, column = row.clamp(limits.top, limits.bottom), column.clamp(limits.left, limits.right)
        return torch.stack([angle, row, column], dim=1)


class _Level:
    """The template at one size (h, w), and how an image that is nearly aligned is to move.

    An image is the template times a gain, plus a bias and the derivatives of the template by the
    three numbers of a pose times small steps: weighted least squares gives gain and steps.
    """

    def __init__(self, template: Tensor) -> None:
        self.size = template.shape
        self.window = _window(*self.size, template.device).flatten()
        self.window /= self.window.sum()
        y, x = _coordinates(*self.size, template.device)
        by_row, by_column = torch.gradient(template)
        derivatives = (by_column * y - by_row * x, by_row, by_column)
        basis = self.centre(torch.stack([template, *derivatives]))
        weighted = basis * self.window
        # a round part has no angle, an empty template nothing: their steps are 0
        inverse = torch.linalg.pinv((weighted @ basis.T).double().cpu(), hermitian=True)
        self.solver = weighted.T @ inverse.float().to(weighted.device)
        norm = (weighted[0] @ basis[0]).sqrt()
        self.weighted_template = weighted[0] / norm.clamp(min=TINY)

    def centre(self, grey: Tensor) -> Tensor:
        """Grey images (B, h, w) minus their mean in the window, (B, h w)."""
        pixels = grey.flatten(1)
        return pixels - (pixels @ self.window)[:, None]

    def correlations(self, centred: Tensor) -> Tensor:
        """Of centred images (B, h w) with the template, in the window."""
        norms = (centred.square() @ self.window).sqrt()
        return (centred @ self.weighted_template / norms.clamp(min=TINY)).clamp(-1, 1)

    def steps(self, centred: Tensor) -> Tensor:
        """Steps (B, 3) by which centred images (B, h w) are away from the template."""
        gain, steps = (centred @ self.solver).split([1, 3], dim=1)
        steps = steps / gain.clamp(min=LEAST_GAIN)
        most = steps.new_tensor([radians(ANGLE_STEP), MOST_MOVED, MOST_MOVED])
        return steps.clamp(-most, most)


def _coordinates(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (h, 1) and columns (1, w) from the centre."""
    rows, columns = (
        torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
        for side in (height, width)
    )
    return rows[:, None], columns[None]


def _window(height: int, width: int, device: torch.device) -> Tensor:
    """An ellipse (h, w) that touches the border, 1 inside, falling to 0 like a cosine."""
    y, x = _coordinates(height, width, device)
    radius = torch.sqrt((2 * y / height) ** 2 + (2 * x / width) ** 2)
    return 0.5 - 0.5 * torch.cos(torch.pi * ((1 - radius) / WINDOW_EDGE).clamp(0, 1))


def _windowed(grey: Tensor) -> Tensor:
    """Grey images (B, h, w) without their mean, under the window."""
    window = _window(*grey.shape[1:], grey.device)
    return window * (grey - (grey * window).sum(dim=(1, 2), keepdim=True) / window.sum())


def _to_square(grey: Tensor) -> Tensor:
    """Images (B, h, w) in the middle of squares of zeros."""
    _, height, width = grey.shape
    rows, columns = max(0, width - height), max(0, height - width)
    return F.pad(grey, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _warp(grey: Tensor, poses: Tensor, padding: str = "border") -> Tensor:
    """Images (B, h, w) turned and moved onto the template, by poses in their pixels."""
    grid = _grid(poses, grey.shape[1:])
    return F.grid_sample(grey[:, None], grid, padding_mode=padding, align_corners=False)[:, 0]


def _grid(poses: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each pixel of the template lies in the image, as grid_sample takes it: (B, h, w, 2)."""
    height, width = size
    angle, row, column = poses.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    of_x = torch.stack([cos, sin * height / width, column * 2 / width], dim=1)
    of_y = torch.stack([-sin * width / height, cos, row * 2 / height], dim=1)
    matrices = torch.stack([of_x, of_y], dim=1)
    return F.affine_grid(matrices, [len(poses), 1, height, width], align_corners=False)


def _to_rows(poses: Poses) -> Tensor:
    return torch.stack([poses.angle.deg2rad(), poses.row_shift, poses.column_shift], dim=1)


def _scaled(poses: Tensor, scale: float) -> Tensor:
    """Poses whose shifts are in other pixels."""
    return poses * poses.new_tensor([1, scale, scale])


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The poses (B, 3) that apply inner first, then outer."""
    angle, row, column = inner.unbind(-1)
    cos, sin = outer[:, 0].cos(), outer[:, 0].sin()
    moved = torch.stack(
        [angle + 0 * cos, cos * row - sin * column, cos * column + sin * row], dim=1
    )
    return outer + moved


def _invert(poses: Tensor) -> Tensor:
    """The poses (B, 3) that undo these."""
    angle, row, column = poses.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    return -torch.stack([angle, cos * row + sin * column, cos * column - sin * row], dim=1)


def _wrap(angle: Tensor) -> Tensor:
    """Radians in (-pi, pi]."""
    return torch.pi - (torch.pi - angle).remainder(2 * torch.pi)


def _centre(poses: Tensor) -> Tensor:
    """Poses (N, 3) against the template that lies as they do on average."""
    angle = poses[:, 0]
    mean = torch.atan2(angle.sin().mean(), angle.cos().mean())
    turned = _compose(poses, F.pad(-mean[None], (0, 2)))
    shift = _invert(turned)[:, 1:].median(dim=0).values
    return _compose(turned, F.pad(shift, (1, 0)))


def _whole_range(height: int, width: int) -> PoseRange:
    return PoseRange(-180, 360, -height / 2, height / 2, -width / 2, width / 2)


def _range_of(poses: Tensor, scale: float) -> PoseRange:
    """The range of poses (N, 3), with something to spare; shifts in pixels scale times as small."""
    angles = poses[:, 0].rad2deg().double().sort().values
    gaps = torch.cat([angles[1:], angles[:1] + 360]) - angles
    widest, n = int(gaps.argmax()), len(angles)
    # n angles all around leave a gap of g with a chance of about n (1 - g / 360)^(n - 1)
    by_chance = 360 * (1 - (CHANCE_OF_GAP / n) ** (1 / max(n - 1, 1)))
    start, extent = -180.0, 360.0
    if gaps[widest] >= max(LEAST_GAP, by_chance):
        start = angles[(widest + 1) % n].item() - SPARE_ANGLE
        extent = 360 - gaps[widest].item() + 2 * SPARE_ANGLE
    (top, left), (bottom, right) = (
        ((shifts + spare) * scale).tolist()
        for shifts, spare in zip(
            poses[:, 1:].aminmax(dim=0), (-SPARE_SHIFT, SPARE_SHIFT), strict=True
        )
    )
    return PoseRange(start, extent, top, bottom, left, right)
