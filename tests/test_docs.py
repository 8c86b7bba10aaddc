"""README and docs: short, linked to what exists, and every command in them is one that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"python (-m pipelines [a-z]+|(?:tools|benchmarks)/\w+\.py)([^\n`]*)")


def prose(text: str) -> list[list[str]]:
    """The paragraphs of a page in lines: no code, tables, lists, headings or header."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    parts = [part.splitlines() for part in re.split(r"\n\s*\n", text)]
    return [lines for lines in parts if lines and not re.match(r"[|#\-*]\s|\||    |!\[", lines[0])]


def commands() -> list[tuple[str, str, str]]:
    """(page, what runs, its arguments) for every command in README and docs; a backslash joins two lines."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        found += [(page.name, what, rest.split("#")[0]) for what, rest in COMMAND.findall(text)]
    return found


@cache
def help_of(what: str) -> str:
    done = subprocess.run(
        [sys.executable, *what.split(), "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{what} --help: {done.stderr}"
    return done.stdout


def test_the_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_paragraph_is_longer_than_six_lines_of_a_usual_width(page):
    for lines in prose(page.read_text(encoding="utf-8")):
        assert sum(1 + len(line) // 130 for line in lines) <= 6, " ".join(lines)[:100]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_option_of_a_command_that_is_shown_exists():
    shown = commands()
    assert len(shown) > 20
    for page, what, rest in shown:
        for option in re.findall(r"--[a-z][a-z-]+", rest):
            assert option in help_of(what), f"{page}: {what} has no {option}"


@pytest.mark.slow
def test_the_commands_of_the_readme_run_one_after_another(tmp_path):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    block = next(each for each in blocks if "pipelines compare" in each)
    photos = tmp_path / "PHOTOS"
    photos.mkdir()
    for photo in (ROOT / "presets" / "sample_person").glob("*.png"):
        shutil.copy(photo, photos)
    for line in block.strip().splitlines():
        line = line.replace("python -m", f"PYTHONPATH={ROOT} {sys.executable} -m", 1)
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{line}: {done.stdout[-500:]} {done.stderr[-2000:]}"
    assert not (tmp_path / "RUN").exists() and (tmp_path / "portrait.jpg").is_file()
