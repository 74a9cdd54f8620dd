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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil, floor, radians, sqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

# sides are those of a square of an image's area: of the template at most,
SIDE = 128
# of what is tried at all angles, in steps of so many degrees,
COARSE_SIDE, ANGLE_STEP = 48, 5.0
# and of what then is moved by least squares, so often at each; before the last, the better is kept
# of two poses that are so many degrees apart
REFINED_SIDES, REFINED_STEPS, FAR_ANGLE = (64, 128), 2, 45.0
MOST_MOVED = 2.0  # pixels of a side, in a step of least squares
LEAST_GAIN = 0.1  # contrast of an image over the template's; steps are noise where it is lower
WINDOW_EDGE = 0.2  # of the radius: where the window falls from 1 to 0
FLAT = 1.0  # grey levels (standard deviation): what varies less has no pose
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as Pillow's
N_ROUGH = 64  # training images of a first median, onto which all are laid for the template
MOST_SHIFTED = 0.25  # of the sides, in training images
# angles of training images count as limited if so many degrees are free of them, and if that is
# by chance once in a hundred times
LEAST_GAP, CHANCE_OF_GAP = 30.0, 0.01
# degrees, and pixels of the template, that a part may lie beyond the training images: with twice
# the pixels transistor's AUPRO falls from .940 to .927, as parts that lie wrong are put right
SPARE_ANGLE, SPARE_SHIFT = 2.5, 1.0
RESEMBLING = 0.7  # mean correlation: parts classes that have a pose from others on seven sets
ROUNDING = 1e-5  # of coordinates, which go from -1 to 1
AT_ONCE = 8  # images. Memory and speed only


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

    def describe(self) -> dict[str, Any]:
        """All but the template, as JSON can hold it."""
        return {**asdict(self), "template": None, "range": self.range._asdict()}

    @classmethod
    def restore(cls, description: Mapping[str, Any], template: Tensor) -> "Alignment":
        """The alignment of a template that describe has described."""
        changed = {"image_size": tuple(description["image_size"]), "template": template}
        return cls(**{**description, **changed, "range": PoseRange(**description["range"])})

    @torch.inference_mode()
    def find_poses(
        self, images: Tensor, search: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    ) -> Poses:
        """The poses of images (B, 3, H, W) uint8, within the range of the training images.

        An image of one colour has pose zero and correlation 0. The search may be another one for
        the same template and limits.
        """
        grey = to_grey(images.to(self.template.device), self.template.shape)
        poses, correlation = (search or self._search)(grey)
        angle, row, column = _scaled(poses, _ratio(self.image_size, self.template.shape)).unbind(1)
        return Poses(angle.rad2deg(), row, column, correlation)

    @cached_property
    def _search(self) -> "Search":
        return Search(self.template, self.limits)

    @property
    def limits(self) -> PoseRange:
        """The range in pixels of the template."""
        scale = _ratio(self.template.shape, self.image_size)
        start, extent, *box = self.range
        return PoseRange(start, extent, *(side * scale for side in box))


@torch.inference_mode()
def learn_alignment(batches: Iterable[Tensor]) -> Alignment:
    """The template and the range of poses of training images (B, 3, H, W) uint8, all of one size.

    A few hundred are enough.
    """
    image_size, greys = (0, 0), []
    for images in batches:
        image_size = tuple(images.shape[2:])
        greys.append(to_grey(images))
    grey = torch.cat(greys)
    of_median = _Level(grey.median(dim=0).values)
    before = of_median.correlations(of_median.centre(grey))
    height, width = (MOST_SHIFTED * side for side in grey.shape[1:])
    # all around, so that parts which are not turned are among the first tried
    everywhere = PoseRange(-180 - ANGLE_STEP / 2, 360, -height, height, -width, width)
    # an image of usual contrast, lest it is one without a part
    template = grey[grey.flatten(1).std(dim=1).median(dim=0).indices]
    for some in (grey[:: ceil(len(grey) / N_ROUGH)], grey):
        poses = _centre(Search(template, everywhere)(some)[0], template)
        parts = zip(some.split(AT_ONCE), poses.split(AT_ONCE), strict=True)
        template = torch.cat([_warp(*part) for part in parts]).median(dim=0).values
    poses, after = Search(template, everywhere)(grey, poses)
    return Alignment(
        template=template,
        image_size=image_size,
        range=_range_of(poses, _ratio(image_size, template.shape)),
        before=before.mean().item(),
        after=after.mean().item(),
        lowest=after.min().item(),
    )


def to_part(images: Tensor, poses: Poses) -> Tensor:
    """Images (B, 3, H, W) uint8, turned and moved onto the template, as float32.

    The border is repeated.
    """
    return _sample(images.float(), _grid(_to_rows(poses), images.shape[2:]))


def to_image(anomaly_maps: Tensor, poses: Poses) -> Tensor:
    """Maps (B, H, W) float32 of aligned images, as maps of the images as they were.

    A pixel that is not in the aligned image is 0.
    """
    grid = _grid(_invert(_to_rows(poses)), anomaly_maps.shape[1:])
    moved = _sample(anomaly_maps[:, None], grid)[:, 0]
    # 1 is the outer edge of the pixels at the border
    return moved.masked_fill_((grid.abs() > 1 + ROUNDING).any(dim=3), 0)


def to_grey(images: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Images (B, 3, H, W) uint8 as grey ones (B, h, w) float32, in which poses are sought.

    The size is h and w, by default those of a template.
    """
    weights = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    grey = F.conv2d(images.float(), weights)[:, 0]
    return _resize(grey, size or _scaled_size(grey.shape[1:], SIDE))


class Search:
    """Finds a template (h, w) in grey images, within a range of poses in its pixels."""

    def __init__(self, template: Tensor, limits: PoseRange) -> None:
        self.limits = limits
        self.is_flat = bool(template.std() < FLAT)
        self.levels = [
            _Level(_resize(template[None], _scaled_size(template.shape, side))[0])
            for side in REFINED_SIDES
        ]
        n_angles = max(1, ceil(limits.extent / ANGLE_STEP))
        steps = (torch.arange(n_angles, device=template.device) + 0.5) / n_angles
        self.angles = (limits.start + steps * limits.extent).deg2rad()
        self.coarse_size = _scaled_size(template.shape, COARSE_SIDE)
        self.coarse_scale = _ratio(template.shape, self.coarse_size)
        self.rows, self.columns = (
            torch.arange(floor(low / self.coarse_scale), ceil(high / self.coarse_scale) + 1)
            for low, high in ((limits.top, limits.bottom), (limits.left, limits.right))
        )
        farthest = int(torch.cat([self.rows, self.columns]).abs().max())
        self.coarse_side = next_fast_len(max(self.coarse_size) + 2 * farthest, real=True)
        self.template_spectra, self.window_spectra = self._rotated_spectra(template)

    def __call__(self, grey: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Poses (B, 3) in the template's pixels of images (B, h, w), and correlations (B,).

        They are sought near the poses (B, 3) of near, or without these at all angles and shifts.
        """
        starts = [None] * ceil(len(grey) / AT_ONCE) if near is None else near.split(AT_ONCE)
        found = [
            self.find(part, start) for part, start in zip(grey.split(AT_ONCE), starts, strict=True)
        ]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def find(self, grey: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same, of as many images as are worked on at once."""
        start = self._search_coarsely(grey) if near is None else near
        poses, correlation = self._refine(grey, start, self.levels[-1])
        flat = (grey.flatten(1).std(dim=1) < FLAT) | self.is_flat
        return poses.masked_fill(flat[:, None], 0), correlation.masked_fill(flat, 0)

    def _search_coarsely(self, grey: Tensor) -> Tensor:
        """The best poses (B, 3) of all, as far as small images show."""
        candidates = self._try_angles(grey)
        poses, n_each = candidates.flatten(0, 1), len(candidates)
        correlation = torch.zeros_like(poses[:, 0])
        for level in self.levels[:-1]:
            poses, correlation = self._refine(grey.repeat(n_each, 1, 1), poses, level)
        best = correlation.view(n_each, -1).argmax(dim=0)
        return poses.view(n_each, -1, 3)[best, torch.arange(grey.shape[0])]

    def _rotated_spectra(self, template: Tensor) -> tuple[Tensor, Tensor]:
        """Conjugate spectra of template and window at all angles; of a round window at one."""
        turns = _invert(F.pad(self.angles[:, None], (0, 2)))
        templates, windows = (
            _warp(self._on_square(grey[None]).expand(len(turns), -1, -1), turns)
            for grey in (template, _window(*template.shape, template.device))
        )
        if self.coarse_size[0] == self.coarse_size[1]:
            windows = windows[:1]
        windows = windows / windows.sum(dim=(1, 2), keepdim=True)
        templates = templates - (windows * templates).sum(dim=(1, 2), keepdim=True)
        norms = (windows * templates.square()).sum(dim=(1, 2), keepdim=True).sqrt()
        templates = windows * templates / norms.clamp(min=FLAT)
        return torch.fft.rfft2(templates).conj(), torch.fft.rfft2(windows).conj()

    def _on_square(self, grey: Tensor) -> Tensor:
        """Grey images at the coarse size in a square with room for all shifts."""
        grey = _resize(grey, self.coarse_size)
        rows, columns = (self.coarse_side - side for side in self.coarse_size)
        padding = columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
        return F.pad(grey[:, None], padding, "replicate")[:, 0]

    def _try_angles(self, grey: Tensor) -> Tensor:
        """The best pose of the coarse steps, and the best far from its angle: (2, B, 3).

        Correlations are those in the window as it lies in the image (normalised).
        """
        small = self._on_square(grey - grey.mean(dim=(1, 2), keepdim=True))
        means, mean_squares, products = self.cross_correlate(small)
        variances = mean_squares - means.square()
        correlations = products / variances.clamp(min=FLAT**2).sqrt()
        of_angles, shifts = correlations.flatten(2).max(dim=2)
        best = of_angles.argmax(dim=1)
        near = _wrap(self.angles - self.angles[best][:, None]).abs() < radians(FAR_ANGLE)
        chosen = torch.stack([best, of_angles.masked_fill(near, -2).argmax(dim=1)])
        if self.limits.extent < FAR_ANGLE:
            chosen = chosen[:1]
        shift = shifts.gather(1, chosen.T).T
        rows, columns = self.rows.to(grey), self.columns.to(grey)
        shift = rows[shift // len(columns)], columns[shift % len(columns)]
        poses = torch.stack([self.angles[chosen], *shift], dim=2)
        return self._limit(_scaled(poses, self.coarse_scale))

    def cross_correlate(self, small: Tensor) -> list[Tensor]:
        """Of images and their squares (B, side, side) with windows, of images with templates.

        Returns:
            Each (B, angles or 1, rows, columns), at the shifts that are sought.
        """
        spectra, of_squares = torch.fft.rfft2(torch.stack([small, small.square()]))[:, :, None]
        windows, templates = self.window_spectra, self.template_spectra
        pairs = (spectra, windows), (of_squares, windows), (spectra, templates)
        return [self._at_shifts(of_images * others) for of_images, others in pairs]

    def _at_shifts(self, spectra: Tensor) -> Tensor:
        """Cross-correlations at the shifts that are sought, from their spectra."""
        # one axis after the other: few rows are sought
        by_row = torch.fft.ifft(spectra, dim=-2)[..., self.rows, :]
        return torch.fft.irfft(by_row, self.coarse_side)[..., self.columns]

    def _refine(self, grey: Tensor, poses: Tensor, level: "_Level") -> tuple[Tensor, Tensor]:
        """The best of the poses on the way to the least squares at a level, and correlations."""
        scale = _ratio(grey.shape[1:], level.size)
        grey = _resize(grey, level.size)
        aligned = level.centre(_warp(grey, _scaled(poses, 1 / scale)))
        best, best_correlation = poses, level.correlations(aligned)
        for _ in range(REFINED_STEPS):
            poses = self._limit(_compose(poses, _invert(_scaled(level.steps(aligned), scale))))
            aligned = level.centre(_warp(grey, _scaled(poses, 1 / scale)))
            correlation = level.correlations(aligned)
            better = correlation > best_correlation
            best = torch.where(better[:, None], poses, best)
            best_correlation = torch.where(better, correlation, best_correlation)
        return best, best_correlation

    def _limit(self, poses: Tensor) -> Tensor:
        """The nearest poses within the limits."""
        start, extent, *box = self.limits
        middle, half = radians(start + extent / 2), radians(extent / 2)
        angle = middle + _wrap(poses[..., 0] - middle).clamp(-half, half)
        low, high = poses.new_tensor([box[::2], box[1::2]])
        shifts = poses[..., 1:].clamp(low, high)
        return torch.cat([_wrap(angle)[..., None], shifts], dim=-1)


class _Level:
    """The template at one size (h, w), and how an image that is nearly aligned is to move.

    An image is the template times a gain, plus a bias and the derivatives of the template by the
    three numbers of a pose times small steps: weighted least squares gives gain and steps.
    """

    def __init__(self, template: Tensor) -> None:
        self.size = template.shape
        window = _window(*self.size, template.device).flatten()
        self.window = window / window.sum()
        y, x = _coordinates(*self.size, template.device)
        by_row, by_column = torch.gradient(template)
        derivatives = by_column * y - by_row * x, by_row, by_column
        basis = self.centre(torch.stack([template, *derivatives]))
        weighted = basis * self.window
        # a round part has no angle, an empty template nothing: their steps are 0
        inverse = torch.linalg.pinv((weighted @ basis.T).cpu().double(), hermitian=True)
        self.solver = weighted.T @ inverse.float().to(template.device)
        self.weighted_template = weighted[0] / (weighted[0] @ basis[0]).sqrt().clamp(min=FLAT)

    def centre(self, grey: Tensor) -> Tensor:
        """Grey images (B, h, w) minus their mean in the window: (B, h w)."""
        pixels = grey.flatten(1)
        return pixels - (pixels @ self.window)[:, None]

    def correlations(self, centred: Tensor) -> Tensor:
        """Of centred images (B, h w) with the template, in the window."""
        norms = (centred.square() @ self.window).sqrt()
        return (centred @ self.weighted_template / norms.clamp(min=FLAT)).clamp(-1, 1)

    def steps(self, centred: Tensor) -> Tensor:
        """Steps (B, 3) by which centred images (B, h w) are away from the template."""
        gain, steps = (centred @ self.solver).split([1, 3], dim=1)
        most = steps.new_tensor([radians(ANGLE_STEP), MOST_MOVED, MOST_MOVED])
        return (steps / gain.clamp(min=LEAST_GAIN)).clamp(-most, most)


def _ratio(size: Sequence[int], other: Sequence[int]) -> float:
    """How many pixels of a size fit one of the other, along a side."""
    return sqrt(size[0] * size[1] / (other[0] * other[1]))


def _scaled_size(size: Sequence[int], side: int) -> tuple[int, int]:
    """A size shrunk to the area of a square, and to twice its side."""
    scale = min(1, side / sqrt(size[0] * size[1]), 2 * side / max(size))
    return max(8, round(size[0] * scale)), max(8, round(size[1] * scale))


def _resize(grey: Tensor, size: Sequence[int]) -> Tensor:
    return grey if grey.shape[1:] == size else F.interpolate(grey[:, None], size, mode="area")[:, 0]


def _coordinates(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (h, 1) and columns (1, w) from the centre."""
    rows, columns = (
        torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
        for side in (height, width)
    )
    return rows[:, None], columns[None]


def _window(height: int, width: int, device: torch.device) -> Tensor:
    """An ellipse (h, w) that reaches to the border: 1 inside, falling to 0 like a cosine."""
    y, x = _coordinates(height, width, device)
    radius = torch.sqrt((2 * y / (height - 1)) ** 2 + (2 * x / (width - 1)) ** 2)
    return 0.5 - 0.5 * torch.cos(torch.pi * ((1 - radius) / WINDOW_EDGE).clamp(0, 1))


def _warp(grey: Tensor, poses: Tensor) -> Tensor:
    """Grey images (B, h, w) turned and moved onto the template, by poses in their pixels."""
    return _sample(grey[:, None], _grid(poses, grey.shape[1:]))[:, 0]


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _grid(poses: Tensor, size: Sequence[int]) -> Tensor:
    """Where each pixel of the template lies in the image, as grid_sample takes it: (B, h, w, 2)."""
    y, x = (side.flatten() for side in _coordinates(*size, poses.device))
    angle, row, column = (values[:, None] for values in poses.unbind(1))
    cos, sin = angle.cos(), angle.sin()
    # a sum of two small tensors: affine_grid takes five times as long
    of_rows = torch.stack([sin * y + column, cos * y + row], dim=2)
    of_columns = torch.stack([cos * x, -sin * x], dim=2)
    to_ends = 2 / poses.new_tensor(size[::-1])
    return (of_rows * to_ends)[:, :, None] + (of_columns * to_ends)[:, None]


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


def _centre(poses: Tensor, template: Tensor) -> Tensor:
    """Poses (N, 3) against another template: it lies as they do on average.

    If they go all around, no angle is an average: the part then lies along the longer side.
    """
    _, extent = _arc(poses[:, 0])
    angle = _principal_axis(template) if extent == 360 else _mean_angle(poses[:, 0])
    turned = _compose(poses, F.pad(-angle[None], (0, 2)))
    shift = _invert(turned)[:, 1:].median(dim=0).values
    return _compose(turned, F.pad(shift, (1, 0)))


def _mean_angle(angles: Tensor) -> Tensor:
    return torch.atan2(angles.sin().mean(), angles.cos().mean())


def _principal_axis(grey: Tensor) -> Tensor:
    """The angle of the longest extent of what differs from the ground, against the longer side.

    The heavier end points to the right, or down. Screw's image ROCAUC is .975 so, .960 the other
    way round, .924 across: the network is not the same in all directions.
    """
    y, x = _coordinates(*grey.shape, grey.device)
    weight = _window(*grey.shape, grey.device) * (grey - grey.median()).abs()
    weight /= weight.sum().clamp(min=FLAT)
    y, x = y - (weight * y).sum(), x - (weight * x).sum()
    xx, yy, xy = ((weight * product).sum() for product in (x * x, y * y, x * y))
    upright = 0 if grey.shape[1] >= grey.shape[0] else torch.pi / 2
    angle = torch.atan2(2 * xy, xx - yy) / 2
    skewness = (weight * (angle.cos() * x + angle.sin() * y) ** 3).sum()
    return angle + torch.pi * (skewness > 0) - upright


def _range_of(poses: Tensor, scale: float) -> PoseRange:
    """The range of poses (N, 3), with something to spare; shifts in pixels scale times as small."""
    (top, left), (bottom, right) = (
        ((shifts + spare) * scale).tolist()
        for shifts, spare in zip(
            poses[:, 1:].aminmax(dim=0), (-SPARE_SHIFT, SPARE_SHIFT), strict=True
        )
    )
    return PoseRange(*_arc(poses[:, 0]), top, bottom, left, right)


def _arc(angles: Tensor) -> tuple[float, float]:
    """Start and extent of the range of angles (N,), in degrees, with something to spare."""
    angles = angles.rad2deg().double().sort().values
    gaps = torch.cat([angles[1:], angles[:1] + 360]) - angles
    widest, n = int(gaps.argmax()), len(angles)
    # n angles all around leave a gap of g with a chance of about n (1 - g / 360)^(n - 1)
    by_chance = 360 * (1 - (CHANCE_OF_GAP / n) ** (1 / max(n - 1, 1)))
    if gaps[widest] < max(LEAST_GAP, by_chance):
        return -180.0, 360.0
    start = angles[(widest + 1) % n].item() - SPARE_ANGLE
    return start, 360 - gaps[widest].item() + 2 * SPARE_ANGLE
