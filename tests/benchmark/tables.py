"""Tables and a figure of what was measured. All values are medians over the runs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.benchmark.jobs import ALONE, NAIVE, SUITE
from tests.benchmark.measure import FAILURE, Row, read_rows
from utils.report.tables import DASH, Table, to_markdown
from utils.system.files import replacing

# each stage of the suite, and the stages of the naive reference that do the same
STAGES = {
    "fit": ("network, training images", "embeddings, training images", "fit", "file"),
    "score": ("network, test images", "embeddings, test images", "distances", "maps"),
    "metrics": ("metrics",),
    "figures": ("figures",),
}
COLUMNS = ("", "suite", "naive", "naive / suite")
GIGABYTE = 10**9

Rows = Sequence[Row]


def write_tables(folder: Path) -> None:
    """Write benchmark.md, and scaling.png if larger and larger inputs were measured."""
    with replacing(folder / "benchmark.md") as path:
        path.write_text(make_tables(folder))
    rows = read_rows(folder / "scaling.csv")
    if any(row.quantity != FAILURE for row in rows):
        with replacing(folder / "scaling.png") as path:
            plot_scaling(path, rows)


def make_tables(folder: Path) -> str:
    """All tables of the measurements in a folder, and with what each part was measured."""
    parts = {part: read_rows(folder / f"{part}.csv") for part in TABLES}
    texts, parts_by_note = [], {}
    for part in filter(parts.get, parts):
        texts += [to_markdown(table) for table in TABLES[part](parts)]
        note = (folder / f"{part}.txt").read_text().strip()
        parts_by_note.setdefault(note, []).append(part)
    notes = [f"- {', '.join(names)}: {note}\n" for note, names in parts_by_note.items()]
    return "\n".join([*texts, "".join(notes)])


def whole_tables(parts: dict[str, Rows]) -> list[Table]:
    """The whole command of each network beside the naive reference."""
    rows, tables = parts["whole"], []
    for arch in archs(rows):
        lines = [["whole command, s", *compare(rows, arch, ["seconds"], ["seconds"])]]
        peaks = [value(rows, arch, method, "peak bytes") for method in (SUITE, NAIVE)]
        lines.append(["peak memory, GB", *map(gigabytes, peaks), ratio(*peaks)])
        on_gpu = value(rows, arch, SUITE, "GPU bytes")
        if on_gpu is not None:
            lines.append(["memory of the GPU, GB", gigabytes(on_gpu), DASH, DASH])
        for stage, naive in STAGES.items():
            names = [f"seconds {name}" for name in naive]
            lines.append([f"{stage}, s", *compare(rows, arch, [f"seconds {stage}"], names)])
        for name in ("image ROCAUC", "pixel ROCAUC"):
            areas = [value(rows, arch, method, name) for method in (SUITE, NAIVE)]
            lines.append([name, *(DASH if area is None else f"{area:.6f}" for area in areas), ""])
        title = f"{arch}: the whole command and the naive reference"
        tables.append(Table(title, COLUMNS, lines, notes(rows, WHOLE_NOTE)))
    return tables


WHOLE_NOTE = (
    "Whole commands in turn. Fit and score include loading the images and the network; the suite's "
    "fit includes thresholds and the saved model."
)


def alone_tables(parts: dict[str, Rows]) -> list[Table]:
    """The limit, the network beside ONNX Runtime, the Gaussians beside the naive reference's."""
    rows, limits, networks, gaussians = parts["alone"], [], [], []
    for arch in archs(rows):
        names = ("network", "ONNX Runtime")
        ours, theirs = (value(rows, arch, ALONE, f"seconds per image, {name}") for name in names)
        networks.append([arch, *map(milliseconds, (ours, theirs)), ratio(theirs, ours, digits=2)])
        decoding, bare = (
            value(rows, arch, ALONE, f"seconds {stage}") for stage in ("decoding", "network")
        )
        limit = None if None in (decoding, bare) else decoding + bare
        whole = value(parts["whole"], arch, SUITE, "seconds")
        cells = [*map(seconds, (decoding, bare, limit, whole)), ratio(limit, whole, digits=2)]
        limits.append([arch, *cells])
        network = seconds(bare)
        gaussians.append([f"{arch}: network, s", network, DASH, DASH])
        for stage, naive in (("fit", "fit"), ("score", "distances")):
            times = value(rows, arch, ALONE, f"seconds {stage}")
            slow = value(parts["whole"], arch, NAIVE, f"seconds {naive}")
            cells = [seconds(times), seconds(slow), ratio(times, slow)]
            gaussians.append([f"{arch}: {stage}, s", *cells])
    columns = ["", "suite, ms per image", "ONNX Runtime, ms per image", "suite / ONNX Runtime"]
    layers = "The same layers on as many threads, on a batch of images, in turn."
    images = (
        "The images are in memory. The naive reference's seconds are those of its covariances, and "
        "of its inverses and distances, in the whole command."
    )
    limit_columns = ["", "decoding, s", "network, s", "limit, s", "whole command, s", "ratio"]
    limit_note = (
        "The limit: all images decoded on all cores, and then the bare network on all of them. The "
        "whole command also starts, fits, scores, evaluates and draws every figure."
    )
    return [
        Table("the whole command and its limit", limit_columns, limits, [limit_note]),
        Table("the network and ONNX Runtime", columns, networks, notes(rows, layers)),
        Table("the network and the Gaussians alone", COLUMNS, gaussians, [images]),
    ]


def stream_tables(parts: dict[str, Rows]) -> list[Table]:
    """The stream's answer about an image beside its parts alone."""
    rows, lines = parts["stream"], []
    for arch in archs(rows):
        names = "answer", "decoding, network and Gaussians"
        answer, alone = (value(rows, arch, ALONE, f"seconds {name}") for name in names)
        lines.append([arch, *map(milliseconds, (answer, alone)), ratio(alone, answer, digits=2)])
    columns = ["", "answer, ms", "decoding, network and Gaussians alone, ms", "answer / alone"]
    note = "One image at a time, without overlays, in turn; medians over the test images."
    return [Table("predict from a stream", columns, lines, notes(rows, note))]


def scaling_tables(parts: dict[str, Rows]) -> list[Table]:
    """Time and memory against the number of training images."""
    rows, lines = parts["scaling"], []
    for at in points(rows):
        times, peaks = (
            [value(rows, rows[0].arch, method, name, at=at) for method in (SUITE, NAIVE)]
            for name in ("seconds", "peak bytes")
        )
        lines.append([str(at), *map(seconds, times), *map(gigabytes, peaks)])
    columns = ["training images", "suite, s", "naive, s", "suite, GB", "naive, GB"]
    note = "Whole commands on images of noise, 16 of them to test; no figures, no saved models."
    title = f"{rows[0].arch}: time and memory against the number of training images"
    return [Table(title, columns, lines, notes(rows, note))]


def processes_tables(parts: dict[str, Rows]) -> list[Table]:
    """Whole commands in one process and in several."""
    note = "Whole commands; the processes share out the cores and the classes."
    return [_relative_table("one process and several", "processes", note, parts["processes"])]


def workers_tables(parts: dict[str, Rows]) -> list[Table]:
    """Whole commands with other numbers of threads that decode images."""
    note = "Whole commands with --num_workers. The default is one thread for each core."
    return [_relative_table("threads that decode images", "threads", note, parts["workers"])]


def _relative_table(title: str, unit: str, note: str, rows: Rows) -> Table:
    """Time and memory at each point, and the time in % of that at the first point."""
    lines = []
    for arch in archs(rows):
        first = value(rows, arch, SUITE, "seconds", at=points(rows)[0])
        for at in points(rows):
            time, peak = (
                value(rows, arch, SUITE, name, at=at) for name in ("seconds", "peak bytes")
            )
            share = DASH if None in (time, first) else f"{100 * time / first:.0f}"
            lines.append([f"{arch}, {at}", seconds(time), share, gigabytes(peak)])
    columns = [unit, "s", "time, % of the first row's", "GB, largest process"]
    return Table(title, columns, lines, notes(rows, note))


TABLES = {
    "whole": whole_tables,
    "alone": alone_tables,
    "stream": stream_tables,
    "scaling": scaling_tables,
    "processes": processes_tables,
    "workers": workers_tables,
}


def plot_scaling(path: Path, rows: Rows) -> None:
    """Draw time and memory against the number of training images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    shown = {"seconds": ("whole command, s", 1), "peak bytes": ("peak memory, GB", GIGABYTE)}
    for ax, (name, (label, unit)) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        for method in (SUITE, NAIVE):
            values = {at: value(rows, rows[0].arch, method, name, at=at) for at in points(rows)}
            found = {at: one / unit for at, one in values.items() if one is not None}
            ax.plot(list(found), list(found.values()), "o-", label=method)
        ax.set(xlabel="training images", ylabel=label, xlim=(0, None), ylim=(0, None))
        ax.margins(0.1)
        ax.legend()
    figure.savefig(path, format="png", dpi=100)


def archs(rows: Rows) -> list[str]:
    """The networks, in order."""
    return list(dict.fromkeys(row.arch for row in rows))


def points(rows: Rows) -> list[int | str]:
    """The values of what is varied, in order."""
    return list(dict.fromkeys(row.at for row in rows))


def value(rows: Rows, arch: str, method: str, *quantities: str, at: int | str = "") -> float | None:
    """The sum of the medians of some quantities; None if one was not measured."""
    found = [
        [row.value for row in rows if row[:2] + (row.at, row.quantity) == (arch, method, at, name)]
        for name in quantities
    ]
    return sum(map(median, found)) if all(found) else None


def compare(rows: Rows, arch: str, suite: Sequence[str], naive: Sequence[str]) -> list[str]:
    """The cells of two times, each the sum of some quantities."""
    times = value(rows, arch, SUITE, *suite), value(rows, arch, NAIVE, *naive)
    return [*map(seconds, times), ratio(*times)]


def ratio(one: float | None, other: float | None, digits: int = 1) -> str:
    """The second value divided by the first."""
    return DASH if one is None or other is None else f"{other / one:.{digits}f}"


def notes(rows: Rows, text: str) -> list[str]:
    """The text, and a note for each command that failed."""
    failures = [
        f"{' '.join(map(str, row[:4])).strip()}: {row.value}"
        for row in rows
        if row.quantity == FAILURE
    ]
    return [text, *dict.fromkeys(failures)]


def seconds(number: float | None) -> str:
    return DASH if number is None else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def milliseconds(number: float | None) -> str:
    return DASH if number is None else f"{1000 * number:.1f}"


def gigabytes(number: float | None) -> str:
    return DASH if number is None else f"{number / GIGABYTE:.2f}"
