"""What looks like a secret: by its key, by its place in a URL or header, or by its form. And messages without secrets.

A rule that refuses too much costs a user one environment variable; a rule that refuses too little publishes a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: A reference to an environment variable. `$${` is a plain `${`, and no reference.
REFERENCE = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

#: Parts of keys that name a secret, written without separators: aws_secret_access_key, X-Api-Key, SSECustomerKey.
STEMS = re.compile(
    r"secret|passw|passphrase|credential|authorization|connectionstring|connstr|sharedaccess|bearer|"
    r"(?:api|app|private|access|account|customer|client|encryption|master|signing|shared|storage|subscription|"
    r"deploy|ssh|auth|hmac|service|session|license|webhook)keys?(?!word)|"
    r"(?:access|auth|api|session|security|refresh|id|sas|oauth|csrf|client|user)token(?!i[sz])|"
    r"(?:user|ftp|ssh|smb|db|proxy|http|smtp|mail|key|basic|login)pass(?:$|wd|word)"
)

#: Whole keys, or last words of keys, that name a secret.
LAST_WORDS = re.compile(r"pass|pwd|pw|passwd|token|sas|sig|signature|jwt|otp|creds?|auth|cookies?")

#: Words before `token` and `pass` in keys that name no secret: special tokens of a tokenizer, passes of an algorithm.
PLAIN_BEFORE_LAST = re.compile(
    r"additional|begin|bos|cls|continuation|decoder|delimiter|end|eod|eos|eot|eof|first|image|last|mask|max|min|new|next|"
    r"no|num|pad|per|prefix|second|sep|separator|special|start|stop|suffix|third|unk|two|video"
)

#: Last words of keys that name something about a secret, such as its file: password_file, aws_access_key_id.
ABOUT = (
    r"algorithm|arn|class|columns?|count|dir|enabled|endpoint|env|expiration|expires|expiry|fields?|files?|folder|host|ids?|"
    r"index|kind|length|limit|method|mode|names?|paths?|pattern|port|prefix|provider|region|required|scope|service|size|"
    r"ttl|types?|uris?|urls?|variable|version"
)

#: Last words of keys whose values may look random: hashes and identifiers.
MAY_BE_RANDOM = re.compile(
    ABOUT + r"|checksum|commit|digest|etag|fingerprint|hash|md5|revision|rev|salt|seed|sha|uuid|snapshot"
)

#: Headers whose values are no secret.
PLAIN_HEADERS = re.compile(
    r"accept(-.*)?|cache-control|connection|content-(encoding|type|language)|date|dnt|from|host|if-.*|origin|pragma|range|"
    r"referer|te|user-agent|x-amz-request-payer|x-ms-(version|date)|x-goog-user-project|x-requested-with",
    re.IGNORECASE,
)

#: Values of keys that name a secret, which choose where the secret comes from: gcsfs's `token: google_default`.
CHOICES = re.compile(
    r"anon(ymous)?|basic|bearer|browser|cache|cloud|default|digest|env(ironment)?|google_default|iam|kerberos|keyring|"
    r"managed_identity|netrc|none|ntlm|oauth2?|prompt|token",
    re.IGNORECASE,
)

#: Keys beside a secret in a mapping whose own key names one, such as a service account's.
PLAIN_BESIDE = re.compile(
    r"account_id|auth_uri|client_email|client_id|project_id|region|token_uri|type|universe_domain|user(name)?"
)

#: The identifier of an S3 key pair, which is no secret.
KEY_IDS = re.compile(r"key|(aws)?accesskeyid")

SCHEME = re.compile(r"^\s*(?:bearer|basic|token|apikey|digest|negotiate)\s+", re.IGNORECASE)

#: `user:password@` after `://`, or at the start of an address. Without a password only HTTP puts a token there.
USERINFO = re.compile(r"(?:://|^)(?P<user>[^/?#@\s:]*):(?P<secret>[^/?#@\s]+)@(?=[\w.\[])")
USER = re.compile(r"https?://(?P<secret>[^/?#@\s:]+)@", re.IGNORECASE)

#: `name=value` in a query, a connection string or a line of shell, and `--name value`.
PAIR = re.compile(
    r"(?:^|(?<=[?#&;,=\s'\"-]))(?P<name>[A-Za-z][\w.%-]*)=[\"']?(?P<secret>[A-Za-z0-9+/_.~%@!#*^:${}-]{4,}=*)"
)
OPTION = re.compile(r"(?:^|(?<=\s))--(?P<name>[A-Za-z][\w-]*)\s+(?P<secret>[^\s-]\S{3,})")

#: `Authorization: Bearer ...` within a text.
HEADER = re.compile(
    r"(?P<name>\b(?:proxy-)?authorization|\bcookie|\bx-[\w-]*(?:key|token|secret|auth)[\w-]*)[\"']?\s*[:=]\s*[\"']?"
    r"(?P<secret>(?:(?:bearer|basic|token|digest)\s+)?[^\s\"',}]{4,})",
    re.IGNORECASE,
)

#: Forms of well-known tokens and keys.
KNOWN = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|hf_[A-Za-z0-9]{20,}|"
    r"sk-[\w-]{20,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|npm_[A-Za-z0-9]{30,}|"
    r"eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)

#: What is taken out of messages. Other patterns would also match the lines of code in a traceback.
IN_QUERY = re.compile(r"[?&](?P<name>[A-Za-z][\w.-]*)=(?P<secret>[^&\s\"'<>#]+)")
IN_URL = re.compile(r"://[^/?#@\s:]*:(?P<secret>[^/?#@\s]+)@")
SCHEMED = re.compile(
    r"authorization[\"']?\s*[:=]\s*[\"']?(?P<secret>(?:bearer|basic|token)\s+[^\s\"']+)", re.IGNORECASE
)

UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

#: Texts longer than this are documents or programs, in which only known forms are sought.
LONGEST_TOKEN = 512

#: Shortest value that is taken out of messages: a shorter one would garble every message.
SHORTEST = 6

HIDDEN = "[secret]"

#: Runs of three or more characters of one kind, with the capital before them.
RUNS = re.compile(r"[A-Z]?[a-z]{3,}|[A-Z]{3,}|[0-9]{3,}")

#: Why everything at a place is a secret.
NAMED = "its key names a secret"
HEADER_VALUE = "it is a header"

#: Keys and list positions from the top of a document.
Path = tuple[str | int, ...]


def squeezed(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower())


def words(key: str) -> list[str]:
    """The words of a key.

    >>> words("SSECustomerKey"), words("x-api-key"), words("apikey")
    (['sse', 'customer', 'key'], ['x', 'api', 'key'], ['apikey'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", key)]


def names_secret(key: str) -> bool:
    """Whether a key names a secret.

    >>> [names_secret(key) for key in ("aws_secret_access_key", "passwd", "apikey", "HF_TOKEN", "sig", "secret_id")]
    [True, True, True, True, True, True]
    >>> [names_secret(key) for key in ("max_tokens", "eos_token", "tokenizer", "text_key", "aws_access_key_id")]
    [False, False, False, False, False]
    """
    whole = squeezed(key).rstrip("0123456789")
    parts = [word for word in words(key) if not word.isdigit()]
    if not parts or KEY_IDS.fullmatch(whole):
        return False
    if len(parts) > 1 and re.fullmatch(ABOUT, parts[-1]):
        return whole == "secretid"
    if LAST_WORDS.fullmatch(parts[-1]):
        return len(parts) == 1 or not PLAIN_BEFORE_LAST.fullmatch(parts[-2])
    return STEMS.search(whole) is not None


def clear(text: str) -> str:
    """The text without its references."""
    return REFERENCE.sub("", text)


def is_secret_part(text: str) -> bool:
    """Whether a text at the place of a secret holds anything besides references, such as `Bearer ${TOKEN}`."""
    rest = clear(SCHEME.sub("", text))
    return any(character.isalnum() for character in rest)


def found(text: str) -> Iterator[tuple[str, str]]:
    """The secrets within a text, each with the reason: credentials of URLs, signatures, headers, known forms."""
    for match in USERINFO.finditer(text):
        yield match["secret"], "a URL with a password"
    for match in USER.finditer(text):
        yield match["secret"], "a URL with credentials"
    for match in (*PAIR.finditer(text), *OPTION.finditer(text)):
        if names_secret(match["name"]):
            yield match["secret"], f"{match['name']}=..."
    for match in HEADER.finditer(text):
        yield match["secret"], f"the header {match['name']}"
    for match in KNOWN.finditer(text):
        yield match[0], "the form of a token or private key"


def secret_by_form(text: str) -> str | None:
    """Why a text holds a secret in clear, wherever it stands; None if it does not seem to.

    >>> secret_by_form("https://me:hunter2@host/x"), secret_by_form("https://h/x?sv=1&sig=abcd")
    ('a URL with a password', 'sig=...')
    >>> [secret_by_form(text) for text in ("https://me:${PW}@host", "abfs://data@me.dfs.core.windows.net", "s3://b/k")]
    [None, None, None]
    """
    return next((reason for secret, reason in found(text) if is_secret_part(secret)), None)


def looks_random(text: str) -> bool:
    """Whether a text holds a word of 20 characters or more that looks like a generated key.

    >>> looks_random("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), looks_random("4a7d1ed414474e4033ac29ccb8653d9b")
    (True, True)
    >>> names = ("My-Bucket-Name-Of-2024", "arn:aws:iam::123456789012:role/Reader", "s3://bucket/CC-MAIN-2024-10")
    >>> [looks_random(name) for name in names]
    [False, False, False]
    """
    if len(text) > LONGEST_TOKEN or "://" in text or text.startswith(("/", "~", ".", "arn:")):
        return False
    return any(map(_is_random, re.split(r"[\s,;:.]+", UUID.sub("", clear(text)))))


def _is_random(word: str) -> bool:
    """Whether few characters of a word belong to runs of one kind (lower case, upper case, digits), as in names."""
    letters = re.sub(r"[+/_=-]", "", word)
    if len(letters) < 20 or not letters.isascii() or not letters.isalnum():
        return False
    share = sum(map(len, RUNS.findall(letters))) / len(letters)
    kinds = [any(map(kind, letters)) for kind in (str.islower, str.isupper, str.isdigit)]
    if all(kinds):
        return share < 0.7
    if not kinds[2]:
        return kinds[0] and kinds[1] and share < 0.5
    if letters != word.rstrip("=") or not any(kinds[:2]):
        return False
    return share < 0.75 if len(letters) >= 24 else False


def clear_secrets(value: Any, path: Path, place: str = "") -> Iterator[tuple[Path, str]]:
    """The place of each secret in clear text in `value`, which stands at `path`, and why it looks like one.

    `place` says why everything in `value` is a secret; empty if its keys, or the forms of its texts, decide.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if reason := secret_by_form(str(key)):
                yield path, reason
            yield from clear_secrets(item, (*path, str(key)), _place_below(str(key), item, place))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield from clear_secrets(item, (*path, index), place or _place_in_list(value, index, path))
    elif isinstance(value, (bytes, bytearray)):
        yield from clear_secrets(bytes(value).decode("latin-1"), path, place)
    elif isinstance(value, str):
        if reason := _of_text(value, path, place):
            yield path, reason
    elif place and value is not None and not isinstance(value, bool):
        yield path, place


def _place_below(key: str, item: Any, place: str) -> str:
    """The `place` of the value of `key`, in a mapping that has the given one."""
    if place == HEADER_VALUE:
        return "" if PLAIN_HEADERS.fullmatch(key) else place
    if place:
        return "" if PLAIN_BESIDE.fullmatch(key) else place
    if names_secret(key) and not (":" in key and isinstance(item, Mapping)):  # An object's parameters (objects.py).
        return NAMED
    return HEADER_VALUE if is_header(key) and isinstance(item, Mapping) else ""


def _place_in_list(items: Any, index: int, path: Path) -> str:
    """The `place` of an item. Some clients take headers as pairs: the second of two is the value of the first."""
    if index != 1 or not isinstance(items, (list, tuple)) or len(items) != 2 or not isinstance(items[0], str):
        return ""
    in_headers = len(path) > 1 and isinstance(path[-1], int) and is_header(str(path[-2]))
    return _place_below(items[0], items[1], HEADER_VALUE if in_headers else "")


def is_header(key: str) -> bool:
    return words(key)[-1:] in (["headers"], ["header"])


def _of_text(text: str, path: Path, place: str) -> str | None:
    if place:
        return place if _is_clear(text) else None
    if reason := secret_by_form(text):
        return reason
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if KEY_IDS.fullmatch(squeezed(key)) or MAY_BE_RANDOM.fullmatch((words(key) or [""])[-1]):
        return None
    return "it looks like a generated key" if looks_random(text) else None


def _is_clear(text: str) -> bool:
    """Whether a text at the place of a secret is one. A choice (`anon`) or the path of a file is none.

    A connection string and a URL are judged by their parts.
    """
    if not is_secret_part(text) or CHOICES.fullmatch(text):
        return False
    if text.startswith(("/", "~/")) and os.path.isfile(os.path.expanduser(text)):
        return False
    parts = [secret for secret, _ in found(text)]
    return not parts or any(map(is_secret_part, parts))


def secret_values(used: Mapping[str, Iterable[Path]]) -> list[str]:
    """The values of the environment variables in `used` that are secrets: by their names, keys or forms.

    `used` maps a variable to the keys at which its value stands.
    """
    values = []
    for name, paths in used.items():
        value = os.environ.get(name, "")
        named = names_secret(name) or any(in_secret_place(path) for path in paths)
        if len(value) >= SHORTEST and (named or secret_by_form(value) or looks_random(value)):
            values.append(value)
    return sorted(values, key=len, reverse=True)


def in_secret_place(path: Path) -> bool:
    """Whether a key in `path` names a secret. The names of steps, `module:callable`, are no keys."""
    return any(isinstance(key, str) and ":" not in key and (names_secret(key) or is_header(key)) for key in path)


def redacted(text: str, values: Iterable[str] = ()) -> str:
    """The text without the secrets `values`, and without credentials and signatures in URLs, headers and known tokens.

    >>> redacted("GET https://u:pw@h/x?sig=abcd&a=1 failed for hunter22", ["hunter22"])
    'GET https://u:[secret]@h/x?sig=[secret]&a=1 failed for [secret]'
    >>> redacted("Authorization: Bearer abcdef; client = connect(token=token)")
    'Authorization: [secret] client = connect(token=token)'
    """
    for value in values:
        text = text.replace(value, HIDDEN)
    for pattern in (IN_QUERY, IN_URL, USER, SCHEMED, KNOWN):
        text = pattern.sub(_hidden, text)
    return text


def _hidden(match: re.Match[str]) -> str:
    """The match without its secret: all of it, unless it has a group `secret`."""
    groups = match.groupdict()
    if "name" in groups and not names_secret(match["name"]):
        return match[0]
    if "secret" not in groups:
        return HIDDEN
    start = match.start("secret") - match.start()
    return match[0][:start] + HIDDEN + match[0][start + len(match["secret"]) :]
