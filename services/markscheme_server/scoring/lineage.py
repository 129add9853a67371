"""The lineage of a rubric as a graph for one team.

An edge is in the graph only if the team sees both its ends. Other teams' rubrics are redacted as
in `GET /v1/rubrics/{id}`: what made them is shown, their texts and runs are not.
"""

from collections.abc import Iterable, Mapping, Sequence

from markscheme import schema
from markscheme.vocabulary import MAKER_ROLES, RESPONSE_ROLES, EdgeKind, ResponseRole
from markscheme_server.domain.hashing import criterion_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.store.lineage import Family, LineageStore, RunUse, VerdictCounts
from markscheme_server.store.rubrics import RubricStore

MAX_RESPONSES = 200
MAX_TEXT_LENGTH = 4000

_Source = tuple[Rubric, ResponseRole, str]
"""A rubric, and the role and key of a response that it was contrasted from."""


async def read_lineage(
    rubrics: RubricStore, lineage: LineageStore, team: str, rubric: Rubric
) -> schema.Lineage:
    """Return the history of a rubric that the team sees.

    It holds the rubric's ancestors, later versions and forks, the responses it was contrasted
    from, the models that made it, and the team's runs and verdicts. Of other teams' use there is
    only the number of groups.
    """
    keys = {criterion.id: criterion_key(criterion) for criterion in rubric.criteria}
    family = await lineage.family(team, rubric.id)
    sources, more_sources = _sources(team, rubric, family)
    texts = await lineage.texts(
        team,
        rubric.prompt_key,
        [source.id for source, _, _ in sources],
        [key for _, _, key in sources],
    )
    runs, more_runs = await lineage.runs(team, rubric.id)
    counts = await lineage.verdicts(team, rubric.prompt_key, list(keys.values()))
    use = await lineage.usage(team, rubric.id)
    quality = await rubrics.quality(team, [relative.id for relative in family.rubrics])
    graph = _Graph()
    graph.add_rubrics(team, family, quality)
    graph.add_responses(sources, texts)
    graph.add_runs(rubric, runs)
    return schema.Lineage(
        rubric_id=rubric.id,
        nodes=list(graph.nodes.values()),
        edges=graph.edges,
        verdicts=_verdicts(rubric.criteria, keys, counts, use.unscored),
        use=schema.LineageUse(
            groups=use.groups,
            other_teams_groups=use.other_teams_groups,
            quality=quality.get(rubric.id),
        ),
        truncated=family.truncated or more_sources or more_runs,
    )


class _Graph:
    """Nodes by id, and the edges between them."""

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
                # A parent beyond the limit is not hidden, though it is not in the graph.
                parent_hidden=own and parent is not None and parent not in family.visible,
            )
            if parent in teams:
                self._join(parent, rubric.id, "version" if teams[parent] == rubric.team else "fork")
            for role in MAKER_ROLES:
                if name := rubric.provenance.get(role):
                    # A model is one node, whichever of the rubrics it made.
                    maker = schema.LineageMaker(id=f"{role}:{name}", role=role, name=name)
                    self.nodes[maker.id] = maker
                    self._join(maker.id, rubric.id, "made")

    def add_responses(self, sources: Iterable[_Source], texts: Mapping[str, str]) -> None:
        for rubric, role, key in sources:
            response = schema.LineageResponse(
                id=f"{role}:{key}",
                role=role,
                key=key,
                text=texts[key][:MAX_TEXT_LENGTH] if key in texts else None,
            )
            self.nodes[response.id] = response
            self._join(response.id, rubric.id, "contrasted")

    def add_runs(self, rubric: Rubric, runs: Iterable[RunUse]) -> None:
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
            self._join(rubric.id, run.id, "scored")

    def _join(self, source: str, target: str, kind: EdgeKind) -> None:
        self.edges.append(schema.LineageEdge(source=source, target=target, kind=kind))


def _sources(team: str, rubric: Rubric, family: Family) -> tuple[list[_Source], bool]:
    """List what the rubric and its ancestors were contrasted from, and whether there is more.

    Only the team's own induced rubrics count: an edited rubric copies the provenance of the one
    it was made from, and would repeat its sources.
    """
    sources: list[_Source] = [
        (relative, role, key)
        for relative in family.rubrics
        if relative.team == team
        and relative.origin == "induced"
        and (relative.id == rubric.id or relative.id in family.ancestors)
        for role in RESPONSE_ROLES
        for key in relative.provenance.get(f"{role}_keys", ())
    ]
    return sources[:MAX_RESPONSES], len(sources) > MAX_RESPONSES


def _verdicts(
    criteria: Sequence[Criterion],
    keys: Mapping[str, str],
    counts: Mapping[str, VerdictCounts],
    unscored: int,
) -> schema.LineageVerdicts:
    by_criterion = []
    for criterion in criteria:
        count = counts.get(keys[criterion.id], VerdictCounts())
        by_criterion.append(
            schema.CriterionVerdicts(
                criterion_id=criterion.id,
                met=count.met,
                not_met=count.not_met,
                not_applicable=count.not_applicable,
            )
        )
    return schema.LineageVerdicts(
        met=sum(each.met for each in by_criterion),
        not_met=sum(each.not_met for each in by_criterion),
        not_applicable=sum(each.not_applicable for each in by_criterion),
        unscored=unscored,
        criteria=by_criterion,
    )
