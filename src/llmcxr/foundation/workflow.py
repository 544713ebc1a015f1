"""Stages in order: each reads what those before it wrote in one folder, and skips itself when done. Knows no medicine.

A stage is done when its record holds the fingerprint of its settings and of every stage that it depends on. If those change,
what it wrote is removed and it runs again, and so do the stages after it. One run at a time works in a folder.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmcxr.foundation.artifacts import content_fingerprint, fingerprint, read_json, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.settings import settings_to_dict

RECORDS = ".stages"  # folder of the records, inside the run's


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    about: str  # what it is for, shown to people
    run: Callable[[], str | None]  # a returned sentence says why there was nothing to do
    settings: Any = None  # all that its result depends on, besides the stages in `after` and the contents of `reads`
    after: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # below the run folder
    reads: tuple[Path, ...] = ()  # the user's own files and model folders
    check: Callable[[], None] = lambda: None  # `UserError` for what it will miss; called before the first stage starts
    everywhere: bool = False  # run by all processes together, not by the main one while the others wait


class Workflow:
    """Stages and the folder in which they work."""

    def __init__(self, folder: Path, stages: Sequence[Stage], processes: Processes) -> None:
        self.folder, self.stages, self.processes = folder, list(stages), processes

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a stage: `fingerprint`, `finished`, `seconds`, and `left_out` (why there was nothing to do)."""
        path = self.folder / RECORDS / f"{name}.json"
        return read_json(path) if path.exists() else {}

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of every stage. Weights that are read are hashed once, then only where size or time of change differ."""
        memo, result = self.folder / RECORDS / "model_hashes", dict[str, str]()
        for stage in self.stages:
            settings = json.loads(json.dumps(settings_to_dict(stage.settings), default=str))
            contents = [content_fingerprint(path, memo) for path in stage.reads]
            result[stage.name] = fingerprint(settings, contents, [result[name] for name in stage.after])
        return result

    def is_done(self, stage: Stage, wanted: str) -> bool:
        """Whether the stage was finished with the same settings and inputs, and its outputs are still there."""
        record = self.record(stage.name)
        same = record.get("fingerprint") == wanted and record.get("finished", False)
        return bool(same) and ("left_out" in record or all((self.folder / o).exists() for o in stage.outputs))

    def has(self, name: str) -> bool:
        """Whether the named stage is done with these settings."""
        return self.is_done(next(s for s in self.stages if s.name == name), self.fingerprints()[name])

    def run(self, only: str | None = None, before: Callable[[], None] = lambda: None) -> None:
        """Run all stages, or the named one (those before it must be done). `before` comes once all checks have passed.

        `UserError` for an unknown name, for what a check finds, and where another run works in the folder.
        """
        names = [stage.name for stage in self.stages]
        if only is not None and only not in names:
            raise self.processes.fault(f"no stage is called {only!r}. Stages: {', '.join(names)}.")
        wanted: dict[str, str] = {}  # fingerprints, on the main process

        def prepare() -> None:
            wanted.update(self.fingerprints())
            faults: dict[str, None] = {}
            for stage in self.stages:
                if only in (None, stage.name) and not self.is_done(stage, wanted[stage.name]):
                    try:
                        stage.check()
                    except UserError as error:
                        faults[str(error)] = None
            if faults:
                raise UserError("\n".join(faults))
            before()

        with self._alone():
            self.processes.on_main(prepare)
            for number, stage in enumerate(self.stages, 1):
                done = self.processes.from_main(self.processes.main and self.is_done(stage, wanted[stage.name]))
                if only is not None and stage.name != only:
                    if not done and stage.name in self._ancestors(only):
                        raise self.processes.fault(
                            f"stage {only} needs {stage.name}, which is not done. Run it first, or `llmcxr run` without a stage."
                        )
                    continue
                if self.processes.main:
                    print(f"[{number}/{len(names)}] {stage.name}: {stage.about}{' (done)' * done}", flush=True)
                if not done:
                    self._start(stage, wanted.get(stage.name, ""))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock, which the system lets go when the process ends, however it ends."""
        if not self.processes.main:
            yield
            return
        records = self.folder / RECORDS
        there = self.folder.exists()
        try:
            records.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write {self.folder}: {error}. Set `runs` to a folder that can be written."
            ) from error
        lock, owner = FileLock(records / "lock", timeout=0), records / "owner.json"
        try:
            lock.acquire()
        except Timeout as error:
            who = read_json(owner) if owner.exists() else {}
            raise UserError(
                f"another run works in {self.folder} (process {who.get('process', '?')} on {who.get('host', '?')}). Wait for it, "
                "end it, or give this one another `name`."
            ) from error
        try:
            write_json(owner, {"host": platform.node(), "process": os.getpid()})
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()
            left = {p.name for p in (*self.folder.iterdir(), *records.iterdir())}
            if not there and not left - {RECORDS, "lock", "model_hashes"}:
                shutil.rmtree(self.folder, ignore_errors=True)  # a run that was refused leaves nothing

    def _start(self, stage: Stage, wanted: str) -> None:
        """Run a stage and keep its record."""
        path = self.folder / RECORDS / f"{stage.name}.json"
        record: dict[str, Any] = {}

        def begin() -> None:
            record.update(self.record(stage.name))
            if record.get("fingerprint") != wanted:  # what is there, half done or not, belongs to other settings
                for output in stage.outputs:
                    old = self.folder / output
                    shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
                record.update({"fingerprint": wanted, "seconds": 0.0})
            record.pop("left_out", None)
            write_json(path, record | {"finished": False})

        def end(finished: bool, **more: str) -> None:
            record["seconds"] = record.get("seconds", 0.0) + time.monotonic() - clock
            write_json(path, record | {"finished": finished} | more)

        said: list[str | None] = []

        def run() -> None:
            said.append(stage.run())

        self.processes.on_main(begin)
        clock = time.monotonic()
        try:
            run() if stage.everywhere else self.processes.on_main(run)
        except BaseException:
            if self.processes.main:
                end(False)
            raise
        if self.processes.main:
            if said[0] is None:
                end(True)
                print(f"    {record['seconds']:.0f} s", flush=True)
            else:
                end(True, left_out=said[0])
                print(f"    left out: {said[0]}", flush=True)

    def _ancestors(self, name: str) -> set[str]:
        by_name = {stage.name: stage for stage in self.stages}
        result: set[str] = set()
        todo = list(by_name[name].after)
        while todo:
            if (current := todo.pop()) not in result:
                result.add(current)
                todo += by_name[current].after
        return result
