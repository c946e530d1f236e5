"""Where a sweep is delivered to: the requests that its runs take, within MLflow's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bdray.errors import TrackingError
from bdray.store.scratch import scratch_folder
from bdray.store.storage import Storage
from bdray.tracking.points import Point
from bdray.tracking.server import GoneError, UnreachableError, explain, probe

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_MAX_ENTITIES, _MAX_PARAMS = 1000, 100
"""MLflow's limits for one `log_batch`: entities of all kinds, params among them."""

MAX_PARAM_CHARACTERS, _MAX_TAG_CHARACTERS = 6000, 5000


@dataclass
class Destination:
    """The experiment of a sweep, on a server or in a database.

    Attributes:
        moved: called when the server has taken something.
    """

    uri: str
    client: MlflowClient
    experiment_id: str
    moved: Callable[[], None] = lambda: None

    def runs(self, query: str, order: str, *, deleted: bool = False) -> Iterator[Run]:
        """All runs that match, page by page: those that are there, or those that were deleted."""
        from mlflow.entities import ViewType

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], query, view, max_results=1000, order_by=[order], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def log(
        self,
        run_id: str,
        points: Iterable[Point],
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """In as few requests as MLflow's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        left = [Param(*item) for item in (params or {}).items()]
        last = [RunTag(*item) for item in (tags or {}).items()]
        while metrics or left or last:
            some, left = left[:_MAX_PARAMS], left[_MAX_PARAMS:]
            room = _MAX_ENTITIES - len(some) - len(last)
            part, metrics = metrics[:room], metrics[room:]
            # Tags last: one of them says that everything is there.
            now, last = ([], last) if metrics or left else (last, [])
            self.client.log_batch(run_id, part, some, now)
            self.moved()

    def upload(self, run_id: str, storage: Storage, name: str, data: bytes) -> None:
        """An artifact.

        Args:
            storage: the folder that has the file.
        """
        with _on_disk(storage, name, data) as path:
            self.client.log_artifact(run_id, str(path))
        self.moved()

    def explained(self, error: Exception) -> TrackingError:
        """What went wrong with one run: while the server answers, it is this run's own trouble."""
        explained = explain(error, self.uri)
        if isinstance(explained, UnreachableError) and not isinstance(explained, GoneError):
            try:
                probe(self.uri)
                self.client.get_experiment(self.experiment_id)
            except UnreachableError as unreachable:
                return unreachable
            except Exception:
                return explained
            return TrackingError(str(explained))
        return explained


@contextmanager
def _on_disk(storage: Storage, name: str, data: bytes) -> Iterator[Path]:
    """Where MLflow can read a file from that holds `data`: where it lies, or a copy."""
    if (path := storage.local_path(name)) is not None:
        yield path
        return
    with scratch_folder() as folder:
        (folder / name).write_bytes(data)
        yield folder / name


def shorten(text: str, limit: int = _MAX_TAG_CHARACTERS) -> str:
    """The text, or its beginning and how long it is."""
    return text if len(text) <= limit else f"{text[: limit - 40]}... ({len(text)} characters)"
