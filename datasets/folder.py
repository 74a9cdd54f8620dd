"""Anybody's own images: a folder of good ones, and whatever else lies beside it.

    <data_path>/good/*.png
    <data_path>/<defect type>/*.png
    <data_path>/ground_truth/<defect type>/<stem>_mask.png

Only good is needed. Several classes are several such folders in data_path.
"""

from pathlib import Path

from datasets.mvtec import (
    Sample,
    find_folders_with,
    list_folders,
    list_images,
    mask_finder,
    read_folders,
    require,
)

# good images that are kept from training to test on, as in MVTec AD about one in five; counted
# from the third, so that two are always left to learn from
HELD_OUT = slice(2, None, 5)


def list_classes(data_path: Path) -> list[str]:
    """The name of data_path itself if it holds good/, else those of its folders that do."""
    if (data_path / "good").is_dir():
        return [data_path.resolve().name]
    return find_folders_with(data_path, "good")


def list_samples(data_path: Path, class_name: str, split: str) -> tuple[list[Sample], bool]:
    """The training or the test images of a class, and whether their defects are marked.

    Raises:
        FileNotFoundError: if there are no images, nothing is left to test on or a mask is missing.
    """
    folder = data_path if (data_path / "good").is_dir() else data_path / class_name
    masks = folder / "ground_truth"
    good = list_images(folder / "good")
    require(good, folder, "good/*.png")
    held_out = good[HELD_OUT]
    if split == "train":
        return [Sample(path, "good", 0) for path in good if path not in held_out], masks.is_dir()
    defect_types = [name for name in list_folders(folder) if name not in ("good", "ground_truth")]
    find_masks = mask_finder(masks, "_mask") if masks.is_dir() else None
    samples = [Sample(path, "good", 0) for path in held_out]
    if any(list_images(folder / defect_type) for defect_type in defect_types):
        samples += read_folders(folder, defect_types, find_masks)
    if not samples:
        raise FileNotFoundError(
            f"nothing to test on in {folder}; give at least 3 images in good, or a folder of "
            "defects beside it"
        )
    return samples, masks.is_dir()
