"""Combinations of `testkit.corpus`: each secret is masked in each place and encoding, and harmless text stays."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from loguru import logger

from autogen_team import AlertsService, GlobalContext, LoggerService, MlflowService, _redact
from autogen_team._redact import MASK, Redactor, mask
from autogen_team.errors import ConfigurationError
from testkit import corpus

pytestmark = pytest.mark.usefixtures("forked_children")


@pytest.mark.parametrize("encoding", corpus.ENCODINGS)
@pytest.mark.parametrize("kind", corpus.KEYS)
def test_a_key_is_masked_in_each_place(kind, encoding):
    """Keys are also masked after an escape sequence, a colour or a line break."""
    key = corpus.KEYS[kind]
    lines = [corpus.ENCODINGS[encoding](place.format(key)) for place in corpus.PLACES]

    assert [line for line in lines if key in mask(line)] == []


@pytest.mark.parametrize("kind", corpus.KEYS)
def test_a_key_is_masked_in_a_url(kind):
    """Keys are also masked after a blank encoded as %20."""
    key = corpus.KEYS[kind]

    assert [
        encode for encode in corpus.URL_ENCODINGS if key in mask(f"q={encode(f'use {key}')}") and key == encode(key)
    ] == []


@pytest.mark.parametrize(("place", "how"), corpus.NAMED)
@pytest.mark.parametrize("password", corpus.PASSWORDS)
def test_a_quoted_password_is_read_to_its_true_end(password, place, how):
    """The whole password is masked, with any quotes and backslashes."""
    line = place.format(corpus.written(password, how))

    assert "Sesame" not in mask(line)
    assert MASK in mask(line)


@pytest.mark.parametrize("scheme", corpus.SCHEMES)
@pytest.mark.parametrize(
    "place", ["Authorization: {}", "{{'Authorization': '{}'}}", '{{"authorization": "{}"}}', "('Authorization', '{}')"]
)
def test_the_credential_of_a_header_is_masked(scheme, place):
    """The credential after the scheme is masked."""
    credential = corpus.SCHEMES[scheme]

    assert credential not in mask(place.format(f"{scheme} {credential}"))


def test_the_signature_of_a_request_is_masked():
    """The signature is masked, although named parts precede it."""
    header = "AWS4-HMAC-SHA256 Credential=x/20260101/eu/s3/aws4_request, SignedHeaders=host, Signature=fe5f80f77d5fa3be"

    assert "fe5f80" not in mask(f"Authorization: {header}")


@pytest.mark.parametrize("password", corpus.URL_PASSWORDS)
@pytest.mark.parametrize("rest", ["@db", "@db/runs", "@db:5432/runs?x=1", "@[::1]:80/x"])
def test_the_password_of_a_url_is_masked(password, rest):
    """The password is masked, also with characters that are reserved in URLs."""
    line = mask(f"connecting to postgresql://bob:{password}{rest} now")

    assert "hunter2" not in line
    assert line.endswith(f"{rest} now")


@pytest.mark.parametrize("encoding", corpus.ENCODINGS)
@pytest.mark.parametrize("text", corpus.HARMLESS)
def test_harmless_text_stays_in_each_encoding(text, encoding):
    """Harmless text stays in each encoding."""
    line = corpus.ENCODINGS[encoding](text)

    assert mask(line) == line


VARIABLES = {
    "DB_PASS": "Sesame-open-1",
    "GITHUB_PAT": "Sesame-open-1",
    "AZURE_OPENAI_KEY": "Sesame-open-1",
    "FERNET_KEY": "Sesame-open-1",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=Sesame-open-1;EndpointSuffix=x",
    "API_TOKEN": "Sesame-open-1\n",
    "DB_PASSWORD": '"Sesame-open-1"',
    "SECRET_KEY": " Sesame-open-1 ",
    "AUTOGEN_TEAM_ALERTS_URLS": "mailto://bob:Sesame-open-1@example.com",
}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_is_masked_without_quotes_and_newline(name):
    """Values are masked without the trailing newline of Kubernetes and the quotes of an env file."""
    assert Redactor({name: VARIABLES[name]})("refused Sesame-open-1") == f"refused {MASK}"


@pytest.mark.parametrize(
    "encode", [*corpus.URL_ENCODINGS[:3], lambda text: json.dumps(text)[1:-1], lambda text: repr(text)[1:-1]]
)
def test_a_known_value_is_masked_in_each_encoding(encode):
    """Known values are masked in the encodings of URLs, JSON and Python."""
    secret = 'wJalrX/tn+K7"MD\\äx'
    redactor = Redactor({"AWS_SECRET_ACCESS_KEY": secret})

    assert redactor(f"sent {encode(secret)}.") == f"sent {MASK}."


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("OLDPWD", "/data/gone/project", 'File "/data/gone/project/train.py"'),
        ("POSTGRES_PASSWORD", "postgres", "connecting to postgresql+psycopg2 as postgres"),
        ("DB_PASSWORD", "mypasswort", "mypassworthy"),
        ("SSH_PUBLIC_KEY", "ssh-ed25519 AAAA", "ssh-ed25519 AAAA"),
    ],
)
def test_a_variable_that_is_not_secret_masks_nothing(name, value, text):
    """Folders, ordinary words, parts of words and public keys are not masked."""
    assert Redactor({name: value})(text) == text


@pytest.mark.parametrize("serialize", [False, True])
@pytest.mark.parametrize("is_coloured", [False, True])
def test_no_sink_shows_a_secret(tmp_path, monkeypatch, capsys, serialize, is_coloured):
    """Messages, bound values and source lines of tracebacks are masked in text, JSON and coloured output."""
    monkeypatch.setenv("FORCE_COLOR" if is_coloured else "NO_COLOR", "1")
    source = tmp_path / "failing.py"
    source.write_text("def fail():\n    return dict(user='bob', password='Sesame-9')['x']\n")
    names: dict = {}
    exec(compile(source.read_text(), str(source), "exec"), names)
    with LoggerService(serialize=serialize, diagnose=True):
        for key, password in itertools.zip_longest(corpus.KEYS.values(), corpus.PASSWORDS):
            logger.info(key)
            logger.opt(colors=True).info("<red>{}</red>", key)
            logger.bind(password=password, db={"password": password, "list": [key]}).info("bound to {extra[password]}")
        try:
            names["fail"]()
        except KeyError:
            logger.exception("failed")
    shown = capsys.readouterr().err

    assert [key for key in corpus.KEYS.values() if key in shown] == []
    assert "Sesame" not in shown
    assert "failed" in shown


def test_the_user_s_patterns_are_masked_and_allowed_text_stays(monkeypatch, capsys):
    """Of a pattern with a group only the group is masked; patterns come from arguments or variables."""
    monkeypatch.setenv("AUTOGEN_TEAM_REDACT_PATTERNS", "ACME-\\d{6}\ncustomer=(\\w+)")
    monkeypatch.setenv("AUTOGEN_TEAM_REDACT_ALLOW", "demo-.*")

    assert mask("ACME-123456 customer=bob password=demo-1 password=real-1") == (
        f"{MASK} customer={MASK} password=demo-1 password={MASK}"
    )
    monkeypatch.delenv("AUTOGEN_TEAM_REDACT_PATTERNS")
    with GlobalContext(redact_patterns=[r"ticket \d+"]):
        assert mask("ticket 42") == MASK
    assert mask("ticket 42") == "ticket 42"


@pytest.mark.parametrize("pattern", ["(", "x*"])
def test_an_invalid_pattern_is_an_error_that_names_it(pattern, monkeypatch):
    """The error is raised when the context is created."""
    with pytest.raises(ConfigurationError, match="redact_patterns") as failed:
        GlobalContext(redact_patterns=[pattern])
    assert repr(pattern) in str(failed.value)

    monkeypatch.setenv("AUTOGEN_TEAM_REDACT_PATTERNS", pattern)
    with pytest.raises(ConfigurationError, match="AUTOGEN_TEAM_REDACT_PATTERNS"):
        GlobalContext()


@pytest.mark.parametrize("variable", ["AUTOGEN_TEAM_REDACT_PATTERNS", "AUTOGEN_TEAM_REDACT_ALLOW"])
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_each_service_refuses_an_invalid_pattern_and_masking_continues(variable, place, monkeypatch):
    """Every service rejects the pattern. Until it is fixed, text is masked without it."""
    if place == ".env":
        Path(".env").write_text(f"{variable}='('\n")
    else:
        monkeypatch.setenv(variable, "(")

    for service in (LoggerService, AlertsService, MlflowService):
        with pytest.raises(ConfigurationError, match=rf"{variable}: '\(' is not a regular expression"):
            service()
    assert mask("password=correct-horse") == f"password={MASK}"


def test_a_secret_of_a_vault_is_masked_once_it_is_added(capsys):
    """Existing loggers and redactors mask a secret that is added later."""
    redactor = Redactor({})
    with GlobalContext() as context:
        context.redact("from-the-vault", "an other one")
        context.logger.info("got from-the-vault and an other one")

    assert redactor("from-the-vault") == MASK
    assert "from-the-vault" not in (shown := capsys.readouterr().err)
    assert f"got {MASK} and {MASK}" in shown


def test_a_secret_that_is_too_short_is_an_error():
    """A short secret would be masked in ordinary text."""
    with GlobalContext() as context, pytest.raises(ConfigurationError, match="3 characters"):
        context.redact("abc")


def test_a_secret_is_masked_in_the_output_that_is_kept(start_python, tmp_path):
    """The process that stores the output is informed of the secret."""
    job = tmp_path / "job.py"
    job.write_text(
        "from autogen_team import GlobalContext\n"
        "GlobalContext.current().redact('from-the-vault')\nprint('got from-the-vault')\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    _, out, _ = start_python("-m", "autogen_team", "run", str(job), AUTOGEN_TEAM_ALERTS_ENABLE="false").finish()
    kept = [path.read_text() for path in (tmp_path / "work").rglob("output-*.log")]

    assert "got from-the-vault" in out
    assert [f"got {MASK}" in text for text in kept] == [True]


def test_secrets_of_dotenv_are_masked(tmp_path, monkeypatch):
    """`.env` is not part of the environment, but its secrets are masked as well."""
    (tmp_path / "work" / ".env").write_text(
        "AUTOGEN_TEAM_ALERTS_URLS=mailto://bob:Sesame9mail@example.com\nDB_PASS=Sesame9base\n"
    )
    LoggerService()

    assert mask("Sesame9mail Sesame9base") == f"{MASK} {MASK}"


def test_values_are_masked_by_their_names():
    """Values in dicts and lists are masked by their names; other values are returned as the same object."""
    value = {"user": "bob", "headers": [{"api_key": "Sesame"}], "max_tokens": 5}

    assert _redact.mask_value(value, mask) == {"user": "bob", "headers": [{"api_key": MASK}], "max_tokens": 5}
    assert _redact.mask_value(value["user"], mask) is value["user"]
