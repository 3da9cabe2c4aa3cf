"""
GitHub webhooks: a server turns each delivery into a typed event, and handlers react.

    python -m pip install . && python examples/github_webhooks.py FOLDER

*FOLDER* holds bodies of deliveries, named ``EVENT.VARIANT.json``: EVENT is what GitHub sends in
the header ``X-GitHub-Event``. The payload examples of github.com/octokit/webhooks will do.

A driver posts each of them to a server on this machine, as GitHub would: signed, with an id.
Some it posts twice, at once or later, and some are forged, broken or too large. The server
checks, publishes and answers; a report says what came of it all. The exit status is 0 only if
everything adds up.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import io
import itertools
import json
import logging
import secrets
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from pathlib import Path
from typing import Any, TypedDict

import attrs

from eventbus import Envelope, EventBus, Receipt, event, exponential, fixed, on

Payload = Mapping[str, Any]

# ------------------------------------------------- the events: one base, and a class where it pays


@event(name="github.webhook", key="repository", kw_only=True)
class WebhookReceived:
    """
    Any delivery: whoever subscribes to this class is given those of all its subclasses.
    """

    delivery_id: str
    kind: str
    action: str | None
    repository: str | None
    sender: str | None
    payload: Payload = attrs.field(repr=False, eq=False)


@event(name="github.ping", kw_only=True)
class Pinged(WebhookReceived):
    zen: str


@event(name="github.push", kw_only=True)
class Pushed(WebhookReceived):
    ref: str


@event(name="github.pull_request", kw_only=True)
class PullRequestChanged(WebhookReceived):
    number: int


@event(name="github.issues", kw_only=True)
class IssueChanged(WebhookReceived):
    number: int


@event(name="github.issue_comment", kw_only=True)
class IssueCommented(WebhookReceived):
    number: int


@event(name="github.release", kw_only=True)
class ReleaseChanged(WebhookReceived):
    tag: str


@event(name="github.check_run", kw_only=True)
class CheckRunChanged(WebhookReceived):
    conclusion: str | None


@event(name="github.star", kw_only=True)
class StarChanged(WebhookReceived):
    pass


@event(name="github.watch", kw_only=True)
class WatchStarted(WebhookReceived):
    pass


@event(name="github.security_advisory", kw_only=True)
class AdvisoryChanged(WebhookReceived):
    advisory: str


class Facts(TypedDict):
    """
    What every delivery has.
    """

    delivery_id: str
    kind: str
    action: str | None
    repository: str | None
    sender: str | None
    payload: Payload


TYPED: dict[str, Callable[[Facts, Payload], WebhookReceived]] = {
    "ping": lambda facts, body: Pinged(**facts, zen=body["zen"]),
    "push": lambda facts, body: Pushed(**facts, ref=body["ref"]),
    "pull_request": lambda facts, body: PullRequestChanged(**facts, number=body["number"]),
    "issues": lambda facts, body: IssueChanged(**facts, number=body["issue"]["number"]),
    "issue_comment": lambda facts, body: IssueCommented(**facts, number=body["issue"]["number"]),
    "release": lambda facts, body: ReleaseChanged(**facts, tag=body["release"]["tag_name"]),
    "check_run": lambda facts, body: CheckRunChanged(
        **facts, conclusion=body["check_run"]["conclusion"]
    ),
    "star": lambda facts, body: StarChanged(**facts),
    "watch": lambda facts, body: WatchStarted(**facts),
    "security_advisory": lambda facts, body: AdvisoryChanged(
        **facts, advisory=body["security_advisory"]["ghsa_id"]
    ),
}


def read_delivery(kind: str, delivery_id: str, body: bytes) -> WebhookReceived:
    """
    Turn a delivery into an event.

    Raises:
        ValueError: The body is no JSON object, or the delivery's id is no UUID.
        KeyError, TypeError: The object lacks what deliveries of its kind have.
    """
    payload = json.loads(body)
    if not isinstance(payload, dict):
        raise ValueError(f"a delivery is an object, not {type(payload).__name__}")
    facts = Facts(
        delivery_id=str(uuid.UUID(delivery_id)),
        kind=kind,
        action=payload.get("action"),
        repository=payload["repository"]["full_name"] if "repository" in payload else None,
        sender=payload["sender"]["login"] if "sender" in payload else None,
        payload=payload,
    )
    read = TYPED.get(kind)
    return WebhookReceived(**facts) if read is None else read(facts, payload)


# --------------------------------------------------- the handlers: marked here, included by a bus


@attrs.define
class Office:
    """
    Everybody who reacts to deliveries, and the services they need.

    The services fail by count, not by chance, so that every run is alike.
    """

    audit_trail: list[tuple[Envelope[WebhookReceived], str]] = attrs.field(factory=list)
    announced: list[str] = attrs.field(factory=list)
    alarms: list[str] = attrs.field(factory=list)
    labelled: list[int] = attrs.field(factory=list)
    thanked: list[str] = attrs.field(factory=list)
    summaries: list[int] = attrs.field(factory=list)
    _seen_by_labeller: set[str] = attrs.field(factory=set)
    _asked_to_summarise: Iterator[int] = attrs.field(factory=itertools.count)

    # Of all kinds, before everybody else, with id and headers; nothing is written down twice.
    @on(
        WebhookReceived,
        name="audit",
        priority=100,
        where=lambda received: not isinstance(received, Pinged),
        idempotency_key="delivery_id",
    )
    def audit(self, received: WebhookReceived, envelope: Envelope[WebhookReceived]) -> None:
        self.audit_trail.append((envelope, envelope.headers["x-github-event"]))

    # A plain handler, of two kinds of event.
    @on(name="announce")
    def announce(self, happened: Pushed | ReleaseChanged) -> None:
        self.announced.append(happened.ref if isinstance(happened, Pushed) else happened.tag)

    # Asked of each check, and called for those that failed.
    @on(CheckRunChanged, name="alarm", where=lambda changed: changed.conclusion == "failure")
    def alarm(self, changed: CheckRunChanged) -> None:
        self.alarms.append(f"{changed.repository}")

    # The service drops the first call for each delivery: the second attempt gets through.
    @on(name="label", retry=exponential(attempts=3, initial=0.01, on=ConnectionError))
    def label(self, changed: PullRequestChanged) -> None:
        if changed.delivery_id not in self._seen_by_labeller:
            self._seen_by_labeller.add(changed.delivery_id)
            raise ConnectionError("the labelling service hung up")
        self.labelled.append(changed.number)

    # Async, and for a moment at most. The first call of all hangs; its second attempt does not.
    @on(name="summarise", timeout=0.2, retry=fixed(attempts=2, delay=0.0, on=TimeoutError))
    async def summarise(self, happened: IssueChanged | IssueCommented) -> None:
        if next(self._asked_to_summarise) == 0:
            await asyncio.sleep(3600)
        self.summaries.append(happened.number)

    # GitHub sends a star twice, as "star" and as "watch": one thank-you for each admirer.
    @on(
        name="thank",
        where=lambda happened: happened.action in ("created", "started"),
        idempotency_key=lambda happened: f"{happened.sender} {happened.repository}",
    )
    def thank(self, happened: StarChanged | WatchStarted) -> None:
        self.thanked.append(f"{happened.sender}")

    # Fails always. What is wrong with the token is no better at the next attempt.
    @on(name="ticket", retry=fixed(attempts=3, delay=0.01, give_up_on=PermissionError))
    def open_ticket(self, changed: AdvisoryChanged) -> None:
        raise PermissionError(f"no ticket for {changed.advisory}: the token has expired")


# ---------------------------------------------------------------------- the server: check, publish

MAX_BODY = 1 << 20  # bytes; GitHub itself stops at 25 MB, the largest example has 31 kB


def signature_of(body: bytes, secret: bytes) -> str:
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def is_signed(body: bytes, given: str, secret: bytes) -> bool:
    # As bytes: compare_digest takes text only if it is ASCII, and *given* is a stranger's.
    expected = signature_of(body, secret).encode()
    return hmac.compare_digest(expected, given.encode("latin-1", "replace"))


class Intake(ThreadingHTTPServer):
    """
    Takes deliveries on a free port of the loopback interface, each in a thread of its own.
    """

    daemon_threads = False  # so that closing waits until every delivery has been answered
    request_queue_size = 64

    def __init__(self, bus: EventBus, secret: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Delivery)
        self.bus = bus
        self.secret = secret
        self.published: list[tuple[Receipt, float]] = []  # and the seconds each publish took
        self.refused: list[HTTPStatus] = []


class Delivery(BaseHTTPRequestHandler):
    """
    One delivery, from its headers to the answer.
    """

    server: Intake
    timeout = 10.0  # seconds without a byte from the sender

    def do_POST(self) -> None:
        status, text = self._take()
        if status >= HTTPStatus.BAD_REQUEST:
            self.server.refused.append(status)
        answer = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _take(self) -> tuple[HTTPStatus, str]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return HTTPStatus.LENGTH_REQUIRED, "say how long it is"
        if len(length) > 10 or int(length) > MAX_BODY:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{MAX_BODY} bytes at most"
        body = self.rfile.read(int(length))
        given = self.headers.get("X-Hub-Signature-256", "")
        if not is_signed(body, given, self.server.secret):
            return HTTPStatus.UNAUTHORIZED, "not signed with our secret"
        try:
            received = read_delivery(
                self.headers.get("X-GitHub-Event", ""),
                self.headers.get("X-GitHub-Delivery", ""),
                body,
            )
        except (KeyError, TypeError) as error:
            return HTTPStatus.UNPROCESSABLE_ENTITY, f"not as deliveries are: {error!r}"
        except (ValueError, RecursionError) as error:
            return HTTPStatus.BAD_REQUEST, str(error)
        return self._publish(received)

    def _publish(self, received: WebhookReceived) -> tuple[HTTPStatus, str]:
        started = time.perf_counter()
        receipt = self.server.bus.publish(
            received,
            idempotency_key=received.delivery_id,
            correlation_id=received.delivery_id,
            headers={"x-github-event": received.kind},
        )
        self.server.published.append((receipt, time.perf_counter() - started))
        # A handler's failure is ours, not GitHub's: there is a dead letter, and nobody need send
        # the delivery again. Who does all the same is welcome: a failure leaves its key free.
        if is_repeat(receipt):
            return HTTPStatus.OK, f"published before as {receipt.duplicate_of}"
        return HTTPStatus.ACCEPTED, f"published as {receipt.id}"

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(server: Intake) -> Iterator[int]:
    """
    Serve from a thread, yield the port, and leave nothing behind.
    """
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="intake")
    with server:
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


# ------------------------------------------------------------------- the driver: posts like GitHub


@attrs.frozen
class Post:
    kind: str
    body: bytes = attrs.field(repr=False)
    signature: str
    delivery_id: str = attrs.field(factory=lambda: str(uuid.uuid4()))
    length: int | None = None  # where it is not the body's

    @classmethod
    def signed(cls, kind: str, body: bytes, secret: bytes) -> Post:
        return cls(kind, body, signature_of(body, secret))


@attrs.frozen
class Answer:
    post: Post
    status: HTTPStatus
    seconds: float


def send(port: int, post: Post, gate: threading.Barrier | None = None) -> Answer:
    headers = {
        "X-GitHub-Event": post.kind,
        "X-GitHub-Delivery": post.delivery_id,
        "X-Hub-Signature-256": post.signature,
        "Content-Type": "application/json",
        "Content-Length": str(len(post.body) if post.length is None else post.length),
    }
    if gate is not None:
        gate.wait(timeout=5.0)
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
    try:
        connection.request("POST", "/", post.body, headers)
        response = connection.getresponse()
        response.read()
        return Answer(post, HTTPStatus(response.status), time.perf_counter() - started)
    finally:
        connection.close()


def read_folder(folder: Path, secret: bytes) -> list[Post]:
    files = sorted(folder.glob("*.json"))
    return [Post.signed(file.name.partition(".")[0], file.read_bytes(), secret) for file in files]


# Handlers of these fail, and what has failed may be sent again. Whether it has failed when it is
# sent twice at once is a matter of luck, and so these are only ever sent again later.
FAILING = {"security_advisory"}


def drive(port: int, posts: list[Post], secret: bytes) -> list[Answer]:
    """
    Post everything once, some of it twice at once, some again later, and what must be refused.
    """
    twice = {post.delivery_id for post in posts[::4] if post.kind not in FAILING}
    first: list[tuple[Post, threading.Barrier | None]] = []
    for post in posts:
        if post.delivery_id in twice:
            first += [(post, gate := threading.Barrier(2)), (post, gate)]
        else:
            first.append((post, None))
    again = [post for place, post in enumerate(posts) if place % 5 == 0 or post.kind in FAILING]
    kinds = len({post.kind for post in posts})
    print(f"{len(posts)} payloads of {kinds} kinds: each is posted, {len(twice)} twice at once,")
    print(f"{len(again)} again later, and {REFUSED.total()} more that are to be refused.")
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(lambda one: send(port, *one), first))
        answers += pool.map(lambda post: send(port, post), again)
        answers += pool.map(lambda post: send(port, post), unwelcome(secret))
    return answers


def unwelcome(secret: bytes) -> Iterator[Post]:
    yield Post.signed("push", b"{}", b"not the secret")
    yield Post("push", b"{}", signature="sha256=\xe9")  # no digest at all
    yield Post.signed("push", b'{"ref": ', secret)  # breaks off
    yield attrs.evolve(Post.signed("push", b"{}", secret), delivery_id="not-an-id")
    yield Post.signed("push", b"{}", secret)  # has no ref
    # Sent without its body, which the server would not read: it is refused by its headers.
    yield Post("push", b"", signature="", length=MAX_BODY + 1)


REFUSED = Counter(
    {
        HTTPStatus.UNAUTHORIZED: 2,
        HTTPStatus.BAD_REQUEST: 2,
        HTTPStatus.UNPROCESSABLE_ENTITY: 1,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: 1,
    }
)

# ---------------------------------------------------------------------------------- the report


class Log(logging.Handler):
    """
    Keeps what the bus logs, to be counted instead of printed.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Log:
        logging.getLogger("eventbus").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("eventbus").removeHandler(self)


@attrs.frozen
class Run:
    """
    What there is to report on.
    """

    posts: list[Post]
    answers: list[Answer]
    server: Intake
    bus: EventBus
    office: Office
    log: Log

    @property
    def accepted(self) -> list[Receipt]:
        return [receipt for receipt, _ in self.server.published if not is_repeat(receipt)]


def report(run: Run) -> bool:
    heading("What was posted, and how it was answered")
    print_answers(run)
    heading("What was published")
    print_events(run)
    heading("What became of it, handler by handler")
    print_subscriptions(run.bus)
    heading("Dead letters")
    for letter in run.bus.dead_letters:
        print(f"  {letter.event.delivery_id}  {letter.subscription}: {letter.message}")
    heading("Milliseconds, of accepted deliveries")
    print_latencies(run)
    heading("Does it add up?")
    return print_checks(run)


def print_answers(run: Run) -> None:
    statuses = Counter(answer.status for answer in run.answers)
    for status, count in sorted(statuses.items()):
        meaning = {202: "accepted", 200: "duplicate"}.get(status, f"refused: {status.phrase}")
        print(f"  {status.value} {meaning:<36}{count:>6}")
    print(f"  {'posted':<40}{len(run.answers):>6}")


def print_events(run: Run) -> None:
    rows: dict[str, Counter[str]] = {}
    for receipt, _ in run.server.published:
        row = rows.setdefault(receipt.envelope.name, Counter())
        row["accepted"] += not is_repeat(receipt)
        row["duplicate"] += is_repeat(receipt)
        row["delivered"] += receipt.delivered
        row["failed"] += len(receipt.failures)
        row["unhandled"] += receipt.unhandled
    print_table("event", ("accepted", "duplicate", "delivered", "failed", "unhandled"), rows)


def print_subscriptions(bus: EventBus) -> None:
    rows = {name: attrs.asdict(counted) for name, counted in bus.stats().subscriptions.items()}
    columns = ("published", "missed", "duplicate", "retried", "failed", "delivered")
    print_table("subscription", columns, rows)


def print_latencies(run: Run) -> None:
    posted = [answer.seconds for answer in run.answers if answer.status == HTTPStatus.ACCEPTED]
    published = [seconds for receipt, seconds in run.server.published if not is_repeat(receipt)]
    rows = {
        name: {f"p{share}": f"{percentile(times, share) * 1e3:.2f}" for share in (50, 99, 100)}
        for name, times in (("from post to answer", posted), ("in publish alone", published))
    }
    print_table("", ("p50", "p99", "p100"), rows)


def print_checks(run: Run) -> bool:
    """
    Compare what driver, bus and handlers counted, each for itself.
    """
    statuses = Counter(answer.status for answer in run.answers)
    stats, letters, refused = run.bus.stats(), run.bus.dead_letters, run.server.refused
    by_class = Counter(type(receipt.event) for receipt in run.accepted)
    wanted = {post.delivery_id for post in run.posts if post.kind != "ping"}
    audited = [envelope.event.delivery_id for envelope, _ in run.office.audit_trail]
    checks: dict[str, tuple[object, object]] = {
        "what was posted was published, a duplicate, or refused": (
            len(run.answers),
            stats.published + stats.duplicate + len(refused),
        ),
        "what was published was answered by 202": (stats.published, statuses[HTTPStatus.ACCEPTED]),
        "what was a duplicate was answered by 200": (stats.duplicate, statuses[HTTPStatus.OK]),
        "what was refused had to be, and for its own reason": (REFUSED, Counter(refused)),
        "each delivery is in the audit trail once": (sorted(wanted), sorted(audited)),
        "the pings were unhandled, and nothing else": (by_class[Pinged], stats.unhandled),
        "the advisories are dead letters": (by_class[AdvisoryChanged], len(letters)),
        "nothing else failed": (len(letters), sum(len(each.failures) for each in run.accepted)),
        "each failure was logged once": (len(letters), len(run.log.lines)),
    }
    for claim, (expected, found) in checks.items():
        is_so = expected == found
        print(f"  {'✓' if is_so else '✗'} {claim}" + f": {expected} is not {found}" * (not is_so))
    return all(expected == found for expected, found in checks.values())


def is_repeat(receipt: Receipt) -> bool:
    """
    Whether the publisher's key turned the event away, so that no handler was called.
    """
    return receipt.duplicate and not (receipt.delivered or receipt.failures)


def percentile(numbers: list[float], share: int) -> float:
    return sorted(numbers)[ceil(len(numbers) * share / 100) - 1]


def print_table(head: str, columns: Iterable[str], rows: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"  {head:<24}", *(f"{column:>10}" for column in columns))
    for name, row in sorted(rows.items()):
        print(f"  {name:<24}", *(f"{row[column] or '·':>10}" for column in columns))


def heading(text: str) -> None:
    print(f"\n{text}\n{'─' * len(text)}")


def main(arguments: list[str]) -> int:
    secret = secrets.token_bytes(32)
    posts = read_folder(Path(arguments[0]), secret) if len(arguments) == 1 else []
    if not posts:
        print("usage: python examples/github_webhooks.py FOLDER (of EVENT.VARIANT.json)")
        return 2
    with Log() as log, EventBus(name="webhooks") as bus:
        office = Office()
        bus.include(office)
        server = Intake(bus, secret)
        with serving(server) as port:
            answers = drive(port, posts, secret)
        adds_up = report(Run(posts, answers, server, bus, office, log))
    return 0 if adds_up else 1


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # the boxes, wherever the output goes
    sys.exit(main(sys.argv[1:]))
