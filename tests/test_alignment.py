from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tests import alignment as measuring
from tests.alignment import move, pose_errors
from tests.helpers import draw_part
from tests.samples import draw_images
from utils import alignment
from utils.alignment import Alignment, PoseRange, Poses, learn_alignment, to_image, to_part

ANGLES = np.arange(-180, 180, 41.7)  # all around


def stack(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def poses_of(*rows: tuple[float, float, float]) -> Poses:
    return Poses(*torch.tensor(rows).unbind(1), torch.ones(len(rows)))


def turned(
    angles: np.ndarray, reach: float = 6, image: Image.Image | None = None
) -> tuple[Tensor, np.ndarray]:
    """The part turned by these angles and moved at random, and by how much (column + i row)."""
    rng, image = np.random.default_rng(0), image or draw_part()
    shifts = rng.uniform(-reach, reach, (len(angles), 2)) @ (1, 1j)
    return stack([move(image, *pose) for pose in zip(angles, shifts, strict=True)]), shifts


@pytest.fixture(scope="module")
def learnt() -> Alignment:
    return learn_alignment(turned(ANGLES)[0].split(4))


@pytest.mark.parametrize("image", [(96, 96), (144, 96), (60, 131), (420, 300), "coffee", "rocket"])
def test_what_is_turned_and_moved_by_known_amounts_is_found(image):
    from skimage import data

    angles = ANGLES
    if isinstance(image, str):  # a photograph, which goes on beyond its border
        image, angles = Image.fromarray(getattr(data, image)()), np.array([-14, 0, 6.5, 11])
        image.thumbnail((256, 192))
    else:
        image = draw_part(image)
    reach = min(image.size) / 16
    images, shifts = turned(angles, reach, image)
    everywhere = PoseRange(-180, 360, *(-2 * reach, 2 * reach) * 2)
    found = replace(learn_alignment([images]), range=everywhere)
    unmoved = found.find_poses(stack([image] * len(angles)))
    angle_off, shift_off = pose_errors(unmoved, found.find_poses(images), angles, shifts)
    assert angle_off.max() < 0.5
    assert shift_off.max() < 0.5 * max(1, min(image.size) / 256)


def test_a_part_that_looks_almost_the_same_upside_down_is_found_the_right_way_up():
    part = Image.new("RGB", (256, 256), (40, 40, 40))
    draw = ImageDraw.Draw(part)
    draw.rounded_rectangle([60, 90, 195, 165], 20, (200, 200, 200))
    draw.line([80, 105, 92, 117], (150, 150, 150), 2)
    angles = np.arange(3, 363, 26.0)
    images = stack([move(part, angle, 3 - 2j) for angle in angles])
    turns = learn_alignment([images]).find_poses(images).angle.numpy() - angles
    assert np.abs((turns - turns[0] + 180) % 360 - 180).max() < 1


def test_angles_count_counter_clockwise_and_shifts_down_and_right():
    images = draw_images(1, 3, 32, 32).float()
    turned = to_part(images.rot90(1, (2, 3)), poses_of((90, 0, 0))).round()
    assert torch.equal(turned, images)
    moved = to_part(images.roll((3, -5), (2, 3)), poses_of((0, 3, -5))).round()
    assert torch.equal(moved[..., :-3, 5:], images[..., :-3, 5:])
    # one is turned first, then moved
    both = to_part(images.rot90(1, (2, 3)).roll((3, -5), (2, 3)), poses_of((90, 3, -5))).round()
    assert torch.equal(both[..., 5:-5, 5:-5], images[..., 5:-5, 5:-5])
    # pixels beyond the image repeat its border
    down = to_part(images, poses_of((0, 7, 0))).round()
    assert torch.equal(down[..., -7:, :], images[..., -1:, :].expand(-1, -1, 7, -1))


def test_a_map_comes_back_to_where_the_part_lay():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    maps = torch.stack([(rows * columns) / 64 + rows, 200 - rows])
    poses = poses_of((33, 5, -3), (-140, -2, 8))
    # smooth, so that bilinear interpolation hardly changes it
    images = maps[:, None].expand(-1, 3, -1, -1).round().to(torch.uint8)
    back = to_image(to_part(images, poses)[:, 0], poses)
    middle = np.s_[:, 16:-16, 24:-24]
    assert (back[middle] - images[:, 0].float()[middle]).abs().max() < 2.5


def test_what_the_model_has_not_seen_is_zero():
    back = to_image(torch.ones(3, 64, 64), poses_of((0, 10, 0), (45, 0, 0), (0, 0, 0)))
    assert (back[0, :10] == 0).all()
    assert (back[0, 10:] == 1).all()
    assert back[1, 0, 0] == back[1, -1, -1] == 0
    assert back[1, 32, 0] == 1
    assert (back[2] == 1).all()


def test_aligned_images_are_alike(learnt):
    images, _ = turned(ANGLES)
    aligned = to_part(images, learnt.find_poses(images))
    assert aligned[:, :, 20:-20, 20:-20].std(dim=0).mean() < 5
    assert images.float()[:, :, 20:-20, 20:-20].std(dim=0).mean() > 40
    assert learnt.before < 0.7 < 0.98 < learnt.lowest <= learnt.after
    assert learnt.resembles


def test_poses_are_found_only_in_the_range_of_the_training_images():
    images, _ = turned(np.linspace(150, 200, 12), reach=3)
    found = learn_alignment([images])
    assert found.range.extent == pytest.approx(50 + 2 * alignment.SPARE_ANGLE, abs=1)
    box = np.array(found.range[2:])
    assert (np.abs(box) < 3 + 2 * alignment.SPARE_SHIFT).all()
    # turned by a right angle and moved: it stays wrong
    far, _ = turned(np.array([265.0, 85.0]), reach=0)
    poses = found.find_poses(far.roll((15, -15), (2, 3)))
    offset = (poses.angle - found.range.start) % 360
    assert ((offset < found.range.extent + 0.01) | (offset > 359.99)).all()
    assert (poses.row_shift <= found.range.bottom).all()
    assert (poses.column_shift >= found.range.left).all()
    assert (poses.correlation < found.lowest).all()


@pytest.mark.parametrize(("n", "limited"), [(8, False), (60, True)])
def test_a_gap_that_few_images_leave_by_chance_limits_no_angle(n, limited):
    poses = torch.zeros(n, 3)
    poses[:, 0] = torch.linspace(0, 2 * torch.pi * 270 / 360, n)
    assert (alignment._range_of(poses, 1).extent < 360) == limited


def test_the_template_lies_as_the_training_images_do_on_average():
    images, _ = turned(np.linspace(20, 50, 9), reach=0)
    middle, _ = turned(np.array([35.0]), reach=0)
    pose = learn_alignment([images]).find_poses(middle)
    assert abs(pose.angle.item()) < 1
    assert abs(pose.row_shift.item()) + abs(pose.column_shift.item()) < 1


@pytest.mark.parametrize("size", [(96, 96), (72, 120)])
def test_parts_that_lie_all_around_are_laid_along_the_longer_side(size):
    part = Image.new("RGB", size, (40, 40, 40))
    draw = ImageDraw.Draw(part)
    x, y = (side // 2 for side in size)
    draw.rectangle([x - 30, y - 5, x + 30, y + 5], (200, 200, 200))
    draw.rectangle([x + 20, y - 12, x + 30, y + 12], (200, 200, 200))
    angles = np.linspace(-180, 180, 25)[:-1] + 90 * (size[0] == size[1])
    template = learn_alignment([stack([move(part, angle, 0) for angle in angles])]).template
    is_part = template > 120
    if size[0] < size[1]:
        is_part = is_part.T
    assert is_part.any(dim=1).sum() < 28
    assert is_part.any(dim=0).sum() > 55
    first, last = is_part.chunk(2, dim=1)
    assert first.sum() < last.sum()


@pytest.mark.parametrize("n", [1, 9])
def test_images_of_one_colour_have_no_pose_and_as_training_images_give_none(learnt, n):
    plain = torch.full((n, 3, 96, 96), 130, dtype=torch.uint8)
    found = learn_alignment([plain])
    assert abs(found.before) < 1e-3
    assert found.after == found.lowest == 0
    assert not found.resembles
    for poses in (learnt.find_poses(plain), found.find_poses(draw_images(2, 3, 96, 96))):
        assert all((values == 0).all() for values in poses)


def test_a_first_training_image_without_a_part_does_no_harm():
    images, _ = turned(ANGLES)
    found = learn_alignment([torch.cat([torch.full_like(images[:1], 50), images])])
    assert found.find_poses(images).correlation.min() > 0.98


def test_measuring_gives_a_row_for_each_setting(monkeypatch):
    monkeypatch.setattr(measuring, "SETTINGS", measuring.SETTINGS[:2])
    monkeypatch.setattr(measuring, "REPEATS", 1)
    parts = [draw_part((48, 48), grey) for grey in range(160, 240, 8)]
    rows = measuring.measure("part", parts, torch.sum)
    assert [len(row) for row in rows] == [len(measuring.COLUMNS)] * 2
    assert max(map(float, rows[0][7:11])) < 1
