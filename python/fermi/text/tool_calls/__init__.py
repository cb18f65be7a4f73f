"""Tool calls in a reply: one format a family of models, each with a parser that streams and a grammar."""

from fermi.text.tool_calls.base import ToolCallParser, ToolFormat
from fermi.text.tool_calls.choice import FORMATS, tool_format
from fermi.text.tool_calls.lark import answer_rules
from fermi.text.tool_calls.reply import CallPiece, ToolCallDelta

__all__ = ["FORMATS", "CallPiece", "ToolCallDelta", "ToolCallParser", "ToolFormat", "answer_rules", "tool_format"]
