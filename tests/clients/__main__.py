"""make test-clients: runs the examples in other languages, with the commands of their READMEs."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.conftest import ROOT, Server, read_mnist

EXAMPLES = ROOT / "clients" / "examples"
# What .ci/run installs for each, as Debian names it.
PROGRAMS = {
    "typescript": {"node": "nodejs", "npm": "npm"},
    "node-grpc": {"node": "nodejs", "npm": "npm"},
    "go": {"go": "golang-go"},
}


class Picture(NamedTuple):
    """A picture, and what an example prints for it."""

    path: Path
    status: int
    pattern: str


def main() -> int:
    """Run the examples; 0 if all passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument(
        "examples",
        nargs="*",
        metavar="EXAMPLE",
        help=f"{', '.join(PROGRAMS)} (all of them)",
    )
    chosen = parser.parse_args().examples or list(PROGRAMS)
    if unknown := set(chosen) - PROGRAMS.keys():
        parser.error(f"there is no example {min(unknown)!r}; choose from {', '.join(PROGRAMS)}")
    assert PROGRAMS.keys() == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        pictures = draw(tree)
        server = Server(tree, ROOT / "models")
        try:
            server.wait_until(server.is_ready)
            with ThreadPoolExecutor() as pool:
                results = pool.map(lambda name: run(name, tree / name, server, pictures), chosen)
                problems = dict(zip(chosen, results, strict=True))
        finally:
            server.stop()
    for example, problem in problems.items():
        print(f"{example}: {problem or 'passed'}")
    failed = sum(map(bool, problems.values()))
    print(f"{len(problems) - failed} passed, {failed} failed", flush=True)
    return int(failed > 0)


def draw(folder: Path) -> list[Picture]:
    """Three test images, a JPEG, a blank sheet, and a file that is not a picture."""
    images, labels = read_mnist()
    pictures = []
    for digit in (0, 4, 9):
        path = folder / f"{digit}.png"
        Image.fromarray(images[labels == digit][0]).save(path)
        line = rf"^digit {digit}, probability (1\.0|0\.[5-9])\d{{3}}, accepted true$"
        pictures.append(Picture(path, 0, line))
    photo, blank, text = folder / "seven.jpeg", folder / "blank.png", folder / "text.png"
    Image.open(ROOT / "docs" / "seven.png").convert("L").save(photo)
    Image.new("L", (100, 100), 255).save(blank)
    text.write_text("not a picture")
    return [
        *pictures,
        Picture(photo, 0, r"^digit 7, probability \S+, accepted true$"),
        Picture(blank, 0, r"^digit \d, probability \S+, accepted false No ink was found.*"),
        Picture(text, 1, r"image: this is not a PNG, JPEG, WebP, BMP or GIF file\.$"),
    ]


def run(example: str, tree: Path, server: Server, pictures: list[Picture]) -> str:
    """Run one example in a copy of what it needs of the repository; what is wrong, or ''."""
    for program, package in PROGRAMS[example].items():
        if not shutil.which(program):
            return f"{program} is not installed (Debian: apt-get install {package})."
    built = shutil.ignore_patterns("node_modules", "build", "openapi.d.ts")
    shutil.copytree(EXAMPLES / example, tree / "clients" / "examples" / example, ignore=built)
    shutil.copytree(ROOT / "proto", tree / "proto")
    (tree / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "seven.png", tree / "docs")
    readme = (EXAMPLES / example / "README.md").read_text()
    commands, shown = re.findall(r"^```(?:sh)?\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    commands = commands.replace("127.0.0.1:8000", server.http)
    commands = commands.replace("127.0.0.1:8001", server.grpc)
    done = bash(commands, tree)
    if done.returncode != 0 or not unpadded(done.stdout).endswith(shown):
        return f"its commands print:\n{done.stdout}{done.stderr}"
    first, *_, call = commands.splitlines()
    for path, status, pattern in pictures:
        done = bash(f"{first}\n{call.replace('../../../docs/seven.png', str(path))}", tree)
        output = unpadded(done.stderr if status else done.stdout)
        if bool(done.returncode) != bool(status) or not re.search(pattern, output, re.MULTILINE):
            return f"{path.name} gives status {done.returncode}:\n{done.stdout}{done.stderr}"
    return ""


def unpadded(output: str) -> str:
    """Without the spaces in front of an empty hint."""
    return re.sub(r" +$", "", output, flags=re.MULTILINE)


def bash(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run shell commands up to the first that fails, within 20 minutes on any machine."""
    command = ["bash", "-ec", commands]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=1200
    )


if __name__ == "__main__":
    sys.exit(main())
