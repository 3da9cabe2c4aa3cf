"""
Every example runs, and comes to the end that it promises.

They run as a reader runs them, in a process of their own with warnings as errors; what is
served by a framework runs in its test client.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient

from eventbus import EventBus
from strict_python import STRICT

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(
    *arguments: object, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """
    Run Python as a reader would; what hangs is ended.
    """
    return subprocess.run(
        [sys.executable, *STRICT, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


@pytest.fixture
def load() -> Iterator[Any]:
    """
    Import an example by its name, and forget it afterwards.
    """
    loaded: list[str] = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loaded.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        del sys.modules[name]


def test_no_example_is_left_out() -> None:
    """
    What stands in the folder is what is run here, and each file says how a reader runs it.
    """
    files = {file.relative_to(EXAMPLES).as_posix(): file for file in EXAMPLES.rglob("*.py")}
    assert {
        "fastapi_app.py",
        "github_webhooks.py",
        "iot_stream.py",
        "ledger.py",
        "shop.py",
        "unit_testing/shop_app.py",
        "unit_testing/test_shop_app.py",
    } == set(files)
    for name in (
        "fastapi_app.py",
        "github_webhooks.py",
        "iot_stream.py",
        "ledger.py",
        "shop.py",
        "unit_testing/test_shop_app.py",
    ):
        assert "\n    python " in files[name].read_text(encoding="utf-8").split('"""')[1]


# -- shop.py -------------------------------------------------------------------------------

LED_TO = """\
  shop.order_placed
  ├─ ✓ stock ··································· 1 attempt * ms
  │  ╰─ shop.stock_reserved
  │     ╰─ ✓ payment ··························· 3 attempts * ms
  │        ├─ ✗ attempt 1 ······················ ConnectionError, again in 50 ms
  │        ├─ ✗ attempt 2 ······················ ConnectionError, again in 100 ms
  │        ╰─ shop.payment_received
  │           ╰─ ✓ invoice ····················· 1 attempt * ms
  │              ╰─ shop.invoice_issued
  │                 ╰─ ✓ notification, queued ·· 1 attempt * ms
  ╰─ ✓ notification, queued ···················· 1 attempt * ms
"""


@pytest.fixture(scope="module")
def shop_report() -> str:
    done = run(EXAMPLES / "shop.py")
    assert (0, "") == (done.returncode, done.stderr)
    return masked(done.stdout)


def masked(report: str) -> str:
    """
    Put a star in the place of what differs from run to run: measured times and ids.
    """
    return re.sub(
        r" *\d+\.\d+ ms", " * ms", re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4,12}){4}", "*", report)
    )


def test_the_shop_tells_one_orders_causation_as_a_tree(shop_report: str) -> None:
    """
    The tree has each event, its handlers with attempts and durations, and what they published.
    """
    assert LED_TO in shop_report


def test_the_shop_suppresses_a_duplicate_and_redrives_a_poison_order(shop_report: str) -> None:
    """
    An order sent again is a duplicate; one that cannot be served waits as a dead letter.
    """
    told = [
        "A-1002 Grace 1 x kettle 39.90 € ✓ 1 handler, 1 queued",
        "A-1002 Grace 1 x kettle 39.90 € a duplicate: no handler called",
        "A-1003 Leo 1 x samovar 189.00 € ✗ stock",
        "A-1003 by 'stock', after 1 attempt: LookupError: the warehouse has no 'samovar'",
        "A-1003 Leo 1 x samovar 189.00 € ✓ 1 handler",
        "queued notifications: all handled",
        "stock 4 1 0 0 1 * ms",
        "payment 4 0 2 0 0 * ms",
        "invoice 4 0 0 0 0 * ms",
        "notification 8 0 0 0 0 * ms",
        "16 events published, 1 duplicate turned away, 0 dead letters left",
        "4 orders paid, 282.20 € in all",
    ]
    lines = [" ".join(line.split()) for line in shop_report.splitlines()]
    assert told == [line for line in lines if line in told]


def test_the_shop_does_the_same_in_every_run(shop_report: str) -> None:
    """
    The bank fails by count and not by chance: two runs differ in times and ids alone.
    """
    assert shop_report == masked(run(EXAMPLES / "shop.py").stdout)


# -- shop.py --store -----------------------------------------------------------------------

PAID = [("A-1001", "24.80"), ("A-1002", "39.90"), ("A-1003", "189.00"), ("A-1004", "28.50")]


def live_until(line: str, *arguments: object) -> None:
    """
    Start the shop, and kill it as soon as it has printed a line that begins so.
    """
    shop = subprocess.Popen(
        [sys.executable, "-u", *STRICT, str(EXAMPLES / "shop.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    with shop:
        assert shop.stdout is not None
        for printed in shop.stdout:
            if printed.strip().startswith(line):
                break
        shop.kill()
    assert 0 != shop.returncode, f"it has ended without {line!r}"


@pytest.mark.parametrize(
    "lines", [["A-1001"], ["A-1002", "A-1004"], ["A-1003", "A samovar", "What the world"]]
)
def test_a_shop_that_is_killed_goes_on_where_it_was(tmp_path: Path, lines: list[str]) -> None:
    """
    However often it is killed, it finishes the orders when it is started again, once each.
    """
    store = tmp_path / "shop.db"
    for line in lines:
        live_until(line, "--store", store, "--pace", 0.05)

    done = run(EXAMPLES / "shop.py", "--store", store)

    assert (0, "") == (done.returncode, done.stderr)
    with closing(sqlite3.connect(store)) as db:
        assert PAID == db.execute("SELECT * FROM payments ORDER BY order_id").fetchall()
        invoiced = db.execute("SELECT order_id FROM invoices ORDER BY order_id").fetchall()
        assert [(order_id,) for order_id, _ in PAID] == invoiced
        assert [(8, 8)] == db.execute("SELECT count(*), count(DISTINCT text) FROM mails").fetchall()
        assert [("tea", 38)] == db.execute("SELECT * FROM stock WHERE article = 'tea'").fetchall()


def test_the_shop_has_nothing_to_do_twice(tmp_path: Path) -> None:
    """
    A second run on the same file finds every order there, and changes nothing.
    """
    store = tmp_path / "shop.db"
    first, second = (run(EXAMPLES / "shop.py", "--store", store) for _ in range(2))

    assert [0, 0] == [first.returncode, second.returncode]
    assert (4, 0) == tuple(each.stdout.count(" stored, and") for each in (first, second))
    assert (2, 2) == tuple(each.stdout.count("  by then: all handled") for each in (first, second))
    assert 5 == second.stdout.count("stands in the file already")
    world = [each.stdout.partition("What the world")[2] for each in (first, second)]
    assert world[0] == world[1]


# -- iot_stream.py -------------------------------------------------------------------------


def account_of(report: str) -> dict[str, int]:
    """
    Read the numbers of the last report.
    """
    found = re.findall(r"^  (archived|dropped|left|published) +([\d,]+)", report, re.MULTILINE)
    return {name: int(number.replace(",", "")) for name, number in found}


def test_the_stream_accounts_for_every_reading() -> None:
    """
    More readings come than can be archived: all are archived, dropped or left, and counted.
    """
    done = run(EXAMPLES / "iot_stream.py", "--seconds=1", "--rate=3000", "--plain")

    assert (0, "") == (done.returncode, done.stderr)
    assert ["published/s", "archived/s", "depth", "lag", "dropped"] == done.stdout.split()[:5]
    account = account_of(done.stdout)
    published = account.pop("published")
    assert ["archived", "dropped", "left"] == list(account)
    assert published == sum(account.values()) > 100


def test_the_stream_keeps_up_where_it_can() -> None:
    """
    With few readings and time to close in, all are archived.
    """
    done = run(EXAMPLES / "iot_stream.py", "--seconds=0.5", "--rate=100", "--grace=60", "--plain")

    assert (0, "") == (done.returncode, done.stderr)
    assert "done and closed: all handled" in done.stdout
    account = account_of(done.stdout)
    assert account["published"] == account["archived"] > 0


def test_the_stream_draws_a_table_where_rich_is_installed() -> None:
    """
    With rich and a terminal, the state is a table that is drawn anew.
    """
    pytest.importorskip("rich")
    done = run(EXAMPLES / "iot_stream.py", "--seconds=0.8", "--rate=100", FORCE_COLOR="1")

    assert (0, "") == (done.returncode, done.stderr)
    assert "archive, queued with drop_oldest" in done.stdout
    assert "✓ adds up" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="a signal there ends the process at once")
def test_the_stream_ends_at_ctrl_c(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Ctrl-C ends the stream, the bus is closed, and the account is complete.
    """
    stream = load("iot_stream")
    before = signal.getsignal(signal.SIGINT)

    class Interrupting:
        def __init__(self, bus: EventBus) -> None:
            self._gauge = stream_gauge(bus)

        def read(self) -> tuple[str, ...]:
            signal.raise_signal(signal.SIGINT)
            return self._gauge.read()

    stream_gauge, stream.Gauge = stream.Gauge, Interrupting
    assert 0 == stream.main(["--seconds=600", "--rate=500", "--plain", "--grace=60"])

    report = capsys.readouterr().out
    assert "stopped and closed: all handled" in report
    account = account_of(report)
    assert account["published"] == account["archived"] > 0
    assert before == signal.getsignal(signal.SIGINT)


# -- github_webhooks.py --------------------------------------------------------------------

REPOSITORY = {"repository": {"full_name": "ada/engine"}, "sender": {"login": "ada"}}
ADVISORY = {"action": "published", "security_advisory": {"ghsa_id": "GHSA-1"}}
PAYLOADS: dict[str, dict[str, Any]] = {
    "check_run.failed": {"check_run": {"conclusion": "failure"}, **REPOSITORY},
    "check_run.passed": {"check_run": {"conclusion": "success"}, **REPOSITORY},
    "issue_comment.created": {"action": "created", "issue": {"number": 7}, **REPOSITORY},
    "issues.opened": {"action": "opened", "issue": {"number": 7}, **REPOSITORY},
    "label.created": {"action": "created", **REPOSITORY},
    "ping.plain": {"zen": "Design for failure."},
    "pull_request.opened": {"action": "opened", "number": 8, **REPOSITORY},
    "push.plain": {"ref": "refs/heads/main", **REPOSITORY},
    "release.created": {"action": "created", "release": {"tag_name": "v1"}, **REPOSITORY},
    "security_advisory.published": ADVISORY,
    "star.created": {"action": "created", **REPOSITORY},
    "star.deleted": {"action": "deleted", **REPOSITORY},
    "team.created": {"action": "created", "sender": {"login": "grâce"}},
    "watch.started": {"action": "started", **REPOSITORY},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """
    A folder of payloads, small ones, at least one for every handler.
    """
    for name, payload in PAYLOADS.items():
        text = json.dumps(payload, ensure_ascii=False)
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    return tmp_path


def table_of(report: str, head: str) -> dict[str, list[int]]:
    """
    Read the rows of the table whose head begins with *head*; a dot is a zero.
    """
    lines = report.partition(f"\n  {head} ")[2].partition("\n\n")[0].splitlines()[1:]
    return {name: [int(n) for n in numbers] for name, *numbers in split_rows(lines)}


def split_rows(lines: list[str]) -> Iterator[list[str]]:
    for line in lines:
        yield line.replace("·", "0").split()


def test_the_webhooks_add_up(folder: Path) -> None:
    """
    Every delivery is published, a duplicate or refused, and every handler keeps its policy.
    """
    done = run("-X", "dev", EXAMPLES / "github_webhooks.py", folder)

    assert (0, "") == (done.returncode, done.stderr)
    assert "✗" not in done.stdout
    # subscription: published, missed, duplicate, retried, failed, delivered
    assert {
        "alarm": [2, 1, 0, 0, 0, 1],
        "announce": [2, 0, 0, 0, 0, 2],
        "audit": [15, 1, 1, 0, 0, 13],
        "label": [1, 0, 0, 1, 0, 1],
        "summarise": [2, 0, 0, 1, 0, 2],
        "thank": [3, 1, 1, 0, 0, 1],
        "ticket": [2, 0, 0, 0, 2, 0],
    } == table_of(done.stdout, "subscription")


def test_the_webhooks_say_when_they_do_not_add_up(
    load: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A claim that does not hold is marked and says what was found; the exit status is 1.
    """
    webhooks = load("github_webhooks")
    monkeypatch.setattr(webhooks, "is_signed", lambda body, given, secret: True)

    assert 1 == webhooks.main([str(folder)])
    report = capsys.readouterr().out
    assert "✗ what was refused had to be, and for its own reason: Counter({" in report


@pytest.mark.parametrize("arguments", [[], ["there-is-no-such-folder"], ["a", "b"]])
def test_the_webhooks_ask_for_a_folder_of_payloads(
    load: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Without payloads to post there is a line on the usage, and exit status 2.
    """
    assert 2 == load("github_webhooks").main(arguments)
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize(
    ("length", "status"), [(None, 411), ("-1", 411), ("²", 411), ("9" * 5000, 413)]
)
def test_the_webhook_server_reads_no_body_of_unknown_length(
    load: Any, length: str | None, status: int
) -> None:
    """
    A body whose length is not said, or is nonsense, is refused unread, and nothing is published.
    """
    webhooks = load("github_webhooks")
    with EventBus() as bus:
        server = webhooks.Intake(bus, b"secret")
        with webhooks.serving(server) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
            with closing(connection):
                connection.putrequest("POST", "/")
                if length is not None:
                    connection.putheader("Content-Length", length.encode("latin-1"))
                connection.endheaders()
                assert status == connection.getresponse().status
    assert 0 == bus.stats().published


# -- fastapi_app.py ------------------------------------------------------------------------


@pytest.fixture
def client(load: Any) -> Iterator[TestClient]:
    with TestClient(load("fastapi_app").make_app()) as client:
        yield client


def test_what_follows_from_a_request_carries_its_id(client: TestClient) -> None:
    """
    Async and plain endpoints reach all handlers, under the id of the request.
    """
    placed = client.post(
        "/orders", json={"order_id": "A-1", "total": "42.00"}, headers={"X-Request-ID": "r-1"}
    )
    cancelled = client.delete("/orders/A-1", headers={"X-Request-ID": "r-2"})

    assert (201, 2, "r-1") == told_by(placed)
    assert (200, 1, "r-2") == told_by(cancelled)
    assert [
        ["r-1", "label: A-1"],
        ["r-1", "mail: OrderPlaced A-1"],
        ["r-2", "mail: OrderCancelled A-1"],
    ] == client.get("/trail").json()


def told_by(response: Any) -> tuple[int, int, str]:
    return response.status_code, response.json()["handlers"], response.headers["X-Request-ID"]


def test_a_request_without_an_id_is_given_one(client: TestClient) -> None:
    """
    The id that is made up is the one answered and the one in the trail.
    """
    response = client.post("/orders", json={"order_id": "A-1", "total": "42.00"})

    made_up = response.headers["X-Request-ID"]
    assert {made_up} == {request_id for request_id, _ in client.get("/trail").json()}


def test_an_order_placed_twice_is_a_conflict(client: TestClient) -> None:
    """
    The second publish of a key is a duplicate, which the endpoint answers by 409.
    """
    order = {"order_id": "A-1", "total": "42.00"}

    assert [201, 409] == [client.post("/orders", json=order).status_code for _ in range(2)]
    assert 2 == len(client.get("/trail").json())


def test_each_application_has_a_bus_of_its_own(load: Any) -> None:
    """
    The bus is closed with its application, and the next application is not concerned.
    """
    make_app = load("fastapi_app").make_app
    first, second = make_app(), make_app()
    with TestClient(first), TestClient(second):
        assert first.state.bus is not second.state.bus
    assert first.state.bus.is_closed
    assert second.state.bus.is_closed


# -- unit_testing/ -------------------------------------------------------------------------


def test_the_tests_of_the_example_pass() -> None:
    """
    The tutorial's tests pass as they stand, with the fixture that the library brings.
    """
    # The fixture is found by itself where the library is installed.
    is_installed = "eventbus" in entry_points(group="pytest11").names
    plugin = [] if is_installed else ["-p", "eventbus.pytest_plugin"]
    # Of the project's own settings these two: warnings are errors, and an older anyio warns.
    settings = ["-W", "error", "-p", "no:anyio", "-p", "no:cacheprovider"]
    done = run("-m", "pytest", *settings, *plugin, EXAMPLES / "unit_testing")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert ["passed"] == re.findall(r"\d+ ([a-z]+)", done.stdout.splitlines()[-1].split(" in ")[0])
