"""The recorder: a holder of topics whose messages go to files.

It holds topics as a session does, so its requests, refusals and reconnects are those of every session; in the router it
is one more member, whose codec makes lines. `tick` and the feeds call it from the hub. It never waits: over QUEUE_BYTES
that wait for the disk, messages are dropped and counted.

In a cluster every node has a recorder, and one of them records each feed: the node whose own connection to Alpaca the
messages come over, so that none is recorded twice. The others keep the feed connected, so that some node leads it, and
want no topics. A node begins a file when it becomes that one, and seals it when another node is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import gevent
from gevent.threadpool import ThreadPool

from proxy.alpaca.codec import JSON
from proxy.alpaca.endpoints import WILDCARD, Dialect, Endpoint, endpoint
from proxy.alpaca.topics import NO_TOPICS, Subscription, words
from proxy.observe.logs import Log
from proxy.observe.snapshot import RecordingState
from proxy.recording import lines
from proxy.recording.files import HOUR
from proxy.recording.lines import LINES
from proxy.recording.writer import NO_OBJECT, QUEUE_BYTES, QUEUE_FULL, REASONS, Chunk, Folder, Gap, Writer
from proxy.routing.allowlists import Allowlist, Client
from proxy.routing.subscriber import Error, Feed, Queue, Subscriber
from proxy.transport import frames
from proxy.transport.time_slice import TimeSlice

CHUNK_BYTES = 256 * 1024  # of lines, in one frame
FLUSH_SECONDS = 0.7  # and up to one tick until `tick` is called, and the write: 1 s at most
REPORT_SECONDS = 10.0  # between two log lines about dropped messages
RETRY_SECONDS = 310.0  # until refused topics are asked for again; a feed that Alpaca does not serve, after 300 s
CHECK_SECONDS = 60.0  # between two looks for topics that were refused without a report
INTERNAL_ERROR = "internal_error"  # the reason of a gap, in which messages are not counted


class RecordedFeed(Feed, Protocol):
    """The part of an `upstream.supervisor.FeedSupervisor` that the recorder uses."""

    @property
    def live(self) -> bool: ...

    def books(self, subscriber: Subscriber) -> Iterator[tuple[bytes, int]]: ...

    def hold(self, holder: object) -> None: ...

    def let_go(self, holder: object) -> None: ...


class Cluster(Protocol):
    """The part of a `cluster.node.Node` that the recorder uses."""

    def records(self, account: str, feed: str) -> bool:
        """Return whether this node is the one that records a feed now."""


def topics_of(allow: Allowlist, feed: Endpoint) -> Subscription:
    """Return the topics that the entries of a feed name. On the trading feed, they name orders of a stream."""
    entries = allow.entries(feed.feed)
    everywhere = entries.get(WILDCARD, ())
    return frozenset(
        (channel, WILDCARD if feed.dialect is Dialect.TRADING else symbol)
        for channel in feed.channels
        for symbol in (*entries.get(channel, ()), *everywhere)
    )


class Recorder:
    """All recorded feeds, and their writer. `client` has the account and the topics; it never logs in."""

    def __init__(
        self,
        client: Client,
        folder: Folder,
        find_feed: Callable[[Client, str], RecordedFeed],
        cluster: Cluster | None = None,
    ) -> None:
        self._client = client
        self._folder = folder
        self._find_feed = find_feed
        self._cluster = cluster
        self._topics: dict[str, Subscription] = {}
        for name in client.allow.feeds():
            found = endpoint(name)
            assert found is not None  # the configuration is checked
            self._topics[name] = topics_of(client.allow, found)
        self._writer = Writer(folder, self._topics)
        self._feeds: list[FeedRecorder] = []
        self._pool = ThreadPool(1)
        self._thread: gevent.event.AsyncResult | None = None
        self._ending: gevent.Greenlet | None = None
        self._discarded = False
        self._problem = ""  # as it was logged
        self._tidy_problem = ""  # likewise
        self._log = Log("recording")

    def __repr__(self) -> str:
        return f"<Recorder {self._folder.path} {len(self._feeds)} feeds>"

    def start(self) -> None:
        """Start the thread, and ask for the topics. An error leaves nothing behind."""
        self._thread = self._pool.spawn(self._writer.run)
        try:
            for name, topics in self._topics.items():
                found = self._find_feed(self._client, name)
                feed = FeedRecorder(self._client, found, topics, self._writer, self._cluster)
                self._feeds.append(feed)
                feed.start()
        except BaseException:
            self.stop()
            raise
        self._log.info("started", folder=self._folder.path, feeds=" ".join(self._topics))

    def stop(self) -> None:
        """Give the topics up, and let the thread end; `join` waits for that."""
        for feed in self._feeds:
            feed.stop()
        self._writer.end()
        self._ending = gevent.spawn(self._end)

    def _end(self) -> None:
        gevent.wait([self._thread])
        self._report()
        self._log.info("stopped", folder=self._folder.path)
        self._pool.kill()

    @property
    def ended(self) -> bool:
        """Whether everything is written after `stop`."""
        return self._ending is not None and self._ending.ready()

    @property
    def pending(self) -> int:
        """The bytes that wait for the disk."""
        return self._writer.pending + sum(feed.pending for feed in self._feeds)

    def join(self, seconds: float) -> None:
        """After `stop`, wait until everything is written and the files are sealed, at most for this time."""
        gevent.joinall([self._ending], seconds)
        if not self.ended:
            self._log.warning("unfinished", folder=self._folder.path, reason="the disk does not answer")

    def discard(self) -> None:
        """After `stop`, drop what waits for a disk that does not answer. A second call does nothing."""
        if self._discarded:
            return
        self._discarded = True
        messages = self._writer.discard()
        self._log.warning("unfinished", folder=self._folder.path, reason="the disk does not answer", messages=messages)

    def tick(self, now: float) -> None:
        """Hand over what waits, ask again for what was refused, and log what the thread has met."""
        for feed in self._feeds:
            feed.tick(now)
        self._report()

    def feed_is_live(self, live: RecordedFeed) -> None:
        """Begin or cease to record a feed that has come live, before its first message."""
        for feed in self._feeds:
            if feed.reads(live):
                try:
                    feed.take_turn()
                except Exception:  # it must not cost the connection
                    self._log.error("internal_error", part=repr(feed))

    def feed_was_lost(self, lost: RecordedFeed, silence: float) -> None:
        """Record that a feed is lost, which was silent for so many seconds before."""
        for feed in self._feeds:
            if feed.reads(lost):
                feed.was_lost(silence)

    def state(self) -> RecordingState:
        """Return the recording's part of the snapshot."""
        written = self._writer.written
        dropped = {(feed, reason): written.dropped[feed, reason] for feed in self._topics for reason in REASONS}
        for feed in self._feeds:
            dropped |= {(feed.name, QUEUE_FULL): feed.dropped, (feed.name, NO_OBJECT): feed.no_objects}
        return RecordingState(
            folder=str(self._folder.path),
            feeds=tuple(self._topics),
            active=frozenset(feed.name for feed in self._feeds if feed.active),
            messages=dict(written.messages),
            bytes=dict(written.bytes),
            dropped=dropped,
            pending=self.pending,
            limit=QUEUE_BYTES,
            newest=written.newest,
            last_at=written.last_at,
            free=written.free,
            min_free=self._folder.min_free,
            problem=written.problem,
        )

    def _report(self) -> None:
        written = self._writer.written
        while written.deleted:
            self._log.info("deleted", file=written.deleted.popleft())
        if (problem := written.problem) != self._problem:
            if problem:
                self._log.warning("failed", reason=problem, hint="messages are dropped until it can write")
            else:
                self._log.info("resumed", folder=self._folder.path)
            self._problem = problem
        if (problem := written.tidy_problem) != self._tidy_problem:
            if problem:
                self._log.warning("failed", reason=problem, hint="a file stays as it is; messages are recorded")
            self._tidy_problem = problem
        if written.bug:
            bug, written.bug = written.bug, ""
            self._log.error("internal_error", part=repr(self._writer), traceback=bug)


class FeedRecorder:
    """One recorded feed: the session that holds its topics, and the chunk of lines that is not handed over yet.

    `active`: this proxy records it, and not another node of the cluster.
    """

    def __init__(
        self,
        client: Client,
        feed: RecordedFeed,
        topics: Subscription,
        writer: Writer,
        cluster: Cluster | None = None,
    ) -> None:
        self.name = feed.endpoint.feed
        self.active = False
        self.dropped = 0  # messages, since the queue was full
        self.no_objects = 0  # messages that cannot be a line
        self.pending = 0  # bytes in the chunk
        self._reported = 0, 0  # of the dropped messages, and of those that cannot be a line
        self._report_at = 0.0
        self._hour = 0  # since 1970, of the newest message
        self._client = client
        self._feed = feed
        self._topics = topics
        self._writer = writer
        self._cluster = cluster
        self._chunk: list[bytes] = []
        self._messages = 0
        self._began = 0  # the time of the chunk's first line
        self._gap: Gap | None = None
        self._away_since: int | None = None
        self._outages = 0
        self._retry_at: float | None = None
        self._check_at: float | None = None  # whether topics were refused; None: at the next tick
        self._missing = NO_TOPICS  # topics that are not recorded, as the log says
        self._failed = False
        self._failed_at = -RETRY_SECONDS
        self._book_greenlet = gevent.Greenlet()  # appends order books
        self._log = Log("recording", feed=self.name)
        self._subscriber = self._make_subscriber()

    def __repr__(self) -> str:
        return f"<FeedRecorder {self.name} {len(self._topics)} topics, {self.pending} bytes>"

    def _make_subscriber(self) -> Subscriber:
        queue: Queue = deque()
        return Subscriber(
            self,
            self._feed,
            queue,
            name=self._client.name,
            codec=JSON if self._feed.endpoint.dialect is Dialect.TRADING else LINES,
            put=self._put,
            accepts_unknown=self._client.allow.accepts_unknown(self.name),
        )

    def start(self) -> None:
        """Ask for the topics; in a cluster, once this node is to record the feed."""
        if self._cluster is None:
            self._begin()
            return
        self._feed.hold(self)
        self.take_turn()

    def reads(self, feed: RecordedFeed) -> bool:
        """Whether it records from this feed."""
        return self._feed is feed

    def take_turn(self) -> None:
        """Begin to record if this node is the one that is to do so, or cease if another one is.

        While the feed is not live it is not known which, and the file is left open.
        """
        if self._cluster is None:
            return
        if self._cluster.records(self._client.account(self.name), self.name):
            if not self.active:
                self._log.info("begins")
                self._begin()
        elif self._feed.live:
            if self.active:
                self._cease(time.time_ns())
                self._log.info("ceases", reason="another node records the feed")
            self._away_since = None

    def was_lost(self, silence: float) -> None:
        """Record since when messages may be missing, in case this node goes on from another one."""
        if not self.active and self._away_since is None:
            self._away_since = time.time_ns() - int(silence * 1e9)

    def _begin(self) -> None:
        self.active = True
        self._adopt(self._topics)

    def _cease(self, at: int) -> None:
        """Give the topics up, and let the file end."""
        self._note_outage(at)
        self._end()
        self._writer.finish(self.name)
        self.active, self._failed = False, False
        self._retry_at = self._check_at = None
        self._missing = NO_TOPICS
        self._subscriber, self._outages = self._make_subscriber(), 0

    def _adopt(self, topics: Subscription) -> None:
        """Hold topics; Alpaca is asked for them."""
        self._feed.adopt(self._subscriber, topics)
        self._begin_books(time.time_ns())

    def _begin_books(self, at: int) -> None:
        """Begin to write the whole order books that are kept, so that each file can be replayed alone."""
        self._hour = at // HOUR
        self._book_greenlet.kill(block=False)
        self._book_greenlet = gevent.spawn(self._append_books)

    def _append_books(self) -> None:
        """Append each book as it is then, pausing between them: a large one takes a millisecond."""
        time_slice = TimeSlice()
        for frame, _ in self._feed.books(self._subscriber):
            at = time.time_ns()
            self._append(lines.books(frames.payload_of(frame), at), 0, at)
            time_slice.pause()

    def stop(self) -> None:
        """Leave the feed, and hand over what waits."""
        self._end()
        self._feed.let_go(self)

    def _end(self) -> None:
        self._book_greenlet.kill(block=False)
        self._subscriber.left = True
        self._feed.leave(self._subscriber)
        if self._gap is not None:
            self._add(b"", 0, time.time_ns())
        self._flush()

    def tick(self, now: float) -> None:
        at = time.time_ns()
        self.take_turn()
        if self.active:
            self._note_outage(at)
            if self._away_since is not None and self._feed.live:
                self._note_return(at)
        if self._chunk and not 0 <= at - self._began < FLUSH_SECONDS * 1e9:  # below 0: the clock was set back
            self._flush()
        if now >= self._report_at and self._reported != (self.dropped, self.no_objects):
            self._report_dropped()
            self._report_at = now + REPORT_SECONDS
        if not self.active:
            return
        if self._failed:
            self._leave(now, at)
        elif self._retry_at is None:
            if self._check_at is None or now >= self._check_at:
                self._check_at = now + CHECK_SECONDS
                if not self._topics <= self._subscriber.wanted:
                    self._retry_at = now + RETRY_SECONDS
        elif now >= self._retry_at:
            self._retry_at = self._check_at = None
            self._adopt(self._topics - self._subscriber.wanted)

    def _report_dropped(self) -> None:
        dropped, no_objects = self._reported
        if self.dropped > dropped:
            self._log.warning("dropped", messages=self.dropped, reason="the disk is too slow")
        if self.no_objects > no_objects:
            self._log.warning("dropped", messages=self.no_objects, reason="they are no JSON objects")
        self._reported = self.dropped, self.no_objects

    def _leave(self, now: float, at: int) -> None:
        """Give the topics up after an internal error. Ask for them at the next tick; later, if it was not the first."""
        self._failed = False
        self._feed.leave(self._subscriber)
        self._gap = self._gap or Gap(at, INTERNAL_ERROR)
        self._retry_at = now + RETRY_SECONDS if now - self._failed_at < RETRY_SECONDS else now
        self._failed_at = now

    # Called by the feed

    def answer(self) -> None:
        """Do nothing: its requests count as answered from the start."""

    def report(self, error: Error | None) -> None:
        """Log which topics are not recorded."""
        missing = self._topics - self._subscriber.held
        code, reason = error or (None, "Alpaca does not send them")
        if missing and missing != self._missing:  # else it is known since the last attempt
            self._log.warning("refused", code=code, reason=reason, topics=words(missing))
        self._missing = missing
        self._check_at = None

    def abort(self) -> None:
        """Give the topics up at the next tick, after an internal error, and ask for them again."""
        self._failed = True

    def _put(self, frame: bytes, messages: int) -> None:
        """Take a frame of messages; never waits."""
        at = time.time_ns()
        if self._outages != self._subscriber.outages:
            self._note_outage(at)
        if self._away_since is not None:
            self._note_return(at)
        if at // HOUR != self._hour:
            self._begin_books(at)
        payload = frames.payload_of(frame)
        bodies = payload if payload[:1] == b"\n" else LINES.join([payload])
        recorded = bodies.count(b"\n")
        if (no_objects := messages - recorded) > 0:
            self.no_objects += no_objects
            self._append(Gap(at, NO_OBJECT, no_objects).line(at), 0, at)
        if recorded:
            self._append(lines.stamped(bodies, at), recorded, at)

    def _append(self, text: bytes, messages: int, at: int) -> None:
        if at // HOUR != self._began // HOUR:
            self._flush()
        if self._writer.pending + self.pending + len(text) > QUEUE_BYTES:
            self._gap = self._gap or Gap(at, QUEUE_FULL)
            self._gap.messages += messages
            self.dropped += messages
            return
        self._add(text, messages, at)

    def _add(self, text: bytes, messages: int, at: int) -> None:
        if not self._chunk:
            self._began = at
        if self._gap is not None:
            text, self._gap = self._gap.line(at) + text, None
        self._chunk.append(text)
        self._messages += messages
        self.pending += len(text)
        if self.pending >= CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._chunk:
            hour = self._began - self._began % HOUR
            self._writer.put(Chunk(self.name, hour, self._chunk, self._messages, self.pending, self._began))
            self._chunk, self._messages, self.pending = [], 0, 0

    def _note_outage(self, at: int) -> None:
        if self._outages != self._subscriber.outages:
            self._outages = self._subscriber.outages
            if self._away_since is None:
                self._append(lines.own(lines.OUTAGE, at), 0, at)
            self._away_since = self._away_since or at

    def _note_return(self, at: int) -> None:
        self._append(lines.own(lines.RESUMED, at, since=self._away_since), 0, at)
        self._away_since = None
