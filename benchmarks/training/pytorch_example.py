"""Trains the net of `fast` as PyTorch's own MNIST example would.

It has a data set of PIL images, torchvision's transforms on one image at a time, a DataLoader, a
loop over its batches, and an evaluation after every epoch. Images, optimiser, schedule, batch size
and kind of augmentation are those of `fast`. Prints one line of JSON per epoch.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from training.data.dataset import split
from training.data.mnist import load_mnist
from training.models import build_network
from training.recipes.presets import RECIPES

RECIPE = RECIPES["fast"]


class Digits(Dataset[tuple[Tensor, int]]):
    """Like torchvision.datasets.MNIST: an image and its label by index."""

    def __init__(self, images: Tensor, labels: Tensor, transform: transforms.Compose) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index].numpy())
        return self.transform(image), int(self.labels[index])


def train(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, int]],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Train for one epoch."""
    model.train()
    for data, target in loader:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(data), target)
        loss.backward()
        optimizer.step()
        scheduler.step()


def test(model: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> float:
    """The accuracy on the images of the loader."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for data, target in loader:
            correct += int((model(data).argmax(dim=1) == target).sum())
    return correct / len(loader.dataset)  # type: ignore[arg-type]


def main() -> None:
    """Train for the number of epochs in the options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = split(load_mnist(), RECIPE)
    augmentation = transforms.RandomAffine(
        RECIPE.rotation,
        (RECIPE.shift / 28, RECIPE.shift / 28),
        (1 - RECIPE.zoom, 1 + RECIPE.zoom),
        interpolation=transforms.InterpolationMode.BILINEAR,
    )
    augmented = transforms.Compose([augmentation, transforms.ToTensor()])
    plain = transforms.Compose([transforms.ToTensor()])
    train_loader = DataLoader(
        Digits(data.images, data.labels, augmented),
        batch_size=RECIPE.batch_size,
        shuffle=True,
        num_workers=options.workers,
    )
    test_loader = DataLoader(
        Digits(data.validation_images, data.validation_labels, plain),
        batch_size=1000,
        num_workers=options.workers,
    )
    model = build_network(RECIPE)
    optimizer = torch.optim.AdamW(
        model.parameters(), RECIPE.learning_rate, weight_decay=RECIPE.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RECIPE.learning_rate, total_steps=len(train_loader) * options.epochs
    )
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        train(model, train_loader, optimizer, scheduler)
        accuracy = test(model, test_loader)
        seconds = time.perf_counter() - started
        metrics = {"epoch": epoch, "seconds": seconds, "validation_accuracy": accuracy}
        print(json.dumps(metrics), flush=True)


if __name__ == "__main__":
    main()
