"""Everything durable, by noun."""

from markscheme_server.store.assignments import AssignmentStore, TeacherBank
from markscheme_server.store.database import Database, create_engine
from markscheme_server.store.rubrics import RubricStore
from markscheme_server.store.verdicts import VerdictStore


class Store:
    """The stores that share one database."""

    def __init__(self, url: str) -> None:
        self.database = Database(create_engine(url))
        self.rubrics = RubricStore(self.database)
        self.verdicts = VerdictStore(self.database)
        self.assignments = AssignmentStore(self.database)
        self.teachers = TeacherBank(self.database)
