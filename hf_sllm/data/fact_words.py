"""What facts are stated about, and what they can be: for `woven_facts`, and in part for `hf_sllm.evaluation.needle`.

No word of a list is in another list or in any opening: wherever it stands, it is the value of one fact. Things and
animals begin with a consonant, as they come after "a".
"""

from typing import NamedTuple

# What `needle` asks for.
NAMES = ("Max", "Sam", "Tom", "Ben", "Tim", "Lily", "Anna", "Lucy")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "pink", "brown")
THINGS = ("ball", "book", "cake", "hat", "car", "doll", "key", "drum")
ANIMALS = ("cat", "bird", "fish", "frog", "bear", "duck", "cow", "horse")

# Further ones, for training.
MORE_NAMES = (
    "Bob Sue Amy Jack Mia Emma Fred John Jane Sara Billy Sally Bella Jerry Leo Kate Peter Nina Molly Henry Oscar "
    "Rosie Toby Clara"
)
MORE_COLORS = (
    "orange purple gray golden silver violet tan beige turquoise peach navy teal lavender crimson scarlet ivory amber "
    "bronze copper coral indigo magenta olive lime"
)
MORE_THINGS = (
    "kite cup coin spoon rope balloon flag flute crown pillow pencil shell stone feather ribbon candle bell ring "
    "scarf whistle button puzzle robot sword"
)
MORE_ANIMALS = (
    "mouse rabbit fox wolf pig goat sheep hen lion tiger monkey panda zebra camel deer snake turtle lizard spider bee "
    "butterfly squirrel parrot swan"
)


class Kind(NamedTuple):
    """A kind of facts.

    Attributes:
        opening: How a sentence begins that states one, with a place for the subject. The value and a full stop follow.
        values: What it can be.
        train: The subjects of training documents. None of them is in what `needle` asks, whatever the kind.
        valid: Those of held-out documents. No noun of theirs is in `train`, whatever the kind.
    """

    opening: str
    values: tuple[str, ...]
    train: tuple[str, ...]
    valid: tuple[str, ...]


def _subjects(before: str, words: str) -> tuple[str, ...]:
    return tuple(f"{before} {word}" for word in words.split())


KINDS = (
    Kind(
        "The name of {subject} was",
        (*NAMES, *MORE_NAMES.split()),
        train=_subjects(
            "the",
            "king queen prince princess pirate baker doctor farmer nurse driver pilot painter singer dancer clown "
            "captain sailor hunter gardener neighbor cook barber fireman policeman mailman wizard witch fairy giant "
            "dragon knight kitten puppy pony lamb baby cousin sister brother boy",
        ),
        valid=_subjects("the", "shepherd magician librarian coach bunny donkey"),
    ),
    Kind(
        "The color of {subject} was",
        (*COLORS, *MORE_COLORS.split()),
        train=_subjects(
            "the",
            "door wall roof window bed chair table sofa bag coat dress shirt sweater jacket shoe sock glove umbrella "
            "bike bus train plane wagon bucket bowl plate towel blanket carpet curtain fence gate bridge tent sled "
            "swing slide bench mailbox vase",
        ),
        valid=_subjects("the", "ship truck teapot mitten backpack rocket"),
    ),
    Kind(
        "The thing {subject} was a",
        (*THINGS, *MORE_THINGS.split()),
        train=(
            *_subjects(
                "in the",
                "drawer bag basket closet chest jar pocket bucket cupboard sack suitcase fridge bathtub sink trunk "
                "purse wagon",
            ),
            *_subjects("on the", "table shelf chair desk bed bench counter stage roof fence piano stove tray"),
            *_subjects("under the", "rug blanket sofa tree bush stairs porch umbrella towel carpet"),
        ),
        valid=(
            *_subjects("in the", "envelope teapot"),
            *_subjects("on the", "ladder windowsill"),
            *_subjects("under the", "couch mat"),
        ),
    ),
    Kind(
        "The animal {subject} was a",
        (*ANIMALS, *MORE_ANIMALS.split()),
        train=(
            *_subjects(
                "in the",
                "barn forest cage pond river field park yard zoo tree nest cave lake jungle meadow stable kitchen "
                "bathroom bedroom school circus castle tower tent hay snow",
            ),
            *_subjects("on the", "hill road roof beach fence bridge path island mountain lawn porch rock branch log"),
        ),
        valid=(*_subjects("in the", "backyard swamp attic"), *_subjects("on the", "playground cliff street")),
    ),
    Kind(
        "The gift from {subject} was a",
        (*THINGS, *MORE_THINGS.split()),
        train=(
            *("Grandpa", "Mom", "Dad", "Mommy", "Daddy", "Mama", "Papa", "Santa"),
            *_subjects("Aunt", "May Polly Betty Kim"),
            *_subjects("Uncle", "Joe Pete George Frank"),
            *_subjects(
                "the",
                "king queen prince princess baker farmer doctor neighbor fairy wizard witch pirate captain sailor "
                "clown giant knight gardener nurse mailman painter singer hunter dragon",
            ),
        ),
        valid=("Granny", "Grandfather", *_subjects("the", "shepherd magician librarian coach")),
    ),
)
