"""Protects the direction of imports: a module may import its own floor and those below, and light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "vlbench"

FLOORS = {
    "errors": 0, "status": 0, "registry": 0, "plugins": 0, "canon": 0, "streams": 0, "files": 0,
    "catalog": 1, "cards": 1, "workspace": 1,
    "data": 2, "metrics": 2, "corrupt": 2, "stats": 2,
    "nn": 3,
    "train": 4,
    "runs": 5,
    "studies": 6,
    "track": 7, "report": 7,
    "cli": 8,
    "testing": 7,
}  # fmt: skip
SIBLINGS_SHARE = {"data.types"}  # the only thing that floor 2's packages may take from each other
# metrics may read annotations' types alone; predictions of the field are data's


def modules() -> list[Path]:
    return sorted(
        path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem not in ("__init__", "__main__")
    )


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vlbench."):
            found.add(node.module.removeprefix("vlbench."))
        elif isinstance(node, ast.ImportFrom) and node.module == "vlbench":
            found |= {
                alias.name
                for alias in node.names
                if (ROOT / f"{alias.name}.py").exists() or (ROOT / alias.name).is_dir()
            }
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("vlbench.") for a in node.names if a.name.startswith("vlbench.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for target in imports(path):
        top = target.split(".")[0]
        assert FLOORS[top] <= FLOORS[own], f"{path.relative_to(ROOT)} imports upward: vlbench.{target}"
        if FLOORS[top] == FLOORS[own] == 2 and top != own:
            assert target in SIBLINGS_SHARE, f"{path.relative_to(ROOT)} imports its sibling vlbench.{target}"


@pytest.mark.parametrize("folder", ["metrics", "stats", "data", "cards"])
def test_low_floors_do_not_name_torch(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("torch", "optuna", "mlflow") for name in names), path


def test_only_studies_may_import_optuna():
    for path in modules():
        if path.relative_to(ROOT).parts[0] != "studies":
            assert "optuna" not in path.read_text().split("import ")[-1] or "import optuna" not in path.read_text(), (
                path
            )


HEAVY = ("torch", "mlflow", "optuna", "pandas", "matplotlib")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["show", "videolights"],
        ["ablate", "--help"],
        ["train", "--help"],
        ["score", "--help"],
        ["report", "--help"],
        ["data", "--help"],
    ],
    ids=" ".join,
)
def test_looking_things_up_imports_nothing_heavy(arguments, workspace):
    assert _heavy_after(arguments) == []


def test_a_second_dry_run_imports_nothing_heavy(workspace):
    arguments = ["ablate", "--component", "fra", "--dry-run"]
    _heavy_after(arguments)  # the first may count parameters with torch
    assert _heavy_after(arguments) == []


def _heavy_after(arguments: list[str]) -> list[str]:
    code = (
        "import sys\nfrom vlbench.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('heavy:', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rsplit("heavy:", 1)[1].split()
