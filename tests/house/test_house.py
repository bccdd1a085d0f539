"""The rules of the house, as far as a machine can read them. An exception is one line with its reason."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("engine", "actors", "tools")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
MODULES = [file for file in SOURCES if file.name != "__init__.py"]
SHELLS = {f"actors/{name}.py" for name in ("generator", "judge", "learner", "replay")}

# Each line: what is excepted, and why.
LONGER_MODULES: dict[str, str] = {}
LONGER_FUNCTIONS: dict[str, str] = {}
UNTESTED: dict[str, str] = {
    "actors/ports.py": "protocols without code; every fake and actor is checked against them by mypy",
}
# Where a package may enter engine and actors; benchmarks of rivals run them in processes of their own.
ONE_HOME = {
    "vllm": {"engine/generate/vllm_sampler.py"},
    "cupy": {"engine/weights/nccl.py"},
    "tensorboard": {"engine/metrics.py"},
}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


@cache
def tracked() -> tuple[Path, ...]:
    """What is, or may be, committed: tracked files and new ones that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("this tree is no git repository")
    files = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(file for file in files if file.is_file())


def text_of(file: Path) -> str:
    """The file's text; empty for one that holds none."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def calls(file: Path, dotted: str) -> list[ast.Call]:
    """Calls of ``module.function``, under whatever name it was imported."""
    module, _, function = dotted.rpartition(".")
    names = {dotted}
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names |= {f"{a.asname}.{function}" for a in node.names if a.name == module and a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            names |= {a.asname or a.name for a in node.names if a.name == function}
    found = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call)]
    return [node for node in found if ast.unparse(node.func) in names]


def places(nodes: dict[Path, list[ast.Call]]) -> list[str]:
    return [f"{name_of(file)}:{node.lineno}" for file, found in nodes.items() for node in found]


@cache
def imported(file: Path) -> set[str]:
    """Top-level names of every package that a file imports, lazily and by name too."""
    names: set[str] = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    dynamic = [*calls(file, "importlib.import_module"), *calls(file, "builtins.__import__")]
    for call in dynamic:
        if call.args and isinstance(call.args[0], ast.Constant):
            names.add(str(call.args[0].value).partition(".")[0])
    return names


# ---- imports ------------------------------------------------------------------------------------------


def test_imports_go_down_only(tmp_path):
    # In a process of its own: it configures logging, which would silence the loggers that other tests listen to.
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = ["--config", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path)]
    found = subprocess.run([sys.executable, "-c", program, *options], cwd=ROOT, capture_output=True, text=True,
                           timeout=300, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def contracts() -> list[dict[str, Any]]:
    """The import contracts of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def test_every_ignored_import_is_for_types_only():
    for ignored in (line for contract in contracts() for line in contract.get("ignore_imports", ())):
        importer, imported_module = ignored.split(" -> ")
        tree = tree_of(ROOT / f"{importer.replace('.', '/')}.py")
        guarded = {node for guard in ast.walk(tree)
                   if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
                   for node in ast.walk(guard)}
        found = [node for node in ast.walk(tree)
                 if isinstance(node, ast.ImportFrom) and node.module == imported_module]
        assert found, ignored
        assert guarded.issuperset(found), ignored


def test_every_room_of_the_engine_has_its_layer():
    (layers,) = (contract["layers"] for contract in contracts() if contract["type"] == "layers")
    placed = {room.strip() for layer in layers for room in layer.split("|")}
    rooms = {f"engine.{path.stem}" for path in (ROOT / "engine").iterdir()
             if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"engine.__init__"} == {room for room in placed if room.startswith("engine.")}


def test_the_guide_draws_the_layers_as_they_are():
    (layers,) = (contract["layers"] for contract in contracts() if contract["type"] == "layers")
    drawn = "\n".join("    " + layer.replace("engine.", "") for layer in layers)
    assert drawn in (ROOT / "CONTRIBUTING.md").read_text()


def test_ray_lives_in_actors_only():
    assert [name_of(f) for f in SOURCES if "ray" in imported(f) and f.parent.name != "actors"] == []


def test_hydra_lives_in_the_launcher_and_in_tools_only():
    guests = [name_of(f) for f in SOURCES if imported(f) & {"hydra", "omegaconf"}]
    assert [name for name in guests if name != "actors/launch.py" and not name.startswith("tools/")] == []


@pytest.mark.parametrize("package", ONE_HOME)
def test_a_heavy_package_enters_through_one_file(package):
    house = [file for file in SOURCES if "tools" not in file.relative_to(ROOT).parts]
    assert {name_of(file) for file in house if package in imported(file)} <= ONE_HOME[package]


# ---- sizes and names ----------------------------------------------------------------------------------


def test_no_module_is_too_long():
    longer = {}
    for file in SOURCES:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        name = name_of(file)
        if lines > (150 if name in SHELLS or name.startswith("tools/") else 300):
            longer[name] = lines
    assert longer.keys() == LONGER_MODULES.keys(), longer


def test_no_function_is_too_long():
    longer = {}
    for file in SOURCES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
                if lines > 40:
                    longer[f"{name_of(file)}:{node.name}"] = lines
    assert longer.keys() == LONGER_FUNCTIONS.keys(), longer


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


def test_every_source_has_its_mirrored_test():
    missing = []
    for file in (file for file in MODULES if "tools" not in file.relative_to(ROOT).parts):
        mirror = ROOT / "tests" / file.relative_to(ROOT).with_name(f"test_{file.name}")
        if not mirror.exists() and name_of(file) not in UNTESTED:
            missing.append(name_of(file))
    assert missing == []


def test_every_exception_still_exists():
    named = {*LONGER_MODULES, *UNTESTED, *(name.partition(":")[0] for name in LONGER_FUNCTIONS)}
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_no_module_is_called_after_nothing():
    vague = re.compile(r"(^|_)(utils?|helpers?|common|manager|misc|stuff)(_|$)")
    assert [name_of(f) for f in tracked() if f.suffix == ".py" and vague.search(f.stem)] == []
    assert [name_of(f) for f in SOURCES if vague.search(f.parent.name)] == []


# ---- waits and errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["ray.get", "ray.wait"])
def test_every_wait_for_ray_has_a_deadline(function):
    waits = {file: calls(file, function) for file in SOURCES}
    bare = {file: [call for call in found if "timeout" not in {k.arg for k in call.keywords}]
            for file, found in waits.items()}
    assert places(bare) == []


def test_nobody_sleeps():
    assert places({file: calls(file, "time.sleep") for file in SOURCES}) == []


def test_a_broad_except_says_why():
    broad = []
    for file in SOURCES:
        lines = file.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "BaseException"
                reasoned = re.search(r"# noqa: BLE001 ?-+ ?\S+ \S+", lines[node.lineno - 1])
                passed_on = isinstance(node.body[-1], ast.Raise)
                if re.search(r"\b(Base)?Exception\b", caught) and not (reasoned or passed_on):
                    broad.append(f"{name_of(file)}:{node.lineno}")
    assert broad == []


# ---- words --------------------------------------------------------------------------------------------


def matches(pattern: str, files: list[Path]) -> list[str]:
    found = re.compile(pattern)
    return [f"{name_of(file)}:{number}: {line.strip()[:80]}"
            for file in files if file.resolve() != Path(__file__).resolve()
            for number, line in enumerate(text_of(file).splitlines(), 1) if found.search(line)]


def identifiers(file: Path) -> set[str]:
    """Names that a file gives or uses: variables, arguments, attributes, functions, classes."""
    keys = ("id", "arg", "attr", "name", "asname")
    found = {getattr(node, key, None) for node in ast.walk(tree_of(file)) for key in keys}
    return {name for name in found if isinstance(name, str)}


def test_policies_are_called_by_their_names():
    words = r"\b((old|new|pi)_(log_?probs?|logp|policy|probs?|weights)|pi_\w+|(old|ref)_model)\b"
    wrong = {name_of(file): sorted(name for name in identifiers(file) if re.search(words, name))
             for file in SOURCES}
    assert {name: found for name, found in wrong.items() if found} == {}
    assert matches(words, [f for f in tracked() if f.suffix in (".yaml", ".cpp", ".h", ".cu")]) == []


def test_what_is_left_to_do_says_why():
    marks = r"\b(TODO|FIXME|XXX|HACK)\b(?!: \w+ \w+ \w+)"
    files = [f for f in tracked() if f.suffix in (".py", ".cpp", ".h", ".cu", ".yaml", ".toml")]
    assert matches(marks, files) == []


def test_no_file_knows_where_it_was_written():
    here = r"(^|[\s\"'`(=:])/(work|root|home)/"
    assert matches(here, [file for file in tracked() if file.name != "LICENSE"]) == []


def test_no_file_holds_what_a_run_left_behind():
    left = [name_of(f) for f in tracked() if f.suffix in (".log", ".jsonl", ".so", ".o", ".pyc")]
    assert [name for name in left if not name.startswith("tests/")] == []


def test_sources_are_ascii():
    files = [f for f in tracked() if f.suffix in (".py", ".cpp", ".h", ".cu", ".yaml", ".toml")]
    assert [name_of(file) for file in files if not text_of(file).isascii()] == []


def test_the_configuration_loads_without_torch():
    heavy = "{'torch', 'numpy', 'hydra', 'ray'}"
    code = f"import sys, engine.config.run; print({heavy} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                           timeout=60, check=True)
    assert ended.stdout.strip() == "set()"
