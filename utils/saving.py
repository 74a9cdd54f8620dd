"""Whether and where the model of a class is saved."""

from pathlib import Path

from datasets.dataset import ImageDataset
from utils.features import FeatureExtractor
from utils.model_file import TrainedModel, model_bytes, save_model
from utils.padim import PaDiM
from utils.report.finished import make_fingerprint
from utils.thresholds import Thresholds, choose_held_out

FOLDER = "models"
AUTO_BYTES = 500_000_000  # what is saved without asking


def is_saved(padim: PaDiM, when: str, dtype: str) -> bool:
    """Whether the model is to be saved; a reason not to that nobody asked for is printed.

    Args:
        padim: fitted.
        when: "all", "none", or "auto" for models up to AUTO_BYTES.
        dtype: of the numbers in the file.
    """
    if when == "none":
        return False
    if not choose_held_out(padim.n_train):
        print("(no model is saved: a threshold needs at least 3 training images)")
        return False
    size = model_bytes(padim, dtype)
    if when == "auto" and size > AUTO_BYTES:
        print(f"(no model is saved: it takes {size / 1e6:.0f} MB; --save_models all saves it)")
        return False
    return True


def save_class(
    folder: Path,
    train: ImageDataset,
    arch: str,
    extractor: FeatureExtractor,
    padim: PaDiM,
    thresholds: Thresholds,
    dtype: str,
) -> str:
    """Save a class under folder/models.

    Args:
        folder: of the run.
        train: the images it was fitted to.
        arch: of the network.
        extractor: the network.
        padim: fitted, with all patches.
        thresholds: from the training images.
        dtype: of the numbers in the file.

    Returns:
        The file's path relative to folder.
    """
    name = f"{FOLDER}/{train.class_name}.safetensors"
    paths = [sample.path for sample in train.samples]
    model = TrainedModel(
        train.class_name,
        arch,
        extractor.weights_sha256,
        extractor.precision,
        train.preprocessing,
        train.image_size,
        make_fingerprint({}, paths[0].parent, paths),
        padim,
        thresholds,
    )
    save_model(folder / name, model, dtype)
    print(f"model: {folder / name} ({model_bytes(padim, dtype) / 1e6:.0f} MB)")
    return name
