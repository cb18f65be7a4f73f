"""Evaluation of the demo model: `python -m fermi.demo.evaluate` prints how many greedy replies match exactly."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fermi.demo import model_folder
from fermi.demo.questions import Question, all_questions

# Replies to the questions, in their order, with or without thinking.
Generate = Callable[[Sequence[Question], bool], list[str]]

_MAX_TOKENS = 128


def with_fermi(folder: Path) -> Generate:
    """Generation through fermi's own offline API."""
    from fermi import LLM, SamplingParams

    llm = LLM(str(folder))

    def generate(questions: Sequence[Question], enable_thinking: bool) -> list[str]:
        conversations = [list(question.messages) for question in questions]
        parameters = SamplingParams(temperature=0, max_tokens=_MAX_TOKENS)
        replies: list[str] = [""] * len(questions)
        for offered in (False, True):  # the tools of a call hold for all its conversations
            chosen = [index for index, question in enumerate(questions) if bool(question.tools) == offered]
            if not chosen:
                continue
            outputs = llm.chat(
                [conversations[index] for index in chosen],
                parameters,
                tools=list(questions[chosen[0]].tools) or None,
                chat_template_kwargs={"enable_thinking": enable_thinking},
                use_tqdm=False,
            )
            for index, output in zip(chosen, outputs, strict=True):
                replies[index] = output.outputs[0].text
        return replies

    return generate


def with_transformers(folder: Path, batch_size: int = 64) -> Generate:
    """Generation through Transformers in float32: the reference."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def generate(questions: Sequence[Question], enable_thinking: bool) -> list[str]:
        replies: list[str] = []
        for start in range(0, len(questions), batch_size):
            prompts = [
                tokenizer.apply_chat_template(
                    list(question.messages),
                    tools=list(question.tools) or None,
                    add_generation_prompt=True,
                    tokenize=False,
                    enable_thinking=enable_thinking,
                )
                for question in questions[start : start + batch_size]
            ]
            inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
            tokens = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False, temperature=None, top_p=None, max_new_tokens=_MAX_TOKENS,
            )  # fmt: skip
            new = tokens[:, inputs["input_ids"].shape[1] :]
            replies += tokenizer.batch_decode(new, skip_special_tokens=True)
        return replies

    return generate


def is_right(question: Question, reply: str) -> bool:
    """Whether the reply, without its thought, is the answer exactly."""
    return reply.rsplit("</think>", 1)[-1].strip() == question.answer


def evaluate(
    generate: Generate, questions: Sequence[Question], enable_thinking: bool
) -> dict[str, list[tuple[Question, str]]]:
    """For each group of questions, in order, the questions whose reply is not right, with the reply."""
    wrong: dict[str, list[tuple[Question, str]]] = {question.group: [] for question in questions}
    for question, reply in zip(questions, generate(questions, enable_thinking), strict=True):
        if not is_right(question, reply):
            wrong[question.group].append((question, reply))
    return wrong


def main() -> None:
    """Read the command line, evaluate, and print a table (Markdown)."""
    parser = argparse.ArgumentParser(prog="python -m fermi.demo.evaluate", description="Evaluate the demo model.")
    parser.add_argument("--folder", type=Path, default=model_folder(), help="the model to evaluate")
    parser.add_argument(
        "--transformers",
        action="store_const",
        const=with_transformers,
        default=with_fermi,
        dest="engine",
        help="generate through Transformers, the reference",
    )
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="print up to N wrong replies of each group")
    arguments = parser.parse_args()
    generate = arguments.engine(arguments.folder)
    questions = all_questions()
    print("| held out | questions | exact, no thinking | exact, thinking |\n|---|---|---|---|")
    results = [evaluate(generate, questions, enable_thinking) for enable_thinking in (False, True)]
    for group in results[0]:
        count = sum(question.group == group for question in questions)
        shares = [f"{100 * (1 - len(result[group]) / count):.1f} %" for result in results]
        print(f"| {group} | {count} | {' | '.join(shares)} |")
    for result in results:
        for group, wrong in result.items():
            for question, reply in wrong[: arguments.wrong]:
                print(f"{group}: {question.messages[-1]['content']!r} -> {reply!r}, not {question.answer!r}")


if __name__ == "__main__":
    main()
