"""Settings and the first start: who may become a member, by pure rules."""

from __future__ import annotations

import pytest
from flotta_consensus.identity import Identity
from flotta_consensus.peer_identity import Answer
from flotta_coordinator.formation import agree, check_recalled
from flotta_coordinator.group import Coordinators
from flotta_coordinator.settings import CoordinatorSettings
from flotta_runtime.errors import StartupError
from flotta_runtime.settings import SettingsError, load_settings

PEERS = "c1=h:9001,c2=h:9002,c3=h:9003"


def load(*argv: str) -> CoordinatorSettings:
    return load_settings(CoordinatorSettings, argv, {"KVDB_INTERNAL_GRPC_TOKEN": "t"})


def test_the_port_of_its_own_address_is_bound() -> None:
    assert load("--node-id", "c2", "--peers", PEERS).listen == "0.0.0.0:9002"
    assert load("--node-id", "c2", "--peers", PEERS, "--listen", "127.0.0.1:0").listen == "127.0.0.1:0"
    assert load().listen == "0.0.0.0:9001"
    assert load().coordinators().replicas == (1 << 32 | 1,)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("--peers", "c1=h:1,c2=h:2"), "there must be 1, 3 or 5"),
        (("--peers", "c1=h:1,c2=h:2,c3=h:3", "--node-id", "c4"), "node_id c4 is not among the peers"),
        (("--peers", "c1=h:1,c1=h:2,c3=h:3"), "names one of them twice"),
        (("--peers", "coordinator-1=h"), "must be host:port"),
        (("--peers", "coordinator-1=h:99999"), "bad port"),
        (("--peers", "coordinator-1"), "must be id=host:port"),
        (("--suspect-after-ms", "10000"), "must be less than dead_after_ms"),
        (("--liveness-check-ms", "2000"), "must be at most half of suspect_after_ms"),
        (("--raft-heartbeat-ms", "900"), "must be at most a third of election_timeout_ms"),
    ],
)
def test_wrong_settings_are_one_sentence(argv: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        load(*argv)
    assert "\n" not in str(caught.value)


MEMBERS = (("c1", "h:1"), ("c2", "h:2"), ("c3", "h:3"))


def answer(name: str, *, store: str = "", cluster: str = "", knows: str = "") -> Answer:
    return Answer(Identity(name, store or f"s-{name}", cluster, 0), knows)


def ask(name: str, answers: dict[int, Answer]) -> str | None:
    return agree(Identity(name, f"s-{name}"), Coordinators(MEMBERS, name), answers, lambda: "fresh")


def test_the_first_of_all_new_members_names_the_cluster() -> None:
    assert ask("c1", {2: answer("c2"), 3: answer("c3")}) == "fresh"
    assert ask("c2", {1: answer("c1"), 3: answer("c3")}) is None
    assert ask("c2", {1: answer("c1", cluster="fresh"), 3: answer("c3")}) == "fresh"


def test_a_name_once_given_is_taken_over_by_the_first_too() -> None:
    assert ask("c1", {2: answer("c2", cluster="x"), 3: answer("c3")}) == "x"
    assert ask("c1", {2: answer("c2", cluster="x", knows="s-c1"), 3: answer("c3")}) == "x"


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({2: answer("c2", cluster="x", knows="old"), 3: answer("c3")}, "lost its directory cannot come back"),
        ({2: answer("c2", cluster="x"), 3: answer("c3", cluster="y")}, "belong to different clusters: x, y"),
        ({2: answer("c9"), 3: answer("c3")}, "at h:2 answers c9, where peers says c2"),
        ({2: answer("c2", store="s-c1"), 3: answer("c3")}, "runs with a copy of this data directory"),
    ],
)
def test_impostors_and_strangers_are_refused(answers: dict[int, Answer], sentence: str) -> None:
    with pytest.raises(StartupError, match=sentence):
        ask("c1", answers)


MINE = Identity("c1", "s-c1", "ours", 1)


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {2: answer("c2", cluster="ours", knows="s-c1")},
        {2: answer("c2", cluster="ours"), 3: answer("c3")},
        {2: answer("c2"), 3: answer("c3")},
        {2: answer("c2", cluster="foreign"), 3: answer("c3", cluster="ours", knows="s-c1")},
        {2: answer("c2", cluster="ours", knows="s-c1"), 3: answer("c3", cluster="ours", knows="another")},
    ],
)
def test_a_known_directory_starts_while_somebody_knows_it_or_nobody_objects(answers: dict[int, Answer]) -> None:
    check_recalled(MINE, answers)


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (
            {2: answer("c2", cluster="foreign")},
            "c2 belongs to cluster foreign, the data directory of c1 to cluster ours",
        ),
        ({2: answer("c2", cluster="foreign"), 3: answer("c3")}, "c2 belongs to cluster foreign"),
        ({3: answer("c3", cluster="ours", knows="another")}, "c3 knows c1 with another data directory"),
    ],
)
def test_a_known_directory_that_all_others_object_to_is_refused(answers: dict[int, Answer], sentence: str) -> None:
    with pytest.raises(StartupError, match=sentence):
        check_recalled(MINE, answers)
