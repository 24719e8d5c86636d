"""The recipes that come with mnist-train, each with every value that is not a default."""

import dataclasses
from collections.abc import Mapping

from training.recipes.recipe import Recipe

# The notes train on all 60,000 images and print test metrics each epoch. Without validation images
# there is no calibration: the temperature stays 1.
_BOOK = Recipe(name="book", validation_size=0, report_test_each_epoch=True)

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="fast",
            channels=(16, 32, 32, 64, 64, 128),
            pool_after=(3, 5),
            hidden=(),
            dropout=0.1,
            epochs=24,
            batch_size=256,
            optimizer="adamw",
            learning_rate=0.01,
            schedule="one-cycle",
            weight_decay=0.1,
            ema_decay=0.99,
            easy_below=0.15,
            easy_share=0.1,
            shift=2.0,
            rotation=15.0,
            zoom=0.1,
            elastic=1.0,
            shear=0.2,
            perspective=0.15,
            stroke=0.6,
            resample=8,
            faint=0.4,
            outliers=0.2,
            validation_size=10_000,  # the thresholds of what is accepted are fitted on them
        ),
        _BOOK,
        dataclasses.replace(_BOOK, name="book-30-30", hidden=(30, 30)),
        # Dense layers have no built-in translation invariance: they learn it from augmented digits.
        Recipe(
            name="mlp",
            hidden=(800, 800),
            dropout=0.2,
            standardise=True,
            epochs=60,
            batch_size=256,
            optimizer="adamw",
            learning_rate=2e-3,
            schedule="one-cycle",
            weight_decay=0.01,
            ema_decay=0.99,
            easy_below=0.02,
            easy_share=0.1,
            shift=2.0,
            rotation=12.0,
            zoom=0.12,
            elastic=2.0,
        ),
        # 9,858 parameters.
        Recipe(
            name="tiny",
            channels=(8, 16, 20, 20),
            hidden=(),
            epochs=40,
            batch_size=256,
            optimizer="adamw",
            learning_rate=0.02,
            schedule="one-cycle",
            weight_decay=0.01,
            ema_decay=0.99,
            easy_below=0.02,
            easy_share=0.1,
            shift=2.0,
            rotation=10.0,
            zoom=0.1,
        ),
        # Twice the channels of `fast` at twice its resolution, trained for longer, with SAM and
        # self-distillation.
        Recipe(
            name="record",
            channels=(32, 32, 64, 64, 128, 128, 128),
            pool_after=(2, 4),
            stride=1,
            average_maps=True,
            hidden=(),
            dropout=0.3,
            epochs=60,
            batch_size=256,
            optimizer="adamw",
            learning_rate=0.01,
            schedule="one-cycle",
            weight_decay=0.1,
            sharpness=0.05,
            ema_decay=0.995,
            self_distillation=0.5,
            bf16=True,
            easy_below=0.005,
            easy_share=0.3,
            shift=2.0,
            rotation=12.0,
            zoom=0.12,
            elastic=1.5,
            plain_end=0.1,
            validation_size=2000,
        ),
    )
}
