"""Where the benchmarks keep their files."""

from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
VENVS = FOLDER / ".venvs"
MODELS = FOLDER / ".models"
RESULTS = FOLDER / "results"
