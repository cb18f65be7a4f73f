"""The configuration: precedence, names, files, and errors that name what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from fermi.config import Address, Settings, known_settings, load_settings, parse_memory, parse_thinking
from fermi.errors import ConfigError

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Settings from flags, an environment and the text of a fermi.toml, with nothing of this machine."""

    def run(toml: str = "", *, flags: dict[str, object] | None = None, **environ: str) -> Settings:
        if toml:
            (tmp_path / "fermi.toml").write_text(toml)
        return load_settings(flags, environ=environ, folder=tmp_path)

    return run


def test_defaults(load: Load) -> None:
    settings = load()
    assert settings.model.id == "Qwen/Qwen3-1.7B"
    assert settings.openai.addr == Address("0.0.0.0", 8000)
    assert settings.grpc.addr == Address("0.0.0.0", 50051)
    assert (settings.generation.default_max_new_tokens, settings.generation.max_new_tokens_cap) == (256, 9056)
    assert settings.generation.default_temperature is None
    assert settings.openai.timeout_ms == settings.cli.timeout_ms == settings.grpc.timeout_ms == 60000
    assert settings.openai.default_thinking == "off"
    assert settings.openai.supports_thinking is None
    assert str(settings.origin("engine.threads")) == "default"


def test_flag_beats_environment_beats_file_beats_default(load: Load) -> None:
    toml = "[engine]\nthreads = 2\nblock_size = 32\nmax_num_seqs = 7"
    settings = load(toml, flags={"engine.threads": "4"}, FERMI_THREADS="3", FERMI_ENGINE__BLOCK_SIZE="8")
    engine = settings.engine
    assert (engine.threads, engine.block_size, engine.max_num_seqs, engine.max_num_batched_tokens) == (4, 8, 7, 512)
    assert str(settings.origin("engine.threads")) == "flag --threads"
    assert str(settings.origin("engine.block_size")) == "environment FERMI_ENGINE__BLOCK_SIZE"
    assert settings.origin("engine.max_num_seqs").kind == "file"
    assert settings.origin("engine.max_num_batched_tokens").kind == "default"


def test_frozen(load: Load) -> None:
    with pytest.raises(ValidationError):
        load().engine.threads = 3


@pytest.mark.parametrize(
    ("variable", "value", "names", "expected"),
    [
        ("FERMI_MODEL", "demo", ["model.id"], "demo"),
        ("MODEL_PATH", "some/model", ["model.id"], "some/model"),
        ("FERMI_OFFLINE", "1", ["model.offline"], True),
        ("HF_HUB_OFFLINE", "true", ["model.offline"], True),
        ("HF_TOKEN", "hf_x", ["model.token"], "hf_x"),
        ("HF_ENDPOINT", "http://mirror", ["model.endpoint"], "http://mirror"),
        ("DEVICE", "cuda:1", ["engine.device"], "cuda:1"),
        ("FERMI_DEFAULT_MAX_NEW_TOKENS", "9", ["generation.default_max_new_tokens"], 9),
        ("MAX_TOKENS", "10", ["generation.default_max_new_tokens"], 10),
        ("FERMI_MAX_NEW_TOKENS_CAP", "300", ["generation.max_new_tokens_cap"], 300),
        ("FERMI_DEFAULT_TEMPERATURE", "0", ["generation.default_temperature"], 0.0),
        ("FERMI_DEFAULT_TOP_P", "0.5", ["generation.default_top_p"], 0.5),
        ("FERMI_DEFAULT_REPEAT_PENALTY", "1.5", ["generation.default_repeat_penalty"], 1.5),
        ("FERMI_GENERATION__TEMPERATURE", "1", ["generation.default_temperature"], 1.0),
        ("FERMI_OPENAI_ADDR", "127.0.0.1:9", ["openai.addr"], Address("127.0.0.1", 9)),
        ("FERMI_GRPC_ADDR", "[::1]:9", ["grpc.addr"], Address("::1", 9)),
        ("HOST", "127.0.0.1", ["openai.addr"], Address("127.0.0.1", 8000)),
        ("PORT", "81", ["openai.addr"], Address("0.0.0.0", 81)),
        ("FERMI_ENGINE_POOL", "2", ["openai.engine_pool", "grpc.engine_pool"], 2),
        ("FERMI_TIMEOUT_MS", "0", ["cli.timeout_ms", "openai.timeout_ms", "grpc.timeout_ms"], 0),
        ("FERMI_SESSION_TTL_MS", "5", ["grpc.session_ttl_ms"], 5),
        ("FERMI_SESSION_MAX", "6", ["grpc.session_max"], 6),
        (
            "FERMI_DEFAULT_SYSTEM_PROMPT",
            "Be kind.",
            ["cli.default_system_prompt", "openai.default_system_prompt", "grpc.default_system_prompt"],
            "Be kind.",
        ),
        ("FERMI_DEFAULT_THINKING", "AUTO", ["openai.default_thinking"], "auto"),
        ("FERMI_DEFAULT_THINKING", "true", ["openai.default_thinking"], "on"),
        ("FERMI_SUPPORTS_THINKING", "false", ["openai.supports_thinking"], False),
        ("FERMI_DISABLE_THINK", "yes", ["cli.disable_think", "openai.disable_think", "grpc.disable_think"], True),
        ("FERMI_CACHE__KV_CACHE_MEMORY", "25%", ["cache.kv_cache_memory"], 0.25),
        ("FERMI_API_KEYS", "a, b", ["openai.api_keys"], ("a", "b")),
        ("FERMI_OPENAI__TIMEOUT_MS", "7", ["openai.timeout_ms"], 7),
    ],
)
def test_environment(load: Load, variable: str, value: str, names: list[str], expected: object) -> None:
    settings = load(**{variable: value})
    for name in names:
        section, key = name.split(".")
        assert getattr(getattr(settings, section), key) == expected
        assert settings.origin(name) == ("environment", variable)


def test_every_setting_has_a_nested_name_and_a_meaning(load: Load) -> None:
    for info in known_settings():
        assert info.meaning.endswith("."), info.name
        assert f"FERMI_{info.section}__{info.key}".upper() in info.nested_env
        sample = {bool: "true", int: "300", str: info.default}.get(type(info.default))
        if sample is not None:
            assert load(**{info.nested_env[0]: sample}).origin(info.name).kind == "environment"


def test_nested_name_beats_the_shared_one(load: Load) -> None:
    settings = load(FERMI_TIMEOUT_MS="1", FERMI_GRPC__TIMEOUT_MS="2")
    assert (settings.openai.timeout_ms, settings.grpc.timeout_ms) == (1, 2)


def test_a_shared_variable_is_complained_of_once(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(FERMI_TIMEOUT_MS="abc", FERMI_THREADS="0")
    timeout, threads = sorted(str(caught.value).split("; "))[::-1]
    assert timeout.startswith("environment FERMI_TIMEOUT_MS: cli.timeout_ms, openai.timeout_ms, grpc.timeout_ms: ")
    assert timeout.endswith(", got 'abc'")
    assert threads.startswith("environment FERMI_THREADS: engine.threads: ")


def test_model_dir_wins_in_the_environment_only(load: Load, tmp_path: Path) -> None:
    environ = {"FERMI_MODEL_DIR": str(tmp_path), "FERMI_MODEL": "demo", "FERMI_MODEL__ID": "other"}
    assert load('[model]\nid = "x/y"', **environ).model.id == str(tmp_path)
    assert load('[model]\nid = "x/y"', flags={"model.id": "demo"}, **environ).model.id == "demo"
    with pytest.raises(ConfigError, match="FERMI_MODEL_DIR: '/no/such/folder' is not a folder"):
        load(FERMI_MODEL_DIR="/no/such/folder")


def test_revision_belongs_to_the_model_beside_it(load: Load) -> None:
    toml = '[model]\nid = "x/y"\nrevision = "v1"'
    assert load(toml).model.revision == "v1"
    assert load(toml, flags={"model.id": "demo"}).model.revision is None
    assert load(toml, flags={"model.id": "x/z"}, FERMI_REVISION="v2").model.revision is None
    assert load(toml, flags={"model.id": "x/z", "model.revision": "v3"}).model.revision == "v3"


def test_host_and_port_replace_their_part(load: Load) -> None:
    toml = '[openai]\naddr = "127.0.0.1:9000"'
    assert load(toml, PORT="81").openai.addr == Address("127.0.0.1", 81)
    assert load(toml, flags={"openai.host": "::1"}, PORT="81").openai.addr == Address("::1", 81)
    assert load(toml, FERMI_OPENAI_ADDR="0.0.0.0:1", PORT="81").openai.addr == Address("0.0.0.0", 1)
    assert load(toml, flags={"openai.port": 0}).openai.addr == Address("127.0.0.1", 0)
    with pytest.raises(ConfigError, match="environment PORT"):
        load(PORT="eighty")


def test_empty_variable_is_unset(load: Load) -> None:
    assert load("[engine]\nthreads = 2", FERMI_THREADS="", FERMI_MODEL_DIR="", FERMI_CONFIG="").engine.threads == 2


def test_foreign_variables_are_left_alone(load: Load) -> None:
    assert load(FERMI_PORT="tcp://10.0.0.1:8000", FERMI_SERVICE_HOST="10.0.0.1", FERMI_TESTS="1") == Settings()


def test_config_file_by_name(tmp_path: Path) -> None:
    (tmp_path / "fermi.toml").write_text("[engine]\nthreads = 1")
    (tmp_path / "by_env.toml").write_text("[engine]\nthreads = 2")
    (tmp_path / "by_flag.json").write_text(json.dumps({"engine": {"threads": 3}}))
    environ = {"FERMI_CONFIG": "by_env.toml"}
    assert load_settings(environ={}, folder=tmp_path).engine.threads == 1
    assert load_settings(environ=environ, folder=tmp_path).engine.threads == 2
    assert load_settings(config="by_flag.json", environ=environ, folder=tmp_path).engine.threads == 3


@pytest.mark.parametrize(("config", "environ"), [("gone.toml", {}), (None, {"FERMI_CONFIG": "gone.toml"})])
def test_named_file_that_is_missing(tmp_path: Path, config: str | None, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml does not exist"):
        load_settings(config=config, environ=environ, folder=tmp_path)


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("[engin]\nthreads = 1", r"fermi\.toml: unknown section \[engin\] \(did you mean engine\?\)"),
        ("[engine]\nthread = 1", r"fermi\.toml: unknown key engine\.thread \(did you mean threads\?\)"),
        ("threads = 1", r"unknown section \[threads\]"),
        ("engine = 1", r"\[engine\] must be a table"),
        ("[engine", r"fermi\.toml: cannot be read"),
        ('[engine]\nthreads = "many"', r"fermi\.toml: engine\.threads: .*integer.*'many'"),
        ("[engine]\nthreads = true", r"engine\.threads: is a boolean"),
        ("[engine]\nthreads = 0", r"engine\.threads: .*got 0"),
        ('[engine]\neviction = "mru"', r"engine\.eviction: .*'lru'"),
        ("[generation]\ndefault_temperature = 2.5", r"generation\.default_temperature"),
        ("[generation]\ndefault_top_p = 0", r"generation\.default_top_p"),
        ("[generation]\ndefault_repeat_penalty = 0.9", r"generation\.default_repeat_penalty"),
        ("[generation]\ndefault_temperature = nan", r"generation\.default_temperature"),
        ("[generation]\ntemperature = 1\ndefault_temperature = 1", "they are the same"),
        ("[generation]\nmax_new_tokens_cap = 10", r"default_max_new_tokens \(256\) is above max_new_tokens_cap \(10\)"),
        ('[openai]\naddr = "localhost"', r"openai\.addr: 'localhost' is not an address"),
        ('[openai]\naddr = "::1:80"', r"openai\.addr"),
        ('[openai]\naddr = "a:99999"', r"openai\.addr"),
        ('[openai]\ndefault_thinking = "maybe"', r"openai\.default_thinking: 'maybe' is not one of on, off, auto"),
        ('[cache]\nkv_cache_memory = "lots"', r"cache\.kv_cache_memory"),
        ('[openai]\ndefault_system_prompt_file = "gone.txt"', r"openai\.default_system_prompt_file: .*gone\.txt"),
    ],
)
def test_errors_name_what_is_wrong(load: Load, toml: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(toml)


@pytest.mark.parametrize("text", ["[1]", '"text"', "{", '{"engine": null}', "[" * 100_000])
def test_malformed_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "fermi.json").write_text(text)
    with pytest.raises(ConfigError, match=r"fermi\.json"):
        load_settings(config="fermi.json", environ={}, folder=tmp_path)


def test_unknown_nested_variable_and_flag(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"FERMI_ENGINE__THREAD: unknown key \(did you mean FERMI_ENGINE__THREADS"):
        load(FERMI_ENGINE__THREAD="1")
    with pytest.raises(ConfigError, match="FERMI_ENGIN__THREADS: unknown section engin"):
        load(FERMI_ENGIN__THREADS="1")
    with pytest.raises(ConfigError, match=r"unknown setting engine\.thread "):
        load(flags={"engine.thread": 1})


def test_inline_text_wins_over_its_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("From the file.\n")
    by_file = '[openai]\ndefault_system_prompt_file = "prompt.txt"\n'
    assert load(by_file).openai.default_system_prompt == "From the file."
    assert load(by_file + 'default_system_prompt = "Inline."').openai.default_system_prompt == "Inline."
    assert load(by_file, FERMI_DEFAULT_SYSTEM_PROMPT="Env.").openai.default_system_prompt == "Env."
    inline = '[openai]\ndefault_system_prompt = "Inline."'
    assert load(inline, FERMI_DEFAULT_SYSTEM_PROMPT_FILE="prompt.txt").cli.default_system_prompt == "From the file."


def test_relative_files_resolve_against_the_config_file(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    (inner / "model").mkdir(parents=True)
    (inner / "keys.txt").write_text("one\ntwo\n")
    (inner / "fermi.toml").write_text('[model]\nid = "model"\n[openai]\napi_keys_file = "keys.txt"')
    settings = load_settings(config="inner/fermi.toml", environ={}, folder=tmp_path)
    assert settings.model.id == str(inner / "model")
    assert settings.openai.api_keys == ("one", "two")


@pytest.mark.parametrize(
    ("given", "expected"),
    [(":memory:", ":memory:"), ("off", "off"), ("kept.sqlite", "inner/kept.sqlite"), ("/kept.sqlite", "/kept.sqlite")],
)
def test_where_responses_are_kept(tmp_path: Path, given: str, expected: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "fermi.toml").write_text(f'[openai]\nresponse_store = "{given}"')
    store = load_settings(config="inner/fermi.toml", environ={}, folder=tmp_path).openai.response_store
    assert store == (expected if given in (":memory:", "off") else tmp_path / expected)
    by_variable = load_settings(environ={"FERMI_RESPONSE_STORE": given}, folder=tmp_path).openai.response_store
    assert str(by_variable) == given
    assert isinstance(by_variable, str) is (given in (":memory:", "off"))


def test_table_hides_secrets(load: Load) -> None:
    rows = {name: (value, str(origin)) for name, value, origin in load(HF_TOKEN="hf_x", PORT="81").table()}
    assert rows["model.token"] == ("***", "environment HF_TOKEN")
    assert rows["openai.addr"] == ("0.0.0.0:81", "environment PORT")
    assert rows["openai.api_keys"] == ("()", "default")


@pytest.mark.parametrize(
    ("text", "amount"),
    [("2GiB", 2**31), ("2G", 2**31), ("2gb", 2 * 10**9), ("1.5K", 1536), (4096, 4096), ("25%", 0.25), (0.5, 0.5)],
)
def test_memory(text: object, amount: float) -> None:
    assert parse_memory(text) == amount
    assert type(parse_memory(text)) is type(amount)


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "101%", "0%", 1.5, 25, "25", True, None, "1XB"])
def test_no_memory(text: object) -> None:
    with pytest.raises(ValueError, match=r"memory|bytes"):
        parse_memory(text)


def test_thinking() -> None:
    assert [parse_thinking(value) for value in ("On", "OFF", "auto", True, False, "True")] == [
        "on",
        "off",
        "auto",
        "on",
        "off",
        "on",
    ]
    with pytest.raises(ValueError, match="on, off, auto"):
        parse_thinking(1)


def test_paths_in_a_file_begin_where_it_is(load: Load, tmp_path: Path) -> None:
    toml = '[openai]\nssl_certfile = "tls/cert.pem"\nssl_keyfile = "/etc/key.pem"\n[cache]\nhub_dir = "models"'
    settings = load(toml, FERMI_OPENAI__SSL_CERTFILE="")
    assert settings.openai.ssl_certfile == tmp_path / "tls/cert.pem"
    assert settings.openai.ssl_keyfile == Path("/etc/key.pem")
    assert settings.cache.hub_dir == tmp_path / "models"
    assert load(toml, FERMI_OPENAI__SSL_CERTFILE="here.pem").openai.ssl_certfile == Path("here.pem")


def test_a_key_given_replaces_the_file_of_keys(load: Load, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a\nb\n")
    from_file = load('[openai]\napi_keys_file = "keys"')
    assert (from_file.openai.api_keys, from_file.openai.api_keys_file) == (("a", "b"), tmp_path / "keys")
    for replaced in (
        load('[openai]\napi_keys_file = "keys"', FERMI_API_KEYS="c"),
        load('[openai]\napi_keys_file = "keys"\napi_keys = ["c"]'),
    ):
        assert (replaced.openai.api_keys, replaced.openai.api_keys_file) == (("c",), None)


def test_secrets_are_starred(load: Load) -> None:
    settings = load(FERMI_API_KEYS="key-1", FERMI_ADMIN_KEY="key-2", FERMI_OPENAI__SSL_KEYFILE_PASSWORD="key-3")
    shown = {name: (value, str(origin)) for name, value, origin in settings.table()}
    assert shown["openai.admin_key"] == ("***", "environment FERMI_ADMIN_KEY")
    assert shown["openai.requests_per_minute"] == ("0", "default")
    assert "key-" not in str(shown)


def test_a_bad_secret_is_not_told(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load('[openai]\nadmin_key = ["hidden"]')
    assert "openai.admin_key" in str(caught.value)
    assert "hidden" not in str(caught.value)
