"""The root of the command line: help, errors, exit codes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from tidewire import errors
from tidewire.cli import app
from tidewire.cli.advice import explain, missing
from tidewire.cli.settings import Settings

TIME_LIMIT_S = 30


def tidewire(
    *words: str, code: str = "", variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, as a shell would."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TIDEWIRE_")}
    program = ["-c", code] if code else ["-m", "tidewire.cli"]
    return subprocess.run(
        [sys.executable, *program, *words],
        capture_output=True,
        timeout=TIME_LIMIT_S,
        check=False,
        env=environ | (variables or {}),
    )


def test_help_loads_no_command() -> None:
    """The help lists every command without importing gRPC, protobuf, asyncio or any command."""
    code = (
        "import sys; from tidewire.cli import main; main(['--help']);"
        "heavy = {'grpc', 'google.protobuf', 'asyncio', 'tidewire.v1', 'cryptography', 'msgspec'};"
        "print(sorted(heavy & set(sys.modules)))"
    )

    done = tidewire(code=code)

    assert b"[]" == done.stdout.splitlines()[-1]
    assert all(name.encode() in done.stdout for name in app.COMMANDS)


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_loads_and_says_what_the_table_says(name: str) -> None:
    """Each line of the table leads to a command; control: the table is not empty."""
    root = app.make_root()
    command = root.get_command(click.Context(root), name)

    assert command is not None
    assert command.name == name
    assert command.help


def commands(group: click.Group, words: Sequence[str] = ()) -> list[tuple[str, ...]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        path = (*words, name)
        if isinstance(command, click.Group):
            found += commands(command, path)
        else:
            found.append(path)
    return found


@pytest.mark.parametrize("words", commands(app.make_root()), ids=" ".join)
def test_every_help_has_examples(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Help of every command, down to the last, works and shows how it is used."""
    assert 0 == app.main([*words, "--help"])

    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"tidewire {' '.join(words)}" in text.partition("Examples:")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serv"], "Did you mean 'serve'?"),
        (["certs", "int"], "Did you mean 'init'?"),
        (["zzzz"], "There are: serve, pub"),
        (["config", "show", "--log-lvel", "x"], "--log-level"),
        (["--tmeout", "3", "info"], "--timeout"),
        (["--timeout", "0", "info"], "not in the range"),
    ],
)
def test_wrong_words_are_usage_errors(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what was probably meant."""
    assert 2 == app.main(words)

    assert said in capsys.readouterr().err


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """One line with ours and Python's."""
    assert 0 == app.main(["--version"])

    assert capsys.readouterr().out.startswith("tidewire 0")


class Failing:
    """Stands in for a command that fails in some way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def main(self, *words: Any, **options: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (BrokenPipeError(), 0, ""),
        (errors.KeyNotFound("no key 'a'"), 1, "no key 'a'. `tidewire state list`"),
        (errors.ConnectionLost("refused"), 1, "refused. (tcp://127.0.0.1:7401) Is a server"),
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            1,
            "x: No such file or directory.",
        ),
        (ModuleNotFoundError(name="apsw"), 1, "pip install 'tidewire[server]'"),
        (ValueError("odd"), 1, "internal error: ValueError: odd."),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No traceback, whatever happens; what to do next where something can be done."""
    monkeypatch.setattr(app, "make_root", lambda: Failing(error))
    if isinstance(error, BrokenPipeError):
        monkeypatch.setattr(app, "_leave_broken_pipe", lambda: None)

    assert code == app.main([])

    text = capfd.readouterr().err
    assert said in text
    assert "Traceback" not in text


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Control for the test above: with --debug it is there."""
    assert 1 == app.main(["--debug", "certs", "init", "/dev/null/x"])

    assert "Traceback" in capfd.readouterr().err


def test_the_most_particular_advice_is_given() -> None:
    """An error without advice of its own gets that of its family; others none."""
    settings = Settings(url="tcp://x:1")

    assert "--cert" in explain(errors.TlsFailed("bad"), settings)
    assert "Is a server running" in explain(errors.PeerVanished("gone"), settings)
    assert "full." == explain(errors.StoreFull("full"), settings)
    assert "--cert" not in explain(errors.ConnectionLost("gone"), settings)
    encrypted = Settings(url="tls://x:1")
    assert "--cert" in explain(errors.ConnectionLost("closed"), encrypted)
    assert "--cert" not in explain(errors.Draining("going"), encrypted)
    assert "tidewire[certs]" in missing(ModuleNotFoundError(name="cryptography.x509"))


def test_a_reader_that_goes_is_no_error() -> None:
    """`tidewire ... | head -1` ends quietly."""
    program = f"{sys.executable} -m tidewire.cli config show | head -c 1; echo ${{PIPESTATUS[0]}}"

    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, timeout=TIME_LIMIT_S, check=False
    )

    assert (b"[0\n", b"") == (done.stdout, done.stderr)


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_global_options_go_anywhere(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the command, after it, or as a variable: the same; what is nearer wins."""
    environ = {"TIDEWIRE_URL": "tcp://127.0.0.1:2"}
    url = "tcp://127.0.0.1:1" if place != "environment" else environ["TIDEWIRE_URL"]
    words = {
        "before": ["--url", url, "health"],
        "after": ["--url", "tcp://127.0.0.1:3", "health", "--url", url],
        "environment": ["health"],
    }[place]

    done = tidewire(*words, variables=environ)

    assert 2 == done.returncode
    assert url.encode() in done.stderr


def test_shells_can_complete() -> None:
    """The scripts name the program, and completion answers without loading commands."""
    for shell in ("bash", "zsh", "fish"):
        assert b"_TIDEWIRE_COMPLETE" in tidewire("completion", shell).stdout

    variables = {
        "_TIDEWIRE_COMPLETE": "bash_complete",
        "COMP_WORDS": "tidewire st",
        "COMP_CWORD": "1",
    }
    done = tidewire(code="from tidewire.cli import main; main()", variables=variables)
    assert [b"plain,stream", b"plain,state"] == done.stdout.split()


def without(*modules: str) -> str:
    """A program that runs the command line as if these packages were not installed."""
    return (
        "import sys\n"
        f"for name in {modules!r}: sys.modules[name] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        f"u.find_spec = lambda n, *a: None if n in {modules!r} else found(n, *a)\n"
        "from tidewire.cli import main\nsys.exit(main())\n"
    )


@pytest.mark.parametrize("words", [["serve", "--listen", "tcp://127.0.0.1:0"], ["config", "show"]])
def test_a_bare_install_names_the_extra(words: list[str]) -> None:
    """Without the server's packages its commands say what to install."""
    done = tidewire(*words, code=without("msgspec"))

    assert 1 == done.returncode
    assert b"pip install 'tidewire[server]'" in done.stderr
    assert b"Traceback" not in done.stderr


def test_certificates_without_cryptography_name_their_extra(tmp_path: Path) -> None:
    """The same for certs, whose extra is its own."""
    done = tidewire("certs", "init", str(tmp_path), code=without("cryptography"))

    assert (1, True) == (done.returncode, b"tidewire[certs]" in done.stderr)


def test_certs_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was made is told, as lines or as JSON; how to use it goes to stderr."""
    words = ["certs", "init", str(tmp_path), "--client", "laptop"]

    assert 0 == app.main(words)
    first = capsys.readouterr()
    assert 0 == app.main([*words, "--json", "-q"])
    second = capsys.readouterr()

    assert 3 == first.out.count("made ")
    assert "tidewire serve --listen tls://" in first.err
    made = [json.loads(line) for line in second.out.splitlines()]
    assert ["ca", "server", "laptop"] == [one["name"] for one in made]
    assert not any(one["is_new"] for one in made)
    assert "" == second.err


def test_shown_configuration_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `config show` prints is a file that gives the same configuration."""
    monkeypatch.setenv("TIDEWIRE_LOG__LEVEL", "debug")
    rules = '[{"principals":["*"],"methods":["a\\"b"]}]'
    assert 0 == app.main(["config", "show", "--access-rules", rules, "--drain-grace-s", "3"])
    shown = capsys.readouterr().out
    file = tmp_path / "shown.toml"
    file.write_text(shown, "utf-8")
    monkeypatch.delenv("TIDEWIRE_LOG__LEVEL")

    assert 0 == app.main(["config", "show", "--config", str(file)])

    assert shown == capsys.readouterr().out


def test_origins_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value has its source beside it, in JSON too."""
    monkeypatch.setenv("TIDEWIRE_LOG__LEVEL", "debug")
    words = ["config", "show", "--origin", "--listen", "tcp://127.0.0.1:1"]

    assert 0 == app.main(words)
    text = capsys.readouterr().out
    assert 0 == app.main([*words, "--json"])
    origins = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert 'level = "debug"  # TIDEWIRE_LOG__LEVEL' in text
    assert 'urls = ["tcp://127.0.0.1:1"]  # flag' in text
    level = next(one for one in origins if one["option"] == "log.level")
    assert ("debug", "TIDEWIRE_LOG__LEVEL") == (level["value"], level["origin"])


def test_the_javascript_client_can_be_served(tmp_path: Path) -> None:
    """It is copied whole: whatever a module imports is there."""
    folder = tmp_path / "static"
    done = tidewire("js", str(folder))
    there = Path(tidewire("js").stdout.decode().strip())

    assert 0 == done.returncode
    assert sorted(each.name for each in there.glob("*.js")) == sorted(
        each.name for each in folder.iterdir()
    )
    for module in folder.iterdir():
        for imported in re.findall(r'from "\./([^"]+)"', module.read_text()):
            assert (folder / imported).is_file()
