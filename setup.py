"""Copies the shipped model into wheels, so that `mnist-serve` serves it without a repository.

Git holds the model once, in models/mnist/2. A source tree and an editable installation serve it
from there (service/repository/shipped.py); everything else about the build is in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODEL = "mnist/2"
FILES = ("model.onnx", "model.json")


class BuildWithModel(build_py):
    """Copies the shipped model, and no other version that lies in models/."""

    def run(self) -> None:
        """Build the packages, then add the model."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "service", "shipped_models", MODEL)
            folder.mkdir(parents=True, exist_ok=True)
            for file in FILES:
                self.copy_file(str(Path("models", MODEL, file)), str(folder / file))


setup(cmdclass={"build_py": BuildWithModel})
