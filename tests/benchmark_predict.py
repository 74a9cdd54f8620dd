"""How long a saved model takes to load, and how many images a second it scores.

    python -m tests.benchmark_predict --model bottle.safetensors --weights resnet18-f37072fd.pth

Images are noise, prepared already: neither decoding nor drawing is counted. Rates are medians of
batches in turn with those of the bare network.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from utils.detector import Detector

BATCHES = 12
BATCH_SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE)
    args = parser.parse_args()

    start = time.perf_counter()
    detector = Detector.load(args.model, args.weights)
    rng = np.random.default_rng(0)
    shape = (args.batch_size, 3, *detector.model.image_size)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    detector.score_batch(images[:1])
    print(f"load and first score: {time.perf_counter() - start:.2f} s, without importing torch")

    seconds = {"network": [], "network and map": []}
    for _ in range(BATCHES):
        for name, compute in zip(seconds, (detector.extractor, detector.score_batch), strict=True):
            start = time.perf_counter()
            compute(images)
            if detector.extractor.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    print(f"batches of {args.batch_size}, {detector.extractor.device}")
    for name, values in seconds.items():
        print(f"{name}: {args.batch_size / median(values[2:]):.1f} images/s")


if __name__ == "__main__":
    main()
