"""Runs eventproc's scripts one by one on a real Redis, and builds the entries that they are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from eventproc.effects import (
    Acquire,
    Acquired,
    Claim,
    Claimed,
    Entry,
    Finalize,
    Finalized,
    Gap,
    LoadUsers,
    Release,
    Renew,
    Renewed,
    StoreReply,
    StoreRequest,
    UserEffects,
    UserState,
)
from eventproc.settings import Settings
from eventproc.store.scripts import Call, ScriptSet, decode


@dataclass
class FakeRecord:
    """A Kafka record, as far as scripts see it."""

    body: bytes | None = b'{"id":"x"}'

    def offset(self) -> int | None:
        return 0

    def key(self) -> bytes | None:
        return b"key"

    def value(self) -> bytes | None:
        return self.body

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)

    def headers(self) -> Any:
        return None


RECORD = FakeRecord()


def settings(**values: Any) -> Settings:
    """The defaults but for `values`, whatever the environment says."""
    return Settings.model_validate(values)


def entry(offset: int, user: str = "u", seq: int = 0, id: str = "", **other: Any) -> Entry:
    """A locked entry that was processed at the first attempt, id `e<offset>`."""
    fields: dict[str, Any] = {
        "record": RECORD,
        "type": "t",
        "status": "processed",
        "attempts": 1,
        "granted_ms": 1,
        **other,
    }
    return Entry(offset=offset, id=id or f"e{offset}", user=user, seq=seq, **fields)


def failed(offset: int, user: str = "u", seq: int = 0, **other: Any) -> Entry:
    """An entry whose attempts are used up."""
    fields = {"status": "failed", "attempts": 3, "error": "boom", "reason": "handler", **other}
    return entry(offset, user, seq, **fields)


def letter(offset: int, **other: Any) -> Entry:
    """An invalid record under its position id."""
    fields = {
        "id": f"events-0-{offset}",
        "user": "",
        "status": "failed",
        "attempts": 0,
        "error": "no JSON",
        "reason": "invalid",
        "letter": True,
        "granted_ms": 0,
        **other,
    }
    return entry(offset, **fields)


def group(
    user: str,
    *entries: Entry,
    gaps: list[Gap] | None = None,
    has_next: bool = False,
    dense: bool = False,
) -> UserEffects:
    """What one call writes for a user."""
    return UserEffects(user, has_next, gaps or [], list(entries), dense)


@dataclass
class ScriptRunner:
    """One owner of one partition on a Redis; counts its own revisions."""

    client: Any
    settings: Settings = field(default_factory=lambda: settings())
    owner: str = "me"
    partition: int = 0
    epoch: int = 0
    rev: int = 0

    def __post_init__(self) -> None:
        self.scripts = ScriptSet(self.settings, "events", self.partition)

    def execute(self, call: Call) -> Any:
        """The raw reply of a call."""
        source = self.scripts.scripts[call.script].source
        keys, args = call.parts()
        return self.client.eval(source, len(keys), *keys, *args)

    def run(self, request: StoreRequest) -> StoreReply:
        return decode(request, self.execute(self.scripts.encode(request)))

    def claim(self, **options: Any) -> Claimed:
        """Claim, and go on from what is stored."""
        claimed = cast(Claimed, self.run(Claim(self.owner, options.pop("lease_ms", 10_000), **options)))
        if claimed.status == "ok":
            self.epoch, self.rev = claimed.epoch, claimed.rev
        return claimed

    def load(self, *users: str) -> list[UserState]:
        return cast(list[UserState], self.run(LoadUsers(list(users))))

    def acquiring(self, *entries: Entry) -> Acquire:
        """The request that `acquire` makes."""
        return Acquire(self.epoch, self.owner, list(entries))

    def acquire(self, *entries: Entry) -> Acquired:
        return cast(Acquired, self.run(self.acquiring(*entries)))

    def request(
        self,
        *groups: UserEffects,
        loose: list[Entry] | None = None,
        letters: list[Entry] | None = None,
        floor: int = 100,
        unfinalized: int = 0,
    ) -> Finalize:
        """The next finalize request."""
        self.rev += 1
        return Finalize(
            self.epoch, self.owner, self.rev, floor, unfinalized, list(groups), loose or [], letters or []
        )

    def finalize(self, *groups: UserEffects, **options: Any) -> Finalized:
        return cast(Finalized, self.run(self.request(*groups, **options)))

    def again(self, request: Finalize) -> Finalized:
        return cast(Finalized, self.run(request))

    def release(self, *entries: Entry) -> None:
        assert self.run(Release(self.epoch, self.owner, list(entries))) is None

    def renew(self, *entries: Entry) -> Renewed:
        return cast(Renewed, self.run(Renew(self.epoch, self.owner, list(entries))))


def dump(client: Any) -> dict[bytes, Any]:
    """Every key with its value and its absolute expiry in ms (-1 = none)."""
    readers: dict[bytes, Any] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
    }
    found: dict[bytes, Any] = {}
    now = client.time()
    now_ms = now[0] * 1000 + now[1] // 1000
    for key in client.keys("*"):
        kind = client.type(key)
        ttl_ms = client.pttl(key)
        found[key] = (readers[kind](key), now_ms + ttl_ms if ttl_ms >= 0 else -1)
    return found


def values(client: Any) -> dict[bytes, Any]:
    """Every key with its value."""
    return {key: value for key, (value, _) in dump(client).items()}
