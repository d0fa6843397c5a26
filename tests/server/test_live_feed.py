"""The live page's feed: one sampler for all who look, none for nobody, and no wait for the slow."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from deepsched.server.live import page
from deepsched.server.live.feed import Feed

pytestmark = pytest.mark.server


class Counter:
    """What a feed samples: consecutive numbers, as fast as it likes."""

    def __init__(self):
        self.events = []
        self.numbers = itertools.count()

    def begin(self):
        self.events.append("begin")

    def sample(self, next_s):
        return b"%d" % next(self.numbers)

    def end(self):
        self.events.append("end")


def feed_of(counter, **options):
    return Feed(counter, period_s=0, **options)


async def first(messages, count):
    return [await anext(messages) for _ in range(count)]


async def ended(feed):
    """When the sampler has seen that nobody looks."""
    while feed._task is not None:
        await asyncio.sleep(0)


def test_all_viewers_see_the_same_samples_of_one_sampler():
    async def scenario():
        counter = Counter()
        feed = feed_of(counter)
        async with feed.viewer() as one, feed.viewer() as other:
            seen, same = await asyncio.gather(first(one, 3), first(other, 3))
        await ended(feed)
        assert seen == same == [b"0", b"1", b"2"]
        assert counter.events == ["begin", "end"]

    asyncio.run(scenario())


def test_nothing_is_sampled_before_somebody_looks_nor_after_the_last_has_left():
    async def scenario():
        counter = Counter()
        feed = feed_of(counter)
        assert counter.events == []
        async with feed.viewer() as messages:
            await anext(messages)
        await ended(feed)
        sampled = next(counter.numbers)
        for _ in range(20):
            await asyncio.sleep(0)
        assert next(counter.numbers) == sampled + 1  # by these two lines alone
        async with feed.viewer() as messages:  # and again for who comes back
            await anext(messages)
        await ended(feed)
        assert counter.events == ["begin", "end", "begin", "end"]

    asyncio.run(scenario())


def test_a_viewer_who_does_not_read_is_dropped_and_others_go_on():
    async def scenario():
        feed = feed_of(Counter())
        async with feed.viewer() as slow, feed.viewer() as quick:
            await first(quick, 20)
            assert feed.num_viewers == 1
            assert [message async for message in slow] == []  # ended; what waited is of no use
            await first(quick, 5)

    asyncio.run(scenario())


def test_the_feed_knows_when_it_is_full():
    async def scenario():
        feed = feed_of(Counter(), most_viewers=1)
        async with feed.viewer():
            assert feed.is_full
        assert not feed.is_full

    asyncio.run(scenario())


def test_closing_ends_what_viewers_read():
    async def scenario():
        counter = Counter()
        feed = feed_of(counter)
        async with feed.viewer() as messages:
            await anext(messages)
            feed.close()
            assert [message async for message in messages] == []
        await ended(feed)
        assert counter.events == ["begin", "end"]

    asyncio.run(scenario())


def test_a_sampler_that_fails_ends_its_viewers_and_serves_the_next(caplog):
    async def scenario():
        class Broken(Counter):
            def sample(self, next_s):
                raise OSError("no /proc")

        feed = feed_of(Broken())
        for _ in range(2):
            async with feed.viewer() as messages:
                assert [message async for message in messages] == []
            await ended(feed)

    asyncio.run(scenario())
    assert "no /proc" in caplog.text


def test_samples_that_take_long_come_more_rarely():
    """Below 1 % of a core, whatever a sample takes: the pause grows with it."""

    async def scenario():
        pauses = []

        class Slow(Counter):
            def sample(self, next_s):
                pauses.append(next_s)
                sum(range(20_000))  # CPU time, of which the pause is a multiple
                return b""

        feed = feed_of(Slow())
        async with feed.viewer() as messages:
            await first(messages, 3)
        return pauses

    assert min(asyncio.run(scenario())[1:]) > 0


def test_the_connection_of_a_viewer_who_does_not_read_is_cut(monkeypatch):
    """What has been written waits in the socket's buffer, which nobody empties."""
    monkeypatch.setattr(page, "_MOST_SEND_S", 0.01)

    async def scenario():
        cut = asyncio.Event()
        connection = SimpleNamespace(transport=SimpleNamespace(abort=cut.set))
        sent = []

        async def send(message):
            sent.append(message)
            if len(sent) > 1:  # the head goes through
                await asyncio.Event().wait()

        async def receive():
            await cut.wait()  # as a server does once the connection is gone
            return {"type": "http.disconnect"}

        async def messages():
            for number in itertools.count():
                yield b"data: %d\n\n" % number

        stream = page._EventStream(messages(), media_type="text/event-stream")
        scope = {"type": "http", "method": "GET", "deepsched.connection": connection}
        await asyncio.wait_for(stream(scope, receive, send), 30)
        return cut.is_set()

    assert asyncio.run(scenario())
