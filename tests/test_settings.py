"""gateway.settings: defaults, sources and their order, and errors that name key, problem and cure."""

from __future__ import annotations

import re
import socket
import stat
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from gateway import settings as module
from gateway.settings import Bridge, Gateway, Limits, Settings, SettingsError, doubts, load, prepare

SAMPLE = Path(__file__).parent.parent / "deploy" / "gateway.toml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(
    path: Path | None = None, overrides: dict[str, Any] | None = None, environ: dict[str, str] | None = None
) -> list[module.Problem]:
    with pytest.raises(SettingsError) as caught:
        load(path, overrides, environ or {})
    return caught.value.problems


class TestDefaults:
    def test_no_source_at_all(self) -> None:
        settings = load(None, None, {})
        assert settings == Settings()
        assert type(settings) is Settings
        assert settings.gateway.node_id == socket.gethostname()
        assert settings.bridge.topics == ["demo"]
        assert settings.limits.payload_bytes == 65536

    def test_the_sample_file_is_the_defaults(self) -> None:
        assert load(SAMPLE, None, {}) == Settings()

    def test_the_sample_file_misses_no_setting(self) -> None:
        text = SAMPLE.read_text(encoding="utf-8")
        for section, field in Settings.model_fields.items():
            model: Any = get_args(field.annotation)[0] if get_origin(field.annotation) is list else field.annotation
            body = re.split(r"(?m)^(?:# )?\[", text.split(f"[{section}]", 1)[1], maxsplit=1)[0]
            written = set(re.findall(r"(?m)^(?:# )?([a-z0-9_]+) = ", body))
            assert written == set(model.model_fields), section

    def test_what_the_sample_file_comments_out_is_valid(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("s3cret\n", encoding="utf-8")
        text = re.sub(r"(?m)^# (\[\[accounts\]\]|[a-z0-9_]+ = )", r"\1", SAMPLE.read_text(encoding="utf-8"))
        text = re.sub(r"(?m)^(secret_key|password) = .*$", "", text)
        text = re.sub(r'(secret_key|password)_file = "[^"]*"', rf'\1_file = "{secret}"', text)
        settings = load(write(tmp_path, text), None, {})
        assert settings.gateway.log_json is True
        assert settings.accounts[0].secret_key.get_secret_value() == "s3cret"
        assert settings.backend.secret_key.get_secret_value() == "s3cret"
        assert settings.store.secret() == "s3cret"

    def test_settings_can_not_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            Settings().limits.tps = 5  # type: ignore[misc]


class TestSources:
    def test_file_then_environment_then_command_line(self, tmp_path: Path) -> None:
        path = write(tmp_path, '[limits]\ntopic_length = 1\nclient_id_length = 1\ntps = 1\n[bridge]\ntopics = ["a"]\n')
        environ = {"MQTT_GATEWAY__LIMITS__CLIENT_ID_LENGTH": "2", "MQTT_GATEWAY__LIMITS__TPS": "2", "OTHER__LIMITS__TPS": "9"}
        settings = load(path, {"limits.tps": "3"}, environ)
        assert (settings.limits.topic_length, settings.limits.client_id_length, settings.limits.tps) == (1, 2, 3)
        assert settings.bridge.topics == ["a"]

    @pytest.mark.parametrize("text", ["a,b", " a , b ", '["a","b"]'])
    def test_lists(self, text: str) -> None:
        assert load(None, {"bridge.topics": text}, {}).bridge.topics == ["a", "b"]

    def test_kinds(self) -> None:
        environ = {
            "MQTT_GATEWAY__AUTH__ANONYMOUS": "true",
            "MQTT_GATEWAY__GATEWAY__DATA_DIR": "/x",
            "MQTT_GATEWAY__GATEWAY__SHUTDOWN_GRACE_SECONDS": "0.5",
            "MQTT_GATEWAY__ACCOUNTS": '[{"access_key": "a", "secret_key": "b", "groups": ["GID_aaa"]}]',
        }
        settings = load(None, None, environ)
        assert settings.auth.anonymous is True
        assert settings.gateway.data_dir == Path("/x")
        assert settings.gateway.shutdown_grace_seconds == 0.5
        assert settings.accounts[0].groups == ["GID_aaa"]

    def test_the_process_environment_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTT_GATEWAY__LIMITS__TPS", "7")
        assert load().limits.tps == 7
        assert Settings().limits.tps == 0


class TestErrors:
    def test_a_typo_gets_a_suggestion(self, tmp_path: Path) -> None:
        (problem,) = problems(write(tmp_path, "[limits]\ntopic_lenght = 5\n"))
        assert problem.key == "limits.topic_lenght"
        assert "no such setting" in problem.problem
        assert "gateway.toml" in problem.problem
        assert problem.cure == "Did you mean limits.topic_length?"

    def test_a_key_in_the_wrong_section(self) -> None:
        (problem,) = problems(overrides={"gateway.tcp": "x"})
        assert problem.cure == "Did you mean mqtt.tcp?"
        assert "command line" in problem.problem

    def test_an_unknown_section(self) -> None:
        (problem,) = problems(environ={"MQTT_GATEWAY__LIMTS__TPS": "5"})
        assert (problem.key, problem.cure) == ("limts", "Did you mean limits?")

    def test_all_mistakes_at_once(self) -> None:
        found = problems(overrides={"limits.tps": "many", "mqtt.tcp": "nowhere", "naming.mode": "loose"})
        assert [problem.key for problem in found] == ["mqtt.tcp", "naming.mode", "limits.tps"]
        assert all(problem.cure for problem in found)
        assert "'many'" in found[2].problem
        assert found[2].cure == "The default is '0'."

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("mqtt.tcp", ""),
            ("mqtt.tcp", "1883"),
            ("mqtt.tcp", "host:99999"),
            ("mqtt.tcp", "::1:1883"),
            ("http.listen", "x"),
            ("backend.url", "kafka://x:1"),
            ("backend.url", "rocketmq:"),
            ("backend.url", "rocketmq://x"),
            ("backend.url", "rocketmq://x:1;"),
            ("backend.url", "local:?sync=1"),
            ("backend.url", "local:?synchronous=off"),
            ("gateway.node_id", "a/b"),
            ("gateway.drain_per_second", "-1"),
            ("store.url", "mysql://x"),
            ("store.url", "redis:host"),
            ("store.url", "redis://"),
            ("store.url", "redis://host:x"),
            ("store.url", "redis://host:99999"),
            ("store.url", "redis://a:1,b:2"),
            ("store.url", "redis+cluster://a:1,"),
            ("store.url", "redis+sentinel://a:26379,b:26379"),
            ("store.url", "redis://a?password=hunter2"),
            ("bridge.topics", "a/b"),
            ("bridge.topics", "x" * 128),
            ("bridge.default_topic", "a b"),
            ("bridge.downlink_tag", "a||b"),
            ("bridge.downlink_tag", ""),
            ("naming.groups", "demo"),
            ("naming.groups", "GID_ab"),
            ("naming.groups", "GID_" + "a" * 29),
            ("naming.default_group", "GID_ä12"),
            ("gateway.instance", "a b"),
            ("gateway.log_level", "loud"),
            ("limits.inflight", "65536"),
            ("limits.inflight", "0"),
            ("limits.packet_bytes", "1000"),
            ("limits.tps", "-1"),
            ("gateway.workers", "2"),
            ("bridge.topics", ""),
            ("bridge.topics", "a,a"),
        ],
    )
    def test_bad_values_name_their_key(self, key: str, value: str) -> None:
        (problem,) = problems(overrides={key: value})
        assert problem.key.startswith(key)
        assert problem.problem
        assert problem.cure

    @pytest.mark.parametrize("text", ["[limits\n", "a = ", 'limits = "x"'])
    def test_a_broken_file(self, tmp_path: Path, text: str) -> None:
        (problem,) = problems(write(tmp_path, text))
        assert "gateway.toml" in str(problem)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        (problem,) = problems(tmp_path / "nothing.toml")
        assert "nothing.toml" in problem.problem

    def test_tags_must_differ(self) -> None:
        (problem,) = problems(overrides={"bridge.p2p_tag": "MQTT2MQ"})
        assert "differ" in problem.problem

    def test_store_and_log_do_not_share_a_file(self) -> None:
        (problem,) = problems(overrides={"backend.url": "local:x.db", "store.url": "sqlite:x.db"})
        assert problem.key == "store.url"


class TestAccounts:
    def account(self, **other: Any) -> dict[str, Any]:
        return {"access_key": "a", "secret_key": "hunter2", "groups": ["GID_aaa"], **other}

    def test_secrets_are_never_shown(self, tmp_path: Path) -> None:
        settings = load(None, {"accounts": [self.account()], "backend.secret_key": "hunter2"}, {})
        assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
        broken = [self.account(groups=["demo"]), self.account(secret_key=["hunter2"]), self.account(key="hunter2")]
        for account in broken:
            for problem in problems(overrides={"accounts": [account]}):
                assert "hunter2" not in str(problem)

    def test_broken_json_shows_no_secret(self) -> None:
        with pytest.raises(SettingsError) as caught:
            load(None, None, {"MQTT_GATEWAY__ACCOUNTS": '[{"secret_key": "hunter2"'})
        assert "hunter2" not in str(caught.value)

    def test_secret_from_a_file(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("from-file\n", encoding="utf-8")
        settings = load(None, {"backend.secret_key_file": str(secret)}, {})
        assert settings.backend.secret_key.get_secret_value() == "from-file"
        (problem,) = problems(overrides={"backend.secret_key_file": str(secret), "backend.secret_key": "x"})
        assert "both" in problem.problem
        (problem,) = problems(overrides={"backend.secret_key_file": str(tmp_path / "nothing")})
        assert "nothing" in problem.problem

    @pytest.mark.parametrize(
        ("accounts", "key"),
        [
            ([{"access_key": "a", "secret_key": ""}], "accounts[0]"),
            ([{"secret_key": "x"}], "accounts[0].access_key"),
            ([{"access_key": "a|b", "secret_key": "x"}], "accounts[0].access_key"),
            ([{"access_key": "a", "secret_key": "x"}] * 2, "accounts[1].access_key"),
            ([{"access_key": "a", "secret_key": "x", "groups": ["gid"]}], "accounts[0].groups[0]"),
            ([{"access_key": "a", "secret_key": "x", "publish": ["a/#/b"]}], "accounts[0].publish[0]"),
            ([{"access_key": "a", "secret_key": "x", "subscribe": ["a+"]}], "accounts[0].subscribe[0]"),
            ([{"access_key": k, "secret_key": "x", "groups": ["GID_aaa"]} for k in "ab"], "accounts[1].groups"),
        ],
    )
    def test_mistakes(self, accounts: list[dict[str, Any]], key: str) -> None:
        (problem,) = problems(overrides={"accounts": accounts})
        assert problem.key == key

    def test_a_group_is_open_or_owned(self) -> None:
        (problem,) = problems(overrides={"accounts": [self.account()], "naming.groups": ["GID_aaa"]})
        assert problem.key == "accounts[0].groups"


class TestSharedStore:
    @pytest.mark.parametrize(
        "url",
        [
            "redis://host",
            "redis://host:6379/1",
            "rediss://[::1]:6380",
            "redis+sentinel://a:26379,b:26379/mymaster/0",
            "rediss+sentinel://a,b/mymaster",
            "rediss://host?ca=/etc/ca.pem",
            "redis+cluster://a:1,b:2",
            "rediss+cluster://[::1]",
        ],
    )
    def test_urls(self, url: str) -> None:
        settings = load(None, {"store.url": url}, {})
        assert settings.store.url == url
        assert settings.store.shared
        assert settings.store.secret() == ""
        assert settings.embedded_store() is None

    @pytest.mark.parametrize(
        ("url", "plain", "password"),
        [
            ("redis://:hunter2@host:1/0", "redis://host:1/0", "hunter2"),
            ("rediss+sentinel://me:hunter2%40%2F@a:1,b:2/m", "rediss+sentinel://me@a:1,b:2/m", "hunter2@/"),
            ("redis+cluster://:hunter2@/?#@host:1", "redis+cluster://host:1", "hunter2@/?#"),
        ],
    )
    def test_a_password_in_the_url_is_taken_out_and_never_shown(self, url: str, plain: str, password: str) -> None:
        settings = load(None, {"store.url": url}, {})
        assert (settings.store.url, settings.store.secret()) == (plain, password)
        assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json() + repr(settings.store)
        for more in ({"store.password": "x"}, {"store.nonsense": "x"}, {"store.password": ["hunter2"]}, {"gateway.workers": "0"}):
            for problem in problems(overrides={"store.url": url, **more}):
                assert "hunter2" not in str(problem)

    @pytest.mark.parametrize(
        "url",
        ["mysql://u:hunter2@h", "redis://u:hunter2@h:x", "redis://h?password=hunter2", "redis+sentinel://:hunter2@h", "redis://hunter2@h"],
    )
    def test_a_wrong_url_shows_no_password(self, url: str) -> None:
        assert "hunter2" not in "".join(map(str, problems(overrides={"store.url": url})))

    def test_a_password_from_a_file(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("from-file\n", encoding="utf-8")
        url = {"store.url": "redis://host", "store.password_file": str(secret)}
        assert load(None, url, {}).store.secret() == "from-file"
        user = load(None, {**url, "store.url": "redis://me@host"}, {}).store
        assert (user.url, user.url_with_password()) == ("redis://me@host", "redis://me:from-file@host")
        for more in ({"store.password": "x"}, {"store.url": "redis://:y@host"}, {"store.password_file": str(tmp_path / "nothing")}):
            (problem,) = problems(overrides={**url, **more})
            assert problem.key == "store"

    def test_workers_share_both_servers_or_there_is_one(self) -> None:
        both = {"store.url": "redis://host", "backend.url": "rocketmq://host:9876"}
        assert load(None, {**both, "gateway.workers": "4"}, {}).gateway.workers == 4
        (problem,) = problems(overrides={"gateway.workers": "2", "store.url": "redis://host"})
        assert problem.key == "backend.url"
        (problem,) = problems(overrides={"gateway.workers": "2", "backend.url": "rocketmq://host:9876"})
        assert problem.key == "gateway.workers"
        (problem,) = problems(overrides={**both, "gateway.workers": "2", "http.listen": "127.0.0.1:65535"})
        assert problem.key == "http.listen"

    def test_an_embedded_log_beside_a_shared_store_is_doubtful(self) -> None:
        (doubt,) = doubts(load(None, {"store.url": "redis://host"}, {}))
        assert doubt.key == "backend.url"
        assert doubts(Settings()) == []
        assert doubts(load(None, {"store.url": "redis://host", "backend.url": "rocketmq://host:9876"}, {})) == []


class TestPlaces:
    def test_embedded_files(self) -> None:
        settings = Settings(gateway=Gateway(data_dir=Path("/d")))
        assert settings.embedded_store() == (Path("/d/store.db"), "full")
        assert settings.embedded_backend() == (Path("/d/backend.db"), "full")
        settings = load(None, {"store.url": "sqlite:/x/s.db?synchronous=normal", "backend.url": "local:?synchronous=normal"}, {})
        assert settings.embedded_store() == (Path("/x/s.db"), "normal")
        assert settings.embedded_backend() == (Path("data/backend.db"), "normal")

    def test_name_servers(self) -> None:
        settings = load(None, {"backend.url": "rocketmq://a:9876;[::1]:9877"}, {})
        assert settings.backend.servers() == [("a", 9876), ("::1", 9877)]
        assert settings.embedded_backend() is None
        assert Settings().backend.servers() == []

    def test_sections_are_made_by_hand_too(self) -> None:
        settings = Settings(limits=Limits(outbox_count=5), bridge=Bridge(topics=["a"]))
        assert (settings.limits.outbox_count, settings.bridge.topics) == (5, ["a"])


class TestFirstRun:
    def settings(self, tmp_path: Path) -> Settings:
        return load(None, {"gateway.data_dir": str(tmp_path / "data")}, {})

    def test_made_once_and_used_again(self, tmp_path: Path) -> None:
        first = prepare(self.settings(tmp_path))
        assert first is not None
        assert first.created
        assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
        assert first.settings.accounts == [first.account]
        assert first.account.groups == ["GID_demo"]
        again = prepare(self.settings(tmp_path))
        assert again is not None
        assert not again.created
        assert again.account == first.account
        assert again.account.secret_key.get_secret_value() == first.account.secret_key.get_secret_value()
        assert [path.name for path in first.path.parent.iterdir()] == ["first-run.toml"]

    def test_every_installation_gets_another_secret(self, tmp_path: Path) -> None:
        one, other = prepare(self.settings(tmp_path / "1")), prepare(self.settings(tmp_path / "2"))
        assert one is not None
        assert other is not None
        assert one.account.access_key != other.account.access_key
        assert one.account.secret_key.get_secret_value() != other.account.secret_key.get_secret_value()
        assert len(one.account.secret_key.get_secret_value()) >= 32

    def test_not_needed(self, tmp_path: Path) -> None:
        with_account = load(None, {"accounts": [{"access_key": "a", "secret_key": "x"}], "gateway.data_dir": str(tmp_path)}, {})
        anonymous = load(None, {"auth.anonymous": "true", "gateway.data_dir": str(tmp_path)}, {})
        assert prepare(with_account) is None
        assert prepare(anonymous) is None
        assert list(tmp_path.iterdir()) == []

    def test_others_must_not_read_it(self, tmp_path: Path) -> None:
        first = prepare(self.settings(tmp_path))
        assert first is not None
        first.path.chmod(0o644)
        with pytest.raises(SettingsError, match="chmod 600"):
            prepare(self.settings(tmp_path))

    def test_damaged_or_unwritable(self, tmp_path: Path) -> None:
        first = prepare(self.settings(tmp_path))
        assert first is not None
        first.path.write_text("nonsense", encoding="utf-8")
        with pytest.raises(SettingsError, match="damaged"):
            prepare(self.settings(tmp_path))
        (tmp_path / "file").write_text("", encoding="utf-8")
        with pytest.raises(SettingsError, match="can not be made"):
            prepare(load(None, {"gateway.data_dir": str(tmp_path / "file")}, {}))
