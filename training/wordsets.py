"""Which words a drawing may be called by: those of its title and keywords that name something to be seen.

Emoji keywords say what people mean by an emoji ("love", "like"), how Unicode sorts it ("animal mammal") and where it
points; keywords of Open Clip Art say which theme it belongs to. None of that is a caption. Colours are left out too:
they are measured, not learned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from captions import singular

NO_NAMES = """
square photo like black blue red white yellow green orange purple pink brown grey gray gold silver blond
blonde open left right down up lower top bottom middle side above behind over under off back front forward
backward facing backhand toward rightward leftward upward downward horizontal vertical diagonal reverse north
south east west upper northwest intercardinal cardinal lowered raised near far high low inner outer next last
first celebration squared gesture geometric affection meaning japanese chinese cjk unified kanji british
american european mexican asian international spanish indian african french latin arab arabic role
accessibility not work education two one three four five six seven eight nine ten zero evening morning
twilight prohibited forbidden sale good other play large small big tiny closed fast comic adult study
ideograph decoration heavy record point pointing pointed sweet fairy tale evil old new double security festive
ground hot cold sound time law round oldschool legal gender pride romance valentine love entertainment lgbt
alphanum luck activity cooking danger haired negative neutral part drunk prepared wild joy booze tired
schedule playing sparkle math grinning internet award workout astronomy confused simple full running blind bad
build travel read young sweat mute mount concerned network for disability write secret the cool cut learn fun
pair flight file knowledge volume crossed haha depressed caution household protection agree circled bright
event scale out track sleepy presentation privacy frown clean carbohydrate protein bodypart yes dark payment
speech oncoming cook straight mad surprise state exclamation service dizzy creepy medical speed information
quiet input indifference frustrated capital type help empty soft relax hobby death getting explode thought
stat infatuation frowning gesturing vacation farming date drop test skeptical pouting denied covering
unspecified signal gay quarter sunny wip bump idea peace late early awesome gadget compose royal text public
disappointed surprised doubt appicon stock number look see info enforcement wearing scary shot magnifying
locked laugh meh unhappy scared ill thank pray limit wish you environment history playful user proud lesbian
safety thinking silent disbelief blow groom broken single manual sorry excited oop location line loop
experiment fear unwell undead calculation curving free view wide falling fried gambling weight postal bearer
motorized style break trend optical photography digital remove laughing shocked raising entry magical flourish
musicstuff here charge waxing waning delicious piece congratulation pass club warm industrial friend cute
emotion labor hard dot anger done rich save receive brightness silly prank respect smoking access fresh
emergency nut crop leave without graduation winning sing amusement roller formal die slow hear bald
extraterrestrial dream exam quiz economic metric fix create shaking deaf indifferent aid curved cloudy season
stylized collection license showing lunch life probing arrest partying care system call increase chop fortune
outlined islam thirty can election vote relieved phew grumpy rest bowing step skill extinct kneeling
meditation tick ornament together application temperature blowing hit crush standing senior older long
disappear tipping sassy program energy liberty return creativity lol flirt shy pleased sadface worried blank
covid halt apology deeply hush potable hipster kick facepalming exasperation facepalm shrugging ignorance
shrug bouncing accept swirl random multiple holding exchange wireless cancellation disabled speak stuck weary
gasp liquid superpower universal multiplication example opening classical partial birth well decorative find
private error flushed relaxed crazy fearful munch scream drinking hurt meeting doing multitask catch
mediterranean spice respectful kneel serenity offer twisted funny bored smart electronic recycling cartoon
symbol button business communication technology shape body legs beauty stationery recreation fashion accessory
transport transportation equipment hardware appliance medicine health geography geometry punctuation flowchart
desktop index stickmen zodiac astrology warning science festival holiday sleep summer spring winter exercise
party menu gym pleasure human male female men women happy sad angry upset kiss kissing smile smiling smiley
tear teary cry crying sick dead hospitality mail email office school home bwh mime plastik glace unmount linux
tux usb otto gerald illustration contour silhouette restroom wc lavatory trial intention rescue tablewear drag
wow sure think flexing talk talking scene print christma xma xmas sho hag bb ooo lab com and of with his her
its from into this that are but was has have religion symbols mark day night cross place design vector
background frame object objects outline nature fly pet dance race fantasy direction electric creature nervous
construction cell fall steaming bill grin balance corner inbox gnome australia europe spain canada america
york orlean nasa city world walking sailing racing swim golfing curling throwing lifting rowing hiking blush
snack horn lip steam writing silence spiral tropical justice move flying floppy rule border roll sarcasm
prayer cycle cable password sparkling admission worship disco highfive forbid walk boom switch zoom curl
software nursing poison repeat player golden leg saint pole claus surfing physicist degree fishing singing
theater classy gamble outdoor department domestic moo tracking serpent organizing pad delivery disease deploy
carriage metro station crossing custom pregnant knot pick openclipart twister disaster gibbous lucky cheer
clink drama shine hooray army rod tone winner capped progress rise mall spooky meow roar cheeky faithful smell
violence clenched nerdy dork geek rancher assembly maintainer welder coder developer adviser analyst hairless
heaven cupid weird guard emoji pop drip shoot message chatting favorite stack loud incoming refresh linked
screw ballot country smirk xox loo landing gps climbing bouldering position nesting issue cancel multiply okay
level restricted vacancy agreement divide bargain starry gust serve popping group culture myth oink stare
hearing perfect disapprove praise ceo research shrek elderly cutting pulse brand snapchat boring blown
strength increasing growth seat sit directory planning sent religious sync rotate muted broadcast tilted
search burn diy picture clue weep winking wink embarrassed happiness whew shaped smirking smug huh hmmm
scrunched distraught fed omg horror rolling deal favor ignore driving tap taking metal fistbump wedge stand
mage scout belly continue skip previous radiation heading answer then drawn weathersym shaded creation suivre
stripe moustached proprietor mathematician accountant banker tradesperson physician professional healthcare
therapist manager educator instructor professor teller entertainer actor rocker rockstar question stop couple
cog ark christianity hinduism judaism jainism buddhism sikhism dating gown cyclone memo press headline drug
pest label score post elder bath arm lawn wave bumping uber doner link web clip ticking taxicab kissy
meditating basin ecology technologist sideway ginger curly dancing bathing sleeping vacant wizardry xy power
smily zzz non pile clinking embarrassing screaming jewish muslim virgin way pause spicy frozen flat
accommodation athletic
"""
"""What names nothing to be seen: qualities, feelings, directions, themes, colours and the slang of icons."""
STOP = frozenset(NO_NAMES.split())
SORTS = {
    "animal",
    "food",
    "person",
    "face",
    "plant",
    "place",
    "book",
    "transport",
    "clothing",
    "sky",
    "light",
    "sound",
    "other",
}
"""First words of Unicode's names for kinds of emoji, such as "animal mammal"."""

ALIASES = {
    "aeroplane": "airplane", "plane": "airplane", "automobile": "car", "bike": "bicycle", "biking": "bicycle",
    "bicyclist": "cyclist", "biker": "cyclist", "telephone": "phone", "people": "person", "sailboat": "boat",
    "icecream": "ice cream", "tv": "television", "movie": "film", "cinema": "film", "photo camera": "camera",
    "railway": "train", "christmas tree": "christmas", "xmas": "christmas", "sport": "sports", "kitty": "cat",
    "kitten": "cat", "puppy": "dog", "bunny": "rabbit", "pup": "dog", "booze": "alcohol", "beverage": "drink",
    "footwear": "shoe", "apparel": "clothing", "clothe": "clothing", "veg": "vegetable", "notebook": "book",
    "textbook": "book", "baloon": "balloon", "infant": "baby", "kid": "child", "children": "child", "lady": "woman",
    "guy": "man", "mom": "mother", "dad": "father", "fungus": "mushroom", "toadstool": "mushroom",
    "flame": "fire", "pony": "horse", "ox": "cow", "bull": "cow", "smart phone": "phone", "smartphone": "phone",
    "feet": "foot", "teeth": "tooth", "mice": "mouse", "leaves": "leaf", "knives": "knife", "wolves": "wolf",
    "sportsball": "ball", "eyeglasses": "glasses", "spectacles": "glasses", "laptop": "computer", "pc": "computer",
    "hawaii": "beach", "footprint": "foot", "currency": "money", "dollar": "money", "cash": "money",
    "arrowshape": "arrow",
}  # fmt: skip
PLURAL = {"glasses", "sunglasses", "scissors", "sports", "christmas", "trousers", "jeans", "shorts", "headphones"}


KINDS = """
person: man woman boy girl baby child mother father daughter son worker doctor nurse teacher student farmer cyclist
person: dancer artist scientist engineer musician singer astronaut police king queen bride angel cowgirl hairdresser
person: firefighter fireman pilot officer judge detective spy pedestrian passenger runner surfer swimmer golfer athlete
person: climber gardener chef painter mechanic plumber technician architect biologist chemist programmer blogger clerk
person: astronomer cop guardsman barber dentist pupil graduate teenager weightlifter lifter juggler bellhop santa family
animal: mammal bird fish insect reptile rodent arachnid frog snake lizard dinosaur shell crab lobster octopus snail worm
animal: shrimp prawn jellyfish turtle crocodile spider scorpion marsupial dragon whale dolphin shark caterpillar feline
mammal: dog cat horse cow pig sheep goat lion tiger bear monkey elephant mouse rabbit fox panda camel buffalo squirrel
mammal: leopard zebra giraffe deer wolf ram kangaroo koala hamster rat hedgehog bat ape gorilla donkey whale dolphin
bird: duck chicken chick penguin eagle owl parrot turkey dove rooster swan flamingo peacock crow pigeon goose ostrich
insect: butterfly bee ant beetle ladybug mosquito fly bug caterpillar dragonfly cricket
reptile: snake lizard turtle crocodile dinosaur
food: fruit vegetable meat bread cheese dessert rice pizza soup seafood egg sandwich burger noodle spaghetti candy
food: pasta pancake croissant pastry toast taco popcorn dumpling pretzel fry curry kebab
food: bacon beef sausage ham steak salad nut
fruit: apple banana orange pear lemon strawberry grape cherry peach melon watermelon pineapple kiwi mango coconut berry
vegetable: tomato carrot potato onion corn pepper lettuce broccoli cucumber mushroom eggplant pumpkin garlic pea bean
dessert: cake cookie chocolate ice_cream pie doughnut candy lollipop cupcake honey
drink: coffee tea wine beer cocktail milk juice mojito champagne alcohol soda
plant: tree flower leaf grass cactus palm mushroom clover herb evergreen bamboo bush
flower: rose tulip sunflower lotus hibiscus daisy bouquet blossom
tree: evergreen palm pine
vehicle: car bus truck train boat ship airplane bicycle motorcycle tractor taxi ambulance helicopter tram scooter van
vehicle: firetruck trolleybus ferry yacht rocket submarine canoe rowboat motorboat motor wagon locomotive tank jeep
boat: ship ferry yacht rowboat motorboat canoe gondola
clothing: shirt dress hat shoe sock coat jeans trousers glove scarf tie boot kimono swimsuit shorts cap sandal helmet
shoe: boot sandal sneaker
tool: hammer wrench screwdriver axe saw pick knife scissors spanner shovel drill plier brush
instrument: guitar piano violin trumpet drum saxophone banjo accordion harp flute organ
music: instrument guitar piano violin trumpet drum saxophone musical_note headphone banjo accordion harp
building: house church castle factory hospital hotel bank tower temple mosque shop store museum library synagogue
sports: football basketball baseball tennis golf hockey cricket volleyball rugby softball ski soccer billiard archery
ball: football basketball baseball softball volleyball soccer
furniture: chair table bed desk lamp cupboard sofa couch shelf wardrobe
weapon: gun sword knife bomb pistol dagger
""".strip()
"""General words, and those that imply them."""
GENERAL: dict[str, set[str]] = {}
for _line in KINDS.splitlines():
    _general, _, _special = _line.partition(": ")
    for _word in _special.replace("_", "\0").split():
        GENERAL.setdefault(_word.replace("\0", " "), set()).add(_general)


def with_general(words: Iterable[str]) -> list[str]:
    """Words and all that they imply, so that "owl" is not wrongly called when it is called "bird"."""
    found = list(dict.fromkeys(words))
    for word in found:  # grows meanwhile: what is implied implies more
        found += [general for general in sorted(GENERAL.get(word, ())) if general not in found]
    return found


def own_words(row: Mapping[str, Any]) -> list[str]:
    """The words that people gave a pair: those of its title first, then its keywords."""
    title = str(row["title"])
    keywords = row["keywords"]
    if row["category"] == "computer":  # a folder of icons for programs; few show one
        keywords = [word for word in keywords if word != "computer"]
    return names([title, *title.split(), *keywords])


def word_set(row: Mapping[str, Any]) -> list[str]:
    """The words that a pair may be called by: its own, then what they imply."""
    return with_general(own_words(row))


def names(phrases: Iterable[str]) -> list[str]:
    """Phrases of one or two words that are names, normalised, each once."""
    found: list[str] = []
    for phrase in phrases:
        words = re.sub(r"[^a-z ]", "", phrase.lower()).split()
        if not 1 <= len(words) <= 2 or any(word in STOP for word in words) or (len(words) == 2 and words[0] in SORTS):
            continue
        last = words[-1] if words[-1] in PLURAL else ALIASES.get(words[-1], singular(words[-1]))
        if last in STOP or len(last) < 3:
            continue
        name = " ".join((*words[:-1], last))
        found.append(ALIASES.get(name, name))
    return list(dict.fromkeys(found))
