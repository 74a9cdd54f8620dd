"""Score new images with a fitted model: a table of scores, and the anomaly map over each image.

    python main.py predict --model bottle.safetensors new_images
    ls new_images/*.png | python main.py predict --model bottle.safetensors -

In the output folder, predictions.csv has a row per image, regions.csv one per region of a map from
the pixel threshold on, overlays/ mirrors the given folders, and index.html shows them all. With -
each path on stdin gets its row on stdout as soon as it is scored.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod

from tqdm import tqdm

from datasets.images import read_size
from datasets.loading import Loader
from datasets.notes import NESTED, Notes
from utils.commands.output import add_to_tables, prepare_output, to_csv, to_json, to_row
from utils.commands.predict_page import write_predictions_page
from utils.commands.predict_settings import FOLDER, STDIN, Settings
from utils.commands.prediction import COLUMNS, Loaded, Predictor
from utils.commands.sources import Source, find_images, split_paths, to_source
from utils.system.errors import UserError
from utils.system.files import printable


@dataclass(frozen=True)
class Images:
    """A dataset for Loader: each source as Loaded."""

    sources: Sequence[Source]
    predictor: Predictor
    notes: Notes
    item_bytes: int  # of the largest, as Pillow keeps it

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Loaded:
        return self.predictor.load(self.sources[index], self.notes)


def run(settings: Settings) -> None:
    """Score the images; exit with status 1 if one could not be scored."""
    score = score_stream if STDIN in settings.images else score_folders
    n_failed = score(settings)
    if n_failed:
        print(end="", flush=True)
        raise SystemExit(1)


def score_folders(settings: Settings) -> int:
    """Score images and those in folders, and write the results; return how many have failed."""
    if settings.format is not None:
        raise UserError("--format applies only when paths are read from stdin (-); leave it out")
    settings = replace(settings, output=settings.output or FOLDER)
    files = Notes()
    sources = find_images(settings.images, settings.output, files)
    predictor = Predictor(settings, sys.stdout)
    largest = find_largest(sources)
    batch_size = choose_batch_size(predictor, largest)
    images = Images(sources, predictor, predictor.make_notes(), 4 * largest)
    prepare_output(settings, new=True)
    answers, counts = [], Counter()
    with (
        Loader([images], batch_size, settings.num_workers, batches_ahead=1) as loader,
        ThreadPoolExecutor(settings.num_workers or 1) as pool,
        tqdm(total=len(images), desc="predict", unit="image", disable=None) as progress,
    ):
        try:
            for answer in predictor.answer(loader.items(images), batch_size, pool.map):
                add_to_tables(settings.output, answer)
                counts["images"] += 1
                counts["anomalous"] += answer.row["anomalous"] is True
                counts["failed"] += answer.row["error"] != ""
                predictor.note_pose(answer, images.notes)
                if settings.page == "yes":
                    answers.append(answer)
                if answer.row["error"]:
                    progress.write(answer.row["error"], file=sys.stderr)
                progress.update()
        finally:  # if it is stopped, a page of the images so far
            if answers:
                write_predictions_page(predictor, answers)
    summarise(predictor, counts, [*files.sentences(), *images.notes.sentences()])
    return counts["failed"]


def score_stream(settings: Settings) -> int:
    """Answer each path on standard input at once and in order; return how many have failed.

    Nothing but the rows is printed on standard output. Memory does not grow with their number.
    """
    if len(settings.images) > 1:
        raise UserError("- reads paths from stdin; give it alone, without other images")
    if settings.output is None and (settings.masks or settings.maps != "none"):
        raise UserError("--masks and --maps write files; give a folder for them by --output")
    if None in (sys.stdin, sys.stdout):
        raise UserError("- reads paths from stdin and answers on stdout; one of them is closed")
    if settings.output is not None:
        prepare_output(settings, new=False)
    predictor = Predictor(settings, sys.stderr)
    choose_batch_size(predictor, 0)
    as_json, failed, said = settings.format == "json", 0, set()
    if not as_json:
        print(to_csv(COLUMNS), end="", flush=True)
    for path in split_paths(sys.stdin.buffer):
        source, notes = to_source(path, settings.output), predictor.make_notes()
        (answer,) = predictor.answer([predictor.load(source, notes)])
        print(to_json(answer) if as_json else to_csv(to_row(answer)), end="", flush=True)
        failed += answer.row["error"] != ""
        predictor.note_pose(answer, notes)
        say(notes, source, said)
    return failed


def say(notes: Notes, source: Source, said: set[str]) -> None:
    """Print notes on an image on stderr, each kind once, as a stream may have no end."""
    for sentence in notes.sentences():
        kind = sentence.replace(printable(source.path), "")
        if kind not in said:
            said.add(kind)
            print(f"note: {sentence}", file=sys.stderr)


def summarise(predictor: Predictor, counts: Counter[str], notes: Sequence[str]) -> None:
    """Print notes, how many images are anomalous, and the caveat of the threshold."""
    # folders are searched at any depth, as the help says
    notes = [sentence for sentence in notes if not sentence.startswith(NESTED.what)]
    if notes:
        print("notes on the images (to use the options in them, fit the model again with them):")
        print(*(f"({sentence})" for sentence in notes), sep="\n")
    print(
        f"{counts['images']} images, {counts['anomalous']} anomalous "
        f"(score >= {predictor.thresholds.image:g}), {counts['failed']} not scored; results in "
        f"{printable(predictor.settings.output)}"
    )
    if predictor.caveat:
        print(f"({predictor.caveat})")


def find_largest(sources: Sequence[Source]) -> int:
    """The number of pixels of the largest image."""
    largest = 0
    for source in sources:
        with suppress(UserError):  # what cannot be read gets its row
            largest = max(largest, prod(read_size(source.path)))
    return largest


def choose_batch_size(predictor: Predictor, largest: int) -> int:
    """The images of so many pixels that fit into memory at once, at most as many as asked for."""
    from utils.model_file import features_bytes  # imports torch
    from utils.system import memory

    model, most = predictor.detector.model, predictor.settings.batch_size
    device, seen = model.extractor.device, prod(model.window_size)
    features = features_bytes(model.extractor.channels, model.window_size)
    aligned, on_gpu = model.view.alignment is not None, device.type == "cuda"
    of_image = memory.BATCH_BYTES * seen + memory.ORIGINAL_BYTES * largest
    for batch_size in range(most, 0, -1):
        network = memory.network_bytes(batch_size, seen, features, aligned, on_gpu)
        on_host = memory.LIBRARY_BYTES + batch_size * of_image + (0 if on_gpu else network)
        shortage = memory.find_shortage(on_host, network, device)
        if shortage is None:
            if largest and batch_size < most:
                print(f"--batch_size {most} is lowered to {batch_size}, which fits into memory")
            return batch_size
    raise UserError(
        f"an image of {largest / 1e6:.1f} megapixels would take about {shortage}: end other "
        "programs, or fit the model again with a smaller --resize or --crop"
    )
