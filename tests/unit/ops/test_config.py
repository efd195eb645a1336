"""Options: their layers, their origins, and what is refused."""

from pathlib import Path

import msgspec
import pytest

from tidewire.v1 import common_pb2
from tidewire.wire.limits import WireLimits
from tidewire_server.core import ServiceLimits
from tidewire_server.ops import config as schema
from tidewire_server.ops.config import Config, ConfigError, digest
from tidewire_server.ops.config_sources import describe, keys, load, sections

OPTIONS = [(section, key) for section, kind in sections().items() for key in keys(kind)]


def write(folder: Path, text: str) -> Path:
    file = folder / "tidewire.toml"
    file.write_text(text, "utf-8")
    return file


def refusal(
    environ: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    file: Path | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, environ or {}, flags)
    return str(caught.value)


def test_defaults_are_usable_as_they_are() -> None:
    """Nothing has to be set, and the defaults stay on this machine."""
    loaded = load(None, {}, {})

    assert Config() == loaded.config
    assert ["grpc://127.0.0.1:50051", "tcp://127.0.0.1:7401"] == loaded.config.listen.urls
    assert {"default"} == set(loaded.origins.values())
    assert set(OPTIONS) == set(loaded.origins)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    """Each layer covers the one below, option by option, and origins say which one did."""
    file = write(tmp_path, "[drain]\ngrace_s = 1\nwait_s = 1\n[log]\nlevel = 'debug'\n")
    environ = {"TIDEWIRE_DRAIN__GRACE_S": "2.5", "TIDEWIRE_LOG__LEVEL": "warning"}

    loaded = load(file, environ, {"drain.grace_s": "3"})

    assert (3.0, 1.0) == (loaded.config.drain.grace_s, loaded.config.drain.wait_s)
    assert "warning" == loaded.config.log.level
    assert "flag" == loaded.origins["drain", "grace_s"]
    assert str(file) == loaded.origins["drain", "wait_s"]
    assert "TIDEWIRE_LOG__LEVEL" == loaded.origins["log", "level"]
    assert "default" == loaded.origins["log", "format"]


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """TIDEWIRE_CONFIG names the file when no flag does."""
    file = write(tmp_path, "[server]\nnode_id = 'one'\n")

    assert "one" == load(None, {"TIDEWIRE_CONFIG": str(file)}).config.server.node_id


def test_lists_are_written_with_commas_or_as_json() -> None:
    """An environment variable can hold a list in either form."""
    commas = {"TIDEWIRE_LISTEN__URLS": "tcp://127.0.0.1:1, grpc://localhost:2"}
    rules = {"TIDEWIRE_ACCESS__RULES": '[{"principals":["*"],"methods":["*"]}]'}

    assert ["tcp://127.0.0.1:1", "grpc://localhost:2"] == load(None, commas).config.listen.urls
    assert "allow" == load(None, rules).config.access.rules[0].effect


def test_variables_without_a_section_are_not_ours() -> None:
    """TIDEWIRE_URL and the like belong to the command line."""
    assert Config() == load(None, {"TIDEWIRE_URL": "tcp://x:1", "OTHER__THING": "1"}).config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[listen]\nurl = ['tcp://127.0.0.1:1']", "key 'url' in [listen]; did you mean 'urls'?"),
        ("[lisen]\nurls = []", "unknown section [lisen]; did you mean 'listen'?"),
        ("[zzzz]\n", "unknown section [zzzz]; known are server, listen"),
        ("grace_s = 1", "'grace_s' belongs in section [drain]"),
        ("[drain]\ngrace_s = '1'", "drain.grace_s"),
        ("[drain]\ngrace_s = nan", "drain.grace_s"),
        ("[drain\n", "is not TOML"),
        ("[[access.rules]]\nprincipals=['*']\nmethod=['*']", "unknown field `method`"),
        ("[codecs]\nallowed = ['gzip']", "known are none, lz4, snappy, zstd"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, said: str) -> None:
    """The file and the option are in the message, and what was probably meant."""
    file = write(tmp_path, text)

    message = refusal(file=file)

    assert said in message
    assert str(file) in message


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """A file that was asked for is never left out silently."""
    assert "cannot be read" in refusal(file=tmp_path / "no.toml")


@pytest.mark.parametrize(
    "url", ["tcp://0.0.0.0:1", "grpc://[::]:1", "ws://10.0.0.1:1", "new://example.org:1"]
)
def test_plain_wires_stay_on_this_machine(url: str) -> None:
    """
    An unencrypted listener others can reach is refused, of unknown kinds too; control: said
    twice, it is let in.
    """
    flags = {"listen.urls": url}

    assert "is not encrypted" in refusal(flags=flags)
    assert [url] == load(None, {}, {**flags, "listen.insecure": "true"}).config.listen.urls


@pytest.mark.parametrize("url", ["tls://0.0.0.0:1", "grpcs://[::1]:1", "quic://localhost:1"])
def test_encrypted_wires_need_their_files(url: str) -> None:
    """
    Without certificate, key and authorities an encrypted listener is refused; control: with them
    it is not.
    """
    flags = {"listen.urls": url}
    files = {"tls.ca": "ca", "tls.certificate": "c", "tls.key": "k"}

    assert "tls.certificate, tls.key, tls.ca" in refusal(flags=flags)
    assert [url] == load(None, {}, flags | files).config.listen.urls
    files.pop("tls.ca")
    assert "needs tls.ca" in refusal(flags=flags | files)
    files["tls.require_client_certificate"] = "false"
    assert [url] == load(None, {}, flags | files).config.listen.urls


@pytest.mark.parametrize("url", ["tcp://127.0.0.1", "127.0.0.1:1", "tcp://:1", "tcp://[::1:1", "x"])
def test_listeners_must_be_urls_with_a_port(url: str) -> None:
    """What is no listener is refused by name."""
    assert url in refusal(flags={"listen.urls": url})


def test_admin_stays_on_this_machine() -> None:
    """Metrics are not for everybody; switched off, the address does not matter."""
    flags = {"admin.address": "0.0.0.0:9464"}

    assert "admin.insecure" in refusal(flags=flags)
    assert load(None, {}, {**flags, "admin.insecure": "true"}).config.admin.insecure
    assert not load(None, {}, {**flags, "admin.enabled": "false"}).config.admin.enabled
    assert ("::1", 5) == schema.admin_address("[::1]:5")
    assert "host:port" in refusal(flags={"admin.address": "9464"})


def test_limits_must_fit_into_each_other() -> None:
    """A payload that no wire could carry is refused at the start, not at the first message."""
    assert "wire.message_bytes_max" in refusal(flags={"wire.message_bytes_max": "1000"})


def test_limits_are_those_of_services_and_wires() -> None:
    """
    Every bound of the services is an option, with the same default; so is what a wire is told.
    """
    loaded = load(None, {}, {"limits.ack_pending_max": "7", "wire.calls_max": "8"}).config

    assert ServiceLimits() == schema.Limits().to_service()
    assert WireLimits() == schema.Wire().to_wire()
    assert set(ServiceLimits.__dataclass_fields__) == set(keys(schema.Limits))
    assert 7 == loaded.limits.to_service().ack_pending_max
    assert 8 == loaded.wire.to_wire().calls_max


def test_codecs_become_those_of_the_contract() -> None:
    """Order is kept, repetitions are not."""
    allowed = load(None, {}, {"codecs.allowed": "zstd,none,zstd"}).config.codecs

    assert (common_pb2.CODEC_ZSTD, common_pb2.CODEC_NONE) == allowed.to_proto()


@pytest.mark.parametrize(("section", "key"), OPTIONS)
def test_every_option_says_what_it_is(section: str, key: str) -> None:
    """No option goes without a description."""
    assert describe(section, key)


def test_a_digest_names_the_values() -> None:
    """Equal configurations have equal digests, others another one."""
    other = load(None, {}, {"drain.grace_s": "3"}).config

    assert digest(Config()) == digest(load(None, {}).config)
    assert digest(Config()) != digest(other)


def test_node_ids_of_hosts_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the host is called, the default node id is one subject token."""
    for name, expected in {"my_host.example": "my_host", "ü.x": "tidewire", "a b": "a-b"}.items():
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)

        node_id = schema.default_node_id()

        assert expected == node_id
        assert node_id == msgspec.convert(node_id, keys(schema.Server)["node_id"])
