"""Stages in order: each reads what those before it wrote in one folder, and skips itself when done. Knows no medicine.

A stage is done when its record holds the fingerprint of its settings and of every stage that it depends on. If those change,
what it wrote is removed and it runs again, and so do the stages after it. Only what a record says that its stage
wrote is ever removed.
One run at a time works in a folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcxr.foundation.artifacts import (
    cannot_write,
    content_fingerprint,
    fingerprint,
    read_json,
    remove_leftovers,
    write_json,
)
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.folder_lock import FolderLock
from llmcxr.foundation.settings import settings_to_dict

if TYPE_CHECKING:  # torch: the names of stages are read without it
    from llmcxr.foundation.processes import Processes

RECORDS = ".stages"  # folder of the records, inside the run's
RESERVED = (
    "owner",
    "images",
    "masks",
    "chat",
)  # names of no stage: what else lies in a run's folder or among its records
_LITTER = ("Thumbs.db", "desktop.ini")


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
    unread: tuple[str, ...] = ()  # names of files in these folders on which its result does not depend
    # Files that its last step alone reads: where they change, it runs again over what it wrote.
    reads_last: tuple[Path, ...] = ()
    check: Callable[[], None] = lambda: None  # `UserError` for what it will miss; called before the first stage starts
    everywhere: bool = False  # run by all processes together, not by the main one while the others wait


class Workflow:
    """Stages and the folder in which they work."""

    def __init__(self, folder: Path, stages: Sequence[Stage], processes: Processes) -> None:
        self.folder, self.stages, self.processes = folder, list(stages), processes

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a stage: `fingerprint`, `finished`, `seconds`, `left_out` (why there was nothing to do), `outputs`,
        `files`: what lies there of them, where the stage came to an end, and `read_last`: contents of what its last step read."""
        path = self.folder / RECORDS / f"{name}.json"
        return read_json(path) if path.exists() else {}

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of every stage. Weights that are read are hashed once, then only where size or time of change differ."""
        memo, result = self.folder / RECORDS / "model_hashes", dict[str, str]()
        for stage in self.stages:
            settings = json.loads(json.dumps(settings_to_dict(stage.settings), default=str))
            contents = [content_fingerprint(path, memo, stage.unread) for path in stage.reads]
            result[stage.name] = fingerprint(settings, contents, [result[name] for name in stage.after])
        return result

    def is_done(self, stage: Stage, wanted: str) -> bool:
        """Whether the stage was finished with the same settings and inputs, and its outputs are still there."""
        record = self.record(stage.name)
        if record.get("fingerprint") != wanted or not record.get("finished", False):
            return False
        if "left_out" in record:
            return True
        there = all((self.folder / o).exists() for o in stage.outputs)
        last = self._read_last(stage)
        return there and record.get("read_last", last) == last  # earlier versions kept none

    def _read_last(self, stage: Stage) -> list[str]:
        """Contents of what the last step of a stage reads."""
        return [content_fingerprint(path, self.folder / RECORDS / "model_hashes") for path in stage.reads_last]

    def has(self, name: str) -> bool:
        """Whether the named stage is done with these settings."""
        return self.is_done(next(s for s in self.stages if s.name == name), self.fingerprints()[name])

    def needed_until(self, name: str | None) -> set[str]:
        """The named stage and those that it needs; None: all. `UserError` for an unknown name."""
        names = [stage.name for stage in self.stages]
        if name is not None and name not in names:
            raise UserError(f"no stage is called {name!r}. Stages: {', '.join(names)}.")
        return set(names) if name is None else {name, *self._ancestors(name)}

    def run(self, only: str | None = None, before: Callable[[], None] = lambda: None, until: str | None = None) -> None:
        """Run all stages, or `only` one (those before it must be done), or those that the stage `until` needs and itself.

        `before` comes once all checks have passed. `UserError` for an unknown name, for what a check finds, and where another
        run works in the folder.
        """
        try:
            needed = self.needed_until(only or until)
        except UserError as error:
            raise self.processes.fault(str(error)) from error
        chosen = {only} if only else needed
        wanted: dict[str, str] = {}  # fingerprints, on the main process

        def prepare() -> None:
            wanted.update(self.fingerprints())
            faults: dict[str, None] = {}
            for stage in self.stages:
                if self.is_done(stage, wanted[stage.name]):
                    continue
                try:
                    if stage.name in chosen:
                        stage.check()
                        self._removable(stage, wanted[stage.name])
                    elif only is not None and stage.name in self._ancestors(only):
                        raise UserError(
                            f"stage {only} needs {stage.name}, which is not done. `llmcxr run --until {only}` runs both."
                        )
                except UserError as error:
                    faults[str(error)] = None
            if faults:
                raise UserError("\n".join(faults))
            before()

        with self.alone():
            self.processes.on_main(prepare)
            for number, stage in enumerate(self.stages, 1):
                if stage.name not in chosen:
                    continue
                done = self.processes.from_main(self.processes.main and self.is_done(stage, wanted[stage.name]))
                if self.processes.main:
                    print(f"[{number}/{len(self.stages)}] {stage.name}: {stage.about}{' (done)' * done}", flush=True)
                if not done:
                    self._start(stage, wanted.get(stage.name, ""))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, in which nobody else writes then, and remove what kills left half written. `UserError`
        where another run
        works in it, and where it is a folder of something else. One that is made for nothing is removed again."""
        records = self.folder / RECORDS
        lock, made = FolderLock(self.folder, records), list[Path]()

        def take() -> None:
            try:
                made.extend(p for p in (records, self.folder) if not p.exists())
                if self.folder in made or not self._is_foreign():
                    records.mkdir(parents=True, exist_ok=True)
                else:
                    raise UserError(
                        f"{self.folder} is there and is no folder of a run, so nothing is written in it. Set `runs` "
                        "and `name` to another."
                    )
            except OSError as error:
                raise cannot_write(self.folder, error) from error
            lock.acquire()
            remove_leftovers(self.folder)

        self.processes.on_main(take)
        try:
            yield
        finally:
            if self.processes.main:
                if made and {p.name for p in records.iterdir()} <= {"lock", "owner.json", "model_hashes"}:
                    (records / "model_hashes").unlink(missing_ok=True)
                    with suppress(OSError):  # on Windows a file in use stays
                        lock.files[0].unlink()
                lock.release()
                for folder in made:
                    with suppress(OSError):  # where something is in it
                        folder.rmdir()

    def _is_foreign(self) -> bool:
        """Whether the folder, which is there, holds something and no run."""
        records = self.folder / RECORDS
        is_run = (records / "lock").exists() or any(records.glob("*.json"))
        return not is_run and any(p.name not in _LITTER and p.name != ".DS_Store" for p in self.folder.iterdir())

    def _start(self, stage: Stage, wanted: str) -> None:
        """Run a stage and keep its record."""
        path = self.folder / RECORDS / f"{stage.name}.json"
        record: dict[str, Any] = {}

        def begin() -> None:
            record.update(self.record(stage.name))
            if record.get("fingerprint") != wanted:  # what is there, half done or not, belongs to other settings
                for old in self._removable(stage, wanted):
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(missing_ok=True)
                record.clear()
                record.update({"fingerprint": wanted, "seconds": 0.0})
            for name in ("left_out", "files"):
                record.pop(name, None)
            record["outputs"], record["read_last"] = list(stage.outputs), self._read_last(stage)
            write_json(path, record | {"finished": False})

        def end(finished: bool, **more: str) -> None:
            record["seconds"] = record.get("seconds", 0.0) + time.monotonic() - clock
            write_json(path, record | {"files": self._files(stage.outputs), "finished": finished} | more)

        said: list[str | None] = []

        def run() -> None:
            said.append(stage.run())

        self.processes.on_main(begin)
        clock = time.monotonic()
        try:
            run() if stage.everywhere else self.processes.on_main(run)
        except BaseException:
            if self.processes.main:
                with suppress(UserError):  # the disk that is full already
                    end(False)
            raise
        if self.processes.main:
            if said[0] is None:
                end(True)
                print(f"    {record['seconds']:.0f} s", flush=True)
            else:
                end(True, left_out=said[0])
                print(f"    left out: {said[0]}", flush=True)

    @contextmanager
    def renewing(self, name: str) -> Iterator[None]:
        """Around what makes outputs of the named stage anew: until it has ended the stage counts as not finished, so that after
        a kill or a fault the next run goes on with it, and what lies there counts as the stage's."""
        path, record = self.folder / RECORDS / f"{name}.json", self.record(name)
        if record:
            write_json(path, {k: v for k, v in record.items() if k != "files"} | {"finished": False})
        yield
        if record:
            stage = next((s for s in self.stages if s.name == name), None)
            last = {} if stage is None else {"read_last": self._read_last(stage)}
            write_json(path, record | last | {"files": self._files(record.get("outputs", ()))})

    def adds(self, name: str, file: str) -> None:
        """Keep in the record of the named stage, which is done, that `file` (below the run folder) is its own, too.

        To be called before the file is written: after a kill in between it would be somebody's, and in the stage's way.
        """
        record = self.record(name)
        if "files" in record and file not in record["files"]:  # else all that lies there is the stage's
            write_json(self.folder / RECORDS / f"{name}.json", record | {"files": sorted([*record["files"], file])})

    def _files(self, outputs: Sequence[str]) -> list[str]:
        """Files below the run folder, as they are in `outputs`, without what file managers and editors leave."""
        found = []
        for output in outputs:
            path = self.folder / output
            inside = sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]
            found += [p.relative_to(self.folder) for p in inside if p.is_symlink() or p.is_file()]
        return [p.as_posix() for p in found if not any(n.startswith(".") or n in _LITTER for n in p.parts)]

    def _removable(self, stage: Stage, wanted: str) -> list[Path]:
        """What has to go before the stage runs under the fingerprint `wanted`: its own outputs under another.

        `UserError` for what lies there and was not written by the stage: it is somebody's.
        """
        record = self.record(stage.name)
        if record.get("fingerprint") == wanted:
            return []
        outputs = record.get("outputs", stage.outputs if record else ())
        outputs = [o for o in outputs if Path(o).name == o and o not in ("", ".", "..", RECORDS)]  # below the folder
        known = record.get("files")  # none where the stage was killed, or ran before files were recorded
        there = self._files(sorted({*stage.outputs, *outputs}))
        own = there if known is None else known
        for file in there:
            if file.split("/")[0] not in outputs or file not in own:
                raise UserError(
                    f"{self.folder / file} is in the way of the stage {stage.name}, which did not write it. Move it "
                    "elsewhere, or "
                    "give this run another `name`."
                )
        return [self.folder / output for output in outputs]

    def _ancestors(self, name: str) -> set[str]:
        by_name = {stage.name: stage for stage in self.stages}
        result: set[str] = set()
        todo = list(by_name[name].after)
        while todo:
            if (current := todo.pop()) not in result:
                result.add(current)
                todo += by_name[current].after
        return result
