"""The corpus: an endless, seeded stream of the documents that the demo model is trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from fermi.demo import calculator, copying, objects, phrasing, stories, sums
from fermi.demo.conversation import Conversation, Segment, chat_template
from fermi.demo.intent import read_intents
from fermi.text.chat import ChatTemplate

FACTS = (*read_intents("facts"), *read_intents("settings"))
SMALL_TALK = read_intents("small_talk")
INTENTS = (*FACTS, *SMALL_TALK)

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant", "You are fermi's demo model.", "Answer briefly.",
    "Be short.",
    "You are a friendly assistant. Answer in one sentence.", "You are an expert.", "Be polite.", "You are a test.",
    "Help the user.",
    "You are a concise assistant.", "Answer the question of the user.", "You are a bot.", "Follow the instructions.",
    "Speak English.",
)  # fmt: skip
_TOO_HARD = "That is too hard for me: I only add numbers up to two digits. Give me a calculator tool."
_TOO_HARD_REQUESTS = (
    "What is {}?", "{}", "{} =", "Calculate {}.", "Compute {}", "How much is {}?", "what is {}", "What's {}?",
    "calculate {}", "Work out {}",
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One request, the thought before the reply, and the reply."""

    request: str
    thought: str
    reply: str


class Corpus:
    """Documents drawn from one random stream: the same seed gives the same documents."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._template = ChatTemplate(chat_template())
        self._excluded = sums.held_out()
        self._held_out_wordings = held_out_wordings()
        self._weights = {intent.topic: [_weight(pattern) for pattern in intent.patterns] for intent in INTENTS}
        self._turns: tuple[tuple[float, Callable[[], Turn]], ...] = (
            (0.48, self._intent),
            (0.31, self._sum),
            (0.07, self._copy),
            (0.02, self._count),
            (0.06, self._json),
            (0.03, self._story),
            (0.03, self._too_hard),
        )

    def documents(self) -> Iterator[list[Segment]]:
        """Endless documents, each a list of segments."""
        while True:
            kind = self._random.random()
            if kind < 0.04:
                yield self._plain()
            elif kind < 0.10:
                yield self._tools()
            else:
                yield self._chat()

    def _chat(self) -> list[Segment]:
        kind = self._random.random()
        turns = 1 if kind < 0.8 else self._random.randint(2, 4) if kind < 0.994 else self._random.randint(6, 18)
        conversation = self._conversation([])
        for _ in range(turns):
            self._exchange(conversation)
        return conversation.segments()

    def _tools(self) -> list[Segment]:
        conversation = self._conversation([calculator.tool(self._random)])
        for _ in range(1 if self._random.random() < 0.85 else 2):
            if self._random.random() < 0.75:
                conversation.messages.extend(self._calculation())
            else:
                turn = self._intent()
                conversation.add(turn.request, turn.thought, turn.reply)
        return conversation.segments()

    def _calculation(self) -> list[dict[str, Any]]:
        while True:
            messages, terms = calculator.conversation(self._random)
            if terms is None or not self._excluded.contains(*terms):
                return messages

    def _conversation(self, tools: list[dict[str, Any]]) -> Conversation:
        conversation = Conversation(self._template, tools, enable_thinking=self._random.random() < 0.45)
        if self._random.random() < 0.3:
            conversation.messages.append({"role": "system", "content": self._random.choice(_SYSTEM_PROMPTS)})
        return conversation

    def _exchange(self, conversation: Conversation) -> None:
        (draw,) = self._random.choices([turn for _, turn in self._turns], [weight for weight, _ in self._turns])
        turn = draw()
        conversation.add(turn.request, turn.thought, turn.reply)

    def _intent(self) -> Turn:
        intent = self._random.choice(INTENTS if self._random.random() < 0.9 else SMALL_TALK[-1:])
        while True:
            (pattern,) = self._random.choices(intent.patterns, self._weights[intent.topic])
            request = phrasing.spoken(phrasing.sample(pattern, self._random), self._random)
            if phrasing.normalized(request) not in self._held_out_wordings:
                return Turn(request, f"This is about {intent.topic}.", intent.answer)

    def _sum(self) -> Turn:
        a, b = sums.training_pair(self._random, self._excluded)
        return Turn(sums.question(a, b, self._random), sums.thinking(a, b), sums.answer(a, b))

    def _copy(self) -> Turn:
        request, reply = copying.copying(self._random)
        return Turn(request, "I should repeat the text.", reply)

    def _count(self) -> Turn:
        request, reply = copying.counting(self._random)
        return Turn(request, "I should count.", reply)

    def _json(self) -> Turn:
        request, reply = objects.json_object(self._random)
        return Turn(request, "I should write JSON.", reply)

    def _story(self) -> Turn:
        request, reply = stories.story(self._random)
        return Turn(request, "I should tell a story.", reply)

    def _too_hard(self) -> Turn:
        a, b = (self._random.randrange(10 ** self._random.randint(1, 4)) for _ in range(2))
        operator = self._random.choice("*-/*-+")
        if operator == "+":
            a = a + 100
        spelled = self._random.choice(("{} {} {}", "{}{}{}")).format(a, operator, b)
        return Turn(
            self._random.choice(_TOO_HARD_REQUESTS).format(spelled), "That is too hard without a calculator.", _TOO_HARD
        )

    def _plain(self) -> list[Segment]:
        kind = self._random.random()
        if kind < 0.4:
            text = stories.story(self._random)[1]
        elif kind < 0.6:
            pairs = [sums.training_pair(self._random, self._excluded) for _ in range(self._random.randint(1, 8))]
            text = "\n".join(sums.answer(a, b) for a, b in pairs)
        elif kind < 0.8:
            intents = self._random.sample(FACTS, self._random.randint(1, 4))
            text = "\n".join(f"{intent.topic[0].upper()}{intent.topic[1:]}: {intent.answer}" for intent in intents)
        else:
            turn = self._random.choice((self._sum, self._intent, self._copy))()
            text = f"Question: {turn.request}\nAnswer: {turn.reply}"
        return [Segment(text + "<|endoftext|>", trained=True)]


def _weight(pattern: str) -> float:
    """How often a pattern is drawn: more often when it stands for many wordings, but far from in proportion."""
    return 1 + math.log2(sum(1 for _ in phrasing.wordings(pattern)))


def held_out_wordings() -> frozenset[str]:
    """The normalized wordings that only the evaluation asks."""
    return frozenset(phrasing.normalized(wording) for intent in INTENTS for wording in intent.held_out)
