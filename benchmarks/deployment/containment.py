"""Check how the containers are held: capabilities, users, secrets, keys and networks."""

from deployment.project import OVERRIDE, Run

HOLDERS = {
    "POSTGRES_PASSWORD": {"postgres", "migrate"},
    "POSTGRES_APP_PASSWORD": {"migrate", "trainer-key", "rubric"},
    "REDIS_PASSWORD": {"redis", "rubric"},
    "MARKSCHEME_API_KEY": {"rubric"},
    "MARKSCHEME_KEY_PEPPER": {"trainer-key", "rubric"},
}
"""The secrets of .env, and the services whose containers have each."""
CONNECT = """
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print(address)
    except OSError:
        pass
"""
"""Prints the addresses to which a connection succeeds."""


def confinement(run: Run) -> tuple[bool, str]:
    """How the engine holds each container of the project."""
    faults = []
    found = run.containers()
    for service, container in found.items():
        host = container["HostConfig"]
        held = {
            "read-only root": host["ReadonlyRootfs"] or service == "demo",
            "drops all capabilities": host["CapDrop"] == ["ALL"],
            "adds none": service == "postgres" or not host["CapAdd"],
            "no-new-privileges": "no-new-privileges:true" in host["SecurityOpt"]
            and not host["Privileged"],
            "bounded logs": {"max-size", "max-file"} <= set(host["LogConfig"]["Config"]),
        }
        faults += [f"{service}: {what}" for what, so in held.items() if not so]
    return not faults, f"not so: {faults}" if faults else ", ".join(sorted(found))


def processes(run: Run) -> tuple[bool, str]:
    """As whom the first process of each running container runs, and what it may do."""
    faults, users = [], []
    for service, container in sorted(run.containers().items()):
        if not container["State"]["Running"]:
            continue
        status = run.compose("exec", "-T", service, "cat", "/proc/1/status").stdout.splitlines()
        fields = {
            name: value.split() for name, _, value in (line.partition(":") for line in status)
        }
        users.append(f"{service} {fields['Uid'][0]}")
        held = {
            "root": "0" in fields["Uid"],
            "capabilities": int(fields["CapEff"][0], 16) != 0,
            "can gain privileges": fields["NoNewPrivs"] != ["1"],
            "writes to its root": run.compose(
                "exec", "-T", service, "sh", "-c", "echo > /probe", check=False
            ).returncode
            == 0,
        }
        faults += [f"{service}: {what}" for what, so in held.items() if so]
    return not faults, f"{faults}" if faults else "users: " + ", ".join(users)


def secrets_in_place(run: Run) -> tuple[bool, str]:
    """Which containers have each secret, as far as the engine shows it."""
    wrong = [
        f"{name} in {', '.join(sorted(found))}"
        for name, holders in HOLDERS.items()
        if (found := run.holders(run.secrets[name])) != holders
    ]
    return not wrong, (
        "; ".join(wrong)
        or f"{len(HOLDERS)} secrets, searched for in all that the engine knows of a container"
    )


def trainers_key(run: Run) -> None:
    """Check what the trainer's key can do."""
    key = run.compose("exec", "-T", "demo", "cat", "/keys/trainer").stdout.strip()
    stored = run.query("SELECT team || ': ' || (scopes::text) FROM api_keys")
    others = (
        ("GET", "/v1/rubrics"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/teams"),
    )
    codes = {f"{method} {path}": run.call(method, path, key).status_code for method, path in others}
    run.expect(
        "the trainer has a key of its own, to score and to induce and nothing else",
        stored == 'trainer: ["score", "induce"]' and set(codes.values()) == {403},
        f"{stored}; " + ", ".join(f"{call} {code}" for call, code in codes.items()),
    )


def reach(run: Run) -> None:
    """Check which containers a trainer can connect to, by name and by address.

    The service makes the same attempts and succeeds, which shows that they can succeed.
    """
    what = "a trainer reaches the service, and neither PostgreSQL nor Redis"
    if str(OVERRIDE) in run.files:
        run.figure(what, "not tried: on this engine all containers share the host's network")
        return
    data = ["postgres:5432", "redis:6379"]
    for service, port in (("postgres", 5432), ("redis", 6379)):
        networks = run.containers()[service]["NetworkSettings"]["Networks"].values()
        data += [f"{network['IPAddress']}:{port}" for network in networks]
    reached = {
        service: run.python(service, CONNECT, "rubric:8321", *data).split()
        for service in ("demo", "rubric")
    }
    run.expect(
        what,
        reached["demo"] == ["rubric:8321"] and reached["rubric"] == ["rubric:8321", *data],
        f"of {', '.join(data)} the service reaches {len(reached['rubric']) - 1}, "
        f"the trainer {len(reached['demo']) - 1}",
    )
