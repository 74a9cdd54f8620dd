"""Seconds until predict's stream answers, beside decoding, the network and the Gaussians alone.

    python -m tests.benchmark.stream --data_path mvtec_ad --class_name bottle --arch resnet18

The model is fitted to the first class, and its test images are sent to the stream one at a time.
Before each, this process decodes and scores the same image, while the stream waits. The last line
on stdout is JSON.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

from datasets.dataset import load_splits
from datasets.images import load_image, open_image
from tests.benchmark.__main__ import MAIN, data_parser
from utils.system.program import prepare_process

if TYPE_CHECKING:
    from utils.detector import Detector

MOST = 200  # images


def main() -> None:
    """Print the seconds as JSON."""
    prepare_process()  # before torch is imported, as in the stream
    from utils.detector import Detector

    args = data_parser(__doc__).parse_args()
    train, test = load_splits(args.data_path, args.class_name[0])
    good = (open_image(sample.path) for sample in train.samples)
    detector = Detector.fit(good, args.arch, args.weights, device="cpu")
    paths = [sample.path.resolve() for sample in test.samples][:MOST]
    print(json.dumps(time_stream(detector, args.weights, paths)))


def time_stream(
    detector: Detector, weights: Path | None, paths: Sequence[Path]
) -> dict[str, float]:
    """Median seconds of the stream's answer about an image, and of the parts alone."""
    of_parts, of_answers = [], []
    with TemporaryDirectory() as folder:
        model = f"{folder}/model.safetensors"
        detector.save(model)
        detector = detector.load(model, weights, "cpu")  # both have it from the file
        options = [] if weights is None else ["--weights", str(weights.resolve())]
        command = [*MAIN, "predict", "--model", model, "--device", "cpu", *options, "-"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as stream:
            stream.stdout.readline()  # the header
            for path in paths:
                start = perf_counter()
                image = load_image(path, detector.model.preprocessing)
                detector.score_batch(image[None])
                sent = perf_counter()
                print(path, file=stream.stdin, flush=True)
                assert stream.stdout.readline().startswith(str(path))
                of_parts.append(sent - start)
                of_answers.append(perf_counter() - sent)
    parts, answer = median(of_parts), median(of_answers)
    return {"decoding, network and Gaussians": parts, "answer": answer}


if __name__ == "__main__":
    main()
