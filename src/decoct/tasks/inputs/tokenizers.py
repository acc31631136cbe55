"""Tokenizers of text tasks: trained on the data, or read from a folder; once resolved they hold their own JSON."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from decoct.artifact import Strict, parse_json, read_json
from decoct.data.remember import Remembered
from decoct.errors import DataError, DecoctError, RecipeError, ResourceError
from decoct.models.folders import tokenizer_folder
from decoct.models.hub import snapshot
from decoct.spec import Catalogue, Spec
from decoct.tasks.inputs.wordpiece import train_wordpiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

CATALOGUE = Catalogue(
    "tokenizer",
    {
        "byte_pair": "decoct.tasks.inputs.tokenizers:BytePair",
        "wordpiece": "decoct.tasks.inputs.tokenizers:WordPiece",
        "pretrained": "decoct.tasks.inputs.tokenizers:Pretrained",
    },
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNKNOWN = "[UNK]"
END = "<|end|>"
LONGEST_WORD = 100
MOST_TOKENS = 2**24
"""So many ids a vocabulary may reach: a table of embeddings has a row for each."""

_ENGINES: Remembered[Any] = Remembered()


class Tokenizer(Spec):
    """Turns texts into ids. `text` is the tokenizer's JSON, empty until it is resolved; `padding` its padding token."""

    text: str = ""
    padding: str | None = None

    @abstractmethod
    def resolve(self, texts: Sequence[str]) -> Self:
        """The same tokenizer with `text` and `padding` filled in, trained on `texts` where it is to be trained."""

    def engine(self, max_length: int) -> Engine:
        """The `tokenizers` object, cutting at `max_length` ids, special ones included, and not padding."""
        assert self.text, "a tokenizer that is not resolved"
        return _ENGINES.get(self, max_length, lambda: _engine(self.text, max_length))

    def vocabulary_size(self) -> int:
        """One more than the largest id."""
        largest = max(self.engine(512).get_vocab().values(), default=None)
        if largest is None:
            raise DataError("the tokenizer has no tokens; look at its tokenizer.json")
        if largest >= MOST_TOKENS:
            raise DataError(f"the tokenizer gives a token the id {largest}; allowed: below {MOST_TOKENS}")
        return int(largest) + 1

    def padding_id(self) -> int:
        """The id that fills up short texts."""
        assert self.padding is not None
        found = self.engine(512).token_to_id(self.padding)
        if found is None:
            raise RecipeError(f"padding: {self.padding!r} is no token of the tokenizer; give one of its tokens")
        return int(found)

    def shipped(self, max_length: int) -> str:
        """tokenizer.json that also cuts and pads, as the exported graph expects it."""
        engine = _engine(self.text, max_length)
        engine.enable_padding(pad_id=self.padding_id(), pad_token=self.padding)
        return str(engine.to_str(pretty=False))


class WordPiece(Tokenizer):
    """WordPiece with BERT's rules, trained on the training split: `size` of the vocabulary, `lowercase`.

    The vocabulary depends on the texts alone, not on their order, the machine or the run.
    """

    use: ClassVar[str] = "wordpiece"
    size: int = Field(default=8000, ge=len(SPECIAL) + 1, le=1 << 22)
    lowercase: bool = True

    def resolve(self, texts: Sequence[str]) -> Self:
        if self.text:
            return self
        library = require_tokenizers()
        normalizer = library.normalizers.BertNormalizer(lowercase=self.lowercase)
        splitter = library.pre_tokenizers.BertPreTokenizer()
        words: Counter[str] = Counter()
        for part, count in Counter(part for text in texts for part in text.split(" ")).items():
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(part)):
                words[word] += count
        kept = {word: count for word, count in words.items() if len(word) <= LONGEST_WORD and word not in SPECIAL}
        pieces = [*SPECIAL, *train_wordpiece(kept, self.size - len(SPECIAL))]
        if len(pieces) > self.size:
            raise RecipeError(
                f"tokenizer.size: {self.size} cannot hold the {len(pieces)} characters of the texts; raise it"
            )
        model = library.models.WordPiece(
            {piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD
        )
        engine = library.Tokenizer(model)
        engine.normalizer, engine.pre_tokenizer = normalizer, splitter
        engine.decoder = library.decoders.WordPiece()
        engine.add_special_tokens(list(SPECIAL))
        start, end = engine.token_to_id("[CLS]"), engine.token_to_id("[SEP]")
        engine.post_processor = library.processors.BertProcessing(("[SEP]", end), ("[CLS]", start))
        return self.replace(text=engine.to_str(pretty=False), padding="[PAD]")


class BytePair(Tokenizer):
    """Byte-pair encoding of bytes, trained on the training split: `size` of the vocabulary.

    Every text can be written and read back. A document is closed by the end token, which also fills up. The vocabulary
    depends on the texts alone: pairs are joined by how often they occur, ties by their order. Sennrich et al. 2016,
    arXiv 1508.07909; over bytes: Radford et al. 2019.
    """

    use: ClassVar[str] = "byte_pair"
    size: int = Field(default=8192, ge=257, le=1 << 22)

    def resolve(self, texts: Sequence[str]) -> Self:
        if self.text:
            return self
        library = require_tokenizers()
        engine = library.Tokenizer(library.models.BPE())
        engine.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.size,
            special_tokens=[END],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        engine.train_from_iterator(texts, trainer)
        end = engine.token_to_id(END)
        engine.post_processor = library.processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
        return self.replace(text=engine.to_str(pretty=False), padding=END)


class Pretrained(Tokenizer):
    """The tokenizer of a local folder in the transformers format, or a tokenizer.json itself.

    `path`: the folder or file; or the `name` of a repository on the hub at a `revision`. `padding` is read from
    tokenizer_config.json beside it where it is left out. Without a tokenizer.json it is made of the vocabulary there
    (vocab.txt, and what else transformers reads).
    """

    use: ClassVar[str] = "pretrained"
    path: Path | None = None
    name: str | None = Field(default=None, exclude_if=lambda value: value is None)
    revision: str | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _path_or_name(self) -> Pretrained:
        if (self.path is None) == (self.name is None):
            raise ValueError("give one of path (a local folder or file) and name (of a repository on the hub)")
        return self

    def resolve(self, texts: Sequence[str]) -> Self:
        if self.text:
            return self
        require_tokenizers()
        place = self.path if self.path is not None else snapshot(str(self.name), self.revision)[0]
        file = place / "tokenizer.json" if place.is_dir() else place
        if not file.is_file():
            return self._of_vocabulary(place)
        content = read_json(file, _File, error=DataError)
        text = file.read_text(encoding="utf-8")
        found = self.replace(text=text, padding=self.padding or _padding_token(file.parent, content))
        found.padding_id()
        return found

    def _of_vocabulary(self, folder: Path) -> Self:
        """The same from a folder that holds a vocabulary in a form of its own, read by transformers."""
        absent = DataError(
            f"tokenizer.path={folder}: no tokenizer.json there; write one with "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
        if not folder.is_dir() or tokenizer_folder(folder) is None:
            raise absent
        try:
            from transformers import AutoTokenizer

            made = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            text, padding = str(made.backend_tokenizer.to_str()), made.pad_token
        except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError):
            raise absent from None
        content = parse_json(text, f"the tokenizer of {folder}", _File, error=DataError)
        found = self.replace(text=text, padding=self.padding or padding or _padding_token(folder, content))
        found.padding_id()
        return found


def as_tokenizer(value: Any) -> Any:
    """Plain data for a tokenizer: a name alone is the entry with its defaults."""
    return {"use": value} if isinstance(value, str) else value


def require_tokenizers() -> Any:
    """The `tokenizers` library; ResourceError says how to install it."""
    try:
        import tokenizers
    except ImportError:
        raise ResourceError("text tasks need tokenizers; pip install 'decoct[nlp]'") from None
    return tokenizers


class _Added(Strict):
    content: str = ""


class _Padding(Strict):
    pad_token: str | None = None


class _File(Strict):
    """Shape of tokenizer.json, of what is read of it here."""

    model: dict[str, Any]
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[_Added] = []
    padding: _Padding | None = None


class _Special(Strict):
    """Shape of tokenizer_config.json and special_tokens_map.json."""

    pad_token: str | _Added | None = None


@contextmanager
def working(doing: str) -> Iterator[None]:
    """What the library raises while the body runs, its panics too (they are no Exception), is a DataError."""
    try:
        yield
    except DecoctError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise DataError(f"the tokenizer cannot {doing} ({reason}); look at its tokenizer.json") from None


def encoded(engine: Engine, texts: Sequence[Any], *, words: bool = False) -> list[Any]:
    """What a tokenizer makes of texts, or of lists of words; DataError where it fails."""
    with working("cut these texts into tokens"):
        found: list[Any] = engine.encode_batch(list(texts), is_pretokenized=words)
    return found


def _engine(text: str, max_length: int) -> Engine:
    library = require_tokenizers()
    parse_json(text, "the tokenizer's JSON", _File, error=DataError)
    with working("be made of this JSON"):
        engine = library.Tokenizer.from_str(text)
    engine.no_padding()
    if max_length <= engine.num_special_tokens_to_add(False):
        raise RecipeError(f"max_length: {max_length} leaves no room beside the special tokens; raise it")
    engine.enable_truncation(max_length)
    return engine


def _padding_token(folder: Path, content: dict[str, Any]) -> str:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if file.is_file():
            token = read_json(file, _Special, error=DataError).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    padding = content.get("padding")
    if isinstance(padding, dict) and isinstance(padding.get("pad_token"), str):
        return str(padding["pad_token"])
    added = [each.get("content", "") for each in content.get("added_tokens", [])]
    known = [token for token in ("[PAD]", "<pad>") if token in added]
    if known:
        return known[0]
    raise RecipeError(
        f"tokenizer.padding: {folder} names no padding token; give one of its tokens, as {', '.join(added[:5])}"
    )
