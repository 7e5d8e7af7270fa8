"""The native half: one Raft host per process, holding every group of the process over one durable log.

Every call takes and returns batches and lets go of the GIL. Ids are unsigned 64-bit integers.
A replica id is `node_num << 32 | sequence` and is never used twice, so messages for all replicas of one
node travel in one frame to that node.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, final

__all__ = [
    "APPLY_CONF",
    "APPLY_EMPTY",
    "APPLY_NORMAL",
    "APPLY_SNAPSHOT",
    "DROP_CONF_PENDING",
    "DROP_INVALID",
    "DROP_LOST",
    "DROP_NOT_LEADER",
    "DROP_NO_LEADER",
    "DROP_OVERLOADED",
    "DROP_UNKNOWN_GROUP",
    "EVENT_CANCELLED",
    "EVENT_DRAINED",
    "EVENT_HALF_CLOSE",
    "EVENT_MESSAGE",
    "EVENT_OPEN",
    "FAILPOINTS",
    "LINK_DOWN",
    "LINK_FRAME",
    "LINK_HELLO",
    "LINK_NOT_SPOKEN",
    "LINK_REFUSED",
    "LINK_UP",
    "ROLE_CANDIDATE",
    "ROLE_FOLLOWER",
    "ROLE_LEADER",
    "ROLE_PRE_CANDIDATE",
    "TIME_BOUNDS_US",
    "Batch",
    "ClientTls",
    "FailpointReached",
    "GroupStatus",
    "HostFailed",
    "LinkHub",
    "LinkStats",
    "LogCorruption",
    "LogStats",
    "Membership",
    "PutRun",
    "RaftHost",
    "RpcPeer",
    "RpcServer",
    "RpcStats",
    "ServerTls",
    "SimDisk",
    "__version__",
    "key_hashes",
]
__version__: Final[str]

# Kinds of `Batch.applies`.
APPLY_NORMAL: Final[int]  # payload: the proposed bytes
APPLY_EMPTY: Final[int]  # payload: b""; a new leader's first entry
APPLY_CONF: Final[int]  # payload: Membership after the change
APPLY_SNAPSHOT: Final[int]  # payload: (Membership, manifest bytes); replaces all earlier state

# Reasons in `Batch.dropped`: the proposal or read certainly had no effect.
DROP_NOT_LEADER: Final[int]
DROP_OVERLOADED: Final[int]  # bounded queues or the group's uncommitted bytes are full
DROP_UNKNOWN_GROUP: Final[int]
DROP_CONF_PENDING: Final[int]  # another membership change is not applied yet
DROP_LOST: Final[int]  # another entry was committed at the proposal's index
DROP_NO_LEADER: Final[int]  # a read before the term's first commit, or without a leader
DROP_INVALID: Final[int]  # e.g. a membership change that Raft refuses

# Roles in `Batch.roles` and `GroupStatus`.
ROLE_FOLLOWER: Final[int]
ROLE_CANDIDATE: Final[int]
ROLE_LEADER: Final[int]
TIME_BOUNDS_US: Final[tuple[int, ...]]
ROLE_PRE_CANDIDATE: Final[int]

def key_hashes(keys: Sequence[bytes]) -> list[int]:
    """KvDB's hash of each key: signed 32 bits, as Java's `Arrays.hashCode(byte[])`; 0 for an empty key."""

@final
class PutRun:
    """Consecutive log entries of one shard that all are plain puts: `kv.write@1` with a key, a value and the shard's
    epoch, and nothing else. Folded to a row for each key, as applying them one by one would leave it."""

    @staticmethod
    def of(entries: Sequence[bytes], epoch: int, now_ms: int) -> PutRun | None:
        """`now_ms`: the group time before them. None if one of them is anything else, or malformed."""
    @property
    def now_ms(self) -> int:
        """The group time after them."""
    def keys(self, prefix: bytes) -> list[bytes]:
        """The keys, each once and behind `prefix`, in the order of their first writes."""
    def rows(self, before: Sequence[bytes | None], first_revision: int) -> list[bytes] | None:
        """For each of the keys the row to write. `before`: the rows that are there; `first_revision`: of the first
        entry. None if one of these expires or has another format. ValueError if they are not as many as the keys."""

class LogCorruption(Exception):
    """The log is damaged before its end. The text names file and offset. Never raised for a torn tail."""

class HostFailed(Exception):
    """The host met a failed fsync, a panic or a broken invariant and is gone; the process must end."""

class FailpointReached(Exception):
    """Manual mode: an armed failpoint was reached; the simulated process is dead from here on."""

@final
class Membership:
    """Equal by value; the lists are sorted. `voters_outgoing` is not empty while a joint change is under way."""

    def __new__(
        cls, voters: Sequence[int] = ..., learners: Sequence[int] = ..., voters_outgoing: Sequence[int] = ...
    ) -> Membership: ...
    @property
    def voters(self) -> list[int]: ...
    @property
    def learners(self) -> list[int]: ...
    @property
    def voters_outgoing(self) -> list[int]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...

@final
class GroupStatus:
    group: int
    replica: int
    role: int
    term: int
    vote: int
    leader: int  # replica id, 0: none known
    committed: int
    delivered: int  # last index handed out in `Batch.applies`
    first_index: int
    last_index: int
    last_term: int  # of the entry there
    log_bytes: int
    membership: Membership
    matched: dict[int, int]  # leader only: replica -> index known to be durable there
    pending_snapshot: dict[int, int]  # leader only: replica -> index of the snapshot on its way
    recent_active: dict[int, bool]  # leader only

@final
class LogStats:
    frames: int
    syncs: int
    bytes: int
    segments: int
    rotations: int
    removed: int
    rewritten_entries: int
    wakes: int  # times the eventfd of the host was written

@final
class Batch:
    """Everything that happened since the last poll. Items of one group are in order."""

    # (node_num, frame): to be sent as they are; frames to one node must keep their order, may be lost.
    messages: list[tuple[int, bytes]]
    # (node_num, group, to_replica, from_replica, index, term, manifest, message): the application streams the
    # snapshot named by the manifest, the receiver makes it durable, and only then `step`s `message`.
    snapshot_messages: list[tuple[int, int, int, int, int, int, bytes, bytes]]
    # (group, index, term, request_id, kind, payload): request_id is 0 unless this host incarnation proposed it.
    applies: list[tuple[int, int, int, int, int, bytes | Membership | tuple[Membership, bytes]]]
    # (group, role, term, leader_replica)
    roles: list[tuple[int, int, int, int]]
    # (group, read_id, index): linearizable once the state machine has applied `index`.
    reads: list[tuple[int, int, int]]
    # (group, request_or_read_id, reason, leader_replica or 0)
    dropped: list[tuple[int, int, int, int]]
    # groups whose leader needs a snapshot at or above the index: (group, minimum_index, to_replica)
    snapshots_wanted: list[tuple[int, int, int]]
    # (group, index): a cold group pins the log; flush its state and `compact` it.
    compactions_wanted: list[tuple[int, int]]
    # (group, name, number, text); number is
    #   the replica: created, removed, seized; transfer_refused (the one to take over);
    #     unknown_group, wrong_replica, bad_message (the sending one; told once a poll)
    #   an index: snapshot_stale (a useful snapshot is at or above it), snapshot_ignored (the log had it already)
    #   a request id: outcome_unknown (a snapshot jumped over a proposal), membership_refused (text says why)
    #   0: bad_frame, inbox_full (a frame was dropped), campaign_refused
    events: list[tuple[int, str, int, str]]
    def __bool__(self) -> bool: ...

@final
class RpcPeer:
    """Who is at the other end of a connection; one object for all that comes over it."""

    address: str  # "ipv4:127.0.0.1:1234", "ipv6:[::1]:1234" or "unix:"
    tls_common_name: str | None  # of a verified client certificate
    tls_sans: list[str]

@final
class ServerTls:
    """What a port shows, in PEM form; with `client_ca_pem`, clients must show a certificate one of these has signed."""

    def __new__(cls, cert_pem: bytes, key_pem: bytes, client_ca_pem: bytes | None = None) -> ServerTls:
        """ValueError says what is wrong."""
    def replace(self, cert_pem: bytes, key_pem: bytes, client_ca_pem: bytes | None = None) -> None:
        """For connections made from now on. ValueError, and nothing changed, for something that cannot be used."""

@final
class ClientTls:
    """Whom connections to others trust, and what they show, in PEM form."""

    def __new__(
        cls,
        ca_pem: bytes,
        cert_pem: bytes | None = None,
        key_pem: bytes | None = None,
        server_name: str | None = None,
    ) -> ClientTls:
        """`server_name` is looked for in their certificates, instead of the host. ValueError says what is wrong."""
    def replace(self, ca_pem: bytes, cert_pem: bytes | None = None, key_pem: bytes | None = None) -> None:
        """For connections made from now on. ValueError, and nothing changed, for something that cannot be used."""

# Metadata of a call: a value is bytes where its key ends in "-bin".
_Metadata = Sequence[tuple[str, str | bytes]]
_Received = tuple[tuple[str, str | bytes], ...]
# (call, method, message, metadata or None, milliseconds of the deadline left or None, peer)
_Unary = tuple[int, int, bytes, _Received | None, float | None, RpcPeer]

# Kinds of the stream events of `RpcServer.poll`.
EVENT_OPEN: Final[int]  # (metadata or None, milliseconds of the deadline left or None, peer)
EVENT_MESSAGE: Final[int]  # bytes
EVENT_HALF_CLOSE: Final[int]  # None; the client has said everything
EVENT_CANCELLED: Final[int]  # None; reset, disconnected or past its deadline; the last event of its call
EVENT_DRAINED: Final[int]  # None; a stream that `send_many` named has room again

@final
class RpcStats:
    # now
    connections: int
    calls: int  # in flight
    waiting_calls: int  # of them, those that `poll` will return
    timers: int  # deadlines being waited for
    request_bytes: int  # of requests in work
    reply_bytes: int  # of replies not yet written
    # since the server was made
    connections_total: int
    calls_total: int
    refused_connections: int
    refused_calls: int  # over `calls_max`
    refused_request_bytes: int  # calls refused over `request_bytes_max`
    refused_reply_bytes: int  # calls refused because their client does not read
    failed_handshakes: int
    resets: int  # streams reset by clients
    reset_floods: int  # connections ended for it
    frame_floods: int  # connections ended for frames that carry nothing
    deadlines_exceeded: int
    stalled_requests: int
    stalled_replies: int
    keepalive_timeouts: int
    bytes_in: int
    bytes_out: int
    messages_in: int
    messages_out: int
    packed_messages_in: int
    packed_messages_out: int

@final
class RpcServer:
    """A gRPC server on HTTP/2 that hands over everything that arrived in one turn of the I/O thread, at once.

    Every call is a number, unique among the calls of the server. Each call that `poll` shows is answered, or named
    as ended, never neither; what is said to a call that has ended is ignored. Messages are as they came, unpacked from
    their encoding (gzip, deflate, zstd, snappy); replies go in the encoding of the request where that helps."""

    def __new__(
        cls,
        methods: Sequence[tuple[str, bool]],
        *,
        message_bytes_max: int = 17 << 20,
        metadata_bytes_max: int = 64 << 10,
        calls_max: int = 20_000,
        request_bytes_max: int = 256 << 20,
        reply_bytes_max: int = 256 << 20,
        connections_max: int = 10_000,
        streams_per_connection_max: int = 1_000,
        resets_per_second_max: int = 5_000,
        idle_frames_per_second_max: int = 20_000,
        keepalive_ms: int = 30_000,
        keepalive_timeout_ms: int = 10_000,
        stall_ms: int = 20_000,
        stream_window_bytes: int = 1 << 20,
        compress_bytes_min: int = 1_024,
        tls: ServerTls | None = None,
        links: LinkHub | None = None,
    ) -> RpcServer:
        """`methods`: (path, whether any side streams); a method's number is its position. Any other path is answered
        UNIMPLEMENTED. With `tls` nothing else is spoken. With `links`, the hub's links may come to the same port.
        ValueError names the bad option."""
    def start(self, listen: str) -> int:
        """Listen on all addresses of `host:port`, or `unix:/path`. May be called again for another one. Returns the
        port (0 for a path). OSError."""
    def notify_fd(self) -> int:
        """An eventfd, readable while `poll` has something."""
    def poll(
        self,
    ) -> tuple[
        list[_Unary],
        list[tuple[int, int, int, bytes | tuple[_Received | None, float | None, RpcPeer] | None]],
        list[int],
    ]:
        """Unary calls that arrived, as many as make a turn, of every connection some; stream events (kind, call,
        method, data), in order; unary calls that ended before their answer. Metadata is the user's: nothing of gRPC's
        or HTTP's own."""
    def reply_many(
        self, replies: Sequence[tuple[int, bytes] | tuple[int, int, str, bytes | None, _Metadata | None]]
    ) -> None:
        """(call, payload) is OK; (call, code, message, payload, trailers) anything. ValueError or TypeError, and none
        of them sent, if one is malformed."""
    def initial_metadata(self, call: int, metadata: _Metadata) -> None:
        """Of a stream, before its first message; later it is ignored."""
    def send_many(self, messages: Sequence[tuple[int, bytes]]) -> list[int]:
        """(call, message) of streams. Returns the calls that have more than `stream_window_bytes` waiting: send them
        no more until EVENT_DRAINED."""
    def finish(self, call: int, code: int, message: str = "", trailers: _Metadata | None = None) -> None:
        """End a stream, once what was sent before is written."""
    def credit(self, call: int, bytes: int) -> None:
        """The handler consumed messages of that length altogether. Call it for each message, also for an empty one:
        a stream whose handler owes `stream_window_bytes` is not read."""
    def drain(self) -> None:
        """No new connections or calls; calls in flight go on, and their connections end with them."""
    def stop(self, grace_ms: int) -> None:
        """`drain`, wait for calls in flight, then cut. Blocks; other threads answer meanwhile."""
    def stats(self) -> RpcStats: ...
    def call_times(self) -> list[tuple[str, list[int], int]]:
        """(path, how many took up to each of TIME_BOUNDS_US and a last slot for longer, nanoseconds of all together) of
        every unary method that was called: from its headers to its answer, which then has yet to be written. Calls
        that a deadline ended are among them, cancelled and refused ones are not."""
    def notices(self) -> list[tuple[str, str, int]]:
        """(kind, address of the first, count) of attacks and faults since the last call, one a kind:
        accept_failed, calls_wait, frame_flood, reset_flood, tls_failed, too_big, too_many_calls,
        too_many_connections, unfinished_request, unread_connection, unread_replies, unread_reply."""

@final
class SimDisk:
    """An in-memory file layer for simulation. What was not synced may be lost, torn or reordered at a crash."""

    def __new__(cls, seed: int) -> SimDisk: ...
    def crash(self) -> dict[str, int]:
        """Drop, tear or keep each unsynced write, by the seed. Returns counts: lost, torn, kept."""
    def reset_faults(self) -> None: ...
    def fail_sync_after(self, syncs: int) -> None:
        """The given number of syncs succeed, the next one fails."""
    def fill_up_after(self, bytes: int) -> None:
        """Writes beyond this many bytes fail with ENOSPC."""
    def flip_bit(self, path: str, offset: int) -> None: ...
    def files(self) -> dict[str, int]: ...
    def unsynced_bytes(self) -> int: ...

# Kinds of `LinkHub.poll`.
LINK_HELLO: Final[int]  # (purpose: str, hello: bytes, peer: RpcPeer): incoming, to be accepted or refused in time
LINK_UP: Final[int]  # greeting: bytes; an outgoing link was accepted
LINK_REFUSED: Final[int]  # reason: str; LINK_DOWN follows
LINK_FRAME: Final[int]  # bytes
LINK_DOWN: Final[int]  # reason: str; the last event of every link
LINK_NOT_SPOKEN: Final[str]
"""The reason in LINK_DOWN when the peer did not answer as a link does: something else listens there, a plain gRPC
server say, or it ended just then."""

@final
class LinkStats:
    """Since the hub was made, but for `links`."""

    links: int  # now
    frames_in: int
    frames_out: int
    bytes_in: int
    bytes_out: int
    not_taken: int  # frames that `send_many` gave back
    raft_frames_in: int
    raft_frames_out: int
    raft_frames_lost: int  # pushed out of a full queue by newer ones, or given to a link on its way down
    turned_away: int  # connections: too many, or no proper HELLO in time
    wakes: int  # times the eventfd was written

@final
class LinkHub:
    """Framed, multiplexed connections to other processes of the cluster.

    A link is a number, never used twice. Frames of a link keep their order; both sides may send once it is up.
    While more than `unread_bytes_max` of a link were read and not polled, or it has given back a frame and more than
    half of `unsent_bytes_max` is unsent, nothing more is read from it. A peer that says nothing for `keepalive_ms`
    is asked, and given up `keepalive_timeout_ms` later; one that takes nothing for both together, too."""

    def __new__(
        cls,
        *,
        frame_bytes_max: int = 64 << 20,
        unsent_bytes_max: int = 64 << 20,
        unread_bytes_max: int = 32 << 20,
        connections_max: int = 1_024,
        hello_timeout_ms: int = 5_000,
        keepalive_ms: int = 10_000,
        keepalive_timeout_ms: int = 5_000,
    ) -> LinkHub:
        """ValueError names the bad option."""
    def notify_fd(self) -> int:
        """An eventfd, readable while `poll` has something."""
    def poll(self) -> list[tuple[int, int, tuple[str, bytes, RpcPeer] | bytes | str]]:
        """(kind, link, data) in order, all since the last call."""
    def connect(
        self, address: str, purpose: str, hello: bytes, *, timeout_ms: int, tls: ClientTls | None = None
    ) -> int:
        """A link to `host:port`, `[::1]:port` or `unix:/path`. The time is for everything until it is accepted.
        ValueError if `purpose` or `hello` is too long (255 bytes, 64 KiB); anything else is told by LINK_DOWN."""
    def listen(self, address: str) -> int:
        """Take connections at `host:port` that are links and nothing else. Returns the port. OSError."""
    def accept(self, link: int, greeting: bytes) -> None:
        """Answer LINK_HELLO; the link is up. Too late: LINK_DOWN tells or has told. ValueError over 64 KiB."""
    def refuse(self, link: int, reason: str) -> None: ...
    def send_many(self, frames: Sequence[tuple[int, bytes]]) -> list[int]:
        """(link, frame) in order. Returns the links of frames that were not taken: the link is not up, the frame is
        over `frame_bytes_max`, or `unsent_bytes_max` would be exceeded (one frame is always taken)."""
    def unsent_bytes(self, link: int) -> int:
        """Taken and not yet given to the kernel; 0 for a link that is gone."""
    def close(self, link: int, reason: str) -> None:
        """Take no more frames, write those that were taken, and tell the peer why; LINK_DOWN when that is done, or
        not possible within `keepalive_timeout_ms`. Frames that were read before still come."""
    def shut_down(self) -> None:
        """End links and listeners now; nothing is told any more. Idempotent, and what happens to a forgotten hub."""
    def attach_raft(self, host: RaftHost) -> None:
        """From now on this host's frames to a node with a bound link go straight to it, and wake nobody here. They
        still come out of `RaftHost.poll` for other nodes. RuntimeError in manual mode, or beside another host."""
    def detach_raft(self) -> None:
        """All frames come out of `RaftHost.poll` again, and links that carried some end. A host that ends or fails
        does the same."""
    def bind_raft(self, link: int, node_num: int) -> None:
        """An outgoing link that is up carries the host's frames to a node, those not yet polled first; a link that
        did so before is closed. It keeps the newest `unsent_bytes_max`. What is lost, and the end of the link, is
        reported to the host as unreachable. A link that is gone is ignored: LINK_DOWN tells. RuntimeError without
        a host."""
    def accept_raft(self, link: int, greeting: bytes, node_num: int) -> None:
        """`accept`, and step Raft frames of that link into the host; they must come from replicas of that node.
        RuntimeError without a host."""
    def peer_clocks(self) -> list[tuple[int, int, int]]:
        """(node_num, its wall clock in ms when it sent its newest frame, monotonic ms when that arrived)."""
    def stats(self) -> LinkStats: ...

@final
class RaftHost:
    def __new__(
        cls,
        node_num: int,
        dir: str,
        *,
        applied: Mapping[int, int],
        mode: Literal["threaded", "manual"] = "threaded",
        disk: SimDisk | None = None,
        seed: int = 0,
        tick_ms: int = 100,
        election_ticks: int = 10,
        heartbeat_ticks: int = 2,
        pre_vote: bool = True,
        check_quorum: bool = True,
        segment_bytes: int = 64 << 20,
        entry_bytes_max: int = 32 << 20,
        message_bytes_max: int = 1 << 20,
        inflight_messages_max: int = 256,
        uncommitted_bytes_max: int = 64 << 20,
        inbox_bytes_max: int = 256 << 20,
        outbox_bytes_max: int = 256 << 20,
        snapshot_timeout_ticks: int = 600,
        apply_delay_ms: int = 0,
        in_step: bool | None = None,
    ) -> RaftHost:
        """Open the log and recover every group in it.

        `apply_delay_ms`: entries that a follower applies may wait this long for more before `poll` has them; so may
        the news of a commit, on a leader, for entries to travel with. Nothing else waits: entries that an answered
        read of this host waits for do not, nor what came before anything else that is said of their group. In manual
        mode the delay goes by what `drive` is told.

        `in_step`: the leaders of this host beat at the same ticks. By default they do in threaded mode.

        `applied` is each group's durable applied index in the state machine: the recovered commit index is at
        least that. Raises LogCorruption, OSError, or ValueError naming the bad option.
        """
    def notify_fd(self) -> int:
        """An eventfd, readable while `poll` has something. Threaded mode."""
    def start(self) -> None: ...
    def stop(self, timeout_ms: int = 10_000) -> None:
        """Stop the thread after its current round; idempotent."""
    def groups(self) -> list[int]: ...
    def tombstones(self) -> dict[int, list[int]]:
        """group -> replica ids of this node that were removed for good."""
    def status(self, groups: Sequence[int] | None = None) -> list[GroupStatus]:
        """A snapshot taken between rounds."""
    def pending_install(self, group: int) -> tuple[int, int, Membership, bytes] | None:
        """(index, term, membership, manifest) of a snapshot the log accepted but `applied` does not cover."""
    def create_group(self, group: int, replica: int, voters: Sequence[int]) -> None:
        """Create a replica. With voters: a birth replica, all of whose voters start from index 1, term 1.
        Without: empty and non-voting until a snapshot tells it its membership. ValueError if the group exists,
        if the replica is tombstoned, or if `voters` is not empty and lacks `replica`.
        Durable when the `created` event is polled."""
    def seize_group(
        self, group: int, from_replica: int, replica: int, term_min: int, payloads: Sequence[bytes]
    ) -> None:
        """For a group that lost its quorum for good: the replica that is here goes on as another one and the only
        voter, in a term above its own and above `term_min`. All that its log holds is committed, then a membership
        of that one voter, then the payloads; membership changes it had not applied are void. The old id is
        tombstoned. ValueError, and nothing changed, if there is nothing here to go on with.
        Durable when the `seized` event is polled."""
    def remove_group(self, group: int) -> None:
        """Forget a group and tombstone its replica id, durably before the `removed` event is polled."""
    def propose_many(self, proposals: Sequence[tuple[int, int, bytes]]) -> None:
        """(group, request_id, payload); request ids are non-zero and never reused by this object. ValueError, and
        nothing proposed, if a payload is empty or longer than `entry_bytes_max`."""
    def read_index_many(self, reads: Sequence[tuple[int, int]]) -> None:
        """(group, read_id). Works on followers too. A read may vanish on a leader change: time out and retry
        under a new id."""
    def step(self, frame: bytes) -> None:
        """Take messages from another host. Damaged or foreign ones become events, and change nothing."""
    def transfer_leader(self, group: int, to_replica: int) -> None: ...
    def campaign(self, group: int) -> None: ...
    def change_membership(
        self, group: int, request_id: int, changes: Sequence[tuple[Literal["voter", "learner", "remove"], int]]
    ) -> None:
        """One change is a simple one; several are one joint change that leaves by itself.

        Make a new replica a learner, and a voter only once `matched` shows that it caught up: until its snapshot
        arrives it cannot vote, and a group that counts on it may be left without a leader."""
    def snapshot_ready(self, group: int, index: int, manifest: bytes) -> None:
        """The application built a snapshot at exactly `index`; a `snapshot_stale` event asks for a newer one."""
    def report_snapshot(self, group: int, to_replica: int, ok: bool) -> None: ...
    def snapshot_progress(self, group: int, to_replica: int) -> None:
        """A snapshot is still on its way: its `snapshot_timeout_ticks` count from anew."""
    def report_unreachable(self, node_num: int) -> None: ...
    def compact(self, group: int, index: int) -> None:
        """Entries up to `index` are durable in the state machine and may go."""
    def set_priority(self, group: int, priority: int) -> None: ...
    def poll(self) -> Batch:
        """Raises HostFailed once the host is gone, LogCorruption never."""
    def log_stats(self) -> LogStats: ...
    def sync_times(self) -> tuple[list[int], int, int]:
        """The log's syncs: how many took up to each of TIME_BOUNDS_US (a last slot: longer), the nanoseconds of all of
        them together, and those of the one under way (0: none). Asks no thread, so it answers while the disk hangs."""
    # Manual mode only.
    def tick(self, ticks: int = 1) -> None: ...
    def drive(self, now_us: int = 0) -> int:
        """Run rounds until nothing is ready; returns their number. Raises FailpointReached, HostFailed.

        `now_us`: the time, by a clock of the caller's that never goes back; `poll` goes by the same. Without it no time
        passes."""
    def due_us(self) -> int | None:
        """When, by that clock, `drive` and `poll` have to be called although nothing happened."""
    def salvage(self) -> Batch:
        """After FailpointReached: what had left the process before it died, and may still arrive."""
    def arm_failpoint(self, name: str, hits: int = 1) -> None:
        """Die at the `hits`-th time the named point is passed."""
    def log_entries(self, group: int, low: int, high: int) -> list[tuple[int, int, int, bytes]]:
        """(index, term, kind, payload) for checkers."""

FAILPOINTS: Final[tuple[str, ...]]
"""raft.before_append, raft.after_append, raft.before_sync, raft.after_sync, raft.before_send, raft.before_deliver,
raft.before_rotate, raft.after_rotate, raft.before_compact_record, raft.before_segment_remove,
raft.after_snapshot_record, raft.before_create_record, raft.before_remove_record.
In threaded mode FLOTTA_FAILPOINTS="raft.before_sync=abort@3" ends the process at the third pass."""
