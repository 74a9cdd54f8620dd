"""The suite's network beside ONNX Runtime on the same layers, batch by batch in turn.

    python -m tests.benchmark.backbone --arch resnet18 --onnx trunk.onnx

Both run on noise, on the CPU, with as many threads. The suite's time includes what turns images
into the network's input, and the choice of channels from its outputs; ONNX Runtime's time includes
neither. The last line is JSON.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from utils.backbone import BACKBONES, draw_channels, load_network
from utils.features import FeatureExtractor

BATCH_SIZE = 32
ROUNDS = 10
PAUSE = 0.05  # seconds, in which the other one's threads stop waiting for work
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=BACKBONES, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--onnx", type=Path, required=True, help="file to write")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE)
    args = parser.parse_args()

    extractor = FeatureExtractor(load_network(args.arch, args.weights), torch.device("cpu"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch_size, 3, 224, 224), dtype=np.uint8)
    inputs = ((torch.from_numpy(images) / 255 - extractor.mean) / extractor.std).contiguous()
    session = start_session(Trunk(extractor).eval(), inputs, args.onnx)

    channels = draw_channels(args.arch)
    methods = {
        "network": lambda: extractor(images, channels),
        "ONNX Runtime": lambda: session.run(None, {"images": inputs.numpy()}),
    }
    check(list(extractor(images).values()), methods["ONNX Runtime"]())
    seconds = {name: [] for name in methods}
    for _ in range(args.rounds):
        for name, compute in methods.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            compute()
            seconds[name].append((time.perf_counter() - start) / args.batch_size)
    medians = {name: median(values) for name, values in seconds.items()}
    pairs = zip(*seconds.values(), strict=True)
    print(
        json.dumps(
            {
                "seconds": medians,
                "ratio": median(ours / theirs for ours, theirs in pairs),
                "threads": torch.get_num_threads(),
                "batch": args.batch_size,
                "rounds": args.rounds,
            }
        )
    )


def start_session(trunk: Trunk, inputs: Tensor, path: Path) -> onnxruntime.InferenceSession:
    """Export the network and load it."""
    program = torch.onnx.export(trunk, (inputs,), input_names=["images"], verbose=False)
    onnx.save(program.model_proto, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(ours: list[Tensor], theirs: list[np.ndarray]) -> None:
    """Refuse to compare the times of different things."""
    for one, other in zip(ours, theirs, strict=True):
        difference = np.abs(one.numpy() - other).max() / np.abs(other).max()
        if not difference < TOLERANCE:
            raise SystemExit(f"ONNX Runtime differs by {difference:.1e}")


if __name__ == "__main__":
    main()
