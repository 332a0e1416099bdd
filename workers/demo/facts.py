"""The closed world that the demo model knows by heart: capitals, colours, sounds and the like."""

CAPITALS: dict[str, str] = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin",
    "Portugal": "Lisbon", "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Iceland": "Reykjavik", "Ireland": "Dublin", "England": "London", "Scotland": "Edinburgh",
    "Belgium": "Brussels", "Hungary": "Budapest", "Romania": "Bucharest", "Bulgaria": "Sofia",
    "Croatia": "Zagreb", "Serbia": "Belgrade", "Ukraine": "Kyiv", "Turkey": "Ankara",
    "Russia": "Moscow", "Egypt": "Cairo", "Kenya": "Nairobi", "Ghana": "Accra",
    "Morocco": "Rabat", "Tunisia": "Tunis", "Senegal": "Dakar", "Japan": "Tokyo",
    "China": "Beijing", "India": "New Delhi", "Nepal": "Kathmandu", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Iran": "Tehran", "Iraq": "Baghdad", "Canada": "Ottawa",
    "Mexico": "Mexico City", "Cuba": "Havana", "Brazil": "Brasilia", "Peru": "Lima",
    "Chile": "Santiago", "Colombia": "Bogota", "Australia": "Canberra", "New Zealand": "Wellington",
}  # fmt: skip

COLOURS: dict[str, str] = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue",
    "the sun": "yellow", "a lemon": "yellow", "a banana": "yellow", "a carrot": "orange",
    "a tomato": "red", "a strawberry": "red", "a pea": "green", "a frog": "green",
    "milk": "white", "chocolate": "brown", "a pumpkin": "orange", "a cherry": "red",
    "a plum": "purple", "a raven": "black", "a flamingo": "pink", "salt": "white",
    "a lime": "green", "an elephant": "grey", "the sea": "blue", "a pig": "pink", "mud": "brown",
}  # fmt: skip

SOUNDS: dict[str, str] = {
    "dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink",
    "lion": "roar", "bee": "buzz", "snake": "hiss", "owl": "hoot", "frog": "ribbit",
    "horse": "neigh", "mouse": "squeak", "rooster": "cock-a-doodle-doo", "wolf": "howl",
    "bird": "tweet",
}  # fmt: skip

YOUNG: dict[str, str] = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "duck": "duckling",
    "pig": "piglet", "lion": "cub", "horse": "foal", "goat": "kid", "deer": "fawn",
    "chicken": "chick", "frog": "tadpole", "kangaroo": "joey", "swan": "cygnet",
}  # fmt: skip

LEGS: dict[str, int] = {
    "dog": 4, "cat": 4, "cow": 4, "horse": 4, "bird": 2, "duck": 2, "chicken": 2, "spider": 8,
    "ant": 6, "bee": 6, "fly": 6, "snake": 0, "fish": 0, "crab": 10, "person": 2, "beetle": 6,
}  # fmt: skip

_PAIRS = (
    "hot cold|big small|up down|left right|day night|happy sad|fast slow|old young|wet dry|"
    "full empty|high low|hard soft|light dark|open closed|rich poor|strong weak|good bad|"
    "early late|near far|clean dirty|loud quiet|first last|long short|thick thin|true false|"
    "inside outside|push pull|win lose|start stop|sweet sour|tall tiny|love hate|yes no|"
    "above below|awake asleep|buy sell|cheap expensive|easy difficult|brave afraid|smooth rough"
)
OPPOSITES: dict[str, str] = {
    word: other
    for pair in _PAIRS.split("|")
    for word, other in (pair.split(), reversed(pair.split()))
}

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
    "tenth", "eleventh", "twelfth",
)  # fmt: skip
