"""Where the command line finds a cluster: configuration file, environment, what local clusters leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from flotta import endpoints
from flotta.cli_config import EndpointError
from flotta.endpoints import Flags

NO_FLAGS = Flags()


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    return {"FLOTTA_DATA": str(tmp_path / "dev"), "XDG_CONFIG_HOME": str(tmp_path)}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_file_is_used_where_nothing_else_says(environ: dict[str, str], tmp_path: Path) -> None:
    path = write(
        tmp_path / "flotta" / "config.toml",
        """
        gateway = ["a:1", "b:2"]
        coordinators = "c:3,d:4"
        admin = "https://e:5/"
        admin_key_file = "key"
        tls_ca = "ca.pem"
        tls_server_name = "db"
        """,
    )
    write(path.parent / "key", " secret\n")
    found = endpoints.find(NO_FLAGS, environ)
    assert (found.gateway, found.coordinators) == (("a:1", "b:2"), ("c:3", "d:4"))
    assert (found.admin, found.admin_key, found.admin_from) == ("https://e:5", "secret", str(path))
    assert (found.tls.ca_file, found.tls.server_name) == (path.parent / "ca.pem", "db")
    assert "secret" not in repr(found)
    environ |= {"FLOTTA_GATEWAY": "f:6", "FLOTTA_ADMIN": "http://g:7", "FLOTTA_ADMIN_API_KEY": "other"}
    found = endpoints.find(Flags(coordinators="h:8"), environ)
    assert (found.gateway, found.coordinators) == (("f:6",), ("h:8",))
    assert (found.admin, found.admin_key, found.admin_from) == ("http://g:7", "other", "FLOTTA_ADMIN")


def test_a_named_file_wins_over_the_users(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "flotta" / "config.toml", 'gateway = "a:1"\n')
    by_variable = write(tmp_path / "b.toml", 'gateway = "b:2"\nadmin_key = "k"\n')
    by_flag = write(tmp_path / "c.toml", 'gateway = "c:3"\n')
    assert endpoints.find(NO_FLAGS, environ).gateway == ("a:1",)
    environ["FLOTTA_CONFIG"] = str(by_variable)
    found = endpoints.find(NO_FLAGS, environ)
    assert (found.gateway, found.admin_key) == (("b:2",), "k")
    assert endpoints.find(Flags(config=by_flag), environ).gateway == ("c:3",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gatway = 'a:1'", "there is no key gatway; did you mean gateway"),
        ("zzz = 1", "there is no key zzz; it may hold admin"),
        ("gateway = 7", "gateway must be a string or a list of strings"),
        ("admin = ['a']", "admin must be a string"),
        ("gateway = [", "is not TOML"),
        ("gateway = 'a'", "is no address; write host:port"),
        ("admin = 'ftp://a'", "is no URL"),
        ("admin = 'http://a/x'", "is no URL"),
        ("admin_key_file = 'absent'", "admin_key_file"),
    ],
)
def test_a_wrong_file_names_the_key(environ: dict[str, str], tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "config.toml", text)
    with pytest.raises(EndpointError, match=words) as caught:
        endpoints.find(Flags(config=path), environ)
    assert "config.toml" in str(caught.value)


def test_a_named_file_must_be_there(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="--config"):
        endpoints.find(Flags(config=tmp_path / "absent"), environ)
    with pytest.raises(EndpointError, match="FLOTTA_CONFIG"):
        endpoints.find(NO_FLAGS, environ | {"FLOTTA_CONFIG": "absent.toml"})


def test_the_key_of_a_local_cluster_is_found_but_never_sent_elsewhere(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "data" / "admin-api-key", "made\n")
    assert endpoints.find(NO_FLAGS, environ).admin_key == "made"
    assert endpoints.find(Flags(admin="http://far:8089"), environ).admin_key == ""
    write(tmp_path / "dev" / "endpoints.json", '{"admin": "http://127.0.0.1:9"}')
    write(tmp_path / "dev" / "admin-api-key", "dev\n")
    found = endpoints.find(NO_FLAGS, environ)
    assert (found.admin, found.admin_key) == ("http://127.0.0.1:9", "dev")
    assert endpoints.find(Flags(admin="http://far:8089"), environ).admin_key == ""
