"""Captions of scenes: many wordings for training, and a plain one for measuring."""

from random import Random

from latentrt.demo.scenes import Item, Scene

__all__ = ["plain_caption", "random_caption"]

PREFIXES = ("", "", "", "", "", "", "a picture of ", "a drawing of ", "an image of ", "flat design, ")
SUFFIXES = ("", "", "", "", "", "", ", flat design", ", simple shapes", ", minimal art", ", clean edges")

PLACE_PHRASES = {
    "left": ("on the left", "at the left", "on the left side", "to the left"),
    "right": ("on the right", "at the right", "on the right side", "to the right"),
    "top": ("at the top", "at the top of the picture", "up at the top"),
    "bottom": ("at the bottom", "at the bottom of the picture", "down at the bottom"),
    "centre": ("in the centre", "in the middle", "in the center"),
}

BACKGROUNDS = (
    "on a {0} background",
    "on a {0} background",
    "against a {0} background",
    "with a {0} background",
    "on {0}",
    "{0} background",
)


def plain_caption(scene: Scene) -> str:
    """The caption that names everything, in one fixed form: "a small red circle on the left, on a blue background"."""
    phrases = (f"a {item.size} {item.colour} {item.shape} {PLACE_PHRASES[item.place][0]}" for item in scene.items)
    return f"{' and '.join(phrases)}, {article(BACKGROUNDS[0].format(scene.background))}"


def random_caption(scene: Scene, rng: Random) -> str:
    """One of many captions of a scene; some leave out the background, the place or the size."""
    name_place = len(scene.items) > 1 or rng.random() < 0.9
    name_size = rng.random() < 0.7
    terse = rng.random() < 0.2
    phrases = [item_phrase(item, rng, name_place, name_size, terse) for item in scene.items]
    parts = (" and " if rng.random() < 0.75 else ", ").join(phrases)
    if rng.random() < 0.93:
        background = rng.choice(BACKGROUNDS).format(scene.background)
        separator = ", " if terse or name_place or background.endswith(" background") else " "
        if rng.random() < 0.12:
            caption = f"{background}, {parts}"
        else:
            caption = f"{parts}{rng.choice((separator, ' ')) if not terse else ', '}{background}"
    else:
        caption = parts
    return article(rng.choice(PREFIXES) + caption + rng.choice(SUFFIXES))


def item_phrase(item: Item, rng: Random, name_place: bool, name_size: bool, terse: bool) -> str:
    """The words for one shape: "a small red circle on the left" or, if terse, "red circle, left"."""
    shape = f"{item.colour} {item.shape}"
    size = rng.choice(("large", "big")) if item.size == "large" else rng.choice(("small", "little", "small"))
    words = f"{size} {shape}" if name_size else shape
    if terse:
        return f"{words}, {item.place}" if name_place else words
    return f"a {words} {rng.choice(PLACE_PHRASES[item.place])}" if name_place else f"a {words}"


def article(text: str) -> str:
    """Correct "a orange" and "a image"."""
    return text.replace("a orange", "an orange").replace("a image", "an image")
