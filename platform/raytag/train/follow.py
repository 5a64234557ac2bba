"""Following a run from the driver: progress bar, TensorBoard, MLflow; and the outcome.

Knows the messages workers send, not how training works. What it shows is lost with the driver;
what counts is in the workers' checkpoints.
"""

import importlib.util
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle

from raytag import storage
from raytag.errors import RaytagError, SettingsError
from raytag.report.terminal import TrainingProgress
from raytag.train.settings import FinetuneSettings
from raytag.train.worker import Outcome

_POLL_SECONDS = 0.3


class Mailbox:
    """An actor that carries what the first worker has to say to the driver, in order."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []

    def put(self, kind: str, content: Any) -> None:
        self._messages.append((kind, content))

    def take(self) -> list[tuple[str, Any]]:
        messages = self._messages
        self._messages = []
        return messages


class Sink(Protocol):
    """Where the numbers of each step go."""

    def step(self, record: Mapping[str, Any]) -> None: ...

    def close(self, succeeded: bool) -> None: ...


class Follower(threading.Thread):
    """Takes messages until told to finish; keeps the outcome, or the reason there is none."""

    def __init__(self, mailbox: "ActorHandle[Any]", settings: FinetuneSettings, run: str) -> None:
        super().__init__(daemon=True)
        self._mailbox = mailbox
        self._done = threading.Event()
        self._sinks: list[Sink] = [_TensorBoard(settings.output)]
        if settings.mlflow:
            self._sinks.append(_Mlflow(settings, run))
        self.outcome: Outcome | None = None
        self.refusal: RaytagError | None = None
        self._failure: Exception | None = None

    def run(self) -> None:
        try:
            self._follow()
        except Exception as exc:
            self._failure = exc

    def finish(self) -> None:
        """Take what is left, and end. Raises what following ran into."""
        self._done.set()
        self.join()
        if self._failure is not None:
            raise self._failure

    def _follow(self) -> None:
        with TrainingProgress() as progress:
            while True:
                last = self._done.is_set()
                messages: list[tuple[str, Any]] = ray.get(self._mailbox.take.remote())
                for kind, content in messages:
                    if kind == "outcome":
                        self.outcome = content
                    elif kind == "refusal":
                        self.refusal = content
                    elif kind == "note":
                        print(content, flush=True)
                    else:
                        _show(progress, content)
                        self.tell(lambda sink, record=content: sink.step(record))
                if last:
                    break
                self._done.wait(_POLL_SECONDS)
        self.tell(lambda sink: sink.close(self.outcome is not None))

    def tell(self, do: Callable[["Sink"], None]) -> None:
        """A sink that fails is left out from then on: training is worth more than its picture."""
        for sink in list(self._sinks):
            try:
                do(sink)
            except Exception as exc:
                self._sinks.remove(sink)
                print(f"warning: {type(sink).__name__.strip('_')} is left out: {exc}", flush=True)


def check_mlflow(settings: FinetuneSettings) -> None:
    """Raises SettingsError where MLflow is asked for and not installed."""
    if settings.mlflow and importlib.util.find_spec("mlflow") is None:
        raise SettingsError("--mlflow needs MLflow: pip install 'raytag[mlflow]'")


def _show(progress: TrainingProgress, record: Mapping[str, Any]) -> None:
    step, total = record["step"], record["total_steps"]
    left = record["seconds"] / step * (total - step)
    progress.update(step, total, record["loss"], record.get("dev_f1"), left)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    numbers = {"train/loss": record["loss"], "train/gradient_norm": record["gradient_norm"]}
    numbers |= {f"rate/{name}": rate for name, rate in record["rates"].items()}
    numbers["dev/f1"] = record.get("dev_f1")
    return {name: value for name, value in numbers.items() if value is not None}


class _TensorBoard:
    """Event files, written here and put below the output at every evaluation and at the end."""

    def __init__(self, output: str) -> None:
        from tensorboardX import SummaryWriter

        self._target = storage.join(output, "tensorboard")
        self._folder = tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(self._folder.name)

    def step(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])
        if "dev_f1" in record:
            self._writer.flush()
            storage.upload_folder(self._folder.name, self._target)

    def close(self, succeeded: bool) -> None:
        self._writer.close()
        storage.upload_folder(self._folder.name, self._target)
        self._folder.cleanup()


class _Mlflow:
    """One run of the experiment ``raytag``, named after the output."""

    def __init__(self, settings: FinetuneSettings, run: str) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            self._client = MlflowClient(tracking_uri=settings.mlflow)
            found = self._client.get_experiment_by_name("raytag")
            experiment = found.experiment_id if found else self._client.create_experiment("raytag")
            tags = {"mlflow.runName": settings.output, "raytag.run": run}
            self._id = self._client.create_run(experiment, tags=tags).info.run_id
            for name, value in asdict(settings).items():
                self._client.log_param(self._id, name, value)
        except MlflowException as exc:
            raise SettingsError(f"MLflow at {settings.mlflow} cannot be used: {exc}") from exc

    def step(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record).items():
            # Group names hold a comma, which MLflow does not take in a metric's name.
            self._client.log_metric(self._id, name.replace(",", ""), value, step=record["step"])

    def close(self, succeeded: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if succeeded else "FAILED")
