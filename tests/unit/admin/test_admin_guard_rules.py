"""Which paths need the key, and which sockets are let in."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from flotta_admin.guard import is_allowed, needs_key
from flotta_admin.settings import AdminSettings
from flotta_runtime.settings import SettingsError, load_settings

DEFAULT = tuple(ipaddress.ip_network(text) for text in AdminSettings.model_fields["allowed_ips"].default)
SECRETS = {"KVDB_INTERNAL_GRPC_TOKEN": "t", "KVDB_ADMIN_SECURITY_API_KEY": "k"}


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("172.16.0.1", True),
        ("172.32.0.1", False),
        ("10.255.255.255", True),
        ("192.168.1.1", True),
        ("8.8.8.8", False),
        ("fe80::1", False),
        ("", False),
        ("localhost", False),
        ("testclient", False),
    ],
)
def test_the_default_allowlist(host: str, allowed: bool) -> None:
    assert is_allowed(host, DEFAULT) is allowed


@pytest.mark.parametrize(
    "path", ["/admin/actuator/health", "/admin/actuator/health/liveness", "/admin/actuator/info", "/livez"]
)
def test_paths_without_a_key(path: str) -> None:
    assert not needs_key(path)


@pytest.mark.parametrize(
    "path", ["/admin/actuator/healthcheck", "/admin/nodes", "/", "/livez/x", "/admin/actuator/metrics"]
)
def test_paths_with_a_key(path: str) -> None:
    assert needs_key(path)


def test_kvdb_names_set_the_service_up() -> None:
    settings = load_settings(
        AdminSettings,
        [],
        {
            **SECRETS,
            "KVDB_COORDINATOR_GRPC_ADDRESS": "c1:9000,c2:9000",
            "KVDB_ADMIN_SECURITY_ALLOWED_IPS": "10.0.0.0/8, ::1/128",
        },
    )
    assert settings.key() == "k"
    assert settings.coordinators == ("c1:9000", "c2:9000")
    assert [str(network) for network in settings.networks()] == ["10.0.0.0/8", "::1/128"]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"KVDB_ADMIN_SECURITY_API_KEY": " "}, "api_key is empty"),
        ({"KVDB_ADMIN_SECURITY_API_KEY": "k", "KVDB_ADMIN_SECURITY_ALLOWED_IPS": "10.0.0.1/8"}, "allowed_ips"),
        ({"KVDB_ADMIN_SECURITY_API_KEY": "k", "KVDB_ADMIN_SECURITY_ALLOWED_IPS": ""}, "allowed_ips"),
        ({}, "api_key is missing"),
    ],
)
def test_it_refuses_to_start_without_a_key_or_with_a_bad_allowlist(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings(AdminSettings, [], {"KVDB_INTERNAL_GRPC_TOKEN": "t", **environ})


def test_a_blank_key_variable_gives_way_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    environ = {**SECRETS, "KVDB_ADMIN_SECURITY_API_KEY": "", "FLOTTA_ADMIN_API_KEY_FILE": str(file)}
    assert load_settings(AdminSettings, [], environ).key() == "from-file"
