"""Decide from the name of a variable or field whether it holds a secret."""

from __future__ import annotations

import re

_NAME = re.compile(
    r"pass(?:word|wd|phrase|code)|(?:^|[_.-])pass$|(?:^|[_.-])pwd$|pwd$|secret|credential|(?:[_.-])pat$"
    r"|(?:api|access|private|signing|encryption|account|shared|shared_?access|master|fernet|openai|storage|license|hmac"
    r"|deploy|webhook|session|subscription|service|cookie|jwt|ssh|gpg|pgp|consumer|app|client)[_.-]?keys?(?![_.-]?(?:id|name))"
    r"|(?:^|[_.-]|auth|bearer|refresh|session|access|id|api|csrf|bot)tokens?$"
    r"|(?:^|[_.-])(?:auth|dsn|webhook)$|webhook_?url|conn(?:ection)?[_-]?str(?:ing)?$|authorization$",
    re.IGNORECASE,
)
TEXT_TOKEN = re.compile(
    r"(?:^|[._-])(?:audio|begin|blank|bod|bos|bot|cls|continuation|current|decoder|decoder_start|end|eod|eom|eos|eot|fim"
    r"|first|generated|image|im_end|im_start|input|last|lang|mask|max|min|n|new|next|num|output|pad|page|per|predicted|prev"
    r"|previous|prompt|sep|sot|special|speech|start|stop|system|target|text|think|tool|total|unk|user|video|vision|word)"
    r"[_-]?tokens?$",
    re.IGNORECASE,
)
"""Names of language-model tokens and page tokens, which are not secrets."""
_PUBLIC_KEY = re.compile(
    r"(?:public|primary|foreign|partition|sort|cache|group|index|row|col|column|map|dict|shard|hash|lookup|metric|order)"
    r"[_.-]?keys?$",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"[A-Z0-9_]*_(?:KEYS?|PASS|PAT|PWD)")
_LONGEST_WORD = 20
_FOLDERS = frozenset({"PWD", "OLDPWD", "INIT_CWD"})
_OF_OURS = frozenset({"AUTOGEN_TEAM_ALERTS_URLS", "AUTOGEN_TEAM_ALERTS_PING"})


def is_word(value: str) -> bool:
    """Return whether the value is written like a word of a sentence: lower case, upper case or capitalised."""
    return value.isalpha() and len(value) <= _LONGEST_WORD and (value.isupper() or value[1:] == value[1:].lower())


def is_secret_name(name: str) -> bool:
    """Return whether a variable or field of this name holds a secret: `db_password` does, `tokenizer` does not.

    >>> [is_secret_name(name) for name in ("GITHUB_TOKEN", "api_key", "TOKENIZERS_PARALLELISM", "eos_token")]
    [True, True, False, False]
    """
    return _NAME.search(name) is not None and TEXT_TOKEN.search(name) is None and _PUBLIC_KEY.search(name) is None


def is_secret_variable(name: str) -> bool:
    """Return whether an environment variable of this name holds a secret, as `FERNET_KEY`, `GITHUB_PAT`, `DB_PASS` do.

    >>> [is_secret_variable(name) for name in ("FERNET_KEY", "OLDPWD", "SSH_PUBLIC_KEY")]
    [True, False, False]
    """
    if name in _FOLDERS:
        return False
    return name in _OF_OURS or is_secret_name(name) or bool(_VARIABLE.fullmatch(name) and not _PUBLIC_KEY.search(name))
