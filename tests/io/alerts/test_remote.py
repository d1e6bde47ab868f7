"""Remote channels against real servers: what arrives, what is retried, and what no log may contain."""

import logging
import socket
import sys
import threading
import time

import pytest
from aiosmtpd.controller import Controller
from apprise import NotifyBase

from autogen_team._alerts.channel import Alert, NoAnswerError, UndeliveredError
from autogen_team._alerts.remote import RemoteChannel, open_channels
from autogen_team.errors import ConfigurationError, MissingExtraError

QUICK = (0.01, 0.01)  # seconds of pause between attempts
TOKEN = "s3cr3t" * 4


def open_one(url, **options):
    """Return the channel of a URL, with short pauses between attempts."""
    [channel] = open_channels([url], "my job")
    return RemoteChannel(channel.plugin, channel.name, channel.levels, **{"pauses": QUICK, **options})


@pytest.mark.parametrize(
    ("level", "kind"), [("info", "info"), ("success", "success"), ("warning", "warning"), ("error", "failure")]
)
def test_title_message_and_level_arrive(endpoint, level, kind):
    """A web hook receives title, message and Apprise's type for the level."""
    server = endpoint()
    open_one(server.url).deliver(Alert("done", "loss < 0.1 & <b>\nsecond line", level))
    [request] = server.requests
    assert (request["title"], request["message"], request["type"]) == ("done", "loss < 0.1 & <b>\nsecond line", kind)


def test_an_empty_message_arrives_as_its_title(endpoint):
    """A service that rejects an empty body still receives the alert."""
    server = endpoint()
    open_one(server.url).deliver(Alert("done", ""))
    assert server.requests[0]["message"] == "done"


def test_a_server_error_is_tried_again(endpoint):
    """An alert that arrives at the third attempt is delivered."""
    server = endpoint([500, 503, 200])
    open_one(server.url).deliver(Alert("done", ""))
    assert len(server.requests) == 3


def test_an_alert_has_three_attempts(endpoint):
    """After three server errors the alert fails, with the status as the reason."""
    server = endpoint(500)
    with pytest.raises(UndeliveredError, match="error=500"):
        open_one(server.url).deliver(Alert("done", ""))
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_final(endpoint, status):
    """A refusal is not retried."""
    server = endpoint(status)
    with pytest.raises(UndeliveredError, match=f"error={status}"):
        open_one(server.url).deliver(Alert("done", ""))
    assert len(server.requests) == 1


def test_too_many_requests_are_tried_again(endpoint):
    """An alert is retried after 429."""
    server = endpoint([429, 200])
    open_one(server.url).deliver(Alert("done", ""))
    assert len(server.requests) == 2


def test_a_redirect_is_refused(endpoint):
    """The alert is neither sent to another address nor counted as delivered."""
    elsewhere = endpoint()
    server = endpoint(f"http://127.0.0.1:{elsewhere.port}/")
    with pytest.raises(UndeliveredError, match="error=302"):
        open_one(server.url).deliver(Alert("done", ""))
    assert (len(server.requests), elsewhere.requests) == (1, [])


def test_a_redirect_is_refused_even_if_the_url_allows_it(endpoint):
    """Options about redirects in the URL have no effect."""
    elsewhere = endpoint()
    server = endpoint(f"http://127.0.0.1:{elsewhere.port}/")
    with pytest.raises(UndeliveredError, match="error=302"):
        open_one(server.url + "?redirect=yes").deliver(Alert("done", ""))
    assert elsewhere.requests == []


def test_a_closed_port_is_an_undelivered_alert(closed_port):
    """A refused connection is the reason."""
    with pytest.raises(UndeliveredError, match=r"[Cc]onnection"):
        open_one(f"json://127.0.0.1:{closed_port}").deliver(Alert("done", ""))


def test_a_server_that_hangs_is_left_after_its_timeout(endpoint):
    """The URL's read timeout bounds each attempt."""
    server = endpoint(["hang", 200])
    open_one(server.url + "?rto=0.2").deliver(Alert("done", ""))
    assert len(server.requests) == 2


def test_a_server_that_drips_is_left_at_the_deadline(endpoint):
    """No socket timeout ends a slow trickle of bytes; the deadline does, and the next alert is not delayed."""
    server = endpoint("drip")
    channel = open_one(server.url, deadline=0.3)
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.3 s"):
        channel.deliver(Alert("first", ""))
    with pytest.raises(NoAnswerError, match="an earlier alert still waits"):
        channel.deliver(Alert("second", ""))
    assert len(server.requests) == 1


def test_a_channel_works_again_when_the_drip_is_over(endpoint, wait_until):
    """A request abandoned at the deadline does not block the channel forever."""
    server = endpoint("drip")
    channel = open_one(server.url, deadline=0.3)
    with pytest.raises(NoAnswerError):
        channel.deliver(Alert("first", ""))
    server.stop()
    wait_until(lambda: not channel._is_busy)
    with pytest.raises(UndeliveredError, match=r"[Cc]onnection"):
        channel.deliver(Alert("second", ""))


def test_no_attempt_begins_after_the_deadline(endpoint):
    """No attempt starts if its pause would end after the deadline."""
    server = endpoint(500)
    with pytest.raises(UndeliveredError, match="error=500"):
        open_one(server.url, deadline=5, pauses=(10, 10)).deliver(Alert("done", ""))
    assert len(server.requests) == 1


def test_behind_an_outage_each_alert_has_one_attempt(endpoint):
    """During an outage each alert has one attempt, so the queue moves on; a success restores all attempts."""
    server = endpoint([500, 500, 500, 500, 200, 500, 200])
    channel = open_one(server.url)
    for title in ("three", "one"):
        with pytest.raises(UndeliveredError):
            channel.deliver(Alert(title, ""))
    for title in ("up", "again"):
        channel.deliver(Alert(title, ""))
    assert [request["title"] for request in server.requests] == [
        "three", "three", "three", "one", "up", "again", "again",
    ]  # fmt: skip


def test_behind_a_refusal_the_next_alert_has_all_attempts(endpoint):
    """After a refusal the service is known to work, so the next alert has all attempts."""
    server = endpoint([413, 500, 200])
    channel = open_one(server.url)
    with pytest.raises(UndeliveredError, match="error=413"):
        channel.deliver(Alert("too long", ""))
    channel.deliver(Alert("done", ""))

    assert len(server.requests) == 3


def test_alerts_are_not_held_back_between_each_other(endpoint):
    """Apprise's own pause of seconds between requests is disabled."""
    [ntfy] = open_channels([f"ntfy://127.0.0.1:{endpoint().port}/topic"], "my job")
    assert ntfy.plugin.request_rate_per_sec == 0
    started = time.monotonic()
    for number in range(6):
        ntfy.deliver(Alert(str(number), ""))
    assert time.monotonic() - started < 25  # 5.5 s between two requests by default


def test_a_plugin_that_raises_is_an_undelivered_alert():
    """An error in a plugin is a reason for failure."""

    class Broken(NotifyBase):
        def notify(self, **_):
            raise AttributeError("no such thing")

    with pytest.raises(UndeliveredError, match="AttributeError: no such thing"):
        RemoteChannel(Broken(), "broken", pauses=()).deliver(Alert("done", ""))


def test_a_plugin_that_exits_its_thread_does_not_end_the_channel():
    """After SystemExit in a plugin, the next alert is sent normally."""

    class Exiting(NotifyBase):
        def notify(self, *, title, **_):
            if title == "first":
                sys.exit(1)
            return True

    channel = RemoteChannel(Exiting(), "exiting", pauses=(), deadline=5)
    with pytest.raises(SystemExit):
        channel.deliver(Alert("first", ""))
    channel.deliver(Alert("second", ""))


def test_a_failure_without_a_message_is_an_undelivered_alert():
    """A plugin that fails without a message gets a generic reason."""

    class Mute(NotifyBase):
        def notify(self, **_):
            return False

    with pytest.raises(UndeliveredError, match="refused it"):
        RemoteChannel(Mute(), "mute", pauses=()).deliver(Alert("done", ""))


def test_without_a_new_thread_the_alert_is_still_sent(endpoint, monkeypatch):
    """If no thread can be started, as in some Pythons at exit, the calling thread sends the alert."""
    server = endpoint()
    channel = open_one(server.url)

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    start = threading.Thread.start
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: (no_thread if self.name == channel.name else start)(self))
        channel.deliver(Alert("done", ""))
    assert [request["title"] for request in server.requests] == ["done"]


class Mailbox:
    """An SMTP handler that keeps mail."""

    def __init__(self):
        self.envelopes = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - the name is aiosmtpd's
        """Keep one mail."""
        self.envelopes.append(envelope)
        return "250 OK"


@pytest.fixture
def mail_server():
    """Run a mail server; return its mailbox and port."""
    mailbox = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    yield mailbox, port
    controller.stop()


def test_mail_arrives(mail_server):
    """A real mail server receives two mails in a row, with subject, sender's name and plain text."""
    mailbox, port = mail_server
    channel = open_one(f"mailto://127.0.0.1:{port}?from=job@example.org&to=me@example.org&smtp=127.0.0.1&mode=insecure")
    started = time.monotonic()
    channel.deliver(Alert("done\nX-Injected: yes", "loss < 0.1 & <b>"))
    channel.deliver(Alert("again", "second"))
    assert time.monotonic() - started < 5.5  # Apprise's default pause between two mails
    first, second = (envelope.content.decode() for envelope in mailbox.envelopes)
    assert mailbox.envelopes[0].rcpt_tos == ["me@example.org"]
    assert "\nX-Injected" not in first.partition("\r\n\r\n")[0].replace("\r", "")
    assert "loss < 0.1 & <b>" in first
    assert "Subject: again" in second


@pytest.mark.parametrize(
    "url", ["", "nonsense", f"https://hooks.example.org/{TOKEN}", f"slack://{TOKEN}", f"nosuch://user:{TOKEN}@host/"]
)
def test_a_url_that_apprise_does_not_know_is_refused_masked(url):
    """The error gives the URL's position in the setting and only its scheme."""
    with pytest.raises(ConfigurationError, match="alerts url 2 ") as caught:
        open_channels(["json://127.0.0.1", url], "my job")
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None


def test_without_the_extra_urls_are_refused(monkeypatch):
    """The error says what to install; without URLs there is no error."""
    monkeypatch.setitem(sys.modules, "apprise", None)
    assert open_channels([], "my job") == []
    with pytest.raises(MissingExtraError, match=r"pip install 'autogen-team\[alerts\]'"):
        open_channels(["json://127.0.0.1"], "my job")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"json://user:{TOKEN}@127.0.0.1:8080/{TOKEN}?+X={TOKEN}", "json://127.0.0.1:8080/…"),
        (f"jsons://hooks.example.org/{TOKEN}", "jsons://hooks.example.org/…"),
        (f"slack://T1JJ3T3L2/A1BRTD4JD/{TOKEN}/#chan", "slack://…"),
        (f"tgram://123456789:{TOKEN}/12315544", "tgram://…"),
        (f"discord://{'1' * 18}/{TOKEN * 3}", "discord://…"),
        (f"ntfy://{TOKEN}", "ntfy://…"),
        (f"pagerduty://{TOKEN}@{TOKEN}", "pagerduty://…"),
        (f"mailto://user:{TOKEN}@example.org", "mailto://example.org:25/…"),
        (f"workflows://host.example.org/{TOKEN}/{TOKEN}", "workflows://host.example.org/…"),
    ],
)
def test_a_channel_is_named_without_its_secrets(url, name):
    """The name has the scheme, and the host if it is a real host; other parts may be keys."""
    [channel] = open_channels([url], "my job")
    assert channel.name == name
    assert TOKEN not in repr(channel)


def test_two_channels_of_a_kind_have_different_names():
    """Equal names are distinguished by the URL's position in the setting."""
    urls = ["json://127.0.0.1/a", "json://127.0.0.1/b", "json://127.0.0.2/c"]
    assert [channel.name for channel in open_channels(urls, "my job")] == [
        "json://127.0.0.1/… (url 1)",
        "json://127.0.0.1/… (url 2)",
        "json://127.0.0.2/…",
    ]


@pytest.mark.parametrize(
    ("prefix", "levels"),
    [
        ("", {"info", "success", "warning", "error"}),
        ("error=", {"error"}),
        ("warning,error=", {"warning", "error"}),
        ("warning, error=", {"warning", "error"}),
    ],
)
def test_tags_choose_the_levels_of_a_channel(prefix, levels):
    """A URL with tags, as in Apprise's configuration, receives alerts of those levels only."""
    [channel] = open_channels([f"{prefix}json://127.0.0.1/?x=error=json://"], "my job")
    assert {level for level in ("info", "success", "warning", "error") if channel.takes(level)} == levels


def test_a_tag_that_is_not_a_level_is_refused():
    """A misspelt level would silence the channel permanently."""
    with pytest.raises(ConfigurationError, match="has the tag 'errors', but tags must be levels"):
        open_channels(["errors=json://127.0.0.1"], "my job")


def test_no_library_logs_the_secrets_of_a_delivery(endpoint, caplog):
    """At DEBUG, neither the path nor the payload of a web hook is logged."""
    server = endpoint([500, 200])
    with caplog.at_level(logging.DEBUG):
        open_one(f"{server.url}/{TOKEN}").deliver(Alert("done", "payload"))
    assert len(server.requests) == 2
    assert [record for record in caplog.records if record.name.startswith(("apprise", "urllib3"))] == []


def test_the_job_s_own_use_of_the_libraries_is_logged(endpoint, caplog):
    """Only threads that deliver an alert suppress these logs."""
    open_one(endpoint().url).deliver(Alert("done", ""))
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("apprise").debug("hello")
    assert [record.message for record in caplog.records] == ["hello"]


class Discord:
    """A plugin of Apprise with our test server as its service."""

    def __init__(self, monkeypatch, server, query=""):
        from apprise.plugins.discord import NotifyDiscord

        monkeypatch.setattr(NotifyDiscord, "notify_url", f"http://127.0.0.1:{server.port}/api/webhooks")
        self.channel = open_one(f"discord://{'1' * 18}/{'a' * 60}{query}")
        self.server = server

    def contents(self):
        """Return the texts that it received."""
        return [request["content"] for request in self.server.requests]


@pytest.mark.parametrize("length", [1900, 1990, 2000, 2064, 4000])
def test_a_long_alert_is_cut_to_the_limit_of_the_service(endpoint, monkeypatch, length):
    """Title and message are cut together, and the text says so."""
    discord = Discord(monkeypatch, endpoint())
    discord.channel.deliver(Alert("train failed", "x" * length, "error"))
    [content] = discord.contents()
    assert len(content) <= 2000
    assert "train failed" in content
    assert content.endswith(" more characters)") == (length > 1980)


def test_a_long_alert_is_split_if_the_url_says_so(endpoint, monkeypatch):
    """Apprise's `overflow=split` is honoured."""
    discord = Discord(monkeypatch, endpoint(), "?overflow=split")
    discord.channel.deliver(Alert("train failed", "x" * 3000, "error"))
    assert sum(content.count("x") for content in discord.contents()) == 3000
    assert all(len(content) <= 2000 for content in discord.contents())


@pytest.mark.parametrize(
    "url",
    [
        "pover://" + "u" * 30 + "@" + "t" * 30,
        "tgram://123456789:" + "a" * 35 + "/12315544/",
        "pagerduty://" + "i" * 20 + "@" + "a" * 20,
        "d7sms://token@15555555555",
    ],
)
def test_the_text_for_a_plugin_fits_its_limits(monkeypatch, url):
    """The text fits the plugin's stated limits, for services with and without a title."""
    channel = open_one(url)
    sent = []
    monkeypatch.setattr(channel.plugin, "send", lambda **said: sent.append(said) or True)
    for title, message in (("t" * 200, "m" * 4000), ("t", "m"), ("train failed", "m" * 900)):
        channel.deliver(Alert(title, message, "error"))
    assert all(len(said["body"]) <= channel.plugin.body_maxlen for said in sent)
    assert all(len(said["title"]) <= max(channel.plugin.title_maxlen, 0) for said in sent)
    assert "… (" in sent[0]["body"]
    assert "more characters" in sent[0]["body"]
    assert "more characters" not in sent[1]["body"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"content": ["Must be 2000 or fewer in length."]}', "Must be 2000 or fewer in length."),
        ("<html><h1>413 Request\n Entity Too Large</h1></html>", "413 Request Entity Too Large"),
        ("", "error=400"),
    ],
)
def test_the_reason_is_the_answer_of_the_service(endpoint, answer, reason):
    """The reason is the service's answer, which Apprise logs at DEBUG only, masked and in one line."""
    server = endpoint(400)
    server.text = answer + ("" if not answer else f" password={TOKEN}")
    with pytest.raises(UndeliveredError, match="error=400") as refused:
        open_one(server.url).deliver(Alert("done", ""))
    assert reason in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_answer_to_one_alert_is_not_the_reason_of_the_next(endpoint, closed_port):
    """The service's answer is forgotten when the next attempt begins."""
    server = endpoint([400, 503, 503, 503])
    server.text = "too long"
    channel = open_one(server.url)
    with pytest.raises(UndeliveredError, match="too long"):
        channel.deliver(Alert("first", ""))
    server.text = ""
    with pytest.raises(UndeliveredError) as refused:
        channel.deliver(Alert("second", ""))
    assert "too long" not in str(refused.value)
