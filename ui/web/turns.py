"""Gradio's queue, in which addresses take turns: who sends eighty events waits for them, and nobody else does.

In: events as they are pushed. Out: the order in which they are worked on, and which are not done yet.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from gradio.queueing import Event, Queue

from ui.web.visitors import network


class Turns(Queue):
    """Of the events that wait for the same slots, everybody's first one comes before anybody's second one. What an
    address has in the slots counts as its first ones."""

    async def push(self, *args: Any, **options: Any) -> Any:
        answer = await super().push(*args, **options)
        event = self.event_ids_to_events.get(answer[1]) if answer[0] and isinstance(answer[1], str) else None
        if event is not None:
            self._take_turns(event.concurrency_id)
        return answer

    def _take_turns(self, slots: str) -> None:
        had = Counter(_address(event) for event in self._running() if event.concurrency_id == slots)
        waiting = self.event_queue_per_concurrency_id[slots].queue
        turns: dict[str, int] = {}
        for event in waiting:
            address = _address(event)
            turns[event._id] = had[address]
            had[address] += 1
        waiting.sort(key=lambda event: turns[event._id])

    def working_on(self) -> set[str]:
        """The ids of the events that wait or are being worked on."""
        return {event._id for event in self._under_way()}

    def pages(self) -> set[str]:
        """What Gradio calls the pages of these events."""
        return {event.session_hash for event in self._under_way()}

    def _under_way(self) -> list[Event]:
        slots = list(self.event_queue_per_concurrency_id.values())
        return [event for each in slots for event in list(each.queue)] + self._running()

    def _running(self) -> list[Event]:
        return [event for job in list(self.active_jobs) if job for event in job]


def _address(event: Event) -> str:
    client = event.request.client
    return network(client.host) if client else ""
