"""Word lists that fill the slots of phrasings, and words made up on the spot."""

from random import Random

NAMES = (
    "Ann Ben Carl Dora Eva Finn Gina Hugo Ida Jack Kate Leo Mia Nora Omar Paul Rosa Sam Tina Uma "
    "Vera Will Yara Zoe Alice Bob Clara David Emma Frank Grace Henry Irene John Karen Lucas Maria "
    "Nina Oscar Peter Quinn Robert Sara Thomas Ursula Victor Wendy Xavier Anna Mark Lily Max"
).split()

PETS = "dog cat rabbit horse parrot hamster goat turtle".split()
PET_NAMES = (
    "Rex Luna Bella Milo Coco Daisy Rocky Ruby Toby Lucky Nala Oreo Pepper Shadow Simba Teddy"
).split()
FRUITS = "apple pear plum cherry lemon melon peach mango grape banana orange kiwi fig lime".split()
COLOUR_NAMES = "red blue green yellow orange purple pink black white brown grey".split()
FOODS = "pizza soup bread rice pasta cake cheese salad honey toast noodles pancakes".split()
SPORTS = "tennis football chess swimming running golf hockey rugby skiing rowing".split()
ROOMS = (
    "kitchen garden cellar attic garage library office bedroom hall barn tower shed cupboard"
).split()
THINGS = (
    "key map ring letter hammer lamp coat bag coin clock mirror bottle brush basket ticket "
    "candle camera violin umbrella ladder blanket kettle pencil notebook"
).split()
TOWNS = (
    "Paris London Rome Berlin Madrid Oslo Dublin Cairo Tokyo Lima Havana Athens Vienna Warsaw "
    "Lisbon Helsinki Nairobi Moscow Ottawa Sofia Boston Chicago Milan Geneva Sydney"
).split()

NOUNS = (
    "time year people way day man thing woman life child world school state family student "
    "group country problem hand part place case week company system program question work "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game "
    "line end member law car city name team minute idea kid body back parent face level office "
    "door health person art war history party result change morning reason research girl guy "
    "moment air teacher force education foot boy age policy music market sense nation plan "
    "college interest death course experience effect paper tree stone river mountain forest "
    "island ocean bridge train plane boat ship bicycle truck engine wheel road street window "
    "roof wall floor table chair bed clock watch phone computer screen keyboard radio camera "
    "film song dance picture painting colour shape circle square triangle flower leaf seed root "
    "apple bread butter cheese egg fish meat rice soup sugar salt tea coffee wine beer juice "
    "cake cookie candy dinner lunch breakfast kitchen spoon fork knife plate cup glass bottle "
    "bag box basket hat coat shirt shoe sock dress ring gold silver iron wood cotton wool silk "
    "leather plastic rubber dog cat horse cow sheep goat pig duck chicken bird eagle owl mouse "
    "rabbit fox wolf bear lion tiger elephant monkey snake frog turtle whale shark spider bee "
    "ant butterfly king queen prince princess soldier doctor nurse lawyer farmer baker painter "
    "singer actor writer poet pilot sailor driver captain judge thief ghost witch dragon giant "
    "robot planet moon star sun sky cloud rain snow storm wind fire smoke ice dust sand mud "
    "grass garden farm village castle temple church museum library hospital prison bank shop "
    "hotel theatre stadium airport station harbour beach desert valley cave lake pond winter "
    "summer spring autumn holiday birthday wedding journey adventure mystery secret dream fear "
    "hope love anger joy pain peace freedom truth beauty wisdom courage luck magic science "
    "history physics chemistry biology language grammar poem novel letter message email "
    "password website internet software code loop array bug server network battery cable lamp "
    "mirror pillow blanket candle hammer nail rope ladder bucket shovel wire pipe pump valve "
    "brake ticket wallet coin tax loan salary budget price profit contract election vote "
    "president minister senate treaty army battle weapon bomb virus fever cough headache tooth "
    "bone muscle heart brain lung stomach skin blood vitamin medicine vaccine surgery diet "
    "exercise yoga football tennis chess guitar piano drum violin flute trumpet orchestra "
    "melody rhythm jazz opera ballet"
).split()

ADJECTIVES = (
    "new old big small long short young early late large great little good bad high low public "
    "able best better cheap clean clear cold common cool cute dangerous dark deep dry easy empty "
    "famous fast fat fine flat free fresh full funny gentle hard healthy heavy hot huge hungry "
    "important kind lazy light local lonely loud lucky modern narrow nice noisy normal perfect "
    "polite poor popular pretty proud quick quiet rare ready real rich round sad safe sharp shiny "
    "sick silly simple slow smart soft sour strange strong sweet tall thick thin tiny tired ugly "
    "useful warm weak wet wide wild wise wooden wrong"
).split()

VERBS = (
    "fix clean build paint buy sell cook bake grow plant draw write read teach learn play win "
    "lose find hide break repair move carry lift push open close wash dry cut peel boil fry "
    "store measure weigh count choose order send receive print copy delete install update sort "
    "design test check improve change stop start avoid prevent treat cure train feed catch ride "
    "drive park sail fly climb explore visit leave join sing record film describe explain compare"
).split()

COMMON = tuple(sorted({*NOUNS, *ADJECTIVES, *VERBS, *FRUITS, *FOODS, *THINGS, *ROOMS}))

_ONSETS = (
    *"b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sk sl sm "
    "sn sp st str sw th tr tw wh".split(),
    *("", ""),
)
_NUCLEI = "a e i o u a e i o u ai ea ee ie oa oo ou ow ay y".split()
_CODAS = (
    *"b ck d ff g k l ll m n nd ng nk nt p r rd rk rm rn rt s sh sk ss st t tch th x ld mp".split(),
    *("", "", "", "", "", ""),
)


def pseudo_word(rng: Random, shortest: int = 1, longest: int = 3) -> str:
    """A pronounceable word that is most likely in no dictionary."""
    syllables = rng.randint(shortest, longest)
    word = "".join(
        rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS) for _ in range(syllables)
    )
    return word if len(word) > 1 else word + rng.choice("bdgkmnprst")


def any_word(rng: Random, pseudo: float = 0.3) -> str:
    """A common word, or with probability `pseudo` a made-up one."""
    return pseudo_word(rng) if rng.random() < pseudo else rng.choice(COMMON)


def sentence(rng: Random) -> str:
    """A plain sentence of filler: grammatical, about nothing."""
    noun, other = rng.choice(NOUNS), rng.choice(NOUNS)
    adjective, verb, name = rng.choice(ADJECTIVES), rng.choice(VERBS), rng.choice(NAMES)
    return rng.choice(_SENTENCES).format(
        noun=noun, other=other, adj=adjective, verb=verb, name=name, room=rng.choice(ROOMS)
    )


_SENTENCES = (
    "The {noun} is {adj}.",
    "The {adj} {noun} was near the {other}.",
    "{name} likes to {verb} the {noun}.",
    "There is a {noun} in the {room}.",
    "We had to {verb} the {adj} {noun}.",
    "Nobody saw the {noun} behind the {other}.",
    "{name} has a {adj} {noun} and a {other}.",
    "It was a {adj} day for the {noun}.",
    "They will {verb} the {noun} and the {other}.",
    "A {noun} can be {adj}.",
    "In the {room} they {verb} the {other}.",
    "{name} went home with the {noun}.",
)
