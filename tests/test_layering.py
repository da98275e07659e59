"""Who may import whom, read from the source; and that commands start without heavy imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = ("generative", "metrics", "pipelines")
FAMILIES = ("gan", "diffusion", "autoregressive")
# MAR and eMIGM draw each token from a small diffusion model: the one dependency between families, in one direction.
BUILDS_ON = {"autoregressive": "diffusion"}
# diffusers takes a folder of one of these names for its own, and records components under the wrong library.
RESERVED = {"dit", "ddpm", "ddim", "latent_diffusion", "consistency_models", "deprecated"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(prefix: str) -> list[Path]:
    """Source files of a package or module."""
    base = PROJECT / prefix.replace(".", "/")
    return sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def walk(node: ast.AST, at_import_time: bool) -> Iterator[ast.AST]:
    """Every node that runs: type-checking blocks never do, functions do not at import time."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if at_import_time and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield child
        yield from walk(child, at_import_time)


def imports(path: Path, at_import_time: bool = False) -> set[str]:
    """Modules that a file imports, by full name; ``from a import b`` counts as ``a`` and ``a.b``."""
    found = set()
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in walk(ast.parse(path.read_text()), at_import_time):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Those of the known modules that a file imports, anywhere in it; ``from a import b`` is ``a.b`` where that is a module."""
    found = imports(path)
    names = found - {name.rpartition(".")[0] for name in found}
    return {name if name in known else name.rpartition(".")[0] for name in names} & known - {module_name(path)}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that can be reached from one another."""
    reached = {name: closure(name, graph) for name in graph}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph if name in reached[name]}
    return sorted(sorted(group) for group in groups)


def closure(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Whatever can be reached from a module."""
    found: set[str] = set()
    new = set(graph[start])
    while new:
        found |= new
        new = set().union(*(graph[name] for name in new)) - found
    return found


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def offences(paths: list[Path], *forbidden: str, at_import_time: bool = False) -> list[str]:
    assert paths, "the rule guards nothing"
    return [
        f"{path.relative_to(PROJECT)} imports {name}"
        for path in paths
        for name in sorted(imports(path, at_import_time))
        if within(name, *forbidden)
    ]


def is_objective(path: Path) -> bool:
    """Objectives are in files called so, or in folders of them."""
    return path.name.endswith("objective.py") or path.parent.name == "objectives"


def objective_modules() -> list[str]:
    """Modules of objectives of the families and of tokenizers."""
    paths = [path for name in [*FAMILIES, "tokenizers"] for path in modules(f"generative.{name}") if is_objective(path)]
    return [".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in paths]


def family_packages(*names: str) -> list[str]:
    return [f"generative.{name}" for name in names]


def test_the_reader_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that saw nothing would always hold."""
    monkeypatch.setattr(sys.modules[__name__], "PROJECT", tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    source = (
        "from typing import TYPE_CHECKING\nimport x.y\nfrom z import w\nfrom . import sibling\nfrom ..c import d\n"
        "if TYPE_CHECKING:\n    import unseen\nclass C:\n    import inner\ndef f():\n    import late\n"
    )
    path = tmp_path / "a" / "b" / "m.py"
    path.write_text(source)
    expected = {"typing", "typing.TYPE_CHECKING", "x.y", "z", "z.w", "a.b", "a.b.sibling", "a.c", "a.c.d", "inner"}
    assert imports(path) == expected | {"late"}
    assert imports(path, at_import_time=True) == expected


def test_metrics_import_nothing_of_ours() -> None:
    """But for the moment a saved pipeline is to be scored, which is found through the packages' names."""
    assert offences(modules("metrics"), "generative", "pipelines", at_import_time=True) == []


def test_the_core_names_no_family() -> None:
    others = family_packages(*FAMILIES, "tokenizers", "layers", "convert", "cli", "report")
    assert offences(modules("generative.core"), *others) == []
    families = [f"pipelines.{name}" for name in FAMILIES]
    assert offences([*modules("generative.core"), PROJECT / "pipelines" / "base.py"], *families) == []


def test_networks_do_not_know_what_is_built_on_them() -> None:
    above = ["pipelines", "generative.core.trainer", *family_packages("cli", "convert", "report", "data")]
    folders = [*FAMILIES, "layers", "tokenizers"]
    files = [path for name in folders for path in modules(f"generative.{name}")]
    networks = [path for path in files if not is_objective(path) and path.name != "__init__.py"]
    assert offences(networks, *above) == []
    assert offences(networks, *objective_modules()) == []


def test_layers_belong_to_no_family() -> None:
    assert offences(modules("generative.layers"), *family_packages(*FAMILIES, "tokenizers")) == []


def test_no_family_imports_another() -> None:
    for family in FAMILIES:
        others = family_packages(*(name for name in FAMILIES if name not in (family, BUILDS_ON.get(family))))
        assert offences(modules(f"generative.{family}"), *others) == []


def test_pipelines_do_not_train() -> None:
    trainers = ["generative.core.trainer", "generative.core.step", "generative.core.objective", "generative.core.evaluation"]
    objectives = objective_modules()
    above = family_packages("cli", "convert", "report", "data")
    assert offences(modules("pipelines"), *trainers, *objectives, *above) == []


def test_objectives_do_not_train_either() -> None:
    objectives = [path for path in modules("generative") if is_objective(path)]
    assert offences(objectives, "generative.core.trainer", "generative.core.step", "generative.cli") == []


def test_only_the_command_line_imports_the_command_line() -> None:
    cli = PROJECT / "generative" / "cli"
    others = [path for package in PACKAGES for path in modules(package) if cli not in path.parents]
    assert offences(others, "generative.cli") == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "x"}, "c": {"a"}, "x": {"y"}, "y": set(), "d": {"a", "e"}, "e": {"d", "e"}, "f": {"d"}}
    assert circles(graph) == [["a", "b", "c"], ["d", "e"]]


def test_no_imports_go_in_a_circle() -> None:
    """Those within functions count: what hides there is a circle all the same, and a reader meets it."""
    files = {module_name(path): path for package in PACKAGES for path in modules(package)}
    assert circles({name: imported_modules(path, set(files)) for name, path in files.items()}) == []


def test_nobody_imports_tests() -> None:
    assert offences([path for package in PACKAGES for path in modules(package)], "tests", "toy", "conftest") == []


def test_no_folder_has_a_name_that_diffusers_takes_for_its_own() -> None:
    folders = {path.name for package in PACKAGES for path in (PROJECT / package).rglob("*") if path.is_dir()}
    assert not folders & RESERVED


@pytest.mark.parametrize("module", ["generative.cli.main", "metrics.cli", "metrics", "pipelines", "generative"])
def test_commands_start_without_torch(module: str) -> None:
    """``--help`` and a mistyped flag answer at once."""
    code = f"import sys, {module}; print([name for name in ('torch', 'diffusers', 'scipy', 'PIL') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "sample",
        "truncation-curve",
        "convert",
        "list",
        "report",
        "quickstart",
        "cascade",
        "encode",
        "reconstruct",
        "edit",
        "scaling-law",
        "data",
        "export",
        "push",
    ],
)
def test_help_does_without_torch(command: str) -> None:
    code = (
        "import sys\nfrom generative.cli.main import main\n"
        f"assert main([{command!r}, '--help']) == 0\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, timeout=300, check=True)
