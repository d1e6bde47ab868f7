"""Secrets are masked in text, and everything else stays."""

from __future__ import annotations

import inspect
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autogen_team._redact import MASK, Redactor, assignments, is_secret_name, mask, mask_url, shapes
from testkit import corpus

SECRETS = corpus.KEYS
SENTENCES = {
    "assignment": "password=hunter2",
    "capitals": "AWS_SECRET_ACCESS_KEY=hunter2",
    "spaces": "api_key = hunter2",
    "call": 'connect(user="bob", password="hunter2")',
    "dict": "{'access_token': 'hunter2hunter2'}",
    "json": '{"client_secret":"hunter2"}',
    "json in json": r'{"message": "{\"api_key\": \"hunter2\"}"}',
    "yaml": "db_password: hunter2",
    "letters after a colon": "db_password: CorrecthunterBattery",
    "many letters after a colon": "db_password: correcthunterbatterystaple",
    "several words": '{"password": "correct hunter battery"}',
    "odd characters": "password='p&ss(hunter)w,rd'",
    "url with a slash in the password": "postgresql://bob:hun/ter hunter@db".replace("hun/ter hunter", "x/hunter"),
    "url with a quote in the password": "postgresql://bob:it's-hunter@db/x",
    "url with a password parameter": "postgresql://db/x?user=bob&password=hunter2",
    "token as user": "https://hunter2hunter2hunter2hunter2@github.com/x",
    "header": "X-Api-Key: hunter2",
    "authorization": "Authorization: Bearer hunter",
    "authorization in a dict": "{'Authorization': 'Bearer hunter'}",
    "bearer alone": "sent Bearer hunter2hunter2",
    "basic": "Basic " + "aHVudGVyMjpodW50ZXIy",
    "url": "postgresql+psycopg2://bob:hunter2@db:5432/runs",
    "url with an at sign": "https://bob:hunter2@hunter2@host/path",
    "presigned": "GET /object?X-Amz-Signature=hunter2&x=1",
    "flag": "train.py --token hunter2hunter2 --epochs 3",
    "slack webhook": "https://hooks.slack.com/services/T000/B000/hunter2",
    "discord webhook": "https://discord.com/api/webhooks/123/hunter2",
    "slack webhook without a scheme": "POST hooks.slack.com/services/T000/B000/hunter2",
    "slack webhook that cannot be reached": "HTTPSConnectionPool(host='hooks.slack.com', port=443): Max retries "
    "exceeded with url: /services/T0A1/B0A1/hunter2 (Caused by",
    "discord webhook that cannot be reached": "HTTPSConnectionPool(host='discord.com', port=443): Max retries exceeded "
    "with url: /api/webhooks/123/hunter2 (Caused by",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
    "private key in json": r'{"key": "-----BEGIN PRIVATE KEY-----\nhunter2\nhunter\n-----END PRIVATE KEY-----\n"}',
    "private key in json in json": r'"{\"key\": \"-----BEGIN PRIVATE KEY-----\\nhunter2\\nhunter\\n-----"',
    "private key cut short": "-----BEGIN PRIVATE KEY-----\nhunter2",
    "end of sentence": "I set password=hunter2.",
}
HARMLESS = [
    "epoch 3 loss 0.123 lr 1e-4",
    "tokens=512 max_tokens=4096 n_token=7 token=512",
    "tokenizer=BertTokenizer(pad_token='[PAD]', eos_token=</s>, special_tokens=3)",
    "pad_token=padding-token bos_token: begin-of-text",
    "TOKENIZERS_PARALLELISM=false",
    "token_count: 812",
    "authenticated as bob, session 3 started",
    "secret santa",
    "the secret: never overfit",
    "Password: REQUIRED, secret: Never tell",
    "the password was wrong, forgotten password: reset",
    "password=None token: null api_key=True",
    "def connect(password: str, token: str) -> None:",
    "password=self.password, secret=os.environ['SECRET']",
    "primary_key=5 cache_key=abc sort_key: name key=value",
    "signature=ModelSignature(inputs) sigmoid design",
    "aws_access_key_id_column=x",
    "basic configuration loaded, Basic c2V0dGluZ3M=",
    "bearer certificates arrived",
    "risk-assessment-of-2024-portfolio task-12345678901234",
    "git@github.com:team/repo.git https://host:8080/path@v2 mailto:bob@host",
    "authorization took 3 ms",
    "tokens per second: 93.1",
    "GET http://host/services/Training/Batch/x of hooks",
]


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("text", ["{}", "got {}.", '{{"x": "{}"}}', "('{}',)", "https://host/{}?x=1"])
def test_what_looks_like_a_key_is_masked(secret, text):
    """Common formats of keys are masked anywhere in the text."""
    masked = mask(text.format(secret))

    assert secret not in masked
    assert MASK in masked


@pytest.mark.parametrize("text", SENTENCES.values(), ids=SENTENCES)
def test_a_value_that_its_context_marks_as_secret_is_masked(text):
    """Values are masked in assignments, headers, URLs, command lines and key blocks."""
    masked = mask(text)

    assert "hunter" not in masked
    assert "aHVudGVy" not in masked
    assert MASK in masked


@pytest.mark.parametrize("text", HARMLESS)
def test_typical_text_of_ml_jobs_is_left_alone(text):
    """Typical vocabulary of ML logs is not secret."""
    assert mask(text) == text


@pytest.mark.parametrize("text", [*SENTENCES.values(), *HARMLESS, *SECRETS.values()])
def test_masking_twice_is_masking_once(text):
    """A text may be masked several times on its way."""
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GITHUB_TOKEN", True),
        ("token", True),
        ("authToken", True),
        ("MLFLOW_TRACKING_PASSWORD", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("OPENAI_API_KEY", True),
        ("apikey", True),
        ("client_secret", True),
        ("SLACK_WEBHOOK_URL", True),
        ("PGPASSWORD", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("max_tokens", False),
        ("token_count", False),
        ("AWS_ACCESS_KEY_ID", False),
        ("PWD", True),
        ("SSH_AUTH_SOCK", False),
        ("primary_key", False),
        ("author", False),
    ],
)
def test_secret_names_are_recognized(name, expected):
    """Names are matched by whole words: a tokenizer is not a token."""
    assert is_secret_name(name) is expected


def test_the_values_of_secret_variables_are_masked_wherever_they_stand():
    """They are masked as plain text, as JSON and as part of a URL."""
    redactor = Redactor({"DB_PASSWORD": 'pa"ss wörd/1', "HOME_FOLDER": "not-a-secret"})

    text = f'pa"ss wörd/1 {json.dumps(chr(112) + "a" + chr(34) + "ss wörd/1")} pa%22ss%20w%C3%B6rd%2F1 not-a-secret'

    assert redactor(text) == f'{MASK} "{MASK}" {MASK} not-a-secret'


def test_passwords_in_urls_of_the_environment_are_masked():
    """Such a password is masked anywhere, whatever the variable's name."""
    redactor = Redactor({"DATABASE": "postgresql://bob:correct-horse@db/x", "MAILS": "x mailto://a:staple-battery@b y"})

    assert redactor("correct-horse staple-battery") == f"{MASK} {MASK}"


def test_a_secret_that_begins_like_a_path_is_masked():
    """One in 64 base64 secrets begins with `/`. A path is recognized by its variable's name or because it exists."""
    redactor = Redactor({"CLOUD_SECRET": "/wJalrX/UtnFEMI", "TOKEN_FILE": "/run/secrets/none", "SECRET": "/x" * 5000})

    assert redactor("/wJalrX/UtnFEMI /run/secrets/none") == f"{MASK} /run/secrets/none"


def test_passwords_in_urls_are_masked_in_decoded_form():
    """Passwords are decoded, and also found after the tags of an alert URL."""
    redactor = Redactor(
        {"DATABASE": "postgresql://bob:p%40ssw0rd99@db", "URLS": "error, info=mailtos://a:correct-horse@b"}
    )

    assert redactor("p@ssw0rd99 p%40ssw0rd99 correct-horse") == f"{MASK} {MASK} {MASK}"


@pytest.mark.parametrize("value", ["", "short", "password", __file__])
def test_values_that_would_mask_ordinary_text_are_ignored(value):
    """Short words, placeholders and file paths are not used as secrets."""
    assert Redactor({"MY_SECRET": value})(f"a {value} b short password") == f"a {value} b short password"


def test_a_url_that_cannot_be_parsed_is_ignored():
    """The environment may contain any text."""
    assert Redactor({"BROKEN": "http://[::1"})("text") == "text"


def test_mask_url_leaves_user_and_host():
    """User and host stay, so that the address can be recognized."""
    assert mask_url("https://bob:hunter2@mlflow.example/x") == f"https://bob:{MASK}@mlflow.example/x"
    assert mask_url("sqlite:///mlflow.db") == "sqlite:///mlflow.db"


def test_a_password_in_another_encoding_than_utf_8_is_masked(monkeypatch):
    """Python decodes such bytes of the environment as surrogates; masking must not fail on them."""
    monkeypatch.setenv("MY_PASSWORD", "h\udce9hunter2")
    assert mask("my word is h\udce9hunter2, and nothing else") == f"my word is {MASK}, and nothing else"


def test_mask_reads_the_current_environment(monkeypatch):
    """A secret that is set later is masked later."""
    assert mask("correct-horse") == "correct-horse"

    monkeypatch.setenv("SOME_TOKEN", "correct-horse")

    assert mask("correct-horse") == MASK


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=200),
    st.sampled_from(list(SECRETS.values())),
    st.text(max_size=50),
)
def test_a_key_is_masked_in_any_context(before, secret, after):
    """A separate key is masked with any text before and after it."""
    assert secret not in mask(f"{before} {secret} {after}")


@given(
    st.dictionaries(
        st.sampled_from(["password", "api_key", "note", "tokens", "url"]),
        st.one_of(
            st.text(max_size=30), st.sampled_from([*SECRETS.values(), "https://a:hunter2@b", "password=hunter2"])
        ),
    )
)
def test_masked_json_is_json(value):
    """The mask removes no quote and no backslash."""
    line = json.dumps(value)

    assert set(json.loads(mask(line))) == set(value)


def test_a_quote_behind_the_beginning_of_a_key_stays_a_quote():
    """The backslash before the quote is not part of the key."""
    line = json.dumps({"text": '-----BEGIN RSA PRIVATE KEY-----"', "more": "-----BEGIN PRIVATE KEY-----\\"})

    assert json.loads(mask(line)) == {
        "text": f'-----BEGIN RSA PRIVATE KEY-----{MASK}"',
        "more": f"-----BEGIN PRIVATE KEY-----{MASK}\\",
    }


def test_what_follows_a_masked_key_is_left_when_it_is_masked_again():
    """A text may be masked several times, and text after the key is not secret."""
    once = mask("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\nloss is 5")

    assert mask(once) == once == f"-----BEGIN PRIVATE KEY-----{MASK}\nloss is 5"


@given(st.text(max_size=300))
def test_any_text_can_be_masked(text):
    """Masking never raises, for any text."""
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize("text", ["_sk-" * 25_000, "-----BEGIN PRIVATE KEY-----" * 3_700 + "(", "-eyJaaaaa" * 10_000])
def test_no_text_takes_long_to_mask(text):
    """These texts once took up to 26 s, and the job waits for each line."""
    begun = time.monotonic()

    mask(text)

    assert time.monotonic() - begun < 30


def test_the_quick_checks_miss_no_pattern():
    """The quick checks before the patterns let each key format and each name of an assignment pass."""
    for letters in shapes.SHAPES:
        assert shapes.may_have_shape(letters), letters
    source = inspect.getsource(Redactor.__call__)
    looked_for = re.findall(r'"([^"]+)" in lower', source)
    for word in [*assignments._NAMES, "--"]:
        assert any(part in word for part in looked_for), word


@pytest.mark.parametrize(
    "assignment", ["password: hunter2", "db_passwd = hunter2", '"client_secret": "hunter2"', "PGPASSWORD=hunter2"]
)
@pytest.mark.parametrize("empty", ["password=", "api_key: ", "PGPASSWORD=\n"])
def test_a_name_without_a_value_does_not_hide_the_next_one(empty, assignment):
    """A name on the next line is not the value of an empty name, and its own value is masked."""
    assert "hunter2" not in mask(f"{empty}\n{assignment}\n")


@pytest.mark.parametrize("value", ["hunter2-secret", "aHVudGVyMg=="])
def test_a_value_on_the_next_line_is_masked(value):
    """A value on the next line, as in YAML, is masked, whatever it looks like."""
    assert mask(f"password:\n  {value}\n") == f"password:\n  {MASK}\n"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ('{"name": "api_key", "value": "abcdef-123"}', '{"name": "api_key", "value": "***"}'),
        ("{'key': 'DB_PASSWORD', 'value': 'hunter2'}", "{'key': 'DB_PASSWORD', 'value': '***'}"),
        (
            r"{\"name\":\"Authorization\",\"value\":\"Bearer abcdefgh1\"}",
            r"{\"name\":\"Authorization\",\"value\":\"Bearer ***\"}",
        ),
        ('[{"name": "Authorization", "value": "qx7Zk...', '[{"name": "Authorization", "value": "***'),
        ('{"name": "loss", "value": "0.5"}', '{"name": "loss", "value": "0.5"}'),
        ('{"key": "max_tokens", "value": "512"}', '{"key": "max_tokens", "value": "512"}'),
    ],
)
def test_the_value_of_an_entry_that_has_its_name_beside_it_is_masked(text, masked):
    """Kubernetes, OpenTelemetry and browsers write variables and headers as entries with a name and a value."""
    assert mask(text) == masked
    assert mask(masked) == masked
