"""The whole experiment of one class written a second time, from image files to ROCAUC."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode

from tests.naive import naive_anomaly_maps, naive_auroc
from utils.backbone import draw_channels

LOAD_IMAGE = transforms.Compose(
    [
        transforms.Resize(256, InterpolationMode.LANCZOS),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
LOAD_MASK = transforms.Compose(
    [
        transforms.Resize(256, InterpolationMode.NEAREST),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
    ]
)


def naive_run(folder: Path, weights: Path) -> tuple[float, float]:
    """Image and pixel ROCAUC of a class's folder with ResNet-18 and the golden channels."""
    network = models.resnet18(weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    test = sorted((folder / "test").rglob("*.png"))
    labels = np.array([path.parent.name != "good" for path in test])
    masks = np.stack([naive_mask(folder, path) for path in test])
    maps = naive_anomaly_maps(
        naive_features(network, sorted((folder / "train" / "good").iterdir())),
        naive_features(network, test),
        draw_channels("resnet18"),
        (224, 224),
    )
    return naive_auroc(labels, maps.max(axis=(1, 2))), naive_auroc(masks, maps)


def naive_features(network: models.ResNet, paths: list[Path]) -> list[torch.Tensor]:
    """Outputs of layers 1 to 3, caught by hooks."""
    images = torch.stack([LOAD_IMAGE(Image.open(path).convert("RGB")) for path in paths])
    caught = []
    hooks = [
        layer[-1].register_forward_hook(lambda *call: caught.append(call[2]))
        for layer in (network.layer1, network.layer2, network.layer3)
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return caught


def naive_mask(folder: Path, path: Path) -> np.ndarray:
    """The mask of a test image (224, 224) bool."""
    if path.parent.name == "good":
        return np.zeros((224, 224), dtype=bool)
    mask = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
    return LOAD_MASK(Image.open(mask))[0].numpy() > 0
