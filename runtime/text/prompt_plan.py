"""The texts that a request's prompts stand for, and how much each counts at every step.

A prompt in AUTOMATIC1111's syntax may be several texts: parts that AND joins (composable diffusion, Liu et al. 2022,
arXiv:2206.01714) and texts that change with the step. All are encoded before the first step; which counts when is a
matrix, so the guidance of a step is a row of numbers whatever the prompt.
"""

import logging
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.size_checks import Rebuild, check_rows
from latentrt.runtime.text.prompt_schedule import texts_by_step

log = logging.getLogger(__name__)

AND = re.compile(r"\bAND\b")
WEIGHTED = re.compile(r"(.*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*", re.DOTALL)

EXTRA_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")

OTHER_SYNTAX = re.compile(
    r"(?<!\\)\([^():\\]*\)|(?<!\\)\[[^\[\]\\]*\]|\bBREAK\b|\bAND\b|<(?:lora|lyco|hypernet):[^<>]*>"
)
"""What AUTOMATIC1111 would not take for text: (word); [word], [from:to:when] and [a|b]; and its words."""

MOST_BRACKETS = 200
"""Square brackets of one prompt, each of which may hold others."""


@dataclass(frozen=True, eq=False, slots=True)
class PromptPlan:
    """What one prompt stands for.

    texts: n of them; None stands for a negative prompt that was not given. weights (steps, n): how much each counts.
    """

    texts: tuple[str | None, ...]
    weights: Float64s

    def padded(self, count: int) -> "PromptPlan":
        """The same plan with `count` texts; those added count nothing."""
        more = count - len(self.texts)
        return PromptPlan(self.texts + self.texts[:1] * more, np.pad(self.weights, [(0, 0), (0, more)]))


@dataclass(frozen=True, eq=False, slots=True)
class RequestPlan:
    """A plan for every prompt, and for every negative prompt; those of a kind have the same number of texts."""

    negatives: tuple[PromptPlan, ...]
    prompts: tuple[PromptPlan, ...]

    @property
    def negative_texts(self) -> int:
        """Texts per negative prompt: rows of the U-Net."""
        return len(self.negatives[0].texts)

    @property
    def prompt_texts(self) -> int:
        """Texts per prompt: rows of the U-Net."""
        return len(self.prompts[0].texts)

    @property
    def is_plain(self) -> bool:
        """Whether every prompt is one text, which counts once."""
        return all((plan.weights == 1).all() and len(plan.texts) == 1 for plan in (*self.negatives, *self.prompts))


def plan_request(request: Request) -> RequestPlan:
    """The plan of a request's prompts.

    Raises:
        RequestError: a prompt holds what its syntax cannot do here.
    """
    if request.embeddings is not None:
        plain = tuple(_one(text, request.steps) for text in request.prompts)
        return RequestPlan(plain, plain)
    syntax, steps = request.settings["prompt_syntax"], request.steps
    for name, texts in (("prompt_2", request.prompts_2), ("negative_2", request.negatives_2)):
        for text in texts:
            plan = None if text is None else plan_prompt(text, syntax, steps, name == "prompt_2")
            if plan is not None and (len(plan.texts) > 1 or (plan.weights != 1).any()):
                raise RequestError(f"{name}: AND, [from:to:when] and [a|b] belong into the first encoder's text")
    return RequestPlan(
        _alike(
            [
                _one(None, steps) if text is None else plan_prompt(text, syntax, steps, False)
                for text in request.negatives
            ]
        ),
        _alike([plan_prompt(text, syntax, steps, True) for text in request.prompts]),
    )


def _alike(plans: list[PromptPlan]) -> tuple[PromptPlan, ...]:
    most = max(len(plan.texts) for plan in plans)
    return tuple(plan.padded(most) for plan in plans)


@lru_cache(maxsize=1024)
def plan_prompt(prompt: str, syntax: str, steps: int, composed: bool) -> PromptPlan:
    """The plan of one prompt. `composed`: AND, and a weight at the end, are read; negative prompts have none.

    Raises:
        RequestError: the prompt calls a LoRA.
    """
    if syntax != "a1111":
        _tell_of_text(prompt)
        return _one(prompt, steps)
    if (extra := EXTRA_NETWORK.search(prompt)) is not None:
        raise RequestError(
            f"prompt: {extra[0]!r}: LoRAs are no part of a prompt here; leave it out. They are given by loras=, in a "
            "build with room for them, or added to the weights: latentrt export CHECKPOINT -o BUNDLE --lora FILE:WEIGHT"
        )
    if prompt.count("[") > MOST_BRACKETS:
        raise RequestError(f"prompt: {prompt.count('[')} square brackets; at most {MOST_BRACKETS} are read")
    texts: dict[str, int] = {}
    entries: list[tuple[int, int, int, float]] = []
    for part, weight in _parts(prompt) if composed else [(prompt, 1.0)]:
        first = 0
        for last, text in texts_by_step(part, steps):
            end = min(last + 1, steps)  # the interface counts from 0, and draws a text up to its last step
            if first < end:
                entries.append((texts.setdefault(text, len(texts)), first, end, weight))
            first = end
    weights = np.zeros((steps, len(texts)))
    for column, first, end, weight in entries:
        weights[first:end, column] += weight
    return PromptPlan(tuple(texts), weights)


def _parts(prompt: str) -> list[tuple[str, float]]:
    """The texts that AND joins, and their weights: the number behind a colon at the end, or 1."""
    found = [WEIGHTED.fullmatch(part) for part in AND.split(prompt)]
    return [(match[1], float(match[2] or 1)) for match in found if match is not None]


def _one(text: str | None, steps: int) -> PromptPlan:
    return PromptPlan((text,), np.ones((steps, 1)))


def _tell_of_text(prompt: str) -> None:
    """Say what of a prompt is text here though another program reads it; once, as plans are kept."""
    found = (match[0] for match in OTHER_SYNTAX.finditer(prompt))
    if (text := next((one for one in found if any(letter.isalpha() for letter in one)), None)) is not None:
        log.warning("prompt: %r is drawn as text; prompt_syntax='a1111' reads it as AUTOMATIC1111 does", text)


def check_plan(request: Request, limits: Limits, rebuild: Rebuild) -> int:
    """The most rows at one step that a request's prompts make, checked.

    Raises:
        RequestError: weights of prompts without guidance, or more rows at one step than this build serves.
    """
    plan = plan_request(request)
    sums = [one.weights.sum(axis=1) for one in plan.prompts]
    if not request.guided and not all(np.allclose(total, 1) for total in sums):
        raise RequestError(
            "prompt: AND, and a weight at the end of a prompt, need a guidance above 1 in a model that takes negative "
            "prompts, as they are differences from the negative prompt"
        )
    negative = 1 if request.guided else 0
    rows = [negative + int(np.count_nonzero(one.weights, axis=1).max()) for one in plan.prompts]
    most = sum(rows) * request.images
    check_rows(most, limits, rebuild)
    return most
