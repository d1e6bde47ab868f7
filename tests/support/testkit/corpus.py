"""Secrets and harmless texts, the contexts in which they occur, and the encodings in which they are written.

Tests combine these parts, in both directions. Strings that look like keys are concatenated, so that secret scanners do
not report this file.
"""

from __future__ import annotations

import base64
import json
import string
from urllib.parse import quote, quote_plus

LETTERS = (string.ascii_letters + string.digits) * 2
HEX = "0123456789abcdef" * 5
PASSWORDS = ("Sesame-open-9", 'ab"Sesame-open', "cd\\Sesame-open", "it's-\"Sesame-open", "p&ss(Sesame)w,rd")
"""Typical passwords; the part `Sesame` must never be visible."""
KEYS = {
    "aws": "AKIA" + "A1B2C3D4E5F6G7H8",
    "google": "AIza" + LETTERS[:35],
    "jwt": ".".join(["eyJ" + "hbGciOiJI", "eyJ" + "zdWIiOiIx", "c2lnbmF0dXJl"]),
    "databricks": "dapi" + HEX[:32],
    "openai": "sk-" + "proj-" + LETTERS[20:60],
    "anthropic": "sk-" + "ant-api03-" + LETTERS[20:60],
    "stripe": "sk" + "_live_" + LETTERS[:24],
    "slack": "xox" + "b-123456789012-abcdefABCDEF",
    "github": "ghp" + "_" + LETTERS[:36],
    "github app": "ghs" + "_" + LETTERS[:36],
    "github fine-grained": "github" + "_pat_" + LETTERS[:40],
    "gitlab": "glpat" + "-" + LETTERS[:20],
    "hugging face": "hf" + "_" + LETTERS[:34],
    "npm": "npm" + "_" + LETTERS[:36],
    "pypi": "pypi" + "-" + LETTERS[:40],
    "groq": "gsk" + "_" + LETTERS[:50],
    "replicate": "r8" + "_" + LETTERS[:37],
    "nvidia": "nvapi" + "-" + LETTERS[:60],
    "langsmith": "lsv2" + "_pt_" + HEX[:32] + "_" + HEX[:10],
    "digitalocean": "dop" + "_v1_" + HEX[:64],
    "sendgrid": "SG" + "." + LETTERS[:22] + "." + LETTERS[:43],
    "grafana": "glsa" + "_" + LETTERS[:32] + "_" + HEX[:8],
    "google oauth": "ya29" + "." + LETTERS[:40],
    "vault": "hvs" + "." + LETTERS[:40],
}
PLACES = (
    "{}",
    "using {}.",
    "got {} and went on",
    "ok\n{}",
    "ok\r\n{}\n",
    "1\t{}",
    "('{}',)",
    "https://host/{}?x=1",
    "q={}&r=1",
)
"""Texts in which a key occurs."""
NAMED = (
    ("password={}", "repr"),
    ("connect(user='bob', password={})", "repr"),
    ("{{'password': {}}}", "repr"),
    ('{{"client_secret": {}}}', "json"),
    ("{{'api_keys': [{0}, {0}]}}", "repr"),
    ("['psql', '--password', {}]", "repr"),
    ('password="""{}"""', "plain"),
    ("{{'password': {}}}", "bytes"),
)
"""Texts in which a password follows a name, with the notation of the password."""
ENCODINGS = {
    "as it is": lambda text: text,
    "repr": lambda text: repr({"out": text}),
    "repr of bytes": lambda text: repr(text.encode("utf-8", "backslashreplace")),
    "json": lambda text: json.dumps({"out": text}),
    "json in json": lambda text: json.dumps({"message": json.dumps({"out": text})}),
    "colours": lambda text: f"\x1b[1;32m{text}\x1b[0m",
    "escaped colours": lambda text: repr(f"\x1b[38;5;200m{text}\x1b[0m"),
}
URL_ENCODINGS = (quote, quote_plus, lambda text: quote(text, safe=""), lambda text: quote(text, safe="").lower())
SCHEMES = {
    "Bearer": "mF_9.B5f-4.1JqM",
    "ApiKey": "VnVhQ2ZHY0JDZGJrUW0tZTVhT3g6dWkybHA",
    "Negotiate": "YIIZxRTbUUHnhSvsMjb3TA",
    "SSWS": "00QCjAl4MlV-WPXM0HmEdq",
    "Key": "7f3a:9c1d55aa9c1d55aa",
    "Bot": "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4",
    "Basic": base64.b64encode(b"hunter2:hunter2").decode(),
    "SharedKey": "account:ctzMq410TV3wS7upTBcunJTDLEJwMAZuFPfr0mrrA08",
}
URL_PASSWORDS = (
    "hunter2",
    "a#hunter2",
    "a?hunter2",
    "a/hunter2",
    "1234/hunter2",
    "hunter2@hunter2",
    "a%40hunter2",
    "a:hunter2",
)
HARMLESS = (
    "epoch 3 loss 0.123 lr 1e-4",
    "tokens=512 max_tokens=4096 n_token=7 token=512",
    "ChatCompletionTokenLogprob(token='information', logprob=-0.1)",
    '{"token": " international", "logprob": -0.3}',
    "eot_token='<|eot_id|>'",
    "{'video_token': '<|video_pad|>', 'image_token': '<image>'}",
    "stop_token: '<|im_end|>'",
    "predicted_token=transformers",
    "Total tokens: 1_234_567_890",
    "tokens: 12345678.5",
    "pwd=/home/bob/project",
    "sk-learn-pipeline-2024-final",
    "tokenizer=BertTokenizer(pad_token='[PAD]', eos_token=</s>, special_tokens=3)",
    "the secret: never overfit",
    "password=None token: null api_key=True",
    "def connect(password: str, token: str) -> None:",
    "primary_key=5 cache_key=abc sort_key: name key=value",
    "risk-assessment-of-2024-portfolio task-12345678901234",
    "git@github.com:team/repo.git https://host:8080/path@v2 mailto:bob@host",
    "connecting to postgresql+psycopg2",
    "10 pass, 2 fail; pass: 10, bypass=3",
    "train.py --tokenizer bert --key-points 3",
)
"""Texts without a secret that ML jobs often log."""


def written(password: str, how: str) -> str:
    """Return the password as it is written in source code, JSON, plain text or the `repr` of bytes."""
    return {
        "repr": repr,
        "json": json.dumps,
        "plain": str,
        "bytes": lambda text: repr(text.encode("utf-8", "backslashreplace")),
    }[how](password)
