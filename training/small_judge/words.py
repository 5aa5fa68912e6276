"""Vocabulary of the generated tasks."""

NAMES = (
    "Ada", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karin", "Leo", "Mara", "Nils",
    "Olga", "Paul", "Rosa", "Simon", "Tara", "Victor", "Wendy", "Yusuf", "Zoe", "Anton", "Bella", "Carlos", "Diana",
    "Erik", "Fatima", "Georg", "Helen", "Ivan", "Julia", "Kofi", "Lena", "Marco", "Nora", "Oscar", "Petra", "Samir",
)  # fmt: skip
CITIES = (
    "Oslo", "Lima", "Paris", "Cairo", "Delhi", "Rome", "Tokyo", "Madrid", "Vienna", "Dublin", "Lagos", "Quito",
    "Berlin", "Athens", "Boston", "Geneva", "Havana", "Kyoto", "Lisbon", "Milan", "Nairobi", "Prague", "Seoul", "Turin",
)  # fmt: skip
JOBS = (
    "baker", "teacher", "nurse", "pilot", "farmer", "lawyer", "painter", "driver", "doctor", "singer", "waiter",
    "tailor", "plumber", "dentist", "writer", "guard", "judge", "cook", "miner", "sailor",
)  # fmt: skip
PETS = ("dog", "cat", "horse", "goat", "parrot", "rabbit", "turtle", "snake", "pony", "hamster", "goose", "lizard")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
CATEGORIES = {
    "animal": ("tiger", "camel", "whale", "zebra", "eagle", "otter", "donkey", "monkey", "panda", "fox"),
    "fruit": ("apple", "banana", "fig", "grape", "kiwi", "mango", "papaya", "apricot", "pear", "melon"),
    "tool": ("hammer", "saw", "drill", "wrench", "shovel", "rake", "chisel", "axe", "pliers", "scraper"),
    "color": ("red", "blue", "green", "yellow", "purple", "gray", "white", "black", "brown", "pink"),
    "vehicle": ("car", "bus", "train", "truck", "tram", "bicycle", "plane", "boat", "van", "scooter"),
    "drink": ("water", "milk", "tea", "coffee", "juice", "wine", "beer", "cocoa", "lemonade", "cider"),
    "garment": ("coat", "shirt", "scarf", "glove", "sock", "hat", "skirt", "jacket", "belt", "boot"),
    "instrument": ("piano", "violin", "flute", "drum", "guitar", "harp", "trumpet", "cello", "organ", "banjo"),
}
NOUNS = (
    "anchor", "basket", "candle", "desk", "engine", "fence", "garden", "house", "island", "jar", "kettle", "lamp",
    "mirror", "needle", "oven", "pencil", "quilt", "ribbon", "spoon", "table", "umbrella", "vase", "window", "yard",
    "arrow", "button", "carpet", "door", "envelope", "flag", "gate", "helmet", "icon", "jewel", "key", "ladder",
    "magnet", "nail", "onion", "pillow", "rope", "stone", "ticket", "urn", "village", "wheel", "bottle", "clock",
    "drawer", "feather", "glass", "hinge", "knife", "letter", "map", "net", "paper", "river", "shelf", "tower",
)  # fmt: skip
WORDS = NOUNS + tuple(word for words in CATEGORIES.values() for word in words)
# Plurals of the nouns whose plural is regular.
THINGS = tuple(f"{noun}s" for noun in NOUNS if not noun.endswith(("s", "fe", "lf")))
# The nouns, those of each first letter together.
BY_LETTER = tuple(tuple(noun for noun in NOUNS if noun[0] == letter) for letter in sorted({noun[0] for noun in NOUNS}))
# Sentence templates: each element is a word, or alternatives from which one is drawn.
SENTENCES = (
    ("The", ("old", "small", "tall", "happy", "young"), ("man", "woman", "child", "farmer", "doctor"),
     ("sees", "buys", "paints", "moves", "opens"), "the", ("box", "chair", "book", "picture", "trunk")),
    ("My", ("sister", "brother", "friend", "uncle", "aunt"), ("often", "never", "always", "rarely"),
     ("reads", "sings", "cooks", "runs", "travels"), "on", ("Monday", "Friday", "Sunday", "Tuesday")),
    ("We", ("found", "lost", "sold", "saw", "made"), "a", ("red", "blue", "green", "white", "black"),
     ("bag", "coin", "ring", "bell", "kite"), "near", "the", ("lake", "bridge", "school", "market", "station")),
    ("Every", ("morning", "evening", "winter", "summer"), "the", ("baker", "teacher", "driver", "nurse"),
     ("walks", "drives", "hurries", "returns"), "to", "the", ("city", "coast", "forest", "office")),
)  # fmt: skip
