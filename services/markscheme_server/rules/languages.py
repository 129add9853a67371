"""Detect a text's language by its script and its commonest words. Not a trained detector.

A script of one language decides. In a script of several (Latin, Cyrillic, Arabic, Devanagari) the
language decides whose common words are the most frequent.
"""

import re

NAMES = {
    "arabic": "ar",
    "bengali": "bn",
    "bulgarian": "bg",
    "chinese": "zh",
    "dutch": "nl",
    "english": "en",
    "farsi": "fa",
    "finnish": "fi",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "gujarati": "gu",
    "hebrew": "he",
    "hindi": "hi",
    "italian": "it",
    "japanese": "ja",
    "kannada": "kn",
    "korean": "ko",
    "malayalam": "ml",
    "marathi": "mr",
    "nepali": "ne",
    "persian": "fa",
    "polish": "pl",
    "portuguese": "pt",
    "punjabi": "pa",
    "russian": "ru",
    "spanish": "es",
    "swahili": "sw",
    "swedish": "sv",
    "tamil": "ta",
    "telugu": "te",
    "thai": "th",
    "turkish": "tr",
    "ukrainian": "uk",
    "urdu": "ur",
    "vietnamese": "vi",
}
"""English names of the languages, lower case, to ISO 639-1."""

_SCRIPTS = {
    "latin": "A-Za-zÀ-ɏḀ-ỿ",
    "cyrillic": "Ѐ-ӿ",
    "arabic": "؀-ۿݐ-ݿ",
    "devanagari": "ऀ-ॣ०-ॿ",
    "bn": "ঀ-৿",
    "el": "Ͱ-Ͽ",
    "gu": "઀-૿",
    "he": "֐-׿",
    "kn": "ಀ-೿",
    "ko": "가-힣ᄀ-ᇿ",
    "ml": "ഀ-ൿ",
    "pa": "਀-੿",
    "ta": "஀-௿",
    "te": "ఀ-౿",
    "th": "฀-๿",
    "ja": "぀-ヿ",
    "zh": "一-鿿",
}
_LETTERS = {script: re.compile(f"[{members}]") for script, members in _SCRIPTS.items()}

_SHARED_TEXT: dict[str, dict[str, str]] = {
    "latin": {
        "en": "the of and to in is that it for you with on as are be this was have not or your i "
        "we my he she they at by from an me but if so what can will has had his her our their its",
        "de": "der die das und ist nicht ein eine zu den mit sich auf für von dem "
        "es ich wir sie auch",
        "es": "el los las de que y en un una por con no su para es del se lo como más",
        "fi": "ja on ei se että oli hän mutta ovat joka myös kun niin tai minun sen ole olla sinun",
        "fr": "le les des et est un une du que qui dans pour pas sur au avec vous il ce la",
        "it": "il di che è la un una per non con del sono della gli le nel questo anche più ma",
        "nl": "de het een en van is dat niet te op voor met zijn aan er ook je maar om als",
        "pl": "nie się na że jest jak ale po co tak za od dla czy są lub przez oraz być które",
        "pt": "o os as de que e do da em um uma para não com é por mais dos como ao",
        "sv": "och det att i en är som på av för med den till inte om ett jag har de var",
        "sw": "na ya wa kwa ni katika la za cha kuwa hii yake kama hiyo lakini watu pia "
        "huo sana vya",
        "tr": "bir ve bu için ile da de çok ama ne daha gibi en olarak değil kadar var "
        "her sonra ben",
        "vi": "và là của có không được cho một những với các người trong này để đã tôi như khi bạn",
    },
    "cyrillic": {
        "bg": "и на е да се за от не в с си като са ще това по че което му",
        "ru": "и в не на что с он как это по но к из у за от вы мы его для ы",
        "uk": "і в не на що з він як це по але до із у за від ви ми його для та",
    },
    "arabic": {
        "ar": "من في على إلى أن هذا التي الذي عن مع كان لا ما هو هي",
        "fa": "از در به که این را با است آن برای و می یک هم بود شد",
        "ur": "کے میں کی ہے اور سے کا کو نے پر یہ کہ ہیں بھی نہیں",
    },
    "devanagari": {
        "hi": "के में की है और से का को ने पर यह कि हैं भी नहीं एक",
        "mr": "आहे आणि च्या मध्ये ते या हे तो ती आहेत नाही एक की साठी होते होता",
        "ne": "छ र को मा लाई हो छन् गर्न भएको पनि यो एक लागि गर्ने हुन्छ थियो",
    },
}
_SHARED = {
    script: {code: frozenset(text.split()) for code, text in languages.items()}
    for script, languages in _SHARED_TEXT.items()
}
_SPLIT = re.compile(r"[\s.,;:!?\"'“”()\[\]*।،؟-]+")
_READ_CHARACTERS = 20_000
_DOMINANT = 0.6


def language_of(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; ``None`` when it is unclear.

    Reads the first 20,000 characters.
    """
    text = text[:_READ_CHARACTERS]
    counts = {script: len(pattern.findall(text)) for script, pattern in _LETTERS.items()}
    total = sum(counts.values())
    if not total:
        return None
    # Japanese mixes kana with Chinese characters; Chinese has no kana.
    if counts["ja"] and counts["ja"] + counts["zh"] >= _DOMINANT * total:
        return "ja"
    script = max(counts, key=lambda name: counts[name])
    if counts[script] < _DOMINANT * total:
        return None
    return _by_common_words(text, script) if script in _SHARED else script


def _by_common_words(text: str, script: str) -> str | None:
    tokens = _SPLIT.split(text.lower())
    hits = {
        code: sum(token in common for token in tokens) for code, common in _SHARED[script].items()
    }
    best = max(hits, key=lambda code: hits[code])
    return best if hits[best] else None
