"""Short stories from a small grammar of heroes, places, things and events."""

from __future__ import annotations

from random import Random

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jack", "Lily", "Max", "Nora", "Oscar",
    "Rosa", "Tim",
)  # fmt: skip
ANIMALS = (
    "cat", "dog", "fox", "mouse", "rabbit", "bear", "bird", "duck", "frog", "horse", "owl", "robot", "dragon",
    "turtle", "bee", "lion",
)  # fmt: skip
PLACES = (
    "forest", "garden", "park", "house", "village", "river", "mountain", "sea", "library", "farm", "city", "castle",
)  # fmt: skip
THINGS = (
    "ball", "book", "key", "lamp", "map", "hat", "box", "stone", "cake", "kite", "boat", "shell", "bell", "coin",
)  # fmt: skip
COLORS = ("red", "blue", "green", "yellow", "white", "black", "golden", "silver", "small", "big", "old", "new")
MOODS = ("happy", "glad", "proud", "calm")

_BEGINNINGS = (
    "Once upon a time there was a {color} {animal} named {name}.",
    "One day {name} the {animal} went to the {place}.",
    "{name} was a little {animal} who lived near the {place}.",
    "Long ago, in a {place}, there lived a {animal} named {name}.",
)
_FINDS = (
    "{name} found a {color2} {thing} in the {place}.",
    "Under a tree, {name} saw a {color2} {thing}.",
    "Near the {place}, {name} picked up a {color2} {thing}.",
)
_TURNS = (
    "It belonged to {friend}, who had looked for it all day.",
    '"Whose {thing} is this?" asked {name}. "It is mine!" said {friend}.',
    "But then it began to rain, and {friend} came to help.",
    "{friend} had never seen such a {thing} before.",
)
_DEEDS = (
    "So they carried the {thing} home together.",
    "{name} gave the {thing} to {friend} with a smile.",
    "They played with the {thing} until the sun went down.",
    "They showed the {thing} to all their friends.",
)
_ENDS = (
    "From that day on they were good friends.",
    "In the evening they were both very {mood}.",
    "That night {name} slept well and was {mood}.",
    "And so the day ended, and everyone was {mood}.",
)
_REQUESTS = (
    "Tell me a story.", "Tell me a short story.", "tell me a story", "Write a short story.", "write a story",
    "Can you tell me a story?",
    "Please tell a story.", "I want to hear a story.", "Once upon a time", "Make up a story.",
    "Write a story for children.",
    "Could you write me a short story?", "Give me a short story.", "Write a tale.", "Read me a bedtime story.",
    "Story please",
)  # fmt: skip
_REQUESTS_ABOUT = (
    "Tell me a story about a {animal}.", "tell me a short story about a {animal}", "Write a story about a {animal}.",
    "Write a short story about a {animal} named {name}.", "Can you tell me a story about a {animal}?",
    "A story about a {animal} and a {thing}, please.", "Tell me a story about {name}.",
    "Write a story with a {thing}.",
    "write a short story about {name} the {animal}", "Tell a story about a {animal} named {name}.",
)  # fmt: skip


def story(random: Random) -> tuple[str, str]:
    """A request and the story for it."""
    words = {
        "name": random.choice(NAMES),
        "friend": random.choice(NAMES),
        "animal": random.choice(ANIMALS),
        "place": random.choice(PLACES),
        "thing": random.choice(THINGS),
        "color": random.choice(COLORS),
        "color2": random.choice(COLORS),
        "mood": random.choice(MOODS),
    }
    while words["friend"] == words["name"]:
        words["friend"] = random.choice(NAMES)
    parts = [random.choice(part) for part in (_BEGINNINGS, _FINDS, _TURNS, _DEEDS, _ENDS)]
    request = random.choice(_REQUESTS if random.random() < 0.5 else _REQUESTS_ABOUT)
    return request.format(**words), " ".join(parts).format(**words)
