"""The networks, and the classifier that is exported: pixels to logits and probabilities."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.recipes.recipe import Recipe

MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081  # of the 60,000 training images, pixels in [0, 1]

OUTPUTS = ("logits", "probabilities", "accepted", "reason", "prediction_set")
# Why a picture is not accepted; the graph gives the index. service/core/digits.py has them as well.
REASONS = ("", "blank", "several_digits", "not_a_digit", "unsure")
_ACCEPTED, _BLANK, _SEVERAL_DIGITS, _NOT_A_DIGIT, _UNSURE = range(len(REASONS))

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class Standardise(nn.Module):
    """Shift and scale pixels in [0, 1] to mean 0 and deviation 1."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - MNIST_MEAN) / MNIST_DEVIATION


class Flatten(nn.Module):
    """Flatten to `features` columns.

    With a dynamic batch, `nn.Flatten` exports as Shape, Gather and Concat; a reshape in which only
    the batch is unknown exports as one node.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.features)


class MapMeans(nn.Module):
    """The mean of each map: [N, C, H, W] to [N, C]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


def build_network(recipe: Recipe, classes: int = 10) -> nn.Sequential:
    """Return the untrained network: float32 pixels [N, 1, 28, 28] in [0, 1] to logits [N, classes].

    The initial weights come from torch's global generator: seed it first. Convolutions are 3x3 with
    padding, except for the first if `recipe.stride` is 2: it is 6x6 without padding, covers every
    pixel, and its 12x12 maps can be halved twice without a remainder. Each convolution is followed
    by batch normalisation, those in `recipe.pool_after` also by 2x2 max pooling. With
    `recipe.average_maps` each of the last maps is reduced to its mean. Dropout precedes each dense
    layer whose inputs are hidden units.
    """
    layers: list[nn.Module] = [Standardise()] if recipe.standardise else []
    inputs, side = 1, 28
    for number, outputs in enumerate(recipe.channels, start=1):
        kernel, stride, padding = 3, 1, 1
        if number == 1 and recipe.stride == 2:
            kernel, stride, padding = 6, 2, 0
        side = (side + 2 * padding - kernel) // stride + 1
        layers += [
            nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if number in recipe.pool_after:
            # Before the activation: activations are monotonic, so the result is the same, and they
            # are computed for a quarter of the pixels.
            layers.append(nn.MaxPool2d(2))
            side //= 2
        layers.append(_ACTIVATIONS[recipe.activation]())
        inputs = outputs

    features = inputs * side * side
    if recipe.channels and recipe.average_maps:
        features = inputs
        layers.append(MapMeans())
    else:
        layers.append(Flatten(features))
    dropout = [nn.Dropout(recipe.dropout)] if recipe.dropout else []
    if recipe.channels:
        layers += dropout
    for units in recipe.hidden:
        layers += [nn.Linear(features, units), _ACTIVATIONS[recipe.activation](), *dropout]
        features = units
    layers.append(nn.Linear(features, classes))
    return nn.Sequential(*layers)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def scale(image: Tensor) -> Tensor:
    """Map uint8 pixels [N, 28, 28] to float32 [N, 1, 28, 28] in [0, 1], as ToTensor does.

    It divides by 255, since multiplication by 1/255 differs in the last bit.
    """
    return image.to(torch.float32).div(255).unsqueeze(1)


class Thresholds(NamedTuple):
    """The constants by which a classifier of digits accepts a picture, fitted by `fit_thresholds`.

    A picture is blank if its pixels, from 0 to 1, differ by less than `contrast`. It is no digit,
    or several, if the probability of these classes together exceeds `outlier`. The model is unsure
    of one whose most probable digit has less than `confidence`; here these classes count as well.
    The prediction set has the digits with at least the probability `prediction_set`.
    """

    contrast: float
    outlier: float
    confidence: float
    prediction_set: float


class Scores(NamedTuple):
    """What decisions are made by, each float32 [N]: probabilities over digits and outliers."""

    outlier: Tensor  # of all outlier classes
    several: Tensor  # of several digits
    confidence: Tensor  # of the most probable digit


def scores_of(logits: Tensor, classes: int, temperature: float) -> Scores:
    """Return the scores for calibrated logits [N,classes+2], whose last two are of outliers."""
    digits, none, several = torch.softmax(logits / temperature, dim=-1).split((classes, 1, 1), -1)
    return Scores(
        outlier=(none + several).squeeze(-1),
        several=several.squeeze(-1),
        confidence=digits.amax(-1),
    )


class Classifier(nn.Module):
    """A trained network with its preprocessing, calibration and decisions, as it is exported."""

    def __init__(
        self,
        network: nn.Sequential,
        temperature: float = 1.0,
        *,
        classes: int = 10,
        thresholds: Thresholds | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is that of the weights; everything after the network is float32."""
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.classes = classes
        self.thresholds = thresholds
        self.dtype = dtype

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `forward` returns."""
        return OUTPUTS if self.thresholds else OUTPUTS[:2]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 pixels [N, 28, 28] to the `outputs`.

        logits and probabilities are float32 [N, classes]: the logits are not scaled, the
        probabilities are softmax(logits / temperature). With thresholds also accepted, bool [N],
        reason, uint8 [N], the index into REASONS, and prediction_set, bool [N, classes].
        """
        pixels = scale(image)
        every_logit = cast(Tensor, self.network(pixels.to(self.dtype))).float()
        logits = every_logit[:, : self.classes]
        probabilities = torch.softmax(logits / self.temperature, dim=-1)
        if self.thresholds is None:
            return logits, probabilities
        contrast, outlier, confidence, least = self.thresholds
        scores = scores_of(every_logit, self.classes, self.temperature)
        is_outlier, is_unsure = scores.outlier > outlier, scores.confidence < confidence
        # The first reason that applies, from the last to the first.
        kind = torch.where(scores.several > scores.outlier / 2, _SEVERAL_DIGITS, _NOT_A_DIGIT)
        reason = torch.where(is_outlier, kind, torch.where(is_unsure, _UNSURE, _ACCEPTED))
        is_blank = pixels.amax((1, 2, 3)) - pixels.amin((1, 2, 3)) < contrast
        reason = torch.where(is_blank, _BLANK, reason)
        # The most probable digit is always in the set.
        bound = probabilities.amax(-1, keepdim=True).clamp(max=least)
        return (
            logits,
            probabilities,
            reason == _ACCEPTED,
            reason.to(torch.uint8),
            probabilities >= bound,
        )


def fold_batch_norm(network: nn.Sequential) -> nn.Sequential:
    """Return the network in evaluation mode with each BatchNorm folded into its convolution."""
    folded: list[nn.Module] = []
    for layer in network.eval():
        if isinstance(layer, nn.BatchNorm2d) and folded and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(layer)
    return nn.Sequential(*folded).eval()
