"""Conversations in which a calculator tool is offered, called, and its result used."""

from __future__ import annotations

from random import Random
from typing import Any

Message = dict[str, Any]

_DESCRIPTIONS = (
    "Evaluate an arithmetic expression.", "A calculator.", "Calculate the value of an expression.",
    "Compute arithmetic.",
    "Evaluates a mathematical expression and returns the result.", "Does arithmetic.", "Run a calculation.",
    "calculator tool",
)  # fmt: skip
_FIELDS = (
    "The expression, such as 2 * 3.", "An arithmetic expression.", "expression to evaluate",
    "The expression to compute.",
)  # fmt: skip
_QUESTIONS = (
    "What is {}?", "what is {}", "{}", "{} = ?", "Calculate {}.", "calculate {}", "Compute {}.", "How much is {}?",
    "What's {}?",
    "Please calculate {}.", "Use the calculator: {}", "Use the calculator to compute {}.",
    "What is the result of {}?", "Work out {}.",
    "Can you calculate {}?", "Tell me {}", "Evaluate {}.", "What does {} equal?", "Use the tool to calculate {}.",
    "{} please",
)  # fmt: skip
_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def tool(random: Random) -> dict[str, Any]:
    """The definition of the calculator, its descriptions varied."""
    field = {"type": "string"}
    if random.random() < 0.6:
        field["description"] = random.choice(_FIELDS)
    parameters: dict[str, Any] = {"type": "object", "properties": {"expression": field}, "required": ["expression"]}
    if random.random() < 0.2:
        del parameters["required"]
    if random.random() < 0.1:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": "calculator", "parameters": parameters}
    if random.random() < 0.85:
        function = {"name": "calculator", "description": random.choice(_DESCRIPTIONS), "parameters": parameters}
    return {"type": "function", "function": function}


def call(expression: str) -> dict[str, Any]:
    """The tool call that asks for an expression."""
    return {"type": "function", "function": {"name": "calculator", "arguments": {"expression": expression}}}


def conversation(random: Random) -> tuple[list[Message], tuple[int, int] | None]:
    """User, assistant with a tool call, tool, assistant with the result; and the terms if it is a sum."""
    operator = random.choice("+-*/**")
    a, b = (_number(random) for _ in range(2))
    if operator == "/":
        b = max(b, 1)
        a *= b
    result = str({"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[operator])
    expression = f"{a} {operator} {b}"
    spelled = random.choice((expression, expression, f"{a}{operator}{b}", f"{a} {_WORDS[operator]} {b}"))
    question = random.choice(_QUESTIONS).format(spelled)
    messages: list[Message] = [
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call(expression)],
            "reasoning_content": "I should use the calculator.",
        },
        {"role": "tool", "content": result},
        {
            "role": "assistant",
            "content": f"{expression} = {result}",
            "reasoning_content": f"The calculator says {result}.",
        },
    ]
    return messages, (a, b) if operator == "+" else None


def _number(random: Random) -> int:
    return random.randrange(10 ** random.choice((1, 2, 2, 3, 3, 4)))
