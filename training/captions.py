"""Titles and keywords of public drawings made fit for learning: what says nothing about the picture goes out."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from sfumato.pretrained._colours import COLOURS
from sfumato.pretrained._memory import singular as singular

# What programs, uploaders and themes have written among the keywords of Open Clip Art.
DIRT = re.compile(
    r"^(hash|theme|icons?|clip ?art.*|.* (theme|collection)( .*)?|lemon.*|flat.*|etiquette.*|map ?sym.*|part of .*|"
    r"unsorted|untitled|image|images|drawing|picture|vector|svg|inkscape|sodipodi|open ?clip ?art.*|special|simple|"
    r"magick|mime.?types?|actions?|apps|applications?|filesystems?|devices?|symbols?|signs?|signs and symbols|other|"
    r".*rollandin.*|.*buculei.*|.*@.*|https?:.*|www\..*|bw|b w|black and white|silhouettes?|outline|color|colour|"
    r"remix.*|media|contrib.*|misc.*|networksym|signalflag|roadsigns?|united nations member|bordered|ornamental|"
    r"north america|oceania|subnational|template|design|cartoon|graphic|graphics|object|objects|component|"
    r"[a-z]|.*\d{2,}.*|mac|kawaii|nature|side|tool use)$"
)
PLAIN = {"meats and eggs": "food", "breads and carbs": "food", "bugs": "insect", "homes": "house", "boating": "boat"}

# Open Clip Art's most diligent author titled his drawings in Italian.
ITALIAN = {
    "acquila": "eagle", "aquila": "eagle", "cigni": "swans", "cigno": "swan", "gabbiano": "seagull", "gallo": "rooster",
    "gufo": "owl", "civetta": "owl", "pollo": "chicken", "stormo di uccelli": "flock of birds", "tacchino": "turkey",
    "uccello": "bird", "uccelli": "birds", "cavalletta": "grasshopper", "coccinella": "ladybug",
    "coccinellona": "ladybug",
    "farfalla": "butterfly", "farfalle": "butterflies", "formichina": "ant", "formicona": "ant", "insetto": "insect",
    "libellula": "dragonfly", "lumaca": "snail", "mantide religiosa": "praying mantis", "moschito": "mosquito",
    "zanzara": "mosquito", "ragnetto": "spider", "ragno": "spider", "cani e gatti": "dogs and cats", "dino": "dinosaur",
    "dinosauri": "dinosaurs", "dinosauro": "dinosaur", "paesaggio marino": "seascape", "pescetto": "fish",
    "lucchetto": "padlock", "lucertola": "lizard", "lucertolona": "lizard", "lucertolone": "lizard",
    "antilope": "antelope", "orso": "bear", "leone": "lion", "tigre": "tiger", "tigri": "tigers", "canguro": "kangaroo",
    "coniglio": "rabbit", "elefante": "elephant", "elefantone": "elephant", "cavallo": "horse", "gatto": "cat",
    "gattina": "cat", "gatti": "cats", "pecora": "sheep", "pecorella": "sheep", "agnellini": "lambs",
    "stambecco": "ibex", "topo": "mouse", "toro": "bull", "vacca": "cow", "mucca": "cow", "mucche": "cows",
    "pinguino": "penguin", "ramarro": "lizard", "rana": "frog", "orme sulla neve": "footprints in the snow",
    "tatuaggio": "tattoo", "mobile": "cupboard", "poltrona": "armchair", "sedia": "chair", "tavolo": "table",
    "ombrelloni": "parasols", "casa": "house", "villa": "house", "abitazione": "house", "giardino": "garden",
    "cubo": "cube", "pulsante": "button", "tasto": "key", "finestra": "window", "finestre": "windows",
    "schermo": "screen", "stampante": "printer", "foglio": "sheet of paper", "mondo": "globe",
    "salvagente": "life belt",
    "borsa": "bag", "borsetta": "handbag", "cesto": "basket", "valigie": "suitcases", "libro": "book",
    "casco": "helmet", "cinepresa": "film camera", "macchina fotografica": "camera", "telecamera": "video camera",
    "bottiglia di vino": "wine bottle", "calici": "wine glasses", "lattine di birra": "beer cans",
    "macchina caffe": "coffee machine", "tazza di caffe": "cup of coffee", "teiera": "teapot", "tazza": "cup",
    "posate": "cutlery", "gelato": "ice cream", "torta": "cake", "prugna": "plum", "pera": "pear", "pesca": "peach",
    "fuoco da campeggio": "campfire", "frullatore": "blender", "pomodori": "tomatoes", "aglio": "garlic",
    "pannocchia": "corn cob", "peperoncino": "chili pepper", "ravanello": "radish", "zucca": "pumpkin",
    "calcolatrice": "calculator", "carta": "paper", "cartella": "folder", "cestino": "waste basket",
    "clessidra": "hourglass", "diagramma": "diagram", "fabbrica": "factory", "lana": "wool", "lente": "lens",
    "lettera": "letter", "pinzatrice": "stapler", "puntine": "drawing pins", "forbici": "scissors", "pettine": "comb",
    "telefono": "telephone", "ballerina": "ballet dancer", "dente": "tooth", "donna": "woman", "camicia": "shirt",
    "fata": "fairy", "fatina": "fairy", "nonno": "grandfather", "pattinatrice": "skater", "signore": "gentleman",
    "signorina": "young woman", "subacqueo": "diver", "utente": "user", "utenti": "users", "albero": "tree",
    "mazzo di fiori": "bouquet of flowers", "pacco regalo": "gift", "palloncini": "balloons", "anelli": "rings",
    "televisore": "television", "esperimento": "experiment", "pillole": "pills", "dottore": "doctor",
    "siringa": "syringe", "microscopio": "microscope", "provetta": "test tube", "provette": "test tubes",
    "attenzione": "warning", "orologio": "clock", "portafoglio": "wallet", "binocolo": "binoculars",
    "bussola": "compass", "calamita": "magnet", "chiave": "key", "ferro da stiro": "iron", "lampada": "lamp",
    "mattone": "brick", "ruota dentata": "gear wheel", "pentola": "pot", "secchio": "bucket", "spugna": "sponge",
    "sega": "saw", "cacciavite": "screwdriver", "viti": "screws", "pallone aerestatico": "hot air balloon",
    "bicicletta": "bicycle", "trattore": "tractor", "anatra": "duck", "colombo": "dove", "cornetto": "croissant",
    "uovo": "egg", "ambulanza": "ambulance", "ape": "bee", "asse da stiro": "ironing board",
    "betoniera": "concrete mixer", "biberon": "baby bottle", "blocco ghiaccio": "ice cube", "cammello": "camel",
    "candela": "candle", "carpentiere": "carpenter", "ciuccio": "pacifier", "fattoria": "farm", "fiocco": "bow",
    "foglie": "leaves", "grattacieli": "skyscrapers", "griglia": "grill", "guanti": "gloves",
    "imbianchino": "house painter", "gallina": "hen", "motosega": "chainsaw", "papera": "duck", "pennuto": "bird",
    "principessa": "princess", "ragazza": "girl", "ragazzo": "boy", "rosa": "rose", "tenda": "tent",
    "scala": "ladder", "scatolone": "cardboard box", "serratura": "lock",
    "spaventapasseri": "scarecrow",
    "stetoscopio": "stethoscope", "struzzo": "ostrich", "tavolozza": "palette", "tramezzino": "sandwich",
    "vestito": "dress", "zaino": "backpack", "bianco": "white", "bianchi": "white", "nero": "black", "neri": "black",
    "rosso": "red", "rossa": "red", "verde": "green", "verdi": "green", "giallo": "yellow", "grigio": "grey",
    "grigia": "grey", "arancione": "orange", "arancioni": "orange", "marroni": "brown", "rosse": "red",
}  # fmt: skip
# Words that may stay untranslated beside a known noun; any other makes a translation a guess.
_BESIDE = re.compile(
    r"\b(di|da|del|della|delle|con|col|e|il|la|le|in|al|sul|sulla|nella|per|piccolo|frontale|profilo|semplice|bn|"
    r"stilizzata|contorno|montagna|campagna|figo|cretina|stecchito|incazzato|turbo|notte|spalle|arrotolata|maya|cat|"
    r"butterfly|seduta|bionda|bruna|preferite|mie|valdostano|corsa|sorridente|legno|parete|mano|estiva|grande)\b"
)
_ITALIAN = re.compile(rf"\b({'|'.join(sorted(ITALIAN, key=len, reverse=True))})\b")


def clean_title(title: str, author: str | None = None) -> str:
    """A title in small letters: no file-name style, no author, no number of a series; '' if nothing is left."""
    text = html.unescape(html.unescape(title))
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text)  # RoundPointShovel
    text = re.sub(r"\([^)]*\)|\S+@\S+|https?:\S+", " ", text)
    text = text.replace("_", " ").lower()
    for name in (author or "").lower().split():
        if len(name) > 3:
            text = re.sub(rf"\b{re.escape(name)}\b", " ", text)
    if _is_italian(author):
        text = translated(text)
    text = re.sub(
        r"\b(clip ?art|svg|png|icons?|remix|bw|b&w|by|ganson|lumen design|architetto|francesco ro?)\b", " ", text
    )
    text = re.sub(r"(?<=[a-z])\d+\b|\b\d+(?=\s*$)|\b0\d+\b", " ", text)
    text = re.sub(r"[^\w\s'&,+-]|\s-\s|-+$", " ", text)
    return " ".join(text.split()).strip(" ,&+-'")


def translated(text: str) -> str:
    """An Italian title in English; a text with other words than the known ones stays as it is."""
    plain = re.sub(r"(?<=[a-z])\d+", "", text)
    found = _ITALIAN.findall(plain)
    if not found or re.search(r"[a-z]{4}", _BESIDE.sub(" ", _ITALIAN.sub(" ", plain))):
        return text
    english = [ITALIAN[word] for word in found]
    return " ".join(dict.fromkeys(sorted(english, key=lambda word: word not in COLOURS)))


def clean_keywords(words: Iterable[str], author: str | None = None) -> list[str]:
    """Keywords in small letters without dirt, each once."""
    own = {part for part in (author or "").lower().split() if len(part) > 3}
    found: list[str] = []
    for word in words:
        plain = " ".join(re.sub(r"[_-]", " ", html.unescape(word)).lower().split())
        plain = PLAIN.get(plain, plain)
        if not re.fullmatch(r"[a-z][a-z' ]{1,30}", plain) or DIRT.match(plain) or own & set(plain.split()):
            continue
        found.append(ITALIAN.get(plain, plain) if _is_italian(author) else plain)
    return list(dict.fromkeys(found))


def _is_italian(author: str | None) -> bool:
    return "rollandin" in (author or "").lower()


def segmented(name: str, vocabulary: dict[str, float]) -> str:
    """A name written in one word, such as `birthdaycake`, as its words; '' if it has no such words.

    Args:
        name: small letters.
        vocabulary: words and what each costs.
    """
    best: list[tuple[float, list[str]] | None] = [(0.0, [])]
    for end in range(1, len(name) + 1):
        options = [
            (known[0] + vocabulary[name[start:end]], [*known[1], name[start:end]])
            for start in range(max(0, end - 14), end)
            if (known := best[start]) is not None and name[start:end] in vocabulary
        ]
        best.append(min(options) if options else None)
    found = best[-1]
    return " ".join(found[1]) if found else ""
