"""A copy of a study's trials in a database, for sites that watch many studies with Optuna's tools; the journal stays the truth.

A thread of its own appends each finished trial once. A database that is away holds nobody up: trials wait until it is back, or
until the same command is given again.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evomerge.errors import MissingExtra, StudyError
from evomerge.study.record import Record

if TYPE_CHECKING:
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial

DRIVER = "postgresql+psycopg2"
RETRY = 2.0  # seconds until a database that was away is asked again
PATIENCE = 30.0  # seconds that the end of a search waits for it
CONNECT = 5  # seconds for a connection


class Copy:
    """Trials on their way into a database.

    Args:
        url: SQLAlchemy's, `postgresql+psycopg2://USER@HOST/DATABASE`.
        name: of the study there; its own, so that two studies in folders of one name do not mix.
        note: is told, from the thread, when the database goes away and comes back.
    """

    def __init__(self, url: str, name: str, note: Callable[[str], None] = lambda text: None) -> None:
        refuse_url(url)
        self.name, self.note, self.place = name, note, hidden(url)
        self._storage = _connected(url, self.place)
        self._queue: queue.SimpleQueue[FrozenTrial | None] = queue.SimpleQueue()
        self._waiting: list[FrozenTrial] = []
        self._away = False
        self._thread: threading.Thread | None = None

    def begin(self, directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial]) -> None:
        """Open the study there, or begin it, and bring it up to the journal's trials."""
        import optuna

        self._study: Study = optuna.create_study(
            storage=self._storage, study_name=self.name, directions=list(directions), load_if_exists=True
        )
        self._waiting = list(trials)
        self._drop_known()
        self._thread = threading.Thread(target=self._serve, name="storage", daemon=True)
        self._thread.start()

    def append(self, trial: FrozenTrial) -> None:
        self._queue.put(trial)

    def close(self) -> int:
        """Wait a while for the last trials; how many are not there yet."""
        if self._thread is None:
            return 0
        self._queue.put(None)
        self._thread.join(PATIENCE)
        return len(self._waiting) + self._queue.qsize()

    def _serve(self) -> None:
        ending = False
        while True:
            self._flush()
            if ending and (self._away or not self._waiting):
                return
            try:
                trial = self._queue.get(timeout=RETRY if self._waiting else None)
            except queue.Empty:
                continue
            if trial is None:
                ending = True
            else:
                self._waiting.append(trial)

    def _flush(self) -> None:
        """One append for each trial that waits. Of one whose append was cut off nobody knows whether it arrived: look first."""
        try:
            if self._away:
                self._drop_known()
            while self._waiting:
                self._study.add_trial(self._waiting[0])
                del self._waiting[0]
        except Exception as error:
            if not self._away:
                text = " ".join(str(error).split())[:120]
                self.note(f"storage: {self.place} does not answer ({type(error).__name__}: {text}); trials wait in the journal")
            self._away = True
        else:
            if self._away:
                self.note(f"storage: {self.place} is back, and has every trial")
            self._away = False

    def _drop_known(self) -> None:
        known = {trial.user_attrs.get("folder") for trial in self._study.get_trials(deepcopy=False)}
        self._waiting = [trial for trial in self._waiting if trial.user_attrs.get("folder") not in known]


@contextmanager
def copying(record: Record, url: str | None, note: Callable[[str], None]) -> Iterator[Copy | None]:
    """The copy of this record's study, if one is asked for; closed at the end, whatever happens."""
    if url is None:
        yield None
        return
    named = record.read_json("storage.json") or {"study": f"{record.directory.resolve().name}-{uuid.uuid4().hex[:8]}"}
    copy = Copy(url, named["study"], note)
    record.write_json("storage.json", named)
    try:
        yield copy
    finally:
        if missing := copy.close():
            note(f"storage: {missing} trials are not in {copy.place} yet; the same command with --resume brings them")


def refuse_url(url: str) -> None:
    """Raises StudyError on what is no database's URL, MissingExtra where its driver is not installed."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        driver = make_url(url).drivername
    except ArgumentError:
        raise StudyError(f"--storage: expected {DRIVER}://USER@HOST/DATABASE, not {url.partition('://')[0][:40]!r}") from None
    if driver.startswith("postgresql") and importlib.util.find_spec("psycopg2") is None:
        raise MissingExtra('--storage: psycopg2 is not installed: pip install "evomerge[postgresql]"')


def refuse_unreachable(url: str) -> None:
    """As above, and StudyError where no database answers there: known before anything is written."""
    refuse_url(url)
    _connected(url, hidden(url)).remove_session()


def hidden(url: str) -> str:
    """The URL without its password."""
    from sqlalchemy.engine import make_url

    return str(make_url(url).render_as_string(hide_password=True))


def _connected(url: str, place: str) -> Any:
    """Optuna's storage behind the URL. Raises StudyError where none can be had."""
    import optuna

    options: dict[str, Any] = {"pool_pre_ping": True}  # a connection from before the database went away is not used again
    if url.startswith("postgresql"):
        options["connect_args"] = {"connect_timeout": CONNECT}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except Exception as error:  # SQLAlchemy's and the driver's own, of many kinds
        text = " ".join(str(error.__cause__ or error).split())[:200]
        raise StudyError(f"--storage: {place} cannot be opened ({text})") from None
