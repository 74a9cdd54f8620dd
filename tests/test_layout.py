"""Which module may import which: the arrows between the rooms of the source go down only.

main -> utils/commands -> utils/report -> utils, the method -> datasets -> utils/system
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# a module may import those of its room and of the rooms below
ROOMS = ("utils.system", "datasets", "utils", "utils.report", "utils.commands", "main")


def find_modules(root: Path) -> dict[str, Path]:
    """The source files below root by the name under which they are imported."""
    paths = [root / "main.py", *root.glob("datasets/**/*.py"), *root.glob("utils/**/*.py")]
    names = (".".join(path.relative_to(root).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def room_of(name: str) -> int:
    """The number of a module's room, from below."""
    in_room = [room for room in ROOMS if f"{name}.".startswith(f"{room}.")]
    return ROOMS.index(max(in_room, key=len))


def find_imports(node: ast.AST, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """The modules that are imported anywhere below a node of a syntax tree, with the line."""
    for child in ast.walk(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import"
            # what is imported from a package may be a module of it
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            names = [name if name in modules else child.module for name in names]
        yield from ((name, child.lineno) for name in names if name in modules)


def find_upward_imports(root: Path) -> list[str]:
    """The imports of a module in a higher room, in functions and under TYPE_CHECKING too."""
    modules = find_modules(root)
    return [
        f"{path.relative_to(root)}:{line} imports {imported}"
        for name, path in modules.items()
        for imported, line in find_imports(ast.parse(path.read_text()), modules)
        if room_of(imported) > room_of(name)
    ]


def find_circle(root: Path) -> list[str]:
    """Modules that import each other in a circle when the first is imported, if there is one."""
    modules = find_modules(root)
    graph = {
        name: {
            imported
            for statement in ast.parse(path.read_text()).body
            if isinstance(statement, ast.Import | ast.ImportFrom)
            for imported, _ in find_imports(statement, modules)
        }
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_go_down():
    assert len(find_modules(ROOT)) > 30
    assert find_upward_imports(ROOT) == []


def test_no_modules_import_each_other():
    assert find_circle(ROOT) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A source tree with two upward imports and a circle."""
    for path, content in {
        "main.py": "from utils import a\nfrom utils.system import s\n",
        "datasets/d.py": "import utils.system.s\n\n\ndef f():\n    from utils import a\n",
        "utils/a.py": "from utils.b import x\nimport torch\n",
        "utils/b.py": "import utils.a\n",
        "utils/system/s.py": "if TYPE_CHECKING:\n    from utils.report.r import x\n",
        "utils/report/r.py": "from utils.a import x\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def test_offences_are_found(small):
    assert sorted(find_upward_imports(small)) == [
        "datasets/d.py:5 imports utils.a",
        "utils/system/s.py:2 imports utils.report.r",
    ]
    assert {*find_circle(small)} == {"utils.a", "utils.b"}
