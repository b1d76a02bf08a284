"""Public names: `gifd` remains the package, whatever is imported from it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
OURS = re.compile(r"^(?:from gifd|import gifd)\b.*$", re.MULTILINE)


def imports(path: Path) -> list[str]:
    """The lines of a script, or of a page's Python blocks, that import from gifd."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    found = [line for line in OURS.findall(text) if "(" not in line]
    return [line for line in found if "gifd.integrations" not in line]  # each needs an extra


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: path.name)
def test_lines_of_ours_leave_the_package_its_name(path: Path) -> None:
    for line in imports(path):
        names: dict[str, object] = {}
        exec("import gifd\n" + line, names)
        assert names["gifd"] is sys.modules["gifd"], line


def test_there_are_such_lines() -> None:
    assert all(imports(path) for path in [PAGES[0], *SCRIPTS])
    assert any("attacks" in line for line in imports(PAGES[0]))


@pytest.mark.parametrize(
    "lines",
    [
        "from gifd.attacks.gifd import STEPS; from gifd.attacks import gifd as f; import gifd",
        "import gifd.attacks.gifd; f = gifd.attacks.gifd",
        "import gifd; from gifd import attacks; f = attacks.gifd",
    ],
)
def test_the_attack_is_a_function_however_it_is_imported(lines: str) -> None:
    said = "\nprint(f.__module__, f.__qualname__, hasattr(gifd, 'gifd'), 'gifd' in gifd.__all__)"
    done = subprocess.run(
        [sys.executable, "-c", lines + said], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["gifd.attacks.gifd", "gifd", "False", "False"]
