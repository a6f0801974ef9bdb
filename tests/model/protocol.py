"""The commit protocol at small size: what each party may do next, one request to the store at a time.

A step is one request with its answer, because nothing else is shared. Sleep is a step that is not taken yet. There is
no clock.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Place = tuple[int, str]  # a number, and whose commit that is
START: Place = (0, "")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the parties do; the defaults are the protocol, everything else is a way to break it."""

    check: str = "after"  # of N, when N+1 is created: after the PUT's reply, "beside" the PUT, "before" it, or "never"
    reading: str = "after"  # of N, when N+1 is absent: after that reply, "together" with the question, or "never"
    listed: str = "checked"  # the last object of a listing that was read: "checked" or "believed"
    exists: str = "read"  # what follows an "exists": the object is read; or it counts as "success" or as "conflict"
    sure: str = (
        "checked"  # N, before another's N+1 is a conflict although an attempt may have been stored; or "believed"
    )
    unknown: str = "told"  # what follows an unknown outcome: the caller is "told"; or the write is "run again"
    merging: str = "checked"  # the last object of a run: "checked" or "believed"
    deletes: str = "ascending"  # or in "any order"
    newest: str = "kept"  # or "deleted"
    compare: str = "identity"  # of N when it is read; or the "number" only
    listings: str = "identity"  # what a listing says counts by whose the objects are; or by "number"
    attempts: str = "differ"  # each attempt's bytes have an id of their own; or they are the "same"
    again: str = "at once"  # a further attempt when nothing was found; or "checked": N is read before it
    listing: str = "merged first"  # or "at once"


@dataclass(frozen=True, slots=True)
class World:
    """What there is, and how much of each trouble."""

    writes: tuple[int, ...]  # for each writer
    begun: int = 1  # so many commits were made before
    merged: int = 0  # so many of those are merged, and all but the last of these deleted
    readers: int = 0
    strangers: int = 0  # readers that begin with nothing
    keepers: int = 1  # runs of maintenance at the same time
    unclear: int = 0  # PUTs without an answer, which land later, or never
    repeats: bool = False  # a PUT with an answer may land once more as well
    crashes: int = 0
    emptied: tuple[int, ...] = ()  # the prefix may once be emptied and begun anew by others, up to one of these numbers
    bounded: bool = False  # a PUT sent before its number was first taken never lands after that was deleted
    attempts: int = 2  # of one write


class Body(NamedTuple):
    id: str
    follows: str


class Late(NamedTuple):
    number: int
    body: Body
    early: bool  # sent before the number was first taken


class Actor(NamedTuple):
    """A writer or a reader."""

    at: str
    base: Place = START  # its database is at this commit
    write: int = 0  # how many it began
    attempt: int = 0
    maybe: bool = False  # an attempt may have been stored, or may yet be
    found: str = ""  # the id under which its write was found stored
    here: Place = START  # how far reading has come
    before: Place = START  # the commit before that
    todo: tuple[int, ...] = ()  # listed, not yet read
    merged: tuple[str, ...] = ()  # listed
    since: int = 0  # the newest number acknowledged when the read began


class Keeper(NamedTuple):
    """A run of maintenance."""

    at: str = "idle"
    todo: tuple[int, ...] = ()
    first: int = 0  # of the run
    read: tuple[Body, ...] = ()


class State(NamedTuple):
    there: tuple[Body | None, ...]  # level 0
    history: tuple[str, ...]  # the first object ever created under each number
    merged: tuple[str, ...]  # what the merged objects hold
    late: tuple[Late, ...]
    denied: tuple[str, ...]  # writes of which the caller heard "not stored", while a PUT of theirs is on the way
    acknowledged: int  # the newest number
    unclear: int  # budgets
    crashes: int
    emptied: bool
    actors: tuple[Actor, ...]
    keepers: tuple[Keeper, ...]
    broken: str = ""


Steps = Iterator[tuple[str, State]]


class Model:
    def __init__(self, rules: Rules, world: World) -> None:
        self.rules, self.world = rules, world
        self._writers = len(world.writes)
        self._names = "ABCDE"[: self._writers] + "RS"[: world.readers] + "XY"[: world.strangers]

    def start(self) -> State:
        """Everybody is at the newest commit of a log that others began."""
        begun, more = self.world.begun, sum(self.world.writes) + max(self.world.emptied, default=0) + 2
        history = tuple(f"O{number}" for number in range(1, begun + 1))
        kept = [
            body if n >= self.world.merged else None for n, body in enumerate(map(Body, history, ("", *history)), 1)
        ]
        actors = tuple(
            Actor("idle", START if name in "XY" or not begun else (begun, history[-1])) for name in self._names
        )
        keepers = (Keeper(),) * self.world.keepers
        return State(
            there=(*kept, *(None,) * more),
            history=history,
            merged=history[: self.world.merged],
            late=(),
            denied=(),
            acknowledged=begun,
            unclear=self.world.unclear,
            crashes=self.world.crashes,
            emptied=False,
            actors=actors,
            keepers=keepers,
        )

    def steps(self, state: State) -> Steps:
        for place, actor in enumerate(state.actors):
            for text, after in self._actor_steps(state, place, actor):
                yield f"{self._names[place]}: {text}", after
        for place, keeper in enumerate(state.keepers):
            for text, after in self._keeper_steps(state, place, keeper):
                yield f"maintenance {place + 1}: {text}", after
        yield from self._landings(state)
        yield from self._emptyings(state)

    # The store

    def _get(self, state: State, number: int) -> Body | None:
        return state.there[number - 1] if number else None

    def _create(self, state: State, number: int, body: Body) -> tuple[str, State]:
        """The store's answer and its state after a PUT with If-None-Match."""
        if state.there[number - 1]:
            return "exists", state
        state = state._replace(there=(*state.there[: number - 1], body, *state.there[number:]))
        if number <= len(state.history):
            return "created (a leftover)", state
        if ("", *state.history)[number - 1 :] != (body.follows,):
            if state.emptied:
                return "created (of another history)", state
            return "created", state._replace(broken="fork")
        if body.id in state.denied:
            return "created", state._replace(broken="denied, but stored")
        if any(one[:2] == body.id[:2] for one in state.history):
            return "created", state._replace(broken="applied twice")
        return "created", state._replace(history=(*state.history, body.id))

    def _landings(self, state: State) -> Steps:
        for late in set(state.late):
            left = list(state.late)
            left.remove(late)
            without = state._replace(late=tuple(left))
            answer, after = self._create(without, late.number, late.body)
            yield f"the late PUT {late.number} of {late.body.id} lands: {answer}", _forget_denials(after)

    def _emptyings(self, state: State) -> Steps:
        if state.emptied:
            return
        for end in self.world.emptied:
            history = tuple(f"Z{number}" for number in range(1, end + 1))
            bodies = tuple(map(Body, history, ("", *history)))
            there = bodies + (None,) * (len(state.there) - end)
            actors = tuple(actor._replace(since=0) for actor in state.actors)  # nobody can know
            text = f"the prefix is emptied and begun anew by others, up to {end}"
            yield (
                text,
                state._replace(there=there, history=history, merged=(), acknowledged=end, emptied=True, actors=actors),
            )

    # Writers and readers

    def _actor_steps(self, state: State, place: int, actor: Actor) -> Steps:
        if place < self._writers and actor.at != "idle" and state.crashes:
            again = Actor("list", write=actor.write)
            yield "crashes", _with(state._replace(crashes=state.crashes - 1), place, again)
        match actor.at:
            case "idle":
                yield from self._idle(state, place, actor)
            case "put" | "put, N there":
                yield from self._put(state, place, actor)
            case "put and check":
                yield from self._put(state, place, actor)
                yield from self._check(state, place, actor)
            case "put again":
                yield from self._attempt(state, place, actor)
            case "check" | "check first" | "check, to put again":
                yield from self._check(state, place, actor)
            case "look":
                yield from self._look(state, place, actor)
            case "be sure":
                yield from self._be_sure(state, place, actor)
            case "settle" | "settle by commits":
                yield from self._settle(state, place, actor)
            case "next" | "next, N there":
                yield from self._next(state, place, actor)
            case "began":
                yield from self._began(state, place, actor)
            case "list":
                yield from self._list_merged(state, place, actor)
            case "list commits":
                yield from self._list_commits(state, place, actor)
            case "fetch":
                yield from self._fetch(state, place, actor)
            case "before":
                yield from self._before(state, place, actor)
            case "again":
                yield from self._again(state, place, actor)

    def _idle(self, state: State, place: int, actor: Actor) -> Steps:
        if place < self._writers and actor.write == self.world.writes[place] and not actor.attempt:
            return  # it has done all it can, and what it might read readers do
        begun = actor._replace(here=actor.base, since=state.acknowledged if place >= self._writers else 0)
        if actor.base == START:
            yield from self._list_merged(state, place, begun)
        else:
            yield from self._next(state, place, begun._replace(at="next"))
        if actor.attempt:
            yield from self._attempt(state, place, actor)  # of an unknown write, once more
        elif place < self._writers:
            yield from self._attempt(state, place, actor._replace(write=actor.write + 1))

    # Writing

    def _attempt(self, state: State, place: int, actor: Actor) -> Steps:
        """The first request of an attempt."""
        actor = actor._replace(attempt=actor.attempt + 1)
        match self.rules.check:
            case "before":
                yield from self._check(state, place, actor._replace(at="check first"))
            case "beside":
                yield from self._put(state, place, actor._replace(at="put and check"))
                yield from self._check(state, place, actor._replace(at="put and check"))
            case _:
                yield from self._put(state, place, actor._replace(at="put"))

    def _ids(self, place: int, actor: Actor) -> list[str]:
        """Of all attempts of this write."""
        count = actor.attempt if self.rules.attempts == "differ" else 1
        return [f"{self._names[place]}{actor.write}{'abc'[attempt]}" for attempt in range(count)]

    def _put(self, state: State, place: int, actor: Actor) -> Steps:
        number = actor.base[0] + 1
        body = Body(self._ids(place, actor)[-1], actor.base[1])
        answer, after = self._create(state, number, body)
        text = f"PUT {number} ({body.id}): {answer}"
        late = Late(number, body, number > len(state.history))
        less = state._replace(unclear=state.unclear - 1, late=tuple(sorted((*state.late, late))))
        if answer != "exists":
            known = actor._replace(found=body.id, maybe=True)
            yield from self._created(after, place, known, text)
            if self.world.repeats and state.unclear:
                twice = after._replace(unclear=less.unclear, late=less.late)
                yield from self._created(twice, place, known, f"{text}, and on its way once more")
        elif self.rules.exists == "success":
            yield from self._created(after, place, actor._replace(found=body.id), text)
        elif self.rules.exists == "conflict":
            yield self._conflict(after, place, actor, f"{text}, taken for a conflict")
        else:
            yield text, _with(after, place, actor._replace(at="look"))
        if state.unclear:
            yield f"PUT {number} ({body.id}): no answer", _with(less, place, actor._replace(at="look", maybe=True))

    def _created(self, state: State, place: int, actor: Actor, text: str) -> Steps:
        """What an answer that means success leads to."""
        if self.rules.check == "never" or actor.at == "put, N there":
            yield self._acknowledge(state, place, actor, text)
        elif actor.at == "put and check":
            yield text, _with(state, place, actor._replace(at="check"))
        else:
            yield text, _with(state, place, actor._replace(at="check"))

    def _look(self, state: State, place: int, actor: Actor) -> Steps:
        """Whose N+1 is."""
        number = actor.base[0] + 1
        body = self._get(state, number)
        if body is None:
            again = "check, to put again" if self.rules.again == "checked" else "put again"
            if actor.attempt < self.world.attempts:
                yield f"GET {number}: absent", _with(state, place, actor._replace(at=again))
            else:
                yield self._unknown(state, place, actor, f"GET {number}: absent")
        elif body.id in self._ids(place, actor):
            found = actor._replace(at="check", found=body.id)
            if self.rules.check == "never":
                yield self._acknowledge(state, place, found, f"GET {number}: ours")
            else:
                yield f"GET {number}: ours", _with(state, place, found)
        elif actor.maybe and self.rules.sure == "checked":
            yield f"GET {number}: {body.id}", _with(state, place, actor._replace(at="be sure"))
        else:
            yield self._conflict(state, place, actor, f"GET {number}: {body.id}")

    def _check(self, state: State, place: int, actor: Actor) -> Steps:
        """Whether N is there, and ours."""
        number = actor.base[0]
        good = self._is(state, actor.base)
        text = f"GET {number}: {'there and ours' if good else 'not ours'}" if number else "there is no commit 0"
        if actor.at == "check, to put again":
            yield text, _with(state, place, actor._replace(at="put again" if good else "settle"))
        elif actor.at in ("check first", "put and check"):
            at = "put, N there" if good else "put"  # which checks again, afterwards
            yield text, _with(state, place, actor._replace(at=at))
        elif good:
            yield self._acknowledge(state, place, actor, text)
        else:
            yield text, _with(state, place, actor._replace(at="settle"))

    def _settle(self, state: State, place: int, actor: Actor) -> Steps:
        """By listing: nothing is beyond our N+1, so it was never free again; and what leads to it is ours."""
        if actor.at == "settle" and self.rules.listing == "merged first":
            after = _with(state, place, actor._replace(at="settle by commits", merged=state.merged))
            yield f"LIST merged: {_range(state.merged)}", after
            return
        number, merged = actor.base[0] + 1, actor.merged
        body = self._get(state, number)
        by_number = self.rules.listings == "number"
        newest = body is not None and body.id == actor.found and _newest(state) == number
        leads = (
            by_number or merged[number - 2 :] in ((actor.base[1],), (actor.base[1], actor.found))
            if number > 1
            else not merged
        )
        if newest and leads:
            yield self._acknowledge(state, place, actor, "LIST commits: ours is the newest")
        else:
            yield self._unknown(state, place, actor, "LIST commits: there is more, or others'")

    def _be_sure(self, state: State, place: int, actor: Actor) -> Steps:
        number = actor.base[0]
        if self._is(state, actor.base):
            yield self._conflict(state, place, actor, f"GET {number}: there and ours")
        else:
            yield self._unknown(state, place, actor, f"GET {number}: not ours")

    def _acknowledge(self, state: State, place: int, actor: Actor, text: str) -> tuple[str, State]:
        number = actor.base[0] + 1
        lost = state.history[number - 1 : number] != (actor.found,)
        done = Actor("idle", (number, actor.found), actor.write)
        after = _with(state, place, done)._replace(acknowledged=max(number, state.acknowledged))
        text = f"{text}; acknowledged"
        return text, after._replace(broken="acknowledged, but lost") if lost else after

    def _conflict(self, state: State, place: int, actor: Actor, text: str) -> tuple[str, State]:
        ids = self._ids(place, actor)
        stored = any(one in state.history for one in ids)
        on_its_way = {late.body.id for late in state.late}.intersection(ids)
        denied = tuple(sorted({*state.denied, *on_its_way}))
        behind = Actor("next", actor.base, actor.write, here=actor.base)
        after = _with(state, place, behind)._replace(denied=denied)
        text = f"{text}; conflict, not stored"
        return text, after._replace(broken="denied, but stored") if stored else after

    def _unknown(self, state: State, place: int, actor: Actor, text: str) -> tuple[str, State]:
        """The caller is told, and the write never run again: it may be stored, or yet be."""
        if self.rules.unknown == "run again" and actor.attempt <= self.world.attempts:
            again = Actor("next", actor.base, actor.write, self.world.attempts, here=actor.base)
            return f"{text}; unknown, run again", _with(state, place, again)
        return f"{text}; unknown", _with(state, place, Actor("idle", actor.base, actor.write))

    # Reading

    def _next(self, state: State, place: int, actor: Actor) -> Steps:
        number, known = actor.here[0] + 1, actor.here[1]
        body = self._get(state, number)
        if body is None and (actor.at == "next, N there" or self.rules.reading == "never"):
            yield self._confirm(state, place, actor, f"GET {number}: absent")
        elif body is None:
            yield f"GET {number}: absent", _with(state, place, actor._replace(at="began"))
        elif body.follows != known:
            yield f"GET {number}: of another history", _with(state, place, _listing(actor))
        else:
            on = actor._replace(at="next", here=(number, body.id))
            yield f"GET {number}: {body.id}", _with(state, place, on)
        if self.rules.reading == "together" and actor.here == actor.base and actor.at == "next":
            good = self._is(state, actor.base)
            text = f"GET {number - 1}: {'there and ours' if good else 'not ours'}"
            yield text, _with(state, place, actor._replace(at="next, N there") if good else _listing(actor))

    def _began(self, state: State, place: int, actor: Actor) -> Steps:
        """Where this reading began; if that is still there, nothing after it was ever free again."""
        number = actor.base[0]
        if self._is(state, actor.base):
            yield self._confirm(state, place, actor, f"GET {number}: there and ours")
        else:
            yield f"GET {number}: not ours", _with(state, place, _listing(actor))

    def _list_merged(self, state: State, place: int, actor: Actor) -> Steps:
        actor = _listing(actor)._replace(at="list commits", merged=state.merged)
        if self.rules.listing == "at once":
            yield from self._list_commits(state, place, actor)
        else:
            yield f"LIST merged: {_range(state.merged)}", _with(state, place, actor)

    def _list_commits(self, state: State, place: int, actor: Actor) -> Steps:
        merged = len(actor.merged)
        here = actor.base if actor.base[0] >= merged else (merged, actor.merged[-1])
        newest = _newest(state)
        todo = tuple(range(here[0] + 1, newest + 1))
        text = f"LIST commits: {' '.join(str(n) for n, body in enumerate(state.there, 1) if body) or 'none'}"
        actor = actor._replace(merged=(), here=here, before=START, todo=todo)
        if newest < here[0] or not all(state.there[merged:newest]):
            yield f"{text}; a gap, or less than it has seen", _with(state, place, _listing(actor))
        elif todo:
            yield text, _with(state, place, actor._replace(at="fetch"))
        elif here != actor.base or here == START:
            yield self._confirm(state, place, actor, text)
        else:
            yield text, _with(state, place, actor._replace(at="began"))

    def _fetch(self, state: State, place: int, actor: Actor) -> Steps:
        number, *rest = actor.todo
        body = self._get(state, number)
        if body is None or body.follows != actor.here[1]:
            text = "of another history" if body else "absent"
            yield f"GET {number}: {text}", _with(state, place, _listing(actor))
            return
        actor = actor._replace(here=(number, body.id), before=actor.here, todo=tuple(rest))
        text = f"GET {number}: {body.id}"
        if rest:
            yield text, _with(state, place, actor)
        elif self.rules.listed == "believed":
            yield self._confirm(state, place, actor, text)
        else:
            yield text, _with(state, place, actor._replace(at="before"))

    def _before(self, state: State, place: int, actor: Actor) -> Steps:
        """The commit before the last one; if it is still there, the last one was never free before it was read."""
        number = actor.before[0]
        if self._is(state, actor.before):
            yield self._confirm(state, place, actor, f"GET {number}: the same")
        elif self._get(state, number):
            yield f"GET {number}: another's", _with(state, place, _listing(actor))
        else:
            text = f"GET {number}: absent" if number else "there is no commit 0"
            yield text, _with(state, place, actor._replace(at="again"))

    def _again(self, state: State, place: int, actor: Actor) -> Steps:
        number = actor.here[0]
        body = self._get(state, number)
        if _newest(state) == number and body and (body.id == actor.here[1] or self.rules.listings == "number"):
            yield self._confirm(state, place, actor, "LIST: nothing beyond, and the same")
        else:
            yield "LIST: there is more, or others'", _with(state, place, _listing(actor))

    def _confirm(self, state: State, place: int, actor: Actor, text: str) -> tuple[str, State]:
        number, identity = actor.here
        after = _with(state, place, Actor("idle", actor.here, actor.write, actor.attempt))
        text = f"{text}; it is at {number} ({identity})"
        if number and state.history[number - 1 : number] != (identity,):
            return text, after._replace(broken="read what is not of the history")
        if number < actor.since:
            return text, after._replace(broken="read less than was acknowledged")
        return text, after

    def _is(self, state: State, place: Place) -> bool:
        body = self._get(state, place[0])
        return body is not None and (body.id == place[1] or self.rules.compare == "number")

    # Maintenance

    def _keeper_steps(self, state: State, place: int, keeper: Keeper) -> Steps:
        match keeper.at:
            case "idle":
                yield from self._list_for_maintenance(state, place)
            case "merge":
                yield from self._merge(state, place, keeper)
            case "check":
                yield from self._check_run(state, place, keeper)
            case "delete":
                yield from self._delete(state, place, keeper)

    def _list_for_maintenance(self, state: State, place: int) -> Steps:
        numbers = [number for number, body in enumerate(state.there, 1) if body]
        low = len(state.merged) + 1
        if low in numbers and low + 1 in numbers:
            todo = Keeper("merge", (low, low + 1), low)
            yield f"LIST: {low} and {low + 1} are to be merged", _with_keeper(state, place, todo)
        kept = numbers[:-1] if self.rules.newest == "kept" else numbers
        old = tuple(number for number in kept if number <= len(state.merged))
        if old:
            text = f"LIST: {' '.join(map(str, old))} may go"
            yield text, _with_keeper(state, place, Keeper("delete", old))

    def _merge(self, state: State, place: int, keeper: Keeper) -> Steps:
        number, *rest = keeper.todo
        body = self._get(state, number)
        if body is None or (keeper.read and body.follows != keeper.read[-1].id):
            yield f"GET {number}: {'does not follow' if body else 'absent'}", _with_keeper(state, place, Keeper())
            return
        read = Keeper("merge", tuple(rest), keeper.first, (*keeper.read, body))
        text = f"GET {number}: {body.id}"
        if rest:
            yield text, _with_keeper(state, place, read)
        elif self.rules.merging == "believed":
            yield text, _with_keeper(state, place, read._replace(at="check", todo=()))
        else:
            yield text, _with_keeper(state, place, read._replace(at="check", todo=(number - 1,)))

    def _check_run(self, state: State, place: int, keeper: Keeper) -> Steps:
        """The one before the last; then the run is written, by its name."""
        if keeper.todo:
            number = keeper.todo[0]
            good = self._is(state, (number, keeper.read[0].id))
            at = Keeper("check", (), keeper.first, keeper.read) if good else Keeper()
            yield f"GET {number}: {'the same' if good else 'not the same'}", _with_keeper(state, place, at)
            return
        run = tuple(body.id for body in keeper.read)
        low = keeper.first
        text = f"PUT {low}-{low + 1} merged: {' '.join(run)}"
        after = _with_keeper(state, place, Keeper())
        if run != state.history[low - 1 : low + 1]:
            yield text, after._replace(broken="merged what is not of the history")
        elif len(state.merged) < low:
            yield text, after._replace(merged=state.merged + run)
        else:
            yield text, after

    def _delete(self, state: State, place: int, keeper: Keeper) -> Steps:
        for number in keeper.todo if self.rules.deletes == "in any order" else keeper.todo[:1]:
            left = tuple(one for one in keeper.todo if one != number)
            there = (*state.there[: number - 1], None, *state.there[number:])
            late = state.late
            if self.world.bounded:
                late = tuple(one for one in late if not (one.early and one.number == number))
            after = state._replace(there=there, late=late)
            rest = Keeper("delete", left) if left else Keeper()
            yield f"DELETE {number}", _with_keeper(_forget_denials(after), place, rest)


def _with(state: State, place: int, actor: Actor) -> State:
    return state._replace(actors=(*state.actors[:place], actor, *state.actors[place + 1 :]))


def _with_keeper(state: State, place: int, keeper: Keeper) -> State:
    return state._replace(keepers=(*state.keepers[:place], keeper, *state.keepers[place + 1 :]))


def _listing(actor: Actor) -> Actor:
    return Actor("list", actor.base, actor.write, actor.attempt, since=actor.since)


def _newest(state: State) -> int:
    return max((number for number, body in enumerate(state.there, 1) if body), default=0)


def _forget_denials(state: State) -> State:
    on_their_way = {late.body.id for late in state.late}
    return state._replace(denied=tuple(one for one in state.denied if one in on_their_way))


def _range(merged: tuple[str, ...]) -> str:
    return f"1-{len(merged)}" if merged else "none"
