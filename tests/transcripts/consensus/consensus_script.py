"""A little language for stories of replicated groups: production drivers over manual hosts, step by step.

A case is blocks of commands, a line of dashes, and what they answered. Time stands still unless `tick` moves it,
frames wait in their link until `deliver` or `settle`, and nothing happens that no command asked for.

    nodes 3 [voters=1,2,3]       group 1, with a birth replica on each voter's node
    campaign N                   tick N [COUNT]          settle   pass   turn N
    propose N KEY VALUE          read N KEY              answers come when they come, under a number
    change N +voter:M +learner:M -M ...                  transfer N M
    cut A B / heal               links between A and B lose everything
    drop A B                     lose what is under way from A to B
    crash N [power]              start N                 place N (an empty replica of a new id)
    remove N                     flush N                 status / log N / state N
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import flotta_native
from flotta_consensus.api import Committed, Members, Outcome, ReadOutcome, ReadReady, Rejected, node_of, replica_id
from flotta_consensus.core.compaction import LogPolicy
from flotta_consensus.core.driver import Driver, DriverLimits
from flotta_consensus.core.effects import Effects, SendSnapshot
from flotta_consensus.core.host import HostCodes, MembershipChange
from flotta_consensus.core.manifest import Manifest
from flotta_embedded.machine import Machine
from flotta_embedded.registry import Registry
from flotta_embedded.simulated import SimEngine
from flotta_embedded.txn import Txn

GROUP = 1
ROLES = ("follower", "candidate", "leader", "pre-candidate")
ROUNDS_MAX = 200


def new_registry() -> Registry:
    registry = Registry()

    @registry.command("set")
    def set_row(txn: Txn, key: bytes, value: bytes) -> int:
        txn.put(key, value)
        return txn.revision

    return registry


class Node:
    """One process: what survives it, and its driver while it lives."""

    def __init__(self, script: Script, number: int) -> None:
        self.script = script
        self.number = number
        self.replica = 0
        self.voters: tuple[int, ...] = ()
        self.engine = SimEngine(number)
        self.disk = flotta_native.SimDisk(number)
        self.files: dict[str, bytes] = {}
        self.registry = new_registry()
        self.host: flotta_native.RaftHost | None = None
        self.driver: Driver | None = None
        self.lives = 0
        self.role = ""

    def say(self, what: str) -> None:
        self.script.say(f"n{self.number} {what}")

    def name_of(self) -> str:
        return f"r{self.replica:x}"

    def start(self) -> None:
        held = self.name_of() in {space.partition("@")[0] for space in self.engine.spaces()}
        machine = Machine.open(self.engine, self.name_of(), self.registry) if held else None
        self.lives += 1
        self.host = flotta_native.RaftHost(
            self.number,
            "raft",
            applied={GROUP: machine.applied_index()} if machine else {},
            mode="manual",
            disk=self.disk,
            seed=self.number * 100 + self.lives,
            snapshot_timeout_ticks=30,
        )
        policy = LogPolicy(bytes_max=1 << 20, entries_max=8, reserve_entries=2, kept_bytes_max=0)
        self.driver = Driver(self.host, HostCodes.of(flotta_native), send=self._send, limits=DriverLimits(log=policy))
        if GROUP in self.host.groups() and machine is not None:
            self.driver.open_group(GROUP, machine)
        elif self.replica:
            self._create(machine)

    def _create(self, machine: Machine | None) -> None:
        if machine is None and self.voters:
            machine = Machine.create(
                self.engine, self.name_of(), self.registry, members=Members(tuple(sorted(self.voters)))
            )
        elif machine is None:
            machine = Machine.create_empty(self.engine, self.name_of(), self.registry)
        self.live().create_group(GROUP, self.replica, self.voters, machine, lambda: self.say("holds the group"))

    def place(self, replica: int, voters: tuple[int, ...]) -> None:
        self.replica, self.voters = replica, voters
        self._create(None)

    def live(self) -> Driver:
        if self.driver is None:
            raise ValueError(f"n{self.number} is down")
        return self.driver

    def crash(self, power: bool) -> None:
        self.host = self.driver = None
        self.engine.crash()
        if power:
            self.disk.crash()

    def _send(self, to_node: int, frame: bytes) -> None:
        self.script.under_way.append((self.number, to_node, lambda: self.script.nodes[to_node].live().receive(frame)))

    def turn(self) -> bool:
        """True if anything happened."""
        if self.driver is None or self.host is None:
            return False
        self.driver.submit(self.script.now_ms)
        rounds = self.host.drive()
        effects = self.driver.turn(self.script.now_ms)
        self._carry_out(effects)
        return rounds > 0 or bool(effects)

    def _carry_out(self, effects: Effects) -> None:
        driver = self.live()
        for role in effects.roles:
            leader = f"n{node_of(role.leader)}" if role.leader else "nobody"
            now = f"leads in term {role.term}" if role.is_leader else f"follows {leader} in term {role.term}"
            if now != self.role:
                self.role = now
                self.say(now)
        for event in effects.events:
            if event.name not in ("created",):
                self.say(f"event {event.name} {event.number}: {event.text}".rstrip(": "))
        for flush in effects.flushes:
            driver.flushed(flush.group, flush.run())
        for build in effects.builds:
            content = b"".join(build.source.chunks(1 << 16))
            build.source.close()
            digest = hashlib.sha256(content).digest()
            name = f"{build.group}-{build.index}"
            self.files[name] = content
            self.say(f"built a snapshot at {build.index}")
            driver.snapshot_built(build.group, Manifest(build.group, build.index, len(content), digest, name))
        for offer in effects.sends:
            self._ship(offer)
        for install in effects.installs:
            sink = install.machine.restore()
            sink.write(self.files[f"in-{install.index}"])
            driver.install(install.group, sink)
            self.say(f"installed the snapshot at {install.index}")
        if effects.checks and self.host is not None:
            driver.checked(effects.checks, self.host.status(effects.checks))

    def _ship(self, offer: SendSnapshot) -> None:
        content = self.files[Manifest.decode(offer.manifest).name]
        target = self.script.nodes[offer.node_num]

        def arrive() -> None:
            target.files[f"in-{offer.index}"] = content
            target.live().receive(offer.message)
            self.live().snapshot_sent(offer, True)

        self.script.under_way.append((self.number, offer.node_num, arrive))


class Script:
    """Runs blocks; what happens is collected in `said`."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.under_way: list[tuple[int, int, Callable[[], None]]] = []
        self.cuts: set[tuple[int, int]] = set()
        self.now_ms = 0
        self._said: list[str] = []
        self._requests = 0
        self._sequence = 10

    def say(self, what: str) -> None:
        self._said.append(what)

    def run(self, lines: Sequence[str]) -> tuple[str, ...]:
        self._said = []
        for line in lines:
            words = line.split()
            if not words or line.startswith("#"):
                continue
            command: Callable[[list[str]], None] | None = getattr(self, f"do_{words[0]}", None)
            if command is None:
                raise ValueError(f"unknown command: {line}")
            try:
                command(words[1:])
            except ValueError as error:
                self.say(f"refused: {error}")
        return tuple(self._said) or ("ok",)

    # -- commands -----------------------------------------------------------------------------------------------

    def do_nodes(self, words: list[str]) -> None:
        count = int(words[0])
        chosen = words[1].removeprefix("voters=") if len(words) > 1 else ",".join(map(str, range(1, count + 1)))
        numbers = [int(word) for word in chosen.split(",")]
        voters = tuple(replica_id(number, 1) for number in numbers)
        for number in range(1, count + 1):
            node = self.nodes[number] = Node(self, number)
            if number in numbers:
                node.replica, node.voters = replica_id(number, 1), voters
            node.start()
            node.turn()

    def do_tick(self, words: list[str]) -> None:
        ticks = int(words[1]) if len(words) > 1 else 1
        for _ in range(ticks):
            self.now_ms += 100
            host = self.nodes[int(words[0])].host
            if host is not None:
                host.tick()
            self.nodes[int(words[0])].turn()

    def do_settle(self, words: list[str]) -> None:
        """Turns and deliveries until nothing happens any more."""
        for _ in range(ROUNDS_MAX):
            worked = [node.turn() for _, node in sorted(self.nodes.items())]
            if not self._deliver() and not any(worked):
                return
        self.say(f"not quiet after {ROUNDS_MAX} rounds")

    def do_pass(self, words: list[str]) -> None:
        """Everybody takes one turn, and then what is under way arrives."""
        for _, node in sorted(self.nodes.items()):
            node.turn()
        self._deliver()

    def _deliver(self) -> int:
        packets, self.under_way = self.under_way, []
        for source, target, arrive in packets:
            if (source, target) not in self.cuts and self.nodes[target].driver is not None:
                arrive()
        return len(packets)

    def do_turn(self, words: list[str]) -> None:
        self._node(words).turn()

    def do_campaign(self, words: list[str]) -> None:
        self._node(words).live().campaign(GROUP)

    def do_propose(self, words: list[str]) -> None:
        node, number = self._node(words), self._number()
        payload = node.registry.call("set", words[1].encode(), words[2].encode(), stamp_ms=self.now_ms)

        def done(outcome: Outcome) -> None:
            self.say(f"#{number} {words[1]}={words[2]} {told(outcome)}")

        node.live().propose(GROUP, payload, done, self.now_ms + 10_000)

    def do_read(self, words: list[str]) -> None:
        node, number = self._node(words), self._number()

        def done(outcome: ReadOutcome) -> None:
            if isinstance(outcome, ReadReady):
                found = self._machine(node).view().get(b"d" + words[1].encode())
                self.say(f"#{number} read {words[1]}: {(found or b'nothing').decode()} at {outcome.index}")
            else:
                self.say(f"#{number} read {words[1]}: {told(outcome)}")

        node.live().read_barrier(GROUP, done, self.now_ms + 10_000)

    def do_change(self, words: list[str]) -> None:
        node, number = self._node(words), self._number()
        changes = [self._change(word) for word in words[1:]]
        node.live().change_membership(
            GROUP, changes, lambda outcome: self.say(f"#{number} change {told(outcome)}"), self.now_ms + 10_000
        )

    def _change(self, word: str) -> MembershipChange:
        if word.startswith("-"):
            return "remove", self._replica(int(word[1:]))
        kind, _, target = word.removeprefix("+").partition(":")
        if kind == "voter":
            return "voter", self._replica(int(target))
        if kind == "learner":
            return "learner", self._replica(int(target))
        raise ValueError(f"a change is +voter:N, +learner:N or -N, not {word}")

    def do_transfer(self, words: list[str]) -> None:
        self._node(words).live().transfer_leader(GROUP, self._replica(int(words[1])))

    def do_cut(self, words: list[str]) -> None:
        source, target = int(words[0]), int(words[1])
        self.cuts |= {(source, target), (target, source)}

    def do_heal(self, words: list[str]) -> None:
        self.cuts.clear()

    def do_drop(self, words: list[str]) -> None:
        link = (int(words[0]), int(words[1]))
        lost = [packet for packet in self.under_way if packet[:2] == link]
        self.under_way = [packet for packet in self.under_way if packet[:2] != link]
        self.say("something was lost" if lost else "nothing was under way")

    def do_crash(self, words: list[str]) -> None:
        self._node(words).crash(power="power" in words)

    def do_start(self, words: list[str]) -> None:
        node = self._node(words)
        node.start()
        node.turn()

    def do_place(self, words: list[str]) -> None:
        node = self._node(words)
        self._sequence += 1
        node.place(replica_id(node.number, self._sequence), ())
        node.turn()

    def do_remove(self, words: list[str]) -> None:
        node = self._node(words)
        node.live().remove_group(GROUP, lambda: node.say("forgot the group"))
        node.turn()

    def do_flush(self, words: list[str]) -> None:
        machine = self._machine(self._node(words))
        self.say(f"n{words[0]} is durable to {machine.flush()()}")

    def do_status(self, words: list[str]) -> None:
        for number, node in sorted(self.nodes.items()):
            found = node.host.status([GROUP]) if node.host is not None and GROUP in node.host.groups() else []
            if not found:
                self.say(f"n{number} {'has no replica' if node.host is not None else 'is down'}")
            for status in found:
                leader = f"n{node_of(status.leader)}" if status.leader else "nobody"
                self.say(
                    f"n{number} {ROLES[status.role]} term {status.term} leader {leader} committed {status.committed} "
                    f"log {status.first_index}..{status.last_index} {self._members(self._machine(node).members())}"
                )

    def do_log(self, words: list[str]) -> None:
        node = self._node(words)
        if node.host is None:
            raise ValueError(f"n{words[0]} is down")
        (status,) = node.host.status([GROUP])
        kinds = ("command", "empty", "membership")
        for index, term, kind, _ in node.host.log_entries(GROUP, status.first_index, status.last_index + 1):
            self.say(f"{index} term {term} {kinds[kind]}")

    def do_state(self, words: list[str]) -> None:
        machine = self._machine(self._node(words))
        rows = [f"{key[1:].decode()}={value.decode()}" for key, value in machine.view().scan(b"d", b"e")]
        self.say(f"n{words[0]} at {machine.applied_index()}: {' '.join(rows) or 'nothing'}")

    # -- helpers ------------------------------------------------------------------------------------------------

    def _node(self, words: list[str]) -> Node:
        return self.nodes[int(words[0])]

    def _number(self) -> int:
        self._requests += 1
        return self._requests

    def _replica(self, node: int) -> int:
        return self.nodes[node].replica

    @staticmethod
    def _machine(node: Node) -> Machine:
        machine = node.live().machine(GROUP)
        if not isinstance(machine, Machine):
            raise TypeError("every machine of a story is an embedded one")
        return machine

    @staticmethod
    def _members(members: Members) -> str:
        def nodes(replicas: Sequence[int]) -> str:
            return ",".join(f"n{node_of(replica)}" for replica in replicas)

        parts = [f"voters {nodes(members.voters)}" if members.voters else "no members"]
        parts += [f"learners {nodes(members.learners)}"] if members.learners else []
        parts += [f"outgoing {nodes(members.outgoing)}"] if members.outgoing else []
        return " ".join(parts)


def told(outcome: Outcome | ReadOutcome) -> str:
    if isinstance(outcome, Committed):
        shown = Script._members(outcome.result) if isinstance(outcome.result, Members) else f"-> {outcome.result}"
        return f"committed at {outcome.index} {shown}"
    if isinstance(outcome, Rejected):
        return f"rejected: {outcome.reason.value}" + (f", try n{node_of(outcome.leader)}" if outcome.leader else "")
    if isinstance(outcome, ReadReady):
        return f"ready at {outcome.index}"
    return f"unknown: {outcome.reason}"
