"""Secrets are masked anywhere in the finished line, for every kind of line."""

from __future__ import annotations

import io
import sys
import threading

import pytest
from loguru import logger

from autogen_team._logs import jsonl, loguru_internals
from autogen_team._process import run_events
from autogen_team._redact import Redactor

KNOWN = "correct-horse" + "-battery"
SHAPED = "ghp_" + "a1B2" * 9
PASSWORD = "hunter2" + "hunter2"


@pytest.fixture(autouse=True)
def secret_in_the_environment(monkeypatch):
    """Set a variable with a secret value."""
    monkeypatch.setenv("DEPLOY_TOKEN", KNOWN)


def fail():
    """Raise an error with one secret in its text and another in the source line."""
    raise ValueError(f"login as {KNOWN} failed")  # password=hunter2hunter2


@pytest.mark.parametrize("fields", [{}, {"serialize": True}], ids=["text", "json"])
@pytest.mark.parametrize("sink", ["stderr", "job.log"])
def test_no_secret_reaches_the_line(start, capsys, tmp_path, monkeypatch, fields, sink):
    """Messages, arguments, bound values, exceptions and source lines are masked."""
    monkeypatch.chdir(tmp_path)
    start(sink=sink, format="{message} {extra}", **fields)
    logger.info("token {} and {}", SHAPED, KNOWN)
    logger.bind(user="ada", password=PASSWORD, url=f"https://bob:{PASSWORD}@host/").info("bound")
    logger.bind(config={"api_key": PASSWORD, "values": [KNOWN]}).info("nested")
    logger.opt(raw=True).info(f"raw {KNOWN}\n")
    try:
        fail()
    except ValueError:
        logger.exception("failed")
    text = (tmp_path / "job.log").read_text() if sink == "job.log" else capsys.readouterr().err
    assert [secret for secret in (KNOWN, SHAPED, PASSWORD) if secret in text] == []
    assert text.count("***") >= 8
    assert "ada" in text


def test_no_secret_reaches_a_terminal(start, monkeypatch):
    """Lines with colours are masked too."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    start(format="<green>{message}</green>")
    logger.info("token {}", KNOWN)
    try:
        fail()
    except ValueError:
        logger.exception("failed")
    assert KNOWN not in terminal.getvalue()
    assert PASSWORD not in terminal.getvalue()
    assert terminal.getvalue().count("***") >= 3


@pytest.mark.parametrize("name", ["message", "extra[it]", "thread.name"])
@pytest.mark.parametrize("before", ["", "{time} | {level: <8} | {name}:{function}:{line} - "])
def test_the_format_may_name_a_secret(start, capsys, monkeypatch, before, name):
    """Text of the format around a field, such as `password=`, marks the field as secret."""
    monkeypatch.setattr(threading.current_thread(), "name", PASSWORD)
    start(format=before + "password={" + name + "} {level} {exception}")
    try:
        fail()
    except ValueError:
        logger.bind(it=PASSWORD).exception(PASSWORD)
    assert "password=*** ERROR" in (text := capsys.readouterr().err)
    assert [secret for secret in (KNOWN, PASSWORD) if secret in text] == []


def test_a_line_whose_format_fails_is_masked(start, capsys):
    """If the format fails, the error in the line is masked, because it may quote a secret."""

    class Failing:
        def __format__(self, spec):
            raise RuntimeError(KNOWN)

    start(format="{extra[it]} {message}")
    logger.bind(it=Failing()).info("kept")
    assert "kept" in (text := capsys.readouterr().err)
    assert KNOWN not in text


def test_harmless_text_stays(start, capsys):
    """Typical vocabulary of language models stays, for example."""
    start(format="{message}")
    for message in ("tokens=512", "max_tokens: 4096", "tokenizer=bert", "token_count=3", "special_tokens=['a']"):
        logger.info(message)
    logger.info("authenticated, the secret: never overfit")
    assert "***" not in capsys.readouterr().err


def test_redaction_may_be_off(start, capsys):
    """`redact=False` disables masking."""
    start(format="{message}", redact=False)
    logger.info("token {}", KNOWN)
    assert KNOWN in capsys.readouterr().err


@pytest.mark.parametrize(
    "extra",
    [
        {"api_key": 123456789},
        {"password": 'with "quotes" and \\ in it'},
        {"secret": ["a", 12345678901]},
        {"token": {"value": "abcdef123456"}},
        {"authorization": f"Basic {PASSWORD}"},
        {"note": f'{{"password": "{PASSWORD}"}}'},
        {"password": None, "other": KNOWN},
        {KNOWN: 1},
        {"number": 12345678901234},
        {"key": "-----BEGIN " + "PRIVATE KEY-----\nabc\n-----END " + "PRIVATE KEY-----"},
    ],
    ids=str,
)
def test_masked_json_is_strictly_valid(strict, extra):
    """The line stays valid also if the secret was not a string."""
    record = loguru_internals.make_record("INFO", "message", name="name")
    record["extra"] = extra
    lines = jsonl.JsonLines(Redactor({"API_TOKEN": KNOWN, "PIN_PASSWORD": "12345678901234"}))
    line = lines(record, {}, "")
    found = strict(line)
    assert found["message"] == "message"
    assert "***" in line.decode()
    assert [secret for secret in (KNOWN, PASSWORD, "123456789", "12345678901234") if secret in line.decode()] == []


def test_the_name_of_a_run_is_masked(strict):
    """A run's name is free text."""
    record = loguru_internals.make_record("INFO", "message", name="name")
    line = jsonl.JsonLines(Redactor({"API_TOKEN": KNOWN}))(record, {"run_name": f"with {KNOWN}"}, "")
    assert strict(line)["run_name"] == "with ***"


def test_no_secret_reaches_the_log_of_a_run(start, open_run):
    """Neither the lines nor the final status contain a secret."""
    start(run_log=True, level="ERROR")
    run = open_run()
    logger.error("token {}", KNOWN)
    try:
        fail()
    except ValueError as error:
        run.end("FAILED", "ValueError: masked by tracking", error)
    assert "token ***" in run.log
    assert "ValueError: login as *** failed" in run.log
    assert KNOWN not in run.log
    assert run_events._listeners != ()
