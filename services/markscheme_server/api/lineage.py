"""``/v1/rubrics/{id}/lineage``: the history of a rubric as a graph.

An edge is told to whoever sees both its ends. Of another team's rubric there is no more than reading it tells: its
marks and what made it, not from which texts or in which run.
"""

from collections.abc import Iterable, Mapping, Sequence

from fastapi import APIRouter

from markscheme import schema
from markscheme.vocabulary import MAKER_ROLES, RESPONSE_ROLES, EdgeKind, ResponseRole
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.rubrics import get_rubric
from markscheme_server.api.services import Reader, UsesServices
from markscheme_server.domain.hashing import criterion_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.store.lineage import Family, RunUse

MOST_RESPONSES = 200
TEXT_LENGTH = 4000

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)


@router.get(
    "/rubrics/{rubric_id:id}/lineage", summary="What a rubric was made from, and what came of it"
)
async def read_lineage(rubric_id: str, caller: Reader, services: UsesServices) -> schema.Lineage:
    """Parents, later versions and forks; the responses it was contrasted from, and what made it; the caller's team's
    runs and verdicts; of other teams' use, how much there was."""
    asked, store = await get_rubric(services, caller, rubric_id), services.store.lineage
    family = await store.family(caller.team, asked.id)
    told, more_responses = _responses(caller.team, asked, family)
    texts = await store.texts(
        caller.team,
        asked.prompt_key,
        [rubric.id for rubric, _, _ in told],
        [key for _, _, key in told],
    )
    runs, more_runs = await store.runs(caller.team, asked.id)
    keys = {criterion.id: criterion_key(criterion) for criterion in asked.criteria}
    counts = await store.verdicts(caller.team, asked.prompt_key, list(keys.values()))
    use = await store.use(caller.team, asked.id)
    quality = await services.store.rubrics.quality(
        caller.team, [rubric.id for rubric in family.rubrics]
    )
    graph = _Graph()
    graph.add_rubrics(caller.team, family, quality)
    graph.add_responses(told, texts)
    graph.add_runs(asked, runs)
    return schema.Lineage(
        rubric_id=asked.id,
        nodes=list(graph.nodes.values()),
        edges=graph.edges,
        verdicts=_verdicts(asked.criteria, keys, counts, use.unscored),
        use=schema.LineageUse(
            groups=use.groups,
            other_teams_groups=use.other_teams_groups,
            quality=quality.get(asked.id),
        ),
        truncated=family.truncated or more_responses or more_runs,
    )


class _Graph:
    """Nodes by id, and edges between them."""

    def __init__(self) -> None:
        self.nodes: dict[str, schema.LineageNode] = {}
        self.edges: list[schema.LineageEdge] = []

    def add_rubrics(self, team: str, family: Family, quality: Mapping[str, float]) -> None:
        teams = {rubric.id: rubric.team for rubric in family.rubrics}
        for rubric in family.rubrics:
            own, parent = rubric.team == team, rubric.parent_id
            self.nodes[rubric.id] = schema.LineageRubric(
                id=rubric.id,
                team=rubric.team,
                version=rubric.version,
                origin=rubric.origin,
                visibility=rubric.visibility,
                tags=list(rubric.tags),
                created_at=rubric.created_at,
                retired_at=rubric.retired_at,
                quality=quality.get(rubric.id),
                run=rubric.provenance.get("run") if own else None,
                parent_hidden=own and parent is not None and parent not in family.seen,
            )
            if parent in teams:
                self._join(parent, rubric.id, "version" if teams[parent] == rubric.team else "fork")
            for role in MAKER_ROLES:
                if name := rubric.provenance.get(role):
                    maker = schema.LineageMaker(id=f"{role}:{name}", role=role, name=name)
                    self.nodes[maker.id] = maker
                    self._join(maker.id, rubric.id, "made")

    def add_responses(self, told: Iterable["_Told"], texts: Mapping[str, str]) -> None:
        for rubric, role, key in told:
            response = schema.LineageResponse(
                id=f"{role}:{key}",
                role=role,
                key=key,
                text=texts[key][:TEXT_LENGTH] if key in texts else None,
            )
            self.nodes[response.id] = response
            self._join(response.id, rubric.id, "contrasted")

    def add_runs(self, asked: Rubric, runs: Iterable[RunUse]) -> None:
        for use in runs:
            run = schema.LineageRun(
                id=f"run:{use.run_id}",
                run=use.run_id,
                groups=use.groups,
                groups_with_spread=use.groups_with_spread,
                first_step=use.first_step,
                last_step=use.last_step,
                first_reward=use.first_reward,
                last_reward=use.last_reward,
                reward_change=use.reward_change,
            )
            self.nodes[run.id] = run
            self._join(asked.id, run.id, "scored")

    def _join(self, source: str, target: str, kind: EdgeKind) -> None:
        self.edges.append(schema.LineageEdge(source=source, target=target, kind=kind))


_Told = tuple[Rubric, ResponseRole, str]


def _responses(team: str, asked: Rubric, family: Family) -> tuple[list[_Told], bool]:
    """What the asked rubric and its ancestors were contrasted from, where they are the team's own; and whether there
    is more. Only what was induced was contrasted; what was edited from it carries its provenance along."""
    told: list[_Told] = [
        (rubric, role, key)
        for rubric in family.rubrics
        if rubric.team == team
        and rubric.origin == "induced"
        and (rubric.id == asked.id or rubric.id in family.ancestors)
        for role in RESPONSE_ROLES
        for key in rubric.provenance.get(f"{role}_keys", ())
    ]
    return told[:MOST_RESPONSES], len(told) > MOST_RESPONSES


def _verdicts(
    criteria: Sequence[Criterion],
    keys: Mapping[str, str],
    counts: Mapping[str, tuple[int, int]],
    unscored: int,
) -> schema.LineageVerdicts:
    counted = []
    for criterion in criteria:
        met, not_met = counts.get(keys[criterion.id], (0, 0))
        counted.append(
            schema.CriterionVerdicts(criterion_id=criterion.id, met=met, not_met=not_met)
        )
    return schema.LineageVerdicts(
        met=sum(each.met for each in counted),
        not_met=sum(each.not_met for each in counted),
        unscored=unscored,
        criteria=counted,
    )
