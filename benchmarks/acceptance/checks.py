"""The checks: what must hold, and the commands that show it."""

from dataclasses import dataclass

from acceptance.commands import Command

API, FAULT, SERVER = "tests/server/api/", "tests/server/fault/", "tests/server/"
JUDGE, STORE, TRAIN, CLIENT = (
    "tests/server/judge/",
    "tests/server/store/",
    "tests/train/",
    "tests/client/",
)


@dataclass(frozen=True)
class Check:
    """One guarantee, in one sentence, and the commands that test it.

    ``part``: what the commands do not test. ``not_applicable``: why there is nothing to test.
    """

    number: int
    area: str
    holds: str
    commands: tuple[Command, ...] = ()
    part: str = ""
    not_applicable: str = ""


def pytest(*nodes: str, limit_s: float = 300, slow: bool = False) -> Command:
    """Return the command that runs these tests, given as node ids or files."""
    return Command(nodes, limit_s, slow)


def _api() -> list[Check]:
    area = "API contract"
    return [
        Check(
            1,
            area,
            "Schemathesis finds no failure and no 5xx on any operation.",
            (pytest(f"{API}test_schemathesis.py", slow=True, limit_s=600),),
            part="2 seeds and 40 examples an operation, not 3 and 300; no stateful phase",
        ),
        Check(
            2,
            area,
            "Whatever bytes are sent, the answer is a 4xx and the connection lives on.",
            (pytest(f"{API}test_bad_input.py"),),
        ),
        Check(
            3,
            area,
            "A body above the limit is refused while it streams, with a declared length and "
            "without.",
            (pytest(f"{API}test_bad_input.py::test_a_body_of_60_mb_is_refused"),),
            part="one body each way, not 100; memory is not measured",
        ),
        Check(
            4,
            area,
            "Every answer that is no success has the one error shape.",
            (
                pytest(
                    f"{API}test_errors.py",
                    f"{SERVER}cli/test_server_connections.py::test_what_is_no_http_is_refused_in_the_one_error_shape",
                ),
            ),
        ),
        Check(
            5,
            area,
            "The OpenAPI document is the one in git, and its models are the SDK's.",
            (pytest(f"{API}test_openapi.py"),),
        ),
    ]


def _idempotency() -> list[Check]:
    area = "Idempotency"
    return [
        Check(
            6,
            area,
            "Of many requests at once under one key, one does the work and all get its answer.",
            (pytest(f"{FAULT}test_idempotency.py::test_many_at_once_are_one"),),
        ),
        Check(
            7,
            area,
            "Another body under a key is refused; another team's key of that name is another key.",
            (
                pytest(
                    f"{FAULT}test_idempotency.py::test_another_body_is_refused",
                    f"{API}test_idempotency.py::test_another_body_under_the_same_key_is_refused_and_changes_nothing",
                    f"{STORE}test_idempotency.py::test_a_key_behaves_as_its_model",
                ),
            ),
        ),
        Check(
            8,
            area,
            "A replay is the same to the byte after a restart and without Redis's memory.",
            (
                pytest(
                    f"{FAULT}test_idempotency.py::test_it_outlives_the_process_and_the_cache",
                    f"{API}test_idempotency.py::test_replays_outlive_the_process",
                ),
            ),
        ),
        Check(
            9,
            area,
            "Keys behave as their model does, over 200 runs of 50 steps on each database.",
            (pytest(f"{STORE}test_idempotency.py", slow=True, limit_s=1500),),
        ),
    ]


def _judge() -> list[Check]:
    area = "Judge failures"
    return [
        Check(
            10,
            area,
            "Whichever way a judge fails, no failed call is a number and no answer is a "
            "5xx but 503; replies with NUL, half a surrogate pair or deep nesting stay in their "
            "group.",
            (
                pytest(
                    f"{FAULT}test_judge_modes.py",
                    "-k",
                    "100 or every_fifth or talk",
                    slow=True,
                    limit_s=900,
                ),
                pytest(
                    f"{JUDGE}test_openai.py",
                    f"{SERVER}scoring/test_scores.py",
                    f"{JUDGE}test_dialects.py",
                    f"{JUDGE}test_replies.py",
                    limit_s=600,
                ),
            ),
        ),
        Check(
            11,
            area,
            "An outage of the judge is not amplified.",
            (
                pytest(
                    f"{FAULT}test_judge_outage.py::test_an_outage_is_not_amplified",
                    slow=True,
                    limit_s=400,
                ),
            ),
        ),
        Check(
            12,
            area,
            "Scores come again within 20 s of the judge's return.",
            (
                pytest(
                    f"{FAULT}test_judge_outage.py::test_default_settings_recover_in_time",
                    slow=True,
                    limit_s=400,
                ),
            ),
        ),
        Check(
            13,
            area,
            "Retry-After is obeyed as far as the deadline allows, in every form that it comes in.",
            (pytest(f"{FAULT}test_retry_after.py", f"{JUDGE}test_retry.py"),),
        ),
        Check(
            14,
            area,
            "With one of three endpoints dead, scoring goes on; no group mixes judges.",
            (pytest(f"{FAULT}test_endpoints.py", slow=True, limit_s=900),),
        ),
        Check(
            15,
            area,
            "Requests that are abandoned leave nothing running.",
            (pytest(f"{FAULT}test_disconnect.py", slow=True, limit_s=400),),
        ),
    ]


def _load() -> list[Check]:
    area = "Load and back-pressure"
    return [
        Check(
            16,
            area,
            "Known verdicts are answered at 300 requests a second and more.",
            (pytest(f"{FAULT}test_load.py::test_known_verdicts_are_quick", slow=True),),
        ),
        Check(
            17,
            area,
            "The service adds little to the judge's time.",
            (pytest(f"{FAULT}test_load.py::test_little_is_added_to_the_judge", slow=True),),
        ),
        Check(
            18,
            area,
            "Four times too much is turned away, and what is let in is served.",
            (
                pytest(
                    f"{FAULT}test_load.py::test_four_times_too_much_is_turned_away",
                    slow=True,
                    limit_s=400,
                ),
            ),
        ),
        Check(
            19,
            area,
            "A noisy team hardly slows another, by requests, by rollouts, by poison, "
            "by costly checks, by one request of 65,536 verdicts.",
            (
                pytest(
                    f"{FAULT}test_fair_shares.py",
                    f"{FAULT}test_noisy_team.py",
                    f"{FAULT}test_large_requests.py",
                    "tests/server/domain/test_fairness.py",
                    slow=True,
                    limit_s=900,
                ),
            ),
        ),
        Check(
            20,
            area,
            "A quarter of an hour of mixed requests leaves memory and file descriptors as they "
            "were.",
            (pytest(f"{FAULT}test_soak.py", slow=True, limit_s=2700),),
        ),
    ]


def _cache() -> list[Check]:
    area = "Cache and claims"
    coalescing = f"{FAULT}test_coalescing.py::"
    return [
        Check(
            21,
            area,
            "Two processes that want one verdict pay for it once, with Redis and without.",
            (
                pytest(
                    f"{coalescing}test_two_processes_pay_once",
                    f"{coalescing}test_two_services_with_a_redis_pay_once",
                    slow=True,
                ),
            ),
        ),
        Check(
            22,
            area,
            "Redis refused, silent or killed fails no request and costs little time.",
            (pytest(f"{FAULT}test_redis.py", slow=True, limit_s=900),),
        ),
        Check(
            23,
            area,
            "A killed owner of a claim is taken over.",
            (pytest(f"{coalescing}test_a_killed_owner_is_taken_over"),),
        ),
        Check(
            24,
            area,
            "A stalled owner writes nothing late.",
            (pytest(f"{coalescing}test_a_stalled_owner_writes_nothing_late"),),
        ),
        Check(
            25,
            area,
            "What is asked makes a verdict's address, what is not asked does not; no failure is "
            "kept.",
            (pytest(f"{FAULT}test_verdict_identity.py"),),
        ),
    ]


def _crash() -> list[Check]:
    area = "Jobs, crashes, shutdown"
    return [
        Check(
            26,
            area,
            "Killed workers lose no job.",
            (
                pytest(
                    f"{FAULT}test_replays.py::test_a_hundred_killed_processes_lose_no_replay",
                    slow=True,
                    limit_s=1800,
                ),
            ),
        ),
        Check(
            27,
            area,
            "What a client saw is in the database after kill -9, 50 times under load.",
            (pytest(f"{FAULT}test_crash.py", slow=True, limit_s=1500),),
        ),
        Check(
            28,
            area,
            "The service recovers from a database that dies under load; nothing acknowledged is "
            "lost.",
            (pytest(f"{FAULT}test_postgres.py", slow=True, limit_s=600),),
        ),
        Check(
            29,
            area,
            "A worker that comes back too late is fenced off.",
            (pytest(f"{FAULT}test_replays.py::test_a_stalled_process_changes_nothing_late"),),
        ),
        Check(
            30,
            area,
            "A poisonous job is given up after five tries.",
            (
                pytest(
                    f"{FAULT}test_replays.py::test_a_group_that_fails_is_skipped_after_five_tries",
                    f"{FAULT}test_replays.py::test_a_group_that_ends_its_process_is_skipped_after_five_tries",
                    slow=True,
                    limit_s=600,
                ),
            ),
        ),
        Check(
            31,
            area,
            "A rolling restart is not noticed.",
            (
                pytest(
                    f"{FAULT}test_drain.py::test_a_rolling_restart_is_not_noticed",
                    slow=True,
                    limit_s=400,
                ),
            ),
        ),
        Check(
            32,
            area,
            "SIGTERM and SIGHUP turn readiness, finish what is in flight and end in time.",
            (
                pytest(
                    f"{FAULT}test_drain.py::test_what_is_in_flight_finishes",
                    f"{FAULT}test_drain.py::test_a_hung_judge_keeps_nobody",
                    f"{SERVER}cli/test_server_connections.py::test_a_hang_up_finishes_what_is_in_flight",
                    slow=True,
                ),
            ),
        ),
    ]


def _database() -> list[Check]:
    area = "Database"
    migrations = f"{FAULT}test_migrations.py::"
    return [
        Check(
            33,
            area,
            "Migrations lead from anywhere to the same tables, can be undone, take no lock "
            "without a bound on waiting for it, and pass squawk.",
            (
                pytest(
                    f"{migrations}test_the_tables_come_out_the_same_from_everywhere",
                    f"{migrations}test_every_step_can_be_undone_and_done_again",
                    f"{FAULT}test_migration_locks.py",
                    slow=True,
                    limit_s=600,
                ),
            ),
        ),
        Check(
            34,
            area,
            "A migration that cannot have its lock gives up; two migrators get along.",
            (
                pytest(
                    f"{migrations}test_a_table_in_use_is_not_waited_for_long",
                    f"{migrations}test_two_migrators_at_once_both_succeed",
                ),
            ),
        ),
        Check(
            35,
            area,
            "A score takes few statements, whatever its criteria, and is no slower at "
            "100,000 verdicts.",
            (pytest(f"{FAULT}test_queries.py", slow=True),),
        ),
    ]


def _security() -> list[Check]:
    area = "Security"
    return [
        Check(
            36,
            area,
            "Every route refuses every wrong key; another team's id is not there, and takes as "
            "long.",
            (
                pytest(
                    f"{API}test_teams.py",
                    f"{API}test_rubrics_isolation.py",
                    f"{API}test_secrets.py::test_anothers_rubric_and_none_take_the_same_time",
                    slow=True,
                    limit_s=600,
                ),
            ),
        ),
        Check(
            37,
            area,
            "Neither the database nor Redis holds a key.",
            (
                pytest(
                    f"{API}test_teams.py::test_the_database_holds_no_key",
                    f"{SERVER}cli/test_teams.py::TestCommands::test_the_service_does_not_start_where_it_could_not_guard",
                    f"{API}test_secrets.py::test_logs_figures_and_redis_hold_no_key_and_no_callers_word",
                ),
            ),
        ),
        Check(
            38,
            area,
            "No caller sends the service to an address.",
            not_applicable="no request holds a URL: the operator configures judges, "
            "callers name them",
        ),
        Check(
            39,
            area,
            "Secrets and callers' words show in no log, figure or error.",
            (
                pytest(
                    f"{API}test_secrets.py",
                    f"{SERVER}test_logs.py",
                    f"{SERVER}cli/test_server.py::test_secrets_show_nowhere",
                ),
            ),
        ),
        Check(
            40,
            area,
            "100 hostile texts in each text field come back unchanged or are refused, and "
            "change nothing else; no SQL is built from strings.",
            (
                pytest(
                    f"{API}test_hostile_texts.py",
                    f"{API}test_rubrics_search.py::test_hostile_questions",
                    slow=True,
                    limit_s=600,
                ),
                Command(("ruff", "check", "--select", "S608", "services"), 60, is_pytest=False),
            ),
        ),
        Check(
            41,
            area,
            "The containers are confined, run as nobody, and hold no secret that they do not need.",
            (
                pytest("tests/deployment/test_compose.py", f"{CLIENT}test_client.py"),
                pytest("tests/deployment/test_running_containers.py", slow=True, limit_s=2400),
            ),
        ),
    ]


def _injection() -> list[Check]:
    area = "Prompt injection"
    return [
        Check(
            42,
            area,
            "80 injections and 10,000 made-up texts stay inside their fence, and hidden "
            "characters are made visible.",
            (
                pytest(
                    f"{JUDGE}test_injection.py", f"{JUDGE}test_sanitise.py", slow=True, limit_s=600
                ),
            ),
        ),
        Check(
            43,
            area,
            "A canary catches the judge that says yes to everything, and it is counted by judge.",
            (
                pytest(
                    f"{JUDGE}test_canary.py",
                    f"{FAULT}test_judge_modes.py::test_a_canary_catches_the_judge_that_was_talked_over",
                ),
            ),
        ),
        Check(
            44,
            area,
            "A reply that is not exactly what was asked for scores nothing.",
            (
                pytest(
                    f"{SERVER}scoring/test_scores.py",
                    f"{JUDGE}test_replies.py",
                    limit_s=600,
                ),
            ),
        ),
        Check(
            45,
            area,
            "A hostile rollout changes nothing for its neighbours; a rubric that names an "
            "answer is refused, and honest words are not.",
            (
                pytest(
                    f"{SERVER}scoring/test_scores.py::test_a_hostile_neighbour_changes_nothing_in_rollout_mode",
                    f"{SERVER}scoring/test_scores.py::test_group_mode_is_one_blinded_call_undone_exactly",
                    f"{JUDGE}test_openai.py::test_a_fair_criterion_is_not_refused_for_a_word",
                    f"{JUDGE}test_injection.py",
                ),
            ),
        ),
        Check(
            46,
            area,
            "A reward is finite, within 0 and 1, and the weighted share of what is met.",
            (pytest("tests/server/domain/test_reward.py"),),
        ),
    ]


def _trainer() -> list[Check]:
    area = "Trainer"
    return [
        Check(
            47,
            area,
            "A run that is killed and resumed ends where an uninterrupted one does, to the bit.",
            (
                pytest(
                    f"{TRAIN}test_resume.py::test_killed_and_started_again", slow=True, limit_s=1500
                ),
            ),
        ),
        Check(
            48,
            area,
            "The same on a GPU.",
            not_applicable="these checks run without a GPU; on one, benchmarks/gpu/run.sh resumes "
            "a run and does not compare weights",
        ),
        Check(
            49,
            area,
            "A service that is away for a minute changes nothing.",
            (
                pytest(
                    f"{TRAIN}test_resume.py::test_a_service_that_is_away_for_a_while_changes_nothing",
                    f"{TRAIN}test_poisonous_reply.py",
                    slow=True,
                    limit_s=900,
                ),
            ),
        ),
        Check(
            50,
            area,
            "Losses agree with readable ones, in value and gradient, however rows are ordered or "
            "padded.",
            (pytest(f"{TRAIN}test_losses.py", f"{TRAIN}test_self_distillation.py", limit_s=600),),
        ),
        Check(
            51,
            area,
            "Equal rewards, an empty mask and gradients that are no numbers do no harm.",
            (
                pytest(
                    f"{TRAIN}test_losses.py::test_equal_rewards_teach_nothing",
                    f"{TRAIN}test_losses.py::test_masked_rows_and_an_empty_step_are_harmless",
                    f"{TRAIN}test_training.py::test_equal_rewards_are_trained_on_without_harm",
                    f"{TRAIN}test_training.py::test_gradients_that_are_no_numbers_are_never_stepped_on",
                ),
            ),
        ),
        Check(
            52,
            area,
            "Training on a rule judge raises the reward, shuffled rewards do not.",
            (
                pytest(
                    f"{TRAIN}test_training.py::test_a_run_changes_the_model_and_writes_its_steps"
                ),
            ),
            part="that a run learns is measured by `make demo-control` (benchmarks/results), "
            "not by a test",
        ),
        Check(
            53,
            area,
            "Micro-batches add up to the step.",
            (
                pytest(
                    f"{TRAIN}test_losses.py::test_micro_batches_add_up_to_the_step",
                    f"{TRAIN}test_self_distillation.py::test_micro_batches_add_up",
                ),
            ),
        ),
    ]


def _client() -> list[Check]:
    area = "Client"
    return [
        Check(
            54,
            area,
            "The client retries what may pass, under one key, and nothing else.",
            (pytest(f"{CLIENT}test_deadline.py", f"{CLIENT}test_answers.py"),),
            part="cases one by one, no table of 30 rows",
        ),
        Check(
            55,
            area,
            "Every score arrives through a bad network, and none is stored twice.",
            (
                pytest(
                    f"{FAULT}test_fakes.py",
                    f"{FAULT}test_drain.py::test_a_rolling_restart_is_not_noticed",
                ),
            ),
            part="no 1,000 scores through the fault proxy",
        ),
        Check(
            56,
            area,
            "The SDK pulls in neither torch nor the server, and is typed.",
            (
                pytest(
                    f"{CLIENT}test_client.py::test_the_sdk_pulls_in_neither_torch_nor_the_server"
                ),
                Command(("mypy",), 300, is_pytest=False),
            ),
            part="the time of its import is not measured, a user's snippet is not type-checked",
        ),
    ]


def _upkeep() -> list[Check]:
    area = "Upkeep"
    return [
        Check(
            57,
            area,
            "The fast tests pass in five random orders.",
            tuple(
                pytest(
                    "-n",
                    "3",
                    "--dist",
                    "loadfile",
                    "-m",
                    "not slow and not timed",
                    "--random-order-seed",
                    str(seed),
                    "--random-order",
                    limit_s=1800,
                )
                for seed in range(1, 6)
            ),
            part="five orders, not 20; the durations of make check and of CI have no bound here",
        ),
        Check(
            58,
            area,
            "Imports go one way, and each setting and each reason is in the documentation.",
            (pytest("tests/test_docs.py"), Command(("lint-imports",), 120, is_pytest=False)),
            part="no bound on coverage, no mutation score",
        ),
    ]


CHECKS = {
    check.number: check
    for part in (
        _api,
        _idempotency,
        _judge,
        _load,
        _cache,
        _crash,
        _database,
        _security,
        _injection,
        _trainer,
        _client,
        _upkeep,
    )
    for check in part()
}
"""Every check by its number."""
