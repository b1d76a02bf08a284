"""Import contracts, and attacks that never name the private batch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gifd

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(gifd.__file__).parent


def lint_imports(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = "import sys; from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", command, "--config", str(config), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_import_contracts_are_kept(tmp_path: Path) -> None:
    done = lint_imports(ROOT / "pyproject.toml", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_a_broken_contract_would_be_seen(tmp_path: Path) -> None:
    config = tmp_path / "wall.toml"
    config.write_text(
        '[tool.importlinter]\nroot_package = "gifd"\n[[tool.importlinter.contracts]]\n'
        'name = "attacks without the engine"\ntype = "forbidden"\n'
        'source_modules = ["gifd.attacks"]\nforbidden_modules = ["gifd.search"]\n'
    )
    done = lint_imports(config, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "attacks without the engine BROKEN" in done.stdout


def names(source: str) -> set[str]:
    """Every identifier in a file, without docstrings and comments."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= {*node.name.split("."), node.asname or ""}
        elif isinstance(node, ast.arg | ast.FunctionDef | ast.ClassDef):
            found.add(node.arg if isinstance(node, ast.arg) else node.name)
    return found


ATTACKERS = sorted(
    path
    for room in ("attacks", "search", "leakage", "attacker")
    for path in PACKAGE.glob(f"{room}/**/*.py")
)


@pytest.mark.parametrize("path", ATTACKERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_attack_names_the_private_batch(path: Path) -> None:
    assert "Secret" not in names(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "from gifd.federation.secret import Secret",
        "import gifd.federation.secret as o; o.Secret",
        "from gifd.federation.secret import Secret as S",
        "def attack(secret: Secret) -> None: ...",
    ],
)
def test_a_name_would_be_seen(source: str) -> None:
    assert "Secret" in names(source)
    assert "Secret" not in names(f'"""{source}"""')


def test_there_are_attackers_to_look_at() -> None:
    assert {"attack.py", "loop.py", "labels.py", "observe.py", "reading.py"} <= {
        path.name for path in ATTACKERS
    }
