"""A little language over a cluster of manual hosts; every command answers with what it changed.

cluster N [voters=M]        hosts 1..N, group born on 1..M
elect N | tick COUNT | propose N request=text... | read N id
cut N | join N | kill N [power-cut] | start N
create N | remove N | change N request kind=node... | transfer N TO | compact N INDEX
status
"""

from collections.abc import Sequence

import flotta_native as native
from native_cluster import GROUP, Cluster, replica

ROLES = {
    native.ROLE_FOLLOWER: "follower",
    native.ROLE_CANDIDATE: "candidate",
    native.ROLE_LEADER: "LEADER",
    native.ROLE_PRE_CANDIDATE: "pre-candidate",
}
REASONS = {
    getattr(native, name): name.removeprefix("DROP_").lower().replace("_", " ")
    for name in native.__all__
    if name.startswith("DROP_")
}


class Script:
    def __init__(self) -> None:
        self.cluster = Cluster(1)
        self.told: dict[tuple[int, str], int] = {}

    def run(self, lines: Sequence[str]) -> list[str]:
        said = []
        for line in lines:
            command, *words = line.split()
            answer = getattr(self, f"do_{command}")(*words)
            said += answer or self.news() or ["ok"]
        return said

    def news(self) -> list[str]:
        """What the nodes saw since they were last asked."""
        said = []
        for number, node in self.cluster.nodes.items():
            said += [self.applied(number, item) for item in self.fresh(number, "applies", node.applies)]
            for _, read, index in self.fresh(number, "reads", node.reads):
                said.append(f"{number}: read {read} may be answered at {index}")
            for _, request, reason, leader in self.fresh(number, "dropped", node.dropped):
                hint = f", ask {leader >> 32}" if leader else ""
                said.append(f"{number}: {request} dropped: {REASONS[reason]}{hint}")
            for _, name, about, text in self.fresh(number, "events", node.events):
                said.append(f"{number}: {name} {self.short(about)} {text}".rstrip())
        return self.together(said)

    def fresh(self, number: int, kind: str, items: list[tuple]) -> list[tuple]:
        seen = self.told.get((number, kind), 0)
        self.told[number, kind] = len(items)
        return items[seen:]

    @staticmethod
    def together(said: list[str]) -> list[str]:
        """The same news of several nodes on one line."""
        by_text: dict[str, list[str]] = {}
        for line in said:
            number, text = line.split(": ", 1)
            by_text.setdefault(text, []).append(number)
        return [f"{','.join(dict.fromkeys(numbers))}: {text}" for text, numbers in by_text.items()]

    @staticmethod
    def short(number: int) -> str:
        return str(number) if number < 1 << 32 else f"replica {number >> 32}/{number & 0xFFFFFFFF}"

    def members(self, members: native.Membership) -> str:
        said = "voters " + ",".join(str(one >> 32) for one in members.voters)
        if members.voters_outgoing:
            said += " leaving " + ",".join(str(one >> 32) for one in members.voters_outgoing)
        if members.learners:
            said += " learners " + ",".join(str(one >> 32) for one in members.learners)
        return said

    def applied(self, number: int, item: tuple) -> str:
        _, index, term, request, kind, payload = item
        if kind == native.APPLY_NORMAL:
            what = repr(payload.decode())
        elif kind == native.APPLY_EMPTY:
            what = "a leader's first entry"
        elif kind == native.APPLY_CONF:
            what = self.members(payload)
        else:
            what = f"snapshot {payload[1].decode()}, {self.members(payload[0])}"
        return f"{number}: {index}.{term} {what}" + (f" (request {request})" if request else "")

    def do_cluster(self, nodes: str, voters: str = "") -> list[str]:
        self.cluster = Cluster(int(nodes), int(voters.removeprefix("voters=")) if voters else None)
        self.told.clear()
        return []

    def do_elect(self, number: str) -> list[str]:
        self.cluster.host(int(number)).campaign(GROUP)
        self.cluster.settle()
        return []

    def do_tick(self, count: str) -> list[str]:
        self.cluster.tick(int(count))
        return []

    def do_propose(self, number: str, *proposals: str) -> list[str]:
        pairs = (proposal.split("=") for proposal in proposals)
        self.cluster.propose(int(number), *((int(request), text.encode()) for request, text in pairs))
        return []

    def do_read(self, number: str, read: str) -> list[str]:
        self.cluster.host(int(number)).read_index_many([(GROUP, int(read))])
        self.cluster.settle()
        return []

    def do_cut(self, number: str) -> list[str]:
        self.cluster.cut.add(int(number))
        return []

    def do_join(self, number: str) -> list[str]:
        self.cluster.cut.discard(int(number))
        return []

    def do_kill(self, number: str, how: str = "") -> list[str]:
        self.cluster.kill(int(number), power_cut=how == "power-cut")
        return []

    def do_start(self, number: str) -> list[str]:
        try:
            self.cluster.start(int(number))
        except (native.LogCorruption, ValueError) as refused:
            return [f"{number}: {type(refused).__name__}: {refused}"]
        if pending := self.cluster.host(int(number)).pending_install(GROUP):
            index, term, members, manifest = pending
            return [f"{number}: to install: {manifest.decode()} at {index}.{term}, {self.members(members)}"]
        return []

    def do_forget(self, number: str, index: str) -> list[str]:
        """The state machine's durable applied index falls back, as after a crash before its flush."""
        self.cluster.nodes[int(number)].applied[GROUP] = int(index)
        return []

    def do_create(self, number: str) -> list[str]:
        try:
            self.cluster.host(int(number)).create_group(GROUP, replica(int(number)), [])
        except ValueError as refused:
            return [f"{number}: refused: {refused}"]
        self.cluster.settle()
        return []

    def do_remove(self, number: str) -> list[str]:
        self.cluster.host(int(number)).remove_group(GROUP)
        self.cluster.settle()
        return []

    def do_change(self, number: str, request: str, *changes: str) -> list[str]:
        pairs = [change.split("=") for change in changes]
        parsed = [(kind, replica(int(node))) for kind, node in pairs]
        self.cluster.host(int(number)).change_membership(GROUP, int(request), parsed)  # type: ignore[arg-type]
        self.cluster.settle()
        return []

    def do_transfer(self, number: str, to: str) -> list[str]:
        self.cluster.host(int(number)).transfer_leader(GROUP, replica(int(to)))
        self.cluster.settle()
        return []

    def do_compact(self, number: str, index: str) -> list[str]:
        self.cluster.host(int(number)).compact(GROUP, int(index))
        self.cluster.settle()
        return []

    def do_flip(self, number: str, offset: str) -> list[str]:
        disk = self.cluster.nodes[int(number)].disk
        disk.flip_bit(min(disk.files()), int(offset))
        return []

    def do_status(self) -> list[str]:
        said = []
        for number, node in self.cluster.nodes.items():
            for status in node.host.status([GROUP]) if node.up else []:
                leader = f" of {status.leader >> 32}" if status.leader and status.leader >> 32 != number else ""
                log = f"log {status.first_index}..{status.last_index}"
                where = f"term {status.term}, committed {status.committed}, {log}"
                said.append(f"{number}: {ROLES[status.role]}{leader}, {where}, {self.members(status.membership)}")
        return said or ["nobody"]
