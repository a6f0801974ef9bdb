"""What becomes of writes that were stored together, for whoever waits on the event loop."""

import asyncio
from collections import Counter

from infra.commitlog import Write
from infra.sqlite import write_queue
from infra.sqlite.write_queue import ANSWERED_IN_A_TURN, Waiting


def test_others_have_a_turn_between_the_answers_of_one_commit() -> None:
    async def turns_of_answers() -> list[int]:
        loop, turn = asyncio.get_running_loop(), 0
        group = [Waiting(Write(lambda db: None), 0.0, loop.create_future()) for _ in range(2 * ANSWERED_IN_A_TURN + 1)]
        group[1].done.cancel()  # nobody waits for that one any more
        found: list[int] = []
        for waiting in group:
            waiting.done.add_done_callback(lambda done: None if done.cancelled() else found.append(turn))
        write_queue._tell(group)
        while not all(waiting.done.done() for waiting in group) or len(found) < len(group) - 1:
            await asyncio.sleep(0)
            turn += 1
        return found

    turns = Counter(asyncio.run(turns_of_answers()))
    assert list(turns.values()) == [ANSWERED_IN_A_TURN - 1, ANSWERED_IN_A_TURN, 1]
