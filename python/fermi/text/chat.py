"""A model's chat template: messages in, the text that the model was trained to continue out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from fermi.errors import ChatTemplateError, CheckpointError
from fermi.text.abilities import Abilities
from fermi.text.chat_environment import chat_environment
from fermi.text.folder import read_object, read_text
from fermi.text.messages import normalise_messages

__all__ = ["ChatTemplate", "normalise_messages"]

# For a model that brings none: every message as "role: content", and the word of the assistant asked for.
PLAIN = """\
{{ bos_token }}{% for message in messages %}
{{ message.role }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
assistant:
{%- endif %}"""

# Of models that learned from dialogues whose turns end with EOS, and bring no template (DialoGPT, arXiv 1911.00536).
TURNS = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"

# A message's reasoning goes by these names; a template may read the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """Renders conversations exactly as Transformers' ``apply_chat_template(…, tokenize=False)`` does.

    The text already holds the special tokens: encode it with ``add_special_tokens=False``.

    Attributes:
        supports_thinking: the template reacts to ``enable_thinking``, or to ``thinking`` as those of Granite do.
    """

    def __init__(
        self,
        template: str | Mapping[str, str],
        *,
        now: Callable[[], datetime] = datetime.now,
        **special_tokens: str | None,
    ) -> None:
        """A template, or several by name: ``tool_use`` where there are tools, else ``default``.

        ``special_tokens`` (``bos_token="<s>"``, …) are what the template sees under these names; None leaves one
        undefined. ``now`` is the clock of ``strftime_now``. CheckpointError if a template is not valid Jinja.
        """
        self._sources = {"default": template} if isinstance(template, str) else dict(template)
        if not self._sources:
            raise CheckpointError("the chat template is an empty list of templates")
        self._special_tokens = {name: token for name, token in special_tokens.items() if token is not None}
        self._environment = chat_environment(now)
        self._templates = {name: self._compile(name, source) for name, source in self._sources.items()}
        self.supports_thinking = any(map(self._reacts_to_thinking, self._sources))

    @property
    def source(self) -> str:
        """The default template as the model brings it."""
        return self._sources.get("default", "")

    @cached_property
    def abilities(self) -> Abilities:
        """What it can show of a conversation."""
        return Abilities(self)

    @property
    def tool_source(self) -> str:
        """The template of conversations with tools."""
        return self._sources.get("tool_use", self.source)

    @classmethod
    def plain(cls, **special_tokens: str | None) -> ChatTemplate:
        """The format for models without a template: ``role: content`` line by line."""
        return cls(PLAIN, now=datetime.now, **special_tokens)

    @classmethod
    def turns(cls, eos_token: str) -> ChatTemplate:
        """The format of DialoGPT: every message, whoever says it, and EOS."""
        return cls(TURNS, now=datetime.now, eos_token=eos_token)

    @classmethod
    def from_folder(
        cls, folder: Path, configured: object, special_tokens: Mapping[str, str | None]
    ) -> ChatTemplate | None:
        """The template of a checkpoint folder, None if it has none. CheckpointError naming the file of a bad one.

        The files chat_template.jinja and additional_chat_templates/<name>.jinja win over ``configured``, which is
        ``chat_template`` of tokenizer_config.json; the older chat_template.json comes last. A GPT-2 that was made for
        conversations and brings none has that of DialoGPT.
        """
        files = {"default": folder / "chat_template.jinja"} if (folder / "chat_template.jinja").is_file() else {}
        files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        if files:
            templates: object = {name: read_text(path) for name, path in files.items()}
            origin = files.get("default", folder / "additional_chat_templates")
        elif configured is not None:
            templates, origin = configured, folder / "tokenizer_config.json"
        else:
            origin = folder / "chat_template.json"
            templates = read_object(origin).get("chat_template")
        if templates is None:
            eos_token = special_tokens.get("eos_token")
            return None if eos_token is None or not _is_dialogue(folder) else cls.turns(eos_token)
        try:
            return cls(_by_name(templates), now=datetime.now, **special_tokens)
        except CheckpointError as error:
            raise CheckpointError(f"{origin}: {error}") from error

    def render(
        self,
        /,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        **kwargs: Any,
    ) -> str:
        """The text of a conversation, with the head of the assistant's reply if ``add_generation_prompt``.

        ``tools``: JSON schemas. ``continue_final_message``: end inside the last message, so that the model goes on
        with it (a string names another field of the message to end in than ``content``). ``kwargs`` (such as
        ``enable_thinking``) are variables of the template. ChatTemplateError with the template's own message where
        it refuses the conversation.
        """
        source, template = self._choose(with_tools=tools is not None)
        if tools is not None and not _are_objects(tools):
            raise ChatTemplateError("tools must be JSON schemas; describe a function by its schema", param="tools")
        if documents is not None and not _are_objects(documents):
            raise ChatTemplateError("documents must be objects with 'title' and 'text'", param="documents")
        if continue_final_message and add_generation_prompt:
            reason = "continue_final_message and add_generation_prompt exclude each other"
            raise ChatTemplateError(reason, param="continue_final_message")
        try:
            chat = _checked(messages)
            final = _mark_final_message(chat, continue_final_message, source) if continue_final_message else None
            named = {"xml_tools": tools} if tools is not None and "xml_tools" in source else {}  # as SmolLM3's has it
            variables = {name: _plain(value) for name, value in {**self._special_tokens, **named, **kwargs}.items()}
            text = template.render(
                messages=chat,
                tools=_plain(tools),
                documents=_plain(documents),
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except ChatTemplateError:
            raise
        except Exception as error:
            raise ChatTemplateError(_reason(error), param="messages") from error
        return text if final is None else _cut_at_mark(text, final)

    def _compile(self, name: str, source: object) -> jinja2.Template:
        if not isinstance(source, str):
            raise CheckpointError(f"the chat template '{name}' must be a string, found {type(source).__name__}")
        try:
            template: jinja2.Template = self._environment.from_string(source)
        except Exception as error:
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise CheckpointError(f"the chat template '{name}' is not valid: {_reason(error)}{line}") from error
        return template

    def _choose(self, with_tools: bool) -> tuple[str, jinja2.Template]:
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ChatTemplateError(f"the model has no default chat template, only {sorted(self._templates)}")
        return self._sources[name], self._templates[name]

    def _reacts_to_thinking(self, name: str) -> bool:
        source = self._sources[name]
        if "enable_thinking" not in source and "thinking" not in meta.find_undeclared_variables(
            self._environment.parse(source)
        ):
            return False
        variables = self._special_tokens | {
            "messages": [{"role": "user", "content": "?"}],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            on, off = (
                self._templates[name].render(variables, enable_thinking=value, thinking=value)
                for value in (True, False)
            )
        except Exception:  # a template that refuses this conversation: it names the variable, so take its word
            return True
        return on != off


def _is_dialogue(folder: Path) -> bool:
    """Whether a checkpoint is a GPT-2 made for conversations, as DialoGPT says it is."""
    model, tokenizer = read_object(folder / "config.json"), read_object(folder / "tokenizer_config.json")
    tasks = model.get("task_specific_params")
    return (
        model.get("model_type") == "gpt2"
        and isinstance(tasks, dict)
        and "conversational" in tasks
        and tokenizer.get("tokenizer_class", "GPT2Tokenizer") in ("GPT2Tokenizer", "GPT2TokenizerFast")
    )


def _are_objects(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, Mapping) for value in values)


def _by_name(templates: object) -> str | dict[str, str]:
    """Templates by name from what a config may hold: one string, an object, or a list of {"name", "template"}."""
    if isinstance(templates, list):
        if not all(isinstance(each, dict) and {"name", "template"} <= each.keys() for each in templates):
            raise CheckpointError("the chat templates must be a list of objects with 'name' and 'template'")
        return {str(each["name"]): each["template"] for each in templates}
    if isinstance(templates, (str, dict)):
        return templates
    raise CheckpointError(f"the chat template must be a string or a list, found {type(templates).__name__}")


def _checked(messages: object) -> list[dict[str, Any]]:
    """Copies of the messages as the template sees them: plain data, no nulls, reasoning under every name."""
    if not isinstance(messages, (list, tuple)):
        raise ChatTemplateError("messages must be a list of objects", param="messages")
    if not messages:
        raise ChatTemplateError("messages must hold at least one message", param="messages")
    chat = []
    for index, message in enumerate(messages):
        plain = _plain(message)
        if not isinstance(plain, dict):
            raise ChatTemplateError(f"messages.{index} must be an object", param=f"messages.{index}")
        plain = {key: value for key, value in plain.items() if value is not None}
        reasoning = next((plain[key] for key in _REASONING if key in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        chat.append(plain)
    return chat


def _plain(value: Any) -> Any:
    """The value as JSON's own types, whose methods the sandbox knows; "<Type>" in the place of anything else."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)  # pydantic
    return _plain(dump()) if callable(dump) else f"<{type(value).__name__}>"


def _mark_final_message(chat: list[dict[str, Any]], field: bool | str, source: str) -> str:
    """Put a mark at the end of the last message's text, and return that text."""
    name = field if isinstance(field, str) else "content"
    final = chat[-1].get(name)
    if final is None:
        raise ChatTemplateError(f"the last message has no {name} to continue", param="messages")
    names = [each for each in _REASONING if chat[-1].get(each) == final] if name in _REASONING else [name]
    if not any(each in source for each in names):
        raise ChatTemplateError(f"the chat template has no {name} to continue", param="continue_final_message")
    if isinstance(final, (list, tuple)):
        for part in reversed(final):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text: str = part["text"]
                part["text"] = text + _CONTINUE_HERE
                return text
        raise ChatTemplateError("the last message has no text to continue", param="messages")
    if not isinstance(final, str):
        raise ChatTemplateError(f"{name} of the last message must be text to continue", param="messages")
    for each in names:
        chat[-1][each] += _CONTINUE_HERE
    return final


def _cut_at_mark(text: str, final: str) -> str:
    """The rendered text up to the mark."""
    mark = _CONTINUE_HERE.strip()
    if mark not in text or final.strip() not in text:
        raise ChatTemplateError("the chat template does not show the last message as it is", param="messages")
    at = text.rindex(mark)
    if text[at : at + len(_CONTINUE_HERE)] == _CONTINUE_HERE:
        return text[:at]
    return text[:at].rstrip()  # the template trimmed the message


def _reason(error: Exception) -> str:
    """What went wrong: the template's own words where it has any."""
    message = str(error)
    if isinstance(error, jinja2.TemplateError) and message:
        return message
    return f"the chat template failed: {type(error).__name__}: {message}" if message else type(error).__name__
