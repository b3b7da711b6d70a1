"""Get one file over http, as far as the network lets it: tries again, goes on where it broke off.

Each connection lives in a thread of its own and hands over what it receives, so that whatever
keeps it (a name that is not resolved, a server that sends a byte a minute) cannot keep the caller,
and Ctrl-C ends at once.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

TIMEOUT = (10, 60)  # seconds to connect, and between two packets
STALL = 90  # seconds until a connection has to begin with its answer, or to give _PIECE bytes more
WAITS = (1, 4, 10)  # seconds before each further attempt
LONGEST_WAIT = 120  # seconds that a server may ask to be left alone
_PIECE = 2**18  # bytes
_PROGRESS = 2**20  # bytes beyond all earlier attempts, after which they are forgotten
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # statuses that may pass


class Failed(Exception):
    """This address does not give the file; the message is a short reason."""


class _Broken(Exception):
    """This connection did not give all of the file, another may."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait  # seconds that the server asked for


class _Answer(NamedTuple):
    status: int
    reason: str
    headers: Any


def download(
    url: str,
    file: Path,
    *,
    limit: int,
    resume: bool,
    check_url: Callable[[str], None],
    show: Callable[[int, int | None], None],
    say: Callable[[str], None],
) -> bool:
    """Write what an address gives to a file; only its length is checked.

    Args:
      url: the address, http or https.
      file: where to write; replaced where it exists.
      limit: bytes that the file may have.
      resume: whether a further attempt goes on where the last one broke off.
      check_url: called with the address of every answer, also of redirections; raises `Failed`.
      show: called with the bytes received so far, and those to come in all where that is known.
      say: called with a line before every further attempt.

    Returns:
      Whether it was put together from several connections, so that a wrong checksum may be due to
      a server that changed the file meanwhile.

    Raises:
      Failed: where the address refuses, or does not give all of the file after several attempts.
      OSError: where the file cannot be written.
    """
    resumed, attempt, reached, tag = False, 0, 0, ""
    with file.open("wb") as out:
        while True:
            pieces = _receive(url, _headers(out.tell() if resume else 0, tag), check_url)
            try:
                answer = next(pieces)
                total = _start(answer, out, limit)
                resumed = resumed or out.tell() > 0
                tag = answer.headers.get("ETag", "")
                for piece in pieces:
                    out.write(piece)
                    if out.tell() > limit:
                        raise Failed(f"it sends more than {limit} bytes")
                    show(out.tell(), total)
                if total is not None and out.tell() != total:
                    raise _Broken(f"it ended after {out.tell()} of {total} bytes")
                return resumed
            except _Broken as broken:
                pieces.close()
                if out.tell() >= reached + _PROGRESS:  # further than ever
                    attempt, reached = 0, out.tell()
                if attempt == len(WAITS):
                    raise Failed(f"{broken}, {attempt + 1} times") from broken
                wait = WAITS[attempt] if broken.wait is None else broken.wait
                attempt += 1
                if wait > LONGEST_WAIT:
                    raise Failed(f"{broken}, and asks to wait for {wait:.0f} s") from broken
                say(f"{url}: {broken}; trying again in {wait:.0f} s")
                time.sleep(wait)
            finally:
                pieces.close()


def _headers(have: int, tag: str) -> dict[str, str]:
    # Not compressed, so that lengths and positions are those of the file.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag and not tag.startswith("W/"):
            headers["If-Range"] = tag  # else the whole of the new file
    return headers


def _start(answer: _Answer, out: Any, limit: int) -> int | None:
    """Put the file's position where this answer goes on, and tell its length in all."""
    status, headers = answer.status, answer.headers
    length = headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() and len(length) < 19 else None
    if status == 206:
        # "bytes 100-199/200", of which the second number follows from the length
        unit, _, span = headers.get("Content-Range", "").partition(" ")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdecimal() or int(first) != out.tell():
            out.seek(0)
            out.truncate()
            raise _Broken("it goes on at another place than was asked for")
        total = None if total is None else out.tell() + total
    elif status == 200:
        out.seek(0)
        out.truncate()
    elif status == 416:  # there is nothing behind what we have: begin anew
        out.seek(0)
        out.truncate()
        raise _Broken(f"{status} {answer.reason}")
    elif status in _AGAIN:
        raise _Broken(f"{status} {answer.reason}", _asked_wait(headers.get("Retry-After", "")))
    else:
        raise Failed(f"{status} {answer.reason}")
    if total is not None and total > limit:
        raise Failed(f"it has {total} bytes, expected at most {limit}")
    return total


def _asked_wait(text: str) -> float | None:
    """Seconds of a ``Retry-After``, which are given as such or by a date.

    >>> _asked_wait("30"), _asked_wait("soon")
    (30.0, None)
    """
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # of no date, or one without a time zone
        return None


def _receive(
    url: str, headers: dict[str, str], check_url: Callable[[str], None]
) -> Generator[Any, None, None]:
    """The answer of an address, then its pieces; a connection that stalls is left to itself."""
    items: queue.Queue = queue.Queue(maxsize=16)
    left = threading.Event()

    def put(item: Any) -> None:
        while not left.is_set():
            try:
                return items.put(item, timeout=0.2)
            except queue.Full:
                pass

    def connect() -> None:
        try:
            _connect(url, headers, check_url, put, left)
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=connect, daemon=True, name="download").start()
    try:
        while True:
            try:
                item = items.get(timeout=STALL)
            except queue.Empty:
                raise _Broken(f"it stalled for {STALL} s") from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise _sorted(item) from item
            yield item
    finally:
        left.set()


def _connect(url: str, headers: dict[str, str], check_url: Any, put: Any, left: Any) -> None:
    import requests

    def check(response: Any, *_: Any, **__: Any) -> None:
        try:
            check_url(response.url)
        except Failed:
            response.close()
            raise

    hooks = {"response": check}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT, hooks=hooks) as response:
        put(_Answer(response.status_code, response.reason or "", response.headers))
        for piece in response.raw.stream(_PIECE, decode_content=False):
            if left.is_set():
                return
            put(piece)


def _sorted(error: Exception) -> Exception:
    """What an error of the network means: whether to try again, in a few words."""
    import requests
    import urllib3

    lasting = requests.exceptions.SSLError, requests.TooManyRedirects, ValueError
    if isinstance(error, Failed):
        return error
    words = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    if isinstance(error, lasting):  # the last are addresses that are none
        return Failed(words)
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return _Broken("it does not answer in time")
    if isinstance(error, requests.ConnectionError):
        return _Broken("no connection")  # its own text is long and nested
    return _Broken(f"the connection broke ({words})")
