"""The words that generated problems are made of."""


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    "Ann Ben Carla David Emma Felix Grace Hugo Ivy Jonas Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor "
    "Wendy Yusuf Zoe Amir Bella Chen Dora Elif Frank Gita Hans Ines"
)
SURNAMES = _words(
    "Adams Baker Costa Diaz Evans Fischer Garcia Hill Ito Jensen Kumar Lopez Meyer Novak Owens Park Quinn "
    "Rossi Silva Tran Ueda Vega Weber Young"
)
CITIES = _words(
    "Lima Oslo Paris Quito Rome Seoul Tokyo Vienna Zurich Cairo Delhi Dublin Geneva Hanoi Kyoto Lagos "
    "Madrid Nairobi Porto Riga Sofia Tunis Warsaw Bergen"
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
THINGS = _words(
    "apples books candles coins cups eggs flowers lemons marbles nuts oranges pears pencils plates "
    "plums rings roses shells spoons stamps stickers stones tickets toys"
)
GOODS = _words(
    "lamps chairs tables clocks mirrors rugs sofas shelves desks benches stools vases bowls baskets "
    "towels pillows blankets curtains brushes buckets"
)
BOXES = ["boxes", "bags", "packs", "jars", "crates"]
WEATHER = ["sunny", "rainy", "cold", "windy", "warm", "foggy"]
LETTERS = "abcdefghkmnpqrstuvwxyz"
FUNCTIONS = _words("run solve scale shift merge apply build check update convert")
FRESH = _words(
    "total count width height price weight speed offset limit index value result first second left right "
    "source target rate size depth score level delta"
)
LISTS = _words("items rows data words nums cells points users")
