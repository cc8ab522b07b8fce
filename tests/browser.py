"""A headless Chromium, driven by the WebDriver protocol."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
PATIENCE = 20  # seconds


def ask(url, method="GET", body=None):
    """JSON from a server on this machine, past any proxy."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


@contextmanager
def server(command, path):
    """Start a server on a free port, wait until it answers at ``path``, end it and all it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [*command, f"--port={port}"], stdout=quiet, stderr=quiet, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until(
            lambda: answers(f"{address}{path}") or process.poll() is not None, f"{command[0]} does not start"
        )
        assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url):
    try:
        return ask(url) is not None
    except (OSError, ValueError):
        return False


def until(done, otherwise):
    """Wait for a true value and return it."""
    end = time.monotonic() + PATIENCE
    while not (value := done()):
        assert time.monotonic() < end, otherwise() if callable(otherwise) else otherwise
        time.sleep(0.2)
    return value


LOGS = {"goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
"""Asks ``chromium`` to keep what the console said and what was requested."""


@contextmanager
def chromium(profile, **capabilities):
    """A session of a fresh browser whose files lie in the folder ``profile``; its address."""
    options = [
        *("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "no-proxy-server"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *(f"user-data-dir={profile}", "window-size=1600,1400"),
    ]
    chrome = {"binary": shutil.which("chromium"), "args": [f"--{option}" for option in options]}
    with server([shutil.which("chromedriver")], "/status") as driver:
        wish = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chrome, **capabilities}}}
        session = f"{driver}/session/{ask(f'{driver}/session', 'POST', wish)['value']['sessionId']}"
        try:
            yield session
        finally:
            ask(session, "DELETE")
