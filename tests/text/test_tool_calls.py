"""Tool calls told from content in every family's format, however the reply is cut."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermi.config import OpenAISettings
from fermi.errors import ConfigError
from fermi.text.tool_calls import FORMATS, tool_format
from text.tool_replies import TOOLS, read, split

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ONE = [("add", '{"a": 1}')]
BEGIN, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
ALL, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
XML = (
    'Ok\n<tool_call>\n<function=add>\n<parameter=a>\n5\n</parameter>\n<parameter=s>\n1\n"q"\n\n</parameter>\n'
    "</function>\n</tool_call>\n<tool_call>\n<function=f>\n</function>\n</tool_call>"
)
FENCED = (
    f'Yes{ALL}{BEGIN}function{SEP}add\n```json\n{{"a": 1}}\n```{END}\n'
    f"{BEGIN}function{SEP}f\n```json\n{{}}\n```{END}{ALL_END}"
)

REPLIES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", "", "", []),
    ("hermes", "Hello. ", "Hello. ", []),
    ("hermes", CALL, "", ONE),
    ("hermes", f"Let me see.\n\n{CALL}\n", "Let me see.", ONE),
    ("hermes", f"{CALL}\n{CALL} so", "so", ONE * 2),
    ("hermes", f"a {CALL} b {CALL}", "ab", ONE * 2),
    ("hermes", CALL.removesuffix("</tool_call>"), "", ONE),
    ("hermes", CALL.removesuffix("}\n</tool_call>"), "", ONE),
    ("hermes", CALL.removesuffix("}}\n</tool_call>") + "</tool_call>", "", ONE),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": null}</tool_call>', "", [("unknown", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "parameters": {"x": "é"}}</tool_call>', "", [("f", '{"x": "é"}')]),
    ("hermes", '<tool_call>{"arguments": {"x": 1}, "name": "f", "id": [{}]}</tool_call>', "", [("f", '{"x": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [("f", '{"x": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": " "}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>!', "!",
     [("f", '{"x": "</tool_call>"}')]),
    ("hermes", f"<tool_call><tool_call>{CALL}", "<tool_call><tool_call>", ONE),
    ("hermes", f"{CALL} garbage</tool_call>{CALL}", "garbage", ONE * 2),
    ("qwen3_coder", XML, "Ok", [("add", '{"a": 5, "s": "1\\n\\"q\\"\\n"}'), ("f", "{}")]),
    ("qwen3_coder", "<function=add><parameter=a>x</parameter></function> bye", "bye", [("add", '{"a": "x"}')]),
    ("qwen3_coder", CALL, "", ONE),
    ("qwen3_coder", '<tool_call><function=add>{"a": 1}</function></tool_call>', "", ONE),
    ("llama3", ' {"name": "add", "parameters": {"a": 1}}', "", ONE),
    ("llama3", '{"name": "add", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}', "", [*ONE, ("f", "{}")]),
    ("llama3", '{"type": "function", "name": "f", "parameters": {}}\n{"name": "f"}', "", [("f", "{}")] * 2),
    ("llama3", 'Well: <|python_tag|>{"name": "other", "parameters": {}}<|eom_id|>', "Well:", [("other", "{}")]),
    ("llama3", '<|python_tag|>add.call(a=1, s="x\\u00e9")', "", [("add", '{"a": 1, "s": "x\\u00e9"}')]),
    ("pythonic", '[add(a=-1, s="it\'s", o={"k": [1, True, None], 2: (3,)}, b=False), f()]', "",
     [("add", '{"a": -1, "s": "it\'s", "o": {"k": [1, true, null], "2": [3]}, "b": false}'), ("f", "{}")]),
    ("pythonic", "[add(s='''q\"\\'\\n\\t\\x41\\q''')]", "", [("add", '{"s": "q\\"\'\\n\\tA\\\\q"}')]),
    ("pythonic", "x <|python_start|>[other(x=1.5)]<|python_end|> y", "xy", [("other", '{"x": 1.5}')]),
    ("lfm2", "<|tool_call_start|>[get-time.now(z='UTC'), f()]<|tool_call_end|>Done.", "Done.",
     [("get-time.now", '{"z": "UTC"}'), ("f", "{}")]),
    ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "123456789"}, {"name": "f"}]', "",
     [*ONE, ("f", "{}")]),
    ("mistral", '[TOOL_CALLS]add{"a": 1}', "", ONE),
    ("mistral_args", 'Hm.[TOOL_CALLS]add[CALL_ID]Ab1[ARGS]{"a": 1}[TOOL_CALLS]f[ARGS]{}', "Hm.", [*ONE, ("f", "{}")]),
    ("phi4", '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>', "", ONE),
    ("phi4", 'functools[{"name": "add", "arguments": {"a": 1}}, {"name": "f", "arguments": {}}]', "",
     [*ONE, ("f", "{}")]),
    ("granite", '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]', "", ONE),
    ("nemotron", 'So <TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>', "So", ONE),
    ("cohere", '<|START_ACTION|>[{"id": "0", "tool_name": "add", "parameters": {"a": 1}}]<|END_ACTION|>', "", ONE),
    ("deepseek", FENCED, "Yes", [*ONE, ("f", "{}")]),
    ("deepseek_v31", f'{ALL}{BEGIN}add{SEP}{{"a": 1}}{END}{BEGIN}f{SEP}{{}}{END}{ALL_END}', "", [*ONE, ("f", "{}")]),
    ("json", 'Here:\n```json\n{"name": "add", "arguments": {"a": 1}}\n```\nBye.', "Here:Bye.", ONE),
    ("json", '[{"name": "add", "arguments": {"a": 1}}, {"name": "f"}]', "", [*ONE, ("f", "{}")]),
    ("json", 'x {"name": "f"}\n{"name": "f"}', 'x {"name": "f"}', [("f", "{}")]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "text", "content", "calls"), REPLIES, ids=range(len(REPLIES)))
def test_replies(family: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(family, text) == (content, calls)
    assert read(family, *text) == (content, calls)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", "<tool_call>"),
        ("hermes", "a < b <tool_cal"),
        ("hermes", "<tool_call>{"),
        ("hermes", '<tool_call>{"name": "f"'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": '),
        ("hermes", "x\n<tool_call>nonsense</tool_call>\ny"),
        ("hermes", "<tool_call>[]</tool_call>"),
        ("hermes", '<tool_call>{"name": 3}</tool_call>'),
        ("hermes", '<tool_call>{"name": ""}</tool_call>'),
        ("hermes", '<tool_call>{"name": "\\ud800"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": "x"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": bad}}</tool_call>'),
        ("hermes", "<tool_call>{'name': 'f'}</tool_call>"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": {1}}}</tool_call>'[:40] + "bad"),
        ("hermes", "</tool_call> "),
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter>\n</function>"),
        ("qwen3_coder", "<function=f"),
        ("llama3", '{"name": "unknown", "parameters": {}}'),
        ("llama3", '{"a": 1}'),
        ("llama3", 'So: {"name": "f", "parameters": {}}'),
        ("llama3", "<|python_tag|>print(1)"),
        ("pythonic", "[link](url)"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[unknown()]"),
        ("pythonic", "[f(a=b)]"),
        ("mistral", "[TOOL_CALLS] none"),
        ("phi4", "functools are nice"),
        ("deepseek", f"{ALL}{BEGIN}f"),
        ("json", '{"name": "unknown", "arguments": {}}'),
        ("json", "```json\n[1, 2]\n```"),
    ],
)  # fmt: skip
def test_what_is_no_call_stays_word_for_word(family: str, text: str) -> None:
    assert read(family, text) == (text, [])
    assert read(family, *text) == (text, [])


LONG = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals."


class TestMistakes:
    @pytest.mark.parametrize(
        ("family", "text"),
        [
            ("hermes", '<tool_call>{"name": "f", "arguments": {"s": "he said "hi" x"}}</tool_call> y'),
            ("hermes", '<tool_call>{"name": "f", "arguments": {"s": 1, oops}}</tool_call>'),
            ("hermes", '<tool_call>{"name": "f", "arguments": {"s": "</tool_call>'),
            ("pythonic", "[f(a=1, s=oops)] y"),
            ("pythonic", "[f(a='x"),
            ("qwen3_coder", "<function=f><parameter=a>1</parameter><parameter b></function>"),
        ],
    )
    def test_short_calls_become_content(self, family: str, text: str) -> None:
        assert read(family, text) == (text, [])
        assert read(family, *text) == (text, [])

    @pytest.mark.parametrize(
        ("family", "text", "content", "arguments"),
        [
            ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"s": "{LONG} "x" y"}}}}</tool_call> z', 'x" y"}} z',
             f'{{"s": "{LONG} "'),
            ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"s": "{LONG}", oops}}}}</tool_call>', "oops}}",
             f'{{"s": "{LONG}"'),
            ("pythonic", f"[f(a='{LONG}', s=oops)] y", "s=oops)] y", f'{{"a": "{LONG}"'),
            ("qwen3_coder", f"<function=f><parameter=a>{LONG}</parameter><parameter b></function>", "<parameter b>",
             f'{{"a": "{LONG}"'),
        ],
    )  # fmt: skip
    def test_long_calls_stay_open(self, family: str, text: str, content: str, arguments: str) -> None:
        """What was given away cannot be taken back, but no client takes it for whole; the rest is content."""
        assert read(family, text) == (content, [("f", arguments)])
        assert read(family, *text) == (content, [("f", arguments)])
        with pytest.raises(ValueError, match=r"."):
            json.loads(arguments)

    def test_cut_by_a_limit(self) -> None:
        """What came stays, unfinished; brackets that only the model forgot are added."""
        begun = '<tool_call>{"name": "f", "arguments": {"a": [1'
        assert read("hermes", begun, cut=True).calls == [("f", '{"a": [1')]
        assert read("hermes", begun).calls == [("f", '{"a": [1]}')]
        assert read("hermes", begun + ', "x', cut=True).calls == [("f", '{"a": [1, "x')]
        assert read("hermes", begun + ', "x') == (begun + ', "x', [])

    @pytest.mark.parametrize(
        ("written", "passed_on"),
        [
            ('{"a": True, "b": [None, False,],}', '{"a": true, "b": [null, false]}'),
            ('{"a": "x\ny\tz\x01"}', '{"a": "x\\ny\\tz\\u0001"}'),
            (r'{"re": "\d+\.\'\u12\"\u00e9"}', r"""{"re": "\\d+\\.'\\u12\"\u00e9"}"""),
            ('{"a":1e5,\n "b" : -0.5 }', '{"a":1e5,\n "b" : -0.5 }'),
        ],
    )
    def test_put_right_where_only_one_thing_can_be_meant(self, written: str, passed_on: str) -> None:
        text = f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'
        assert read("hermes", text) == read("hermes", *text) == ("", [("f", passed_on)])
        json.loads(passed_on)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("a", "5", 5),
        ("a", "five", "five"),
        ("a", "5.5", "5.5"),
        ("s", "5", "5"),
        ("s", '{"x": 1}', '{"x": 1}'),
        ("o", '{"x": [1, null]}', {"x": [1, None]}),
        ("o", "{'x': True}", {"x": True}),
        ("o", "{", "{"),
        ("b", "True", True),
        ("b", "FALSE", False),
        ("b", "maybe", "maybe"),
        ("l", "None", None),
        ("l", "[1, 2]", [1, 2]),
        ("n", "1.5", 1.5),
        ("n", "one", "one"),
        ("n", "1e999", float("inf")),
        ("r", '{"x": 1}', {"x": 1}),
        ("unknown", "5", "5"),
        ("o", "[" * 100_000, "[" * 100_000),
        ("n", "9" * 5000, "9" * 5000),
    ],
    ids=range(20),
)
def test_plain_text_becomes_what_the_schema_wants(key: str, text: str, value: Any) -> None:
    reply = f"<tool_call>\n<function=add>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    assert read("qwen3_coder", reply).values == [("add", {key: value})]


class TestStreaming:
    def test_name_first_then_arguments(self) -> None:
        parser = FORMATS["hermes"]().parser(TOOLS)
        assert parser.push("Yes. ").content == "Yes."
        assert parser.push('<tool_call>\n{"name": "add", "arguments": {"s": "lo').calls == ()
        [named, arguments] = parser.push(LONG).calls
        assert (named.index, named.name, named.arguments) == (0, "add", "")
        assert (arguments.index, arguments.name, arguments.arguments) == (0, None, '{"s": "lo' + LONG)
        assert [piece.arguments for piece in parser.push("ng te").calls] == ["ng te"]
        assert (parser.calls, parser.completed) == (1, 0)
        assert [piece.arguments for piece in parser.push('xt"}}\n</too').calls] == ['xt"}']
        assert (parser.calls, parser.completed) == (1, 1)
        assert parser.push("l_call>\n") == ("", ())
        assert parser.push("Done").content == "Done"

    @pytest.mark.parametrize(
        ("family", "head"),
        [
            ("qwen3_coder", "<tool_call>\n<function=add>\n<parameter=s>\n"),
            ("pythonic", "[add(s='"),
            ("mistral_args", '[TOOL_CALLS]add[ARGS]{"s": "'),
            ("llama3", '{"name": "add", "parameters": {"s": "'),
            ("deepseek_v31", f'{ALL}{BEGIN}add{SEP}{{"s": "'),
        ],
    )
    def test_long_strings_are_not_kept_waiting(self, family: str, head: str) -> None:
        parser = FORMATS[family]().parser(TOOLS)
        assert [piece.name for piece in parser.push(head + LONG).calls] == ["add", None]
        for word in ("Once ", "upon ", "a time"):
            assert [piece.arguments for piece in parser.push(word).calls] == [word]

    def test_content_is_not_kept_waiting(self) -> None:
        for family in FORMATS:
            parser = FORMATS[family]().parser(TOOLS)
            said = [parser.push(word).content for word in ("Well", ", a", " <b", " c")]
            assert "".join(said) == "Well, a <b c"
            assert said[0] == "Well"


class TestSpecialTokens:
    SPECIAL = {"<|tool_call|>": 7, "<|/tool_call|>": 8, "<|end|>": 9}  # noqa: RUF012

    def test_only_markers_are_kept(self) -> None:
        assert set(FORMATS["phi4"](self.SPECIAL).special) == {"<|tool_call|>", "<|/tool_call|>"}

    @pytest.mark.parametrize(
        ("text", "content"),
        [
            ("<|tool_call|>nonsense<|/tool_call|>", "nonsense"),
            ("a<|/tool_call|>b", "ab"),
            ('<|tool_call|>[{"name": "f"}]<|/tool_call|><|/tool_call|> x', "x"),
            ('<|tool_call|>[{"name": "<|/tool_call|>', '[{"name": "'),
        ],
    )
    def test_never_content(self, text: str, content: str) -> None:
        assert read("phi4", text, special=self.SPECIAL).content == content
        assert read("phi4", *text, special=self.SPECIAL).content == content


pieces = st.sampled_from(
    [
        CALL, "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', '{"name": "add", "parameters": {"a": 1,',
        '"s": "x\\u00e9 \\d', '"', "}", "]", "[", "{", ":", ",", " ", "\n", "a", "<", "\\", "é🎉", "<function=add>",
        "<parameter=s>", "<parameter=o>", "</parameter>", "\n</parameter>", "</function>", "[add(", "f(", "s='", "a=1",
        ", ", ")", ";", "<|python_tag|>", "[TOOL_CALLS]", "add", "[ARGS]", ALL, BEGIN, SEP, END, ALL_END, "function",
        "\n```json\n", "```", '"a"', '"name"', '"arguments"', "1", "tru", "true", "None", "functools", "<|tool_call|>",
        "<|/tool_call|>", '"""', "\\u12", LONG[:40], '"s": "' + LONG[:60], "<|tool_call_start|>", "<|START_ACTION|>",
        "<TOOLCALL>",
    ]
) | st.text(max_size=3)  # fmt: skip
replies = st.lists(pieces, max_size=14).map("".join)


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=150)
@given(text=replies, cuts=st.lists(st.integers(0, 200), max_size=8), ended=st.booleans())
def test_any_split_gives_the_same(family: str, text: str, cuts: list[int], ended: bool) -> None:
    whole = read(family, text, cut=not ended)
    assert read(family, *split(text, cuts), cut=not ended) == whole
    assert read(family, *text, cut=not ended) == whole
    if not whole.calls:
        assert whole.content == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100)
@given(
    arguments=st.dictionaries(st.text(max_size=5), values, max_size=4),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
)
@pytest.mark.parametrize(
    ("family", "before", "after"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": ', "}</tool_call>"),
        ("llama3", '{"name": "f", "parameters": ', "}"),
        ("mistral_args", "[TOOL_CALLS]f[ARGS]", ""),
        ("deepseek", f"{ALL}{BEGIN}function{SEP}f\n```json\n", f"\n```{END}{ALL_END}"),
    ],
)
def test_json_arguments_are_passed_on_word_for_word(
    family: str,
    before: str,
    after: str,
    arguments: dict[str, Any],
    cuts: list[int],
    indent: int | None,
    ascii_only: bool,
) -> None:
    written = json.dumps(arguments, indent=indent, ensure_ascii=ascii_only)
    assert read(family, *split(before + written + after, cuts)) == ("", [("f", written)])


@settings(max_examples=100)
@given(
    arguments=st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), values, max_size=4),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_python_arguments_become_json(arguments: dict[str, Any], cuts: list[int]) -> None:
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    [(name, found)] = read("pythonic", *split(f"[f({written})]", cuts)).values
    assert (name, found) == ("f", json.loads(json.dumps(arguments)))


@settings(max_examples=100)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), cuts=st.lists(st.integers(0, 99), max_size=8)
)
def test_strings_in_xml_stay_as_they_are(text: str, cuts: list[int]) -> None:
    reply = f"<tool_call>\n<function=add>\n<parameter=s>\n{text}\n</parameter>\n</function>\n</tool_call>"
    assert read("qwen3_coder", *split(reply, cuts)).values == [("add", {"s": text})]


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 4000,
        "<tool_call>" + "[" * 50_000,
        '<tool_call>{"name": "f", "arguments": ' + '{"a": ' * 20_000,
        '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 50_000,
        " " * 50_000,
        "[f(a=" + "[" * 50_000,
        "[f(a=" + "-" * 50_000 + "1)]",
        '{"name": "' + "a" * 50_000,
        "1" * 50_000,
    ],
    ids=range(9),
)
def test_large_replies(family: str, text: str) -> None:
    """What were quadratic would take minutes."""
    assert read(family, *(text[at : at + 8] for at in range(0, len(text), 8))) == read(family, text)


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("HuggingFaceTB-SmolLM3-3B", "hermes"),
        ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "hermes"),
        ("Qwen-Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen-Qwen3-0.6B", "hermes"),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek"),
        ("google-gemma-2-2b-it", "hermes"),
        ("meta-llama-Llama-3.2-3B-Instruct", "llama3"),
        ("microsoft-Phi-3.5-mini-instruct", "hermes"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral"),
    ],
)
def test_chosen_from_real_templates(shared: Any, template: str, family: str) -> None:
    source = (shared / "chat_templates" / f"{template}.jinja").read_text("utf-8")
    assert tool_format(source).name == family


@pytest.mark.parametrize(
    ("source", "family"),
    [
        ("<tool_call>\n<function=x>\n<parameter=y>", "qwen3_coder"),
        ("[TOOL_CALLS]{{ name }}[ARGS]", "mistral_args"),
        ("<|tool|>{{ tools }}<|/tool|>", "phi4"),
        ("functools[{{ x }}]", "functools"),
        ("{{ BEGIN }}<｜tool▁sep｜>{{ x }}", "deepseek_v31"),
        ("<|tool_list_start|>", "lfm2"),
        ("<|python_start|>", "pythonic"),
        ("<|START_ACTION|>", "cohere"),
        ("<|tool_call|>", "granite"),
        ("", "hermes"),
    ],
)
def test_chosen_from_signs(source: str, family: str) -> None:
    assert tool_format(source).name == family


def test_the_setting_names_them_all() -> None:
    assert set(get_args(OpenAISettings.model_fields["tool_parser"].annotation)) == {"auto", *FORMATS}


def test_the_setting_wins() -> None:
    assert tool_format("<tool_call>", "json").name == "json"
    with pytest.raises(ConfigError, match="'nonsense', only hermes, qwen3_coder"):
        tool_format("", "nonsense")
