"""What a run writes while it trains: its checkpoint, its state, metrics.jsonl and TensorBoard."""

from __future__ import annotations

from training.run.checkpoint import Checkpoint, SavedRun, save, save_run
from training.run.folder import RunFolder
from training.run.tensorboard import EventFile
from training.state import EpochMetrics, Run, Trained, TrainingState


class Recorder:
    """Writes into the folder of a run. Every method raises TrainingError if it cannot."""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self._run = run
        self._folder = folder
        self._events = EventFile(folder.events, len(folder.epochs))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def epoch(self, state: TrainingState, metrics: EpochMetrics) -> None:
        """Save the state, the checkpoint and the metrics at the end of an epoch."""
        self._folder.epochs.append(metrics)
        self.save_state(state)
        self.save_checkpoint(state.result())
        self._folder.write_metrics()
        self._events.add(metrics)

    def save_state(self, state: TrainingState) -> None:
        """Write what `--resume` continues from."""
        saved = SavedRun(
            recipe=self._run.recipe,
            seed=self._run.seed,
            epochs=self._folder.epochs,
            counters=state.counters(),
            tensors=state.tensors(),
        )
        save_run(self._folder.state, saved)

    def save_checkpoint(self, trained: Trained) -> None:
        """Write the weights to use."""
        checkpoint = Checkpoint(
            network=trained.network,
            recipe=self._run.recipe,
            seed=self._run.seed,
            epoch=trained.epoch,
            labels=self._run.split.data.labels,
        )
        save(self._folder.checkpoint, checkpoint)
