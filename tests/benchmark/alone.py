"""Seconds of decoding, of the network and of the Gaussians alone, and of ONNX Runtime.

    python -m tests.benchmark.alone --data_path mvtec_ad --class_name bottle --arch resnet18

Decoding uses all cores. For the rest all images are in memory before the clock starts. Time of the
network includes preparing images and choosing channels; that of ONNX Runtime, which runs the same
layers on the CPU, includes neither. The last line on stdout is JSON.
"""

import json
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import onnxruntime
import torch
from torch import nn

from datasets.dataset import load_splits
from datasets.loading import Loader
from tests.benchmark.__main__ import data_parser
from tests.naive_pipeline import Stopwatch
from utils.backbone import draw_channels
from utils.features import FeatureExtractor, load_extractor
from utils.gaussian import fit_gaussians
from utils.held_out import HeldOut
from utils.system.device import count_cores
from utils.system.program import prepare_process
from utils.view import enlarge

BATCH_SIZE = 32
ROUNDS = 10
PAUSE = 0.05  # seconds; until then the threads of the other library have gone to sleep
TOLERANCE = 1e-3  # of the largest output
Batches = Sequence[np.ndarray]  # (B, 3, H, W) uint8 each


def main() -> None:
    """Print the seconds as JSON."""
    prepare_process()
    args, seconds = data_parser(__doc__).parse_args(), Stopwatch()
    extractor = load_extractor(args.arch, args.weights, "cpu", channels=draw_channels(args.arch))
    for name in args.class_name:
        splits = load_splits(args.data_path, name)
        with seconds("decoding"), Loader(splits, BATCH_SIZE, count_cores()) as loader:
            train, test = ([images for images, *_ in loader.batches(split)] for split in splits)
        time_class(train, test, extractor, seconds)
    print(json.dumps({**seconds, **time_runtimes(train[0], extractor)}))


@torch.inference_mode()
def time_class(
    train: Batches, test: Batches, extractor: FeatureExtractor, seconds: Stopwatch
) -> None:
    """Add seconds of the network on all images, of fitting and of the test images' maps."""
    extractor(train[0])  # the first call is slower
    with seconds("network"):
        good, unseen = ([extractor(images) for images in split] for split in (train, test))
    n_train = sum(map(len, train))
    with seconds("fit"):
        gaussians = fit_gaussians(HeldOut(n_train).watch(good), n_train)
    with seconds("score"):
        for features in unseen:
            enlarge(gaussians.distances(features), test[0].shape[2:])


@torch.inference_mode()
def time_runtimes(images: np.ndarray, extractor: FeatureExtractor) -> dict[str, float]:
    """Median seconds per image of the network and of ONNX Runtime, measured in turn."""
    inputs = ((torch.from_numpy(images) / 255 - extractor.mean) / extractor.std).contiguous()
    layers = nn.Sequential(*extractor.stages).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    program = torch.onnx.export(layers, (inputs,), input_names=["images"], verbose=False)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    calls = {
        "per image, network": lambda: extractor(images),
        "per image, ONNX Runtime": lambda: session.run(None, {"images": inputs.numpy()}),
    }
    # the times of different functions are not compared
    (theirs,) = calls["per image, ONNX Runtime"]()
    atol = TOLERANCE * np.abs(theirs).max()
    np.testing.assert_allclose(layers(inputs), theirs, rtol=0, atol=atol)
    rounds = []
    for _ in range(ROUNDS):
        rounds.append(Stopwatch())
        for name, call in calls.items():
            time.sleep(PAUSE)
            with rounds[-1](name):
                call()
    return {name: median(seconds[name] for seconds in rounds) / len(images) for name in calls}


if __name__ == "__main__":
    main()
