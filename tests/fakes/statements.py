"""Statements that all databases of a test process share: each is built and compiled once.

Each test has databases and services of its own. A service builds its statements when it starts,
which takes as long as all else of its start, and compiles each when it first needs it.
"""

import copy
import functools
from typing import Any

import sqlalchemy as sa

from markscheme_server.store.assignments import AssignmentStore
from markscheme_server.store.engine import database, driver
from markscheme_server.store.gathering import GatheringStore
from markscheme_server.store.ledger import LedgerStore
from markscheme_server.store.replays import ReplayStore
from markscheme_server.store.rubric_versions import RubricVersions
from markscheme_server.store.rubrics import RubricStore
from markscheme_server.store.run_groups import RunGroupStore
from markscheme_server.store.runs import RunStore
from markscheme_server.store.teachers import TeacherBank
from markscheme_server.store.teams import TeamStore

REPOSITORIES: tuple[type[Any], ...] = (
    AssignmentStore,
    GatheringStore,
    LedgerStore,
    ReplayStore,
    RubricStore,
    RubricVersions,
    RunGroupStore,
    RunStore,
    TeacherBank,
    TeamStore,
)
"""Those whose statements depend on the kind of database only, not on who uses it."""


class _Compiled(dict[tuple[Any, ...], Any]):
    """The compiled statements of all databases of a kind, by SQLAlchemy's keys.

    A database's dialect is a part of the keys.
    """

    def get(self, key: tuple[Any, ...], default: Any = None) -> Any:
        return super().get((key[0].name, *key[1:]), default)

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        super().__setitem__((key[0].name, *key[1:]), compiled)


def share() -> None:
    """Let all databases and services of this process share their statements."""
    database.create_async_engine = functools.partial(
        database.create_async_engine, execution_options={"compiled_cache": _Compiled()}
    )
    driver.DriverStatement = _kept(driver.DriverStatement)  # type: ignore[misc]
    for shared in (sa.ClauseElement, database.WriteBatch):
        shared.__deepcopy__ = lambda self, _copied: self
    for repository in REPOSITORIES:
        repository.__init__ = _from_template(repository)


def _kept(make: Any) -> Any:
    """Wrap the class: a statement with the same text and values is the same object."""
    made: dict[tuple[Any, ...], Any] = {}

    def statement(written: Any, dialect: sa.Dialect) -> Any:
        key = written._generate_cache_key()
        known = (key.key, *(repr(bound.value) for bound in key.bindparams))
        if known not in made:
            made[known] = make(written, dialect)
        return made[known]

    return statement


def _from_template(repository: type[Any]) -> Any:
    """Wrap the repository's initialiser: what it makes is a copy of the first of its kind."""
    build = repository.__init__
    templates: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def begin(self: Any, *given: Any) -> None:
        kind = given[0].engine.dialect.name
        if kind not in templates:
            template = object.__new__(repository)
            build(template, *given)
            templates[kind] = template, given
        template, first = templates[kind]
        copied = dict(zip(map(id, (template, *first)), (self, *given), strict=True))
        self.__dict__.update(copy.deepcopy(template.__dict__, copied))

    return begin
