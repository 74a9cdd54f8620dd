"""Seconds of decoding, of the network and of the Gaussians alone, and of ONNX Runtime.

    python -m tests.benchmark.alone --data_path mvtec_ad --class_name bottle --arch resnet18

Decoding uses all cores. For the rest all images are in memory before the clock starts. Time of the
network includes preparing images and choosing channels; that of ONNX Runtime, which runs the same
layers on the CPU, includes neither. The last line on stdout is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from datasets.dataset import load_splits
from datasets.loading import load_batches
from tests.benchmark.__main__ import add_data_options
from utils.backbone import draw_channels
from utils.features import FeatureExtractor, load_extractor
from utils.gaussian import fit_gaussians
from utils.held_out import HeldOut
from utils.maps import enlarge
from utils.system.device import count_cores
from utils.system.program import prepare_process

BATCH_SIZE = 32
ROUNDS = 10
PAUSE = 0.05  # seconds; until then the threads of the other library have gone to sleep
TOLERANCE = 1e-3  # of the largest output


class Trunk(nn.Module):
    """Normalised images to the outputs of layers 1 to 3."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.stages = extractor.stages

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = [images]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return tuple(outputs[2:])


def main() -> None:
    """Print the seconds as JSON."""
    prepare_process()
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_options(parser)
    args = parser.parse_args()
    channels = draw_channels(args.arch)
    extractor = load_extractor(args.arch, args.weights, "cpu", channels=channels)
    seconds: dict[str, float] = dict.fromkeys(("decoding", "network", "fit", "score"), 0.0)
    for name in args.class_name:
        start = time.perf_counter()
        train, test = (read(split) for split in load_splits(args.data_path, name))
        seconds["decoding"] += time.perf_counter() - start
        for stage, value in time_class(train, test, extractor).items():
            seconds[stage] += value
    seconds |= time_runtimes(train[0], extractor)
    print(json.dumps(seconds))


def read(split: Any) -> list[np.ndarray]:
    """The images of a split in batches (B, 3, H, W) uint8."""
    return [images for images, *_ in load_batches(split, BATCH_SIZE, count_cores())]


@torch.inference_mode()
def time_class(
    train: list[np.ndarray], test: list[np.ndarray], extractor: FeatureExtractor
) -> dict[str, float]:
    """Seconds of the network on all images, of fitting and of the test images' maps."""
    extractor(train[0])  # the first call is slower
    times = [time.perf_counter()]
    good, unseen = ([extractor(images) for images in split] for split in (train, test))
    times.append(time.perf_counter())
    n_train = sum(map(len, train))
    gaussians = fit_gaussians(HeldOut(n_train).watch(good), n_train)
    times.append(time.perf_counter())
    for features in unseen:
        enlarge(gaussians.distances(features), test[0].shape[2:])
    times.append(time.perf_counter())
    return dict(zip(("network", "fit", "score"), np.diff(times).tolist(), strict=True))


def time_runtimes(images: np.ndarray, extractor: FeatureExtractor) -> dict[str, float]:
    """Median seconds per image of the network and of ONNX Runtime, measured in turn."""
    inputs = ((torch.from_numpy(images) / 255 - extractor.mean) / extractor.std).contiguous()
    trunk = Trunk(extractor).eval()
    session = start_session(trunk, inputs)
    calls: dict[str, Callable[[], Any]] = {
        "per image, network": lambda: extractor(images),
        "per image, ONNX Runtime": lambda: session.run(None, {"images": inputs.numpy()}),
    }
    with torch.inference_mode():
        outputs = zip(trunk(inputs), session.run(None, {"images": inputs.numpy()}), strict=True)
        for ours, theirs in outputs:  # the times of different functions are not compared
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - start) / len(images))
    return {name: median(values) for name, values in seconds.items()}


def start_session(trunk: Trunk, inputs: Tensor) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the trunk, with as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    program = torch.onnx.export(trunk, (inputs,), input_names=["images"], verbose=False)
    with TemporaryDirectory() as folder:
        path = f"{folder}/trunk.onnx"
        onnx.save(program.model_proto, path)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
